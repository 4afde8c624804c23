"""`rollout init`: a new environment that runs as it is, from one of the templates in `rollout/templates`."""

import importlib.util
import keyword
import re
import secrets
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from rollout.cli.options import Debug

TemplateName = Literal["chat", "images", "tools", "gym"]

_FILES = (
    ("environment.py", "{}.py", "the environment: what is asked, and what it is worth"),
    ("policy.py", "{}_policy.py", "a script that answers in the place of a model"),
    ("environment.yaml", "{}.yaml", "the configuration; its comments say how to play against vLLM"),
    ("test_environment.py", "test_{}.py", "a test that plays it"),
)
"""The files of a template, what each is called where it is written, and what it is."""


def init(
    name: Annotated[
        Path, typer.Argument(metavar="NAME", help="The new directory, and the environment's name.", show_default=False)
    ],
    template: Annotated[TemplateName, typer.Option(help="What kind of environment to begin with.")] = "chat",
    debug: Debug = False,
) -> None:
    """Write a new environment, with its YAML, a script that answers instead of a model, and a test.

    All of it runs as it is, without a GPU: try it, then change it. The template chat is a game of several turns of
    text; images makes pictures and asks about them; tools lets the model call functions; gym wraps an environment of
    gymnasium (pip install "rollout-rl[gym]").
    """
    from rollout.errors import ConfigurationError

    module = _module_name(name)
    try:
        if name.exists():
            raise ConfigurationError(f"{name} is there already, and stays as it is. Choose another name.")
        if not name.parent.is_dir():
            raise ConfigurationError(f"{name}: there is no directory {name.parent}. Make it first.")
        _write(template, module, name)
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be written: {error.strerror}.") from None
    sys.stdout.write(_next_steps(template, module, name))


def _module_name(name: Path) -> str:
    """Return the name of the environment's module. Raises ConfigurationError if it cannot be one."""
    from rollout.errors import ConfigurationError

    module = name.name.lower().replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module):
        raise ConfigurationError(
            f"{str(name)!r} cannot name a module of Python. Begin with a letter, and use letters, digits, - and _ only."
        )
    if keyword.iskeyword(module):
        raise ConfigurationError(f"{module!r} is a word of Python, and cannot name a module. Choose another name.")
    for taken in (module, f"{module}_policy"):
        spec = importlib.util.find_spec(taken)
        if spec is not None and spec.origin is not None:  # what has no origin is a mere directory, and hides nothing
            raise ConfigurationError(
                f"{taken!r} is already the name of a module ({spec.origin}), which would be imported instead. "
                "Choose another name."
            )
    return module


def _write(template: TemplateName, module: str, directory: Path) -> None:
    """Write all files into a draft of the directory first, so that it appears complete or not at all."""
    package = f"rollout.templates.{template}"
    draft = directory.with_name(f".{directory.name}-{secrets.token_hex(4)}")
    try:
        draft.mkdir()
        for source, target, _ in _FILES:
            text = (Path(__file__).parents[1] / "templates" / template / source).read_text("utf-8")
            text = text.replace(f"{package}.environment", module).replace(f"{package}.policy", f"{module}_policy")
            (draft / target.format(module)).write_text(text.replace(package, module), "utf-8")
        draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _next_steps(template: TemplateName, module: str, directory: Path) -> str:
    files = [(target.format(module), meaning) for _, target, meaning in _FILES]
    install = ('pip install "rollout-rl[gym]"', "installs gymnasium, which is not there")
    steps = [
        *([install] if template == "gym" and importlib.util.find_spec("gymnasium") is None else []),
        (f"cd {shlex.quote(str(directory))}", ""),
        (f"rollout doctor {module}.yaml", "checks it without playing"),
        (f"rollout run {module}.yaml", "plays it"),
        ("rollout inspect runs", "shows the newest run"),
        ("pytest", "runs the test; pip install pytest, if it is not there"),
    ]
    return f"wrote {directory}/\n{_align(files)}next:\n{_align(steps)}"


def _align(rows: list[tuple[str, str]]) -> str:
    width = max(len(left) for left, _ in rows)
    return "".join(f"  {left:<{width}}  {right}".rstrip() + "\n" for left, right in rows)
