"""The SDK that the `renderers` package imports for annotations is neither loaded nor hidden."""

import subprocess
import sys
from pathlib import Path

import pytest


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.mark.parametrize("renderer", ["qwen3-vl", "template"])
def test_opening_a_model_does_not_load_the_sdk(tiny_model: Path, renderer: str) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from renderers_adapter.adapter import RendererAdapter
        from renderers_adapter.options import RendererOptions
        renderer, directory = sys.argv[1:]
        options = RendererOptions(reasoning_parser="think") if renderer == "template" else None
        RendererAdapter.open(Path(directory), renderer, options)
        print("openai" in sys.modules)
        import openai
        print(openai.AsyncOpenAI.__name__)
        """
    assert run_python(code, renderer, str(tiny_model)).split() == ["False", "AsyncOpenAI"]


def test_a_loaded_sdk_is_the_one_that_the_package_gets() -> None:
    code = """if True:
        import openai
        from renderers_adapter.renderers_package import import_renderers
        print(import_renderers("renderers.client").AsyncOpenAI is openai.AsyncOpenAI)
        """
    assert run_python(code) == "True"
