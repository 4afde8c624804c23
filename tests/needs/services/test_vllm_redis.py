"""`configs/vllm_redis.yaml`: several engines, and Redis between worker and trainer.

The engines here are scripted, with the model name of the file. tests/needs/vllm has the tests that need a real vLLM.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from tests.needs.services.redis_server import RedisServer


@pytest.fixture
def deployment(tmp_path: Path, redis_server: RedisServer) -> Iterator[dict[str, str]]:
    """Two engines and a Redis server, as the variables that the file reads."""
    runs = tmp_path / "runs"
    settings = EmbeddedSettings(model_name="policy", allowed_directories=(runs,))
    with ExitStack() as stack:
        engines = [stack.enter_context(EmbeddedServer(settings)) for _ in range(2)]
        yield {"ENGINE_0": engines[0], "ENGINE_1": engines[1], "REDIS": redis_server.url, "RUNS": str(runs)}


def rollout(command: str, deployment: dict[str, str], repository: Path, *more: str) -> str:
    line = [sys.executable, "-m", "rollout", command, str(repository / "configs" / "vllm_redis.yaml"), *more]
    environment = {**os.environ, **deployment}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout


def test_doctor_accepts_the_deployment_and_it_plays(deployment: dict[str, str], repository: Path) -> None:
    doctor_output = rollout("doctor", deployment, repository, "--live")
    assert doctor_output.count("answers token-in, token-out") == 2
    report = json.loads(rollout("run", deployment, repository, "--json", "--set", "tasks.count=2"))
    assert report["rollouts"] == report["trainer"]["trajectories"] == report["status"]["ok"] == 16
    assert report["trainer"]["violations"] == 0
