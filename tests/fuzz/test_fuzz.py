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


def test_no_byte_string_gives_the_decoder_more_than_a_named_error() -> None:
    count = "100000" if os.environ.get("ROLLOUT_TESTS") in ("ci", "full") else "5000"
    script = Path(__file__).with_name("fuzz_codec.py")
    done = subprocess.run([sys.executable, str(script), count], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} strings" in done.stdout
