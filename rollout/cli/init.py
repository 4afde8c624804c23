"""`rollout init`: writes a new environment from one of the templates in `rollout/templates`."""

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

TemplateName = Literal["chat", "images", "tools", "agent", "gym"]

_FILES = (
    ("environment.py", "{}.py", "the environment: its questions and rewards"),
    ("policy.py", "{}_policy.py", "a script that answers instead of a model"),
    ("environment.yaml", "{}.yaml", "the configuration; its comments say how to play against vLLM"),
    ("test_environment.py", "test_{}.py", "a test that plays it"),
)
"""The files of a template whose environment is a class."""
_AGENT_FILES = (
    ("program.py", "{}_program.py", "the program; replace it by yours"),
    ("environment.py", "{}.py", "the score of what the program did"),
    ("tasks.jsonl", "{}.jsonl", "the tasks: questions, and what is needed to score the answers"),
    *_FILES[1:],
)
"""The files of the template agent."""


def init(
    name: Annotated[
        Path, typer.Argument(metavar="NAME", help="The new directory, and the environment's name.", show_default=False)
    ],
    template: Annotated[TemplateName, typer.Option(help="The kind of environment to start with.")] = "chat",
    debug: Debug = False,
) -> None:
    """Write a new environment, with its YAML, a script that answers instead of a model, and a test.

    Everything runs without a GPU: try it, then change it. Template chat is a game with several turns of text. Template
    images draws pictures and asks about them. Template tools lets the model call functions. Template agent runs a
    program that calls the model over HTTP. Template gym wraps an environment of gymnasium
    (pip install "rollout-rl[gym]").
    """
    from rollout.errors import ConfigurationError

    module = _module_name(name)
    try:
        if name.exists():
            raise ConfigurationError(f"{name} already exists, and is not changed. Choose another name.")
        if not name.parent.is_dir():
            raise ConfigurationError(f"{name}: there is no directory {name.parent}. Create it first.")
        _write(template, module, name)
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be written: {error.strerror}.") from None
    sys.stdout.write(_next_steps(template, module, name))


def _module_name(name: Path) -> str:
    """Return the name of the environment's module. Raises ConfigurationError if the name is not valid or is taken."""
    from rollout.errors import ConfigurationError

    module = name.name.lower().replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module):
        raise ConfigurationError(
            f"{str(name)!r} is not a valid name for a Python module. Begin with a letter; use only letters, digits, - "
            "and _."
        )
    if keyword.iskeyword(module):
        raise ConfigurationError(f"{module!r} is a keyword of Python, so it cannot name a module. Choose another name.")
    for module_name in (module, f"{module}_policy"):
        spec = importlib.util.find_spec(module_name)
        if spec is not None and spec.origin is not None:  # a directory has no origin, and hides no module
            raise ConfigurationError(
                f"{module_name!r} is already the name of a module ({spec.origin}), which would be imported instead. "
                "Choose another name."
            )
    return module


def _write(template: TemplateName, module: str, directory: Path) -> None:
    """Write the files into a draft directory, and rename it, so that the new directory is always complete."""
    package = f"rollout.templates.{template}"
    draft = directory.with_name(f".{directory.name}-{secrets.token_hex(4)}")
    try:
        draft.mkdir()
        for source, target, _ in _files_of(template):
            text = (Path(__file__).parents[1] / "templates" / template / source).read_text("utf-8")
            text = text.replace(f"{package}.environment", module).replace(f"{package}.policy", f"{module}_policy")
            (draft / target.format(module)).write_text(text.replace(package, module), "utf-8")
        draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _files_of(template: TemplateName) -> tuple[tuple[str, str, str], ...]:
    """Return the files of a template, the name of each in the new directory, and what it contains."""
    return _AGENT_FILES if template == "agent" else _FILES


def _next_steps(template: TemplateName, module: str, directory: Path) -> str:
    files = [(target.format(module), meaning) for _, target, meaning in _files_of(template)]
    install = ('pip install "rollout-rl[gym]"', "installs gymnasium, which is missing")
    steps = [
        *([install] if template == "gym" and importlib.util.find_spec("gymnasium") is None else []),
        (f"cd {shlex.quote(str(directory))}", ""),
        (f"rollout doctor {module}.yaml", "checks it without playing"),
        (f"rollout run {module}.yaml", "plays it"),
        ("rollout inspect runs", "shows the newest run"),
        ("pytest", "runs the test; pip install pytest, if it is missing"),
    ]
    return f"wrote {directory}/\n{_align(files)}next:\n{_align(steps)}"


def _align(rows: list[tuple[str, str]]) -> str:
    width = max(len(left) for left, _ in rows)
    return "".join(f"  {left:<{width}}  {right}".rstrip() + "\n" for left, right in rows)
