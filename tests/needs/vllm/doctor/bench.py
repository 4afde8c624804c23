"""A set-up that a test breaks, checks with `rollout doctor --live`, and repairs as doctor says."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from rollout.config.load import load_config
from rollout.config.source import ConfigFileError
from rollout.doctor.checks import run_checks
from rollout.doctor.results import CheckResult, CheckStatus

_KEY_VARIABLE = "ENGINE_KEY_OF_THE_TESTS"
_SET_KEY = re.compile(r"[Ss]et (?P<key>[a-z_]+\.[a-z_]+)(?: to|:) (?P<value>[^\s,;]+)")


@dataclass(slots=True)
class Bench:
    """The configuration of a run against a real server.

    Attributes:
        live: the server.
        config: the YAML file.
        settings: the keys that are set, by name.
        media: the directory of the runs, which the server may read.
        directory: a directory of the test, which the server may not read.
        monkeypatch: changes environment variables.
        make_checkpoint: makes a checkpoint of a family with other weights.
    """

    live: Any
    config: Path
    settings: dict[str, Any]
    media: Path
    directory: Path
    monkeypatch: pytest.MonkeyPatch
    make_checkpoint: Callable[..., Path]
    copies: int = field(default=0)

    def set(self, **settings: Any) -> None:
        """Set keys of the YAML; `model__path` is `model.path`."""
        self.settings |= {name.replace("__", "."): value for name, value in settings.items()}

    def use_key(self) -> None:
        """Name a variable with the server's key, if the server asks for one."""
        if self.live.api_key is not None:
            self.monkeypatch.setenv(_KEY_VARIABLE, self.live.api_key)
            self.set(engine__api_key_env=_KEY_VARIABLE)

    def copy_checkpoint(self) -> Path:
        """Use a copy of the server's checkpoint, and return its directory."""
        self.copies += 1
        copy = self.directory / f"copy-{self.copies}"
        shutil.copytree(self.live.model_dir, copy)
        self.set(model__path=copy)
        return copy

    def edit_json(self, name: str, edit: Callable[[Any], object]) -> None:
        """Use a copy of the server's checkpoint in which a JSON file is changed."""
        path = self.copy_checkpoint() / name
        value = json.loads(path.read_text("utf-8"))
        edit(value)
        path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")

    def geometry(self) -> tuple[int, ...]:
        """Return the number of tokens of an image and of the vocabulary."""
        adapter = RendererAdapter.open(self.live.model_dir, self.live.renderer)
        assert adapter.geometry is not None
        layout = adapter.geometry.layout(width=1000, height=700)
        return (layout.tokens, *layout.grid[1:], adapter.tokenizer.vocab_size)

    def overrides(self) -> list[str]:
        """Return the settings as options of the command line."""
        return [f"{key}={json.dumps(value, default=str)}" for key, value in self.settings.items()]

    def check(self, *, forward: bool = False) -> list[CheckResult]:
        """Run all checks, and return their results."""
        try:
            config = load_config(self.config, self.overrides())
        except ConfigFileError as error:
            return [CheckResult("file", str(error), CheckStatus.BAD, is_configuration_error=True)]
        return run_checks(config, live=True, forward=forward)

    def follow(self, fix: str) -> None:
        """Set the key that a fix names last, to the value that it names."""
        named = list(_SET_KEY.finditer(fix))
        assert named, f"this fix names no key and value: {fix}"
        self.settings[named[-1]["key"]] = named[-1]["value"]


def problems(results: Sequence[CheckResult]) -> list[CheckResult]:
    """Return the results that blame something, or that say that a check was not made."""
    return [result for result in results if result.status in (CheckStatus.BAD, CheckStatus.UNKNOWN)]


def unused_port() -> int:
    """Return a port at which no server listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
