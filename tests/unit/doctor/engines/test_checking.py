"""The checks of `rollout doctor --live`, with the embedded engine as a good or a wrong engine."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from rollout.config.load import load_config
from rollout.config.model_directory import BUILTIN_MODELS
from rollout.doctor.engines import checking
from rollout.doctor.engines import serving as module
from rollout.doctor.engines.checking import check_engines
from rollout.doctor.engines.under_test import CheckPartlyMade, EngineUnderTest
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.engine.client import EngineClient
from rollout.engine.stand_in import StandInEngine
from rollout.engine.transport import EngineTransport
from rollout.engine.weight_updates import EngineState, NotUpdatable
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def url(runs: Path) -> Iterator[str]:
    with EmbeddedServer(EmbeddedSettings(allowed_directories=(runs,), max_model_len=2048)) as served:
        yield served


@pytest.fixture
def config(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


async def findings(config: Path, url: str, runs: Path, *overrides: str) -> list[CheckResult]:
    keys = [f'engine.urls=["{url}"]', f"run.directory={runs}", "engine.retries=0", *overrides]
    return [finding async for finding in check_engines(load_config(config, keys))]


def verdicts(found: Sequence[CheckResult]) -> dict[str, str]:
    return {finding.subject.rpartition(" ")[2]: finding.status.value for finding in found}


@pytest.mark.parametrize("mode", ["offload", "inline"])
async def test_a_good_engine_has_no_problem(config: Path, url: str, runs: Path, mode: str) -> None:
    found = await findings(config, url, runs, f"images.mode={mode}")
    # The scripted engine has no tokenizer and does not render.
    assert verdicts(found) == {
        "model": "ok",
        "weights": "ok",
        "tokens": "nothing",
        "rendering": "nothing",
        "endpoint": "ok",
        "images": "ok",
        "pixels": "nothing",
    }
    messages = {finding.subject.rpartition(" ")[2]: finding.message for finding in found}
    assert "2048" in messages["model"]
    assert "can be replaced" in messages["weights"]
    assert ("file://" if mode == "offload" else "data:") in messages["images"]
    assert os.listdir(runs) == []


async def test_an_engine_without_a_context_length_is_no_problem() -> None:
    async def list_models(url: str, body: bytes) -> tuple[int, bytes]:
        return 200, b'{"data": [{"id": "tiny"}]}'

    server = StandInEngine(list_models)
    async with EngineClient(["http://engine"], "tiny", timeout=5, transport=server) as client:
        unused: Any = None
        engine = EngineUnderTest("http://engine", unused, unused, server, client, unused, unused)
        assert await module.check_model(engine) == "serves tiny; it does not report the length of its context"


async def test_an_engine_that_cannot_be_reached_gets_the_command_that_starts_it(config: Path, runs: Path) -> None:
    (found,) = await findings(config, "http://127.0.0.1:1", runs)
    assert found.status is CheckStatus.BAD
    assert found.fix == "start it: rollout serve embedded --name tiny-qwen3-vl --port 1"


async def test_the_command_for_a_checkpoint_starts_vllm(config: Path, runs: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(BUILTIN_MODELS["builtin:tiny"], checkpoint)
    (found,) = await findings(config, "http://127.0.0.1:1", runs, f"model.path={checkpoint}")
    assert found.fix == f"start it: rollout serve vllm {checkpoint} --name tiny-qwen3-vl --port 1 --media {runs}"


async def test_the_served_model_is_named_if_it_is_another_one(config: Path, url: str, runs: Path) -> None:
    (found,) = await findings(config, url, runs, "model.name=other")
    assert found.status is CheckStatus.BAD
    assert "it serves tiny-qwen3-vl" in found.message


async def test_a_paused_engine_is_a_problem(config: Path, url: str, runs: Path) -> None:
    async with httpx.AsyncClient() as client:
        await client.post(f"{url}/pause?mode=keep")
    *_, found = await findings(config, url, runs)
    assert verdicts([found]) == {"weights": "bad"}
    assert found.fix is not None
    assert "rollout policy push" in found.fix


async def test_weights_that_cannot_be_replaced_are_a_problem_if_versions_are_expected(
    config: Path, url: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(transport: EngineTransport, url: str) -> EngineState:
        raise NotUpdatable(f"{url} cannot load new weights. Start vLLM with VLLM_SERVER_DEV_MODE=1.")

    monkeypatch.setattr(module, "fetch_engine_state", refuse)
    unpaced = await findings(config, url, runs)
    assert verdicts(unpaced)["weights"] == "ok"
    assert "VLLM_SERVER_DEV_MODE=1" in unpaced[1].message
    *_, found = await findings(config, url, runs, "policy.max_staleness=1")
    assert verdicts([found]) == {"weights": "bad"}


async def test_adapters_are_unknown_if_the_engine_does_not_describe_itself_in_time(
    config: Path, url: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(transport: EngineTransport, url: str) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(module, "fetch_adapter_support", hang)
    monkeypatch.setattr(module, "_ADAPTERS_TIMEOUT", 0.05)
    weights = (await findings(config, url, runs))[1]
    assert weights.status is CheckStatus.OK
    assert "whether LoRA adapters can be loaded is unknown" in weights.message


async def test_a_check_that_is_only_partly_made_is_unknown() -> None:
    async def check_a_part(engine: EngineUnderTest) -> str:
        raise CheckPartlyMade("the same ids. The texts were not compared")

    engine: Any = None
    result = await checking._make_check(engine, "tokens", check_a_part, lambda engine, error: None)
    assert result.status is CheckStatus.UNKNOWN
    assert result.message == "only partly checked: the same ids. The texts were not compared"


async def test_image_files_that_the_engine_may_not_read_are_a_problem(config: Path, url: str, tmp_path: Path) -> None:
    *_, found = await findings(config, url, tmp_path / "elsewhere")
    assert verdicts([found]) == {"images": "bad"}
    assert found.fix is not None
    assert "--allowed-local-media-path" in found.fix


async def test_another_processor_configuration_is_a_problem(
    config: Path, url: str, runs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "model")
    processor = json.loads((other / "preprocessor_config.json").read_text())
    processor["size"]["shortest_edge"] = 4096
    (other / "preprocessor_config.json").write_text(json.dumps(processor))
    *_, found = await findings(config, url, runs, f"model.path={other}")
    assert verdicts([found]) == {"images": "bad"}
    assert "the engine saw another prompt" in found.message
    assert found.fix is not None
    assert found.fix.startswith("set model.path to the directory of the checkpoint that the engine serves")


async def test_a_configuration_without_engine_urls_is_no_problem(config: Path) -> None:
    (found,) = [finding async for finding in check_engines(load_config(config))]
    assert found.status is CheckStatus.NOTHING


class FailingPolicy:
    """Makes the embedded engine answer with 500."""

    def answer(self, prompt: str, images: object) -> object:
        raise ValueError("no colours left")


async def test_an_engine_that_fails_is_reported_with_its_own_text(config: Path, runs: Path) -> None:
    policy = f"{FailingPolicy.__module__}:FailingPolicy"
    with EmbeddedServer(EmbeddedSettings(policy=policy, allowed_directories=(runs,))) as url:
        found = await findings(config, url, runs)
    assert found[-1].status is CheckStatus.BAD
    assert found[-1].message.startswith(
        f"the engine at {url}/inference/v1/generate answered with status 500: The scripted policy"
    )
    assert "ValueError: no colours left" in found[-1].message
    assert found[-1].fix == "read the engine's log, because the engine failed while it handled the request"


async def test_a_model_without_weights_has_no_forward_pass(config: Path, url: str, runs: Path) -> None:
    keys = [f'engine.urls=["{url}"]', f"run.directory={runs}"]
    *_, found = [finding async for finding in check_engines(load_config(config, keys), forward=True)]
    assert verdicts([found]) == {"forward": "nothing"}
    assert "has no weights" in found.message


async def test_a_directory_of_runs_that_cannot_be_made_is_one_bad_line(config: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = await findings(config, url, tmp_path / "file" / "runs")
    assert (found.subject, found.status) == ("engines", CheckStatus.BAD)
    assert "cannot be created" in found.message
