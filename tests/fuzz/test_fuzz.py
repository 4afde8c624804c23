"""A small part of each fuzz script on every run; the scripts run whole with `--count`."""

import os
import subprocess
import sys
from pathlib import Path

FULL = os.environ.get("ROLLOUT_TESTS") == "full"


def test_no_mutated_image_is_misread() -> None:
    count = "20000" if FULL else "1000"
    script = Path(__file__).with_name("fuzz_images.py")
    done = subprocess.run([sys.executable, str(script), "--count", count], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"cases {count}" in done.stdout
