"""One YAML per environment, read into frozen models; unknown keys are refused, with the nearest name.

The sections `environment` and `tasks` are checked by the environment's own `Settings` and `Tasks`, so that a user's
keys are as strict as ours.
"""

import difflib
import hashlib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from rollout.config.sections import (
    EngineConfig,
    ImagesConfig,
    MetricsConfig,
    ModelConfig,
    PolicyConfig,
    QueueConfig,
    RunSection,
    Section,
    WorkerConfig,
)
from rollout.config.source import ConfigError, ConfigSource, KeyPath, read_source
from rollout.environments.base import Environment, EnvironmentSettings, TaskSettings


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration."""

    source: str
    environment_path: str
    environment: type[Environment]
    settings: EnvironmentSettings
    tasks: TaskSettings
    model: ModelConfig
    engine: EngineConfig
    images: ImagesConfig
    queue: QueueConfig
    worker: WorkerConfig
    policy: PolicyConfig
    metrics: MetricsConfig
    run: RunSection

    def new_environment(self) -> Environment:
        """A fresh environment; every attempt at a rollout gets one of its own."""
        return self.environment(self.settings)

    def dump(self) -> dict[str, Any]:
        """Everything that was resolved, defaults included, as the YAML would say it."""
        environment = {"class": self.environment_path, **self.settings.model_dump(mode="json")}
        rest = {name: getattr(self, name).model_dump(mode="json") for name in ("tasks", *_SECTIONS)}
        return {"environment": environment, **rest}

    def digest(self) -> str:
        """Names what is played and how, the same on every machine: without paths, addresses and the run's own name."""
        told = {key: value for key, value in self.dump().items() if key not in ("run", "queue", "metrics")}
        for section, key in (("model", "path"), ("images", "allow"), ("engine", "urls")):
            told[section].pop(key)
        if source := self.tasks.source:
            told["tasks"]["source"] = Path(source).name if Path(source).is_absolute() else source
        return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


_SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "engine": EngineConfig,
    "images": ImagesConfig,
    "queue": QueueConfig,
    "worker": WorkerConfig,
    "policy": PolicyConfig,
    "metrics": MetricsConfig,
    "run": RunSection,
}
_M = TypeVar("_M", bound=BaseModel)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a file.

    Raises:
        ConfigError: with a line for everything that is wrong.
    """
    return _Checker(read_source(path, overrides)).config()


class _Checker:
    def __init__(self, source: ConfigSource) -> None:
        self._source = source
        self._faults: list[str] = []

    def config(self) -> Config:
        data = self._source.data
        known = ("environment", "tasks", *_SECTIONS)
        for name in data:
            if name not in known:
                self._fault((name,), f"unknown section{_nearest(name, known)}")
        class_path, environment = self._environment_class()
        settings_model = environment.Settings if environment else None
        tasks_model = environment.Tasks if environment else None
        settings = self._section(settings_model, "environment", without=("class",))
        tasks = self._section(tasks_model, "tasks")
        sections = {name: self._section(model, name) for name, model in _SECTIONS.items()}
        if self._faults:
            raise ConfigError("\n".join(self._faults))
        return Config(self._source.name, class_path, environment, settings, tasks, **sections)  # type: ignore[arg-type]

    def _environment_class(self) -> tuple[str, type[Environment] | None]:
        section = self._source.data.get("environment")
        named = section.get("class") if isinstance(section, dict) else None
        where: KeyPath = ("environment", "class")
        if not isinstance(named, str) or named.count(":") != 1:
            self._fault(where, f"expected package.module:Class, found {named!r}")
            return "", None
        module, _, name = named.partition(":")
        if str(self._source.directory) not in sys.path:
            sys.path.append(str(self._source.directory))  # an environment may lie beside its YAML
        try:
            found = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            self._fault(
                where, f"there is no module {error.name!r}; install it, or put it beside this file or on PYTHONPATH"
            )
        except AttributeError:
            self._fault(where, f"{module} has no {name!r}")
        except Exception as error:  # noqa: BLE001 - whatever a user's module raises while it is imported
            self._fault(where, f"importing {module} failed: {type(error).__name__}: {error}")
        else:
            if isinstance(found, type) and issubclass(found, Environment):
                return named, found
            self._fault(where, f"{named} is not a subclass of rollout.Environment")
        return named, None

    def _section(self, model: type[_M] | None, name: str, without: Sequence[str] = ()) -> _M | None:
        found = self._source.data.get(name)
        if model is None:
            return None
        if found is not None and not isinstance(found, dict):
            self._fault((name,), f"expected keys and values, found {found!r}")
            return None
        values = {key: value for key, value in (found or {}).items() if key not in without}
        try:
            # As JSON, because only that is strict about scalars and yet takes a list for a tuple, a text for a path.
            return model.model_validate_json(
                orjson.dumps(values, default=str), strict=True, context={"directory": self._source.directory}
            )
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                path: KeyPath = (name, *fault["loc"])
                if fault["type"] == "extra_forbidden":
                    names = _names_at(model, fault["loc"][:-1])
                    self._fault(path, f"unknown key{_nearest(str(path[-1]), names)}")
                elif fault["type"] == "missing":
                    self._fault(path, "this key is required")
                elif fault["type"] == "credentials":
                    self._fault(path, fault["msg"])
                else:
                    self._fault(path, f"{fault['msg']}, found {fault['input']!r}")
            return None

    def _fault(self, path: KeyPath, text: str) -> None:
        end = "" if text.endswith("?") else "."
        self._faults.append(f"{self._source.place(path)}: {'.'.join(str(part) for part in path)}: {text}{end}")


def _names_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for part in path:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}" if known else ""
