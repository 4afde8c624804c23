"""Fixtures that many tests use: the small model that we ship, its adapter, a small disk, and files to write."""

import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import orjson
import pytest
import structlog
from hypothesis import settings

from renderers_adapter.adapter import RendererAdapter

# Every run tries the same examples, and a slow machine fails no test.
settings.register_profile("rollout", deadline=None, derandomize=True)
settings.load_profile("rollout")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def default_log() -> Iterator[None]:
    """Ends each test with the default log, because commands and workers configure it."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return ROOT / "rollout" / "serving" / "tiny_qwen3_vl"


@pytest.fixture(scope="session")
def adapter(tiny_model: Path) -> RendererAdapter:
    return RendererAdapter.open(tiny_model, "qwen3-vl")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of the given size ("64k") for one test. Needs root."""
    disk = tmp_path / "disk"
    with ExitStack() as stack:

        def mount(size: str) -> Path:
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
            stack.callback(subprocess.run, ["umount", str(disk)], check=True)
            return disk

        yield mount


@pytest.fixture(scope="session")
def write_weights() -> Callable[..., None]:
    """Writes a safetensors file with the given shapes, in float32, all zero."""

    def write(directory: Path, shapes: Mapping[str, tuple[int, ...]], name: str = "model.safetensors") -> None:
        header, end = {}, 0
        for tensor, shape in shapes.items():
            begin, end = end, end + 4 * int(np.prod(shape))
            header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        header_bytes = orjson.dumps(header)
        (directory / name).write_bytes(struct.pack("<Q", len(header_bytes)) + header_bytes + bytes(end))

    return write


@pytest.fixture
def one_line_environment(tmp_path: Path) -> Callable[[str], str]:
    """Writes an environment whose `run` is the given statement, and its YAML; returns the path of the YAML."""
    module = tmp_path.name  # a new name for each test: the directories of earlier tests are still on sys.path

    def write(statement: str) -> str:
        (tmp_path / f"{module}.py").write_text(
            "from rollout import Environment\n"
            "class OneLine(Environment):\n"
            f"    async def run(self, task, model): {statement}\n"
        )
        path = tmp_path / "one_line.yaml"
        path.write_text(
            f"environment: {{class: '{module}:OneLine'}}\ntasks: {{count: 1}}\n"
            f"model: {{name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}}\n"
        )
        return str(path)

    return write
