"""The shipped configurations play against vLLM on a CPU, although they have a seed, which can end it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rollout.engine.adapters import LOAD_VARIABLE, LORA_FLAG, fetch_adapter_support
from rollout.engine.httpx_transport import HttpxTransport
from rollout.engine.seeds import find_seed_problem
from tests.needs.vllm.servers import MODEL


@pytest.mark.parametrize("name", ["color_codeword", "calculator"])
def test_a_shipped_configuration_plays_with_the_keys_that_the_readme_names(
    fleet: Mapping[str, Any], media: Path, tmp_path: Path, repository: Path, name: str
) -> None:
    """The file is beside a directory `runs` that the server reads, as in a checkout where both are started."""
    live = fleet["qwen3-vl"]
    config = media / tmp_path.name / "configs" / f"{name}.yaml"
    config.parent.mkdir(parents=True)
    shutil.copy(repository / "configs" / config.name, config)
    keys = [
        f'engine.urls=["{live.url}"]',
        f"model.name={MODEL}",
        f"model.path={live.model_dir}",
        f"model.renderer={live.renderer}",
        "tasks.count=8",  # 32 rollouts at the same time; vLLM then computes some of their prompts in parts
    ]
    command = [sys.executable, "-m", "rollout", "run", str(config), "--json"]
    command += [part for key in keys for part in ("--set", key)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["status"] == {"ok": 32}
    (log,) = (config.parents[1] / "runs").glob("*/log.jsonl")
    assert log.read_text().count("requests are sent without their seed") == 1
    with live.http() as server:
        assert server.get("/health").status_code == 200


class _WithoutDevelopmentMode(HttpxTransport):
    async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
        if "/server_info" in url:
            return 404, b""
        return await super().send(method, url, body, session_id=session_id)


@pytest.mark.parametrize(
    ("transport", "source"), [(HttpxTransport, "/server_info"), (_WithoutDevelopmentMode, "/metrics")]
)
@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
async def test_a_server_on_a_cpu_is_known(
    fleet: Mapping[str, Any], family: str, transport: type[HttpxTransport], source: str
) -> None:
    live = fleet[family]
    async with transport(live.api_key) as opened:
        problem = await find_seed_problem(opened, live.url)
    assert problem is not None
    assert problem.startswith(source)


async def test_a_server_without_adapters_says_what_it_lacks(fleet: Mapping[str, Any]) -> None:
    live = fleet["qwen2.5-vl"]
    async with HttpxTransport(live.api_key) as transport:
        support = await fetch_adapter_support(transport, live.url)
    assert (support.can_load, support.missing) == (False, (LOAD_VARIABLE, LORA_FLAG))
