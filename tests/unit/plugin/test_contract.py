"""The plugin reads the very text that writes the references, and that text needs nothing."""

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


def test_there_is_nothing_else_in_the_contract() -> None:
    assert {path.name for path in CONTRACT.iterdir() if path.name != "__pycache__"} == {"__init__.py", *SHARED}


@pytest.mark.parametrize("path", sorted(CONTRACT.glob("**/*.py")), ids=lambda path: path.name)
def test_the_contract_needs_python_and_nothing_else(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [] if node.level else [node.module or ""]
        else:
            continue
        assert {name.partition(".")[0] for name in named} <= sys.stdlib_module_names


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
    text = (CONTRACT.parent / f"{module}.py").read_text("utf-8")
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    # vLLM decodes base64 with it too.
    assert imported - sys.stdlib_module_names <= {"pybase64"}
