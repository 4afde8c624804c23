"""The example of a third-party transport is installed as a package; its entry point is found, and its tests pass."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "third_party_transport"


def test_an_installed_package_brings_a_transport_that_keeps_the_contract(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(EXAMPLE)]
    subprocess.run(install, check=True)
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(EXAMPLE),
        str(EXAMPLE / "tests"),
    ]
    found = subprocess.run(
        tests,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "passed" in found.stdout
