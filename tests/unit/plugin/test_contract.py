"""The plugin uses the same source files that write the references, and they import only the standard library."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CONTRACT = ROOT / "plugins" / "vllm" / "src" / "rollout_vllm" / "contract"
SHARED = ("errors.py", "refs.py", "descriptors.py", "data_uris.py", "decoding_memory.py", "geometry")


@pytest.mark.parametrize("name", SHARED)
def test_the_contract_is_a_link_and_not_a_copy(name: str) -> None:
    link = CONTRACT / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / "renderers_adapter" / name
    assert not link.readlink().is_absolute()


def test_the_contract_has_no_other_file() -> None:
    assert {path.name for path in CONTRACT.iterdir() if path.name != "__pycache__"} == {"__init__.py", *SHARED}


def imported_packages(path: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import():
                names += [alias.name for alias in node.names]
            case ast.ImportFrom(level=0):
                names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", sorted(CONTRACT.glob("**/*.py")), ids=lambda path: path.name)
def test_the_contract_imports_only_the_standard_library(path: Path) -> None:
    assert imported_packages(path) <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "module",
    [
        "encoded_image",
        "errors",
        "files",
        "hash_registry",
        "image_config",
        "image_items",
        "references",
        "resolver",
        "single_flight",
    ],
)
def test_the_rules_do_not_import_vllm(module: str) -> None:
    # vLLM decodes base64 with pybase64, too.
    assert imported_packages(CONTRACT.parent / f"{module}.py") - sys.stdlib_module_names <= {"pybase64"}
