"""`rollout serve` as its user meets it: a process that answers until a signal."""

import signal
import subprocess
import sys
import time
from pathlib import Path


def test_serve_embedded_answers_and_stops_on_a_signal(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "rollout", "serve", "embedded", str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        startup_line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "no neural network is inside" in startup_line
    assert process.returncode == 0
