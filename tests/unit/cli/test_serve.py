"""`rollout serve`: a process that answers until a signal, and its errors."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from rollout.config.model_directory import BUILTIN_MODELS
from tests.unit.cli.in_process import run_cli


def test_serve_embedded_answers_and_stops_on_a_signal() -> None:
    command = [sys.executable, "-m", "rollout", "serve", "embedded", "builtin:tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        startup_line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "it has no neural network" in startup_line
    assert process.returncode == 0


@pytest.mark.parametrize("model", ["builtin:tiny", str(BUILTIN_MODELS["builtin:tiny"])])
@pytest.mark.parametrize("engine", [("transformers",), ("vllm", "--media", ".")])
def test_a_model_without_weights_needs_the_embedded_engine(engine: tuple[str, ...], model: str) -> None:
    result = run_cli("serve", *engine, model)
    assert result.returncode == 2
    assert f"{model} has no weights, so only `rollout serve embedded` serves it" in result.stderr


def test_serve_refuses_an_api_key_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_KEY", raising=False)
    result = run_cli("serve", "embedded", "--api-key-env", "ENGINE_KEY")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--api-key-env names the environment variable ENGINE_KEY, which is not set" in result.stderr


def test_serve_embedded_prints_the_traceback_of_an_error_of_its_policy(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "class Policy:\n    def answer(self, prompt, images):\n        return {}['dice']\n"
    )
    command = [sys.executable, "-m", "rollout", "serve", "embedded", "--policy", "bad:Policy"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split(" at ")[1].partition(";")[0]
            sampling = {"temperature": 0, "logprobs": 0, "max_tokens": 4}
            request = {"token_ids": [1], "content_parts": [], "sampling_params": sampling}
            answer = httpx.post(f"{url}/inference/v1/generate", json=request)
        finally:
            process.send_signal(signal.SIGTERM)
            _, printed = process.communicate(timeout=20)
    assert (answer.status_code, "KeyError: 'dice'" in answer.json()["error"]["message"]) == (500, True)
    assert "bad.py" in printed
    assert printed.rstrip().endswith("KeyError: 'dice'")
