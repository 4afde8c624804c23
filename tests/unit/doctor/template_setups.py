"""Set-ups with the renderer `template`, and what doctor says about them."""

import json
from collections.abc import Sequence
from pathlib import Path

from rollout.config.load import Config, load_config
from rollout.doctor.checks import run_checks
from rollout.doctor.results import CheckResult
from tests.chat_families.families import FAMILIES, write_checkpoint

CONFIGS = Path(__file__).parents[3] / "configs"
CHAT = "class Chat(Environment):\n    async def run(self, task, model):\n        {body}\n"
"""An environment whose class declares no tools."""
ONE_QUESTION = "await model.chat([{'role': 'user', 'content': 'Hello?'}])"


def with_template(directory: Path, source: str, settings: Sequence[str] = ()) -> Config:
    """Load a configuration without tools whose template has this source."""
    file = directory / "chat.jinja"
    file.write_text(source, "utf-8")
    return load_config(
        write_environment(directory, ONE_QUESTION),
        ["model.renderer=template", f"model.template.file={file}", *settings],
    )


def write_environment(directory: Path, body: str, more: str = "") -> Path:
    """Write an environment with this body of `run`, and more lines of its class; return the YAML."""
    module = f"chat_{directory.name.lower().replace('-', '_')}"
    (directory / f"{module}.py").write_text(f"from rollout import Environment\n{CHAT.format(body=body)}{more}", "utf-8")
    config = directory / "chat.yaml"
    config.write_text(
        f"environment: {{class: '{module}:Chat'}}\n"
        "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
        f"run: {{directory: '{directory}/runs'}}\n",
        "utf-8",
    )
    return config


def of_family(
    name: str, config: Path, directory: Path, settings: Sequence[str] = (), *, parsers: bool = True
) -> Config:
    """Load a configuration with the tiny checkpoint of a family, its arguments and its parsers."""
    family = FAMILIES[name]
    given = ["model.renderer=template", f"model.path={write_checkpoint(family, directory / 'model')}"]
    given += [f"model.template.{key}={json.dumps(value)}" for key, value in family.options.template.items()]
    if parsers and family.options.tool_parser:
        given.append(f"model.tool_parser={family.options.tool_parser}")
    if parsers and family.options.reasoning_parser:
        given.append(f"model.reasoning_parser={family.options.reasoning_parser}")
    return load_config(config, [*given, *settings])


def result_of(subject: str, config: Config, *, live: bool = False) -> CheckResult:
    """Check a configuration, and return the result of one check."""
    (found,) = [result for result in run_checks(config, live=live) if result.subject == subject]
    return found
