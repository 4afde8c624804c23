"""The trainer's pixels are the engine's, bit for bit. Compared where torch and torchvision are: beside vLLM."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rollout.parity import probes
from rollout.serving.vllm import SHIM

COMPARE = """
import anyio, dataclasses, json, sys
from pathlib import Path
from renderers_adapter.adapter import load_processor_config
from rollout.engine.http import EngineHttp
from rollout.parity import compare

async def main(url, model, key):
    config = load_processor_config(Path(model))
    async with EngineHttp(key or None) as http:
        parity = await compare(http, url, model="tiny", config=config, family="qwen_vl")
    print(json.dumps([parity.proven, parity.told(), [dataclasses.asdict(one) for one in parity.differences]]))

anyio.run(main, *sys.argv[1:])
"""


@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
def test_every_probe_gives_the_same_patches(fleet: Mapping[str, Any], repository: Path, family: str) -> None:
    live = fleet[family]
    python = f"{os.environ['ROLLOUT_VLLM_VENV']}/bin/python"
    command = [python, "-W", "ignore", "-c", COMPARE, live.url, str(live.model_dir), live.api_key or ""]
    environment = {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{SHIM}"}
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE)
    proven, told, differences = json.loads(done.stdout)
    assert proven == "torchvision", told
    assert [one["probe"] for one in differences if one["backend"] == proven] == [probe.name for probe in probes()]
    assert "the trainer with pil would not" in told
