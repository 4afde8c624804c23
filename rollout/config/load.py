"""One YAML per environment, read into frozen models. Unknown keys are refused, and the nearest known name is suggested.

The environment's own `Settings` and `Tasks` check the sections `environment` and `tasks`, so that a user's keys are
checked as strictly as ours.
"""

import difflib
import hashlib
import importlib
import inspect
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
    RunConfig,
    Section,
    WorkerConfig,
)
from rollout.config.source import ConfigDocument, ConfigFileError, KeyPath, read_document
from rollout.environments.base import Environment, EnvironmentSettings, MultiTurnEnvironment, TaskSettings


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration.

    Attributes:
        file_name: the file that was read, for messages.
        environment_class_path: the environment's class, as `package.module:Class`.
        environment_class: this class.
        environment_settings: the other keys of the section `environment`.
        tasks: the section `tasks`, as all sections below: each has the name of its section.
    """

    file_name: str
    environment_class_path: str
    environment_class: type[Environment]
    environment_settings: EnvironmentSettings
    tasks: TaskSettings
    model: ModelConfig
    engine: EngineConfig
    images: ImagesConfig
    queue: QueueConfig
    worker: WorkerConfig
    policy: PolicyConfig
    metrics: MetricsConfig
    run: RunConfig

    def new_environment(self) -> Environment:
        """Make a fresh environment; every attempt at a rollout gets one of its own."""
        return self.environment_class(self.environment_settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole configuration, defaults included, in the form of the YAML."""
        environment = {"class": self.environment_class_path, **self.environment_settings.model_dump(mode="json")}
        sections = {name: getattr(self, name).model_dump(mode="json") for name in ("tasks", *_SECTION_MODELS)}
        return {"environment": environment, **sections}

    def digest(self) -> str:
        """Return a hash that identifies what is played and how.

        It is the same on every machine: paths, addresses and the name of the run are left out.
        """
        identifying = {key: value for key, value in self.to_dict().items() if key not in ("run", "queue", "metrics")}
        for section, key in (("model", "path"), ("images", "allow"), ("engine", "urls")):
            identifying[section].pop(key)
        if source := self.tasks.source:
            identifying["tasks"]["source"] = Path(source).name if Path(source).is_absolute() else source
        return hashlib.sha256(orjson.dumps(identifying, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


_SECTION_MODELS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "engine": EngineConfig,
    "images": ImagesConfig,
    "queue": QueueConfig,
    "worker": WorkerConfig,
    "policy": PolicyConfig,
    "metrics": MetricsConfig,
    "run": RunConfig,
}
_ModelT = TypeVar("_ModelT", bound=BaseModel)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a file.

    Raises:
        ConfigFileError: with a line for each problem.
    """
    return _ConfigChecker(read_document(path, overrides)).check()


def _environment_problem(loaded_class: object) -> str | None:
    """Why this cannot be an environment; None if it can."""
    if not (isinstance(loaded_class, type) and issubclass(loaded_class, Environment)):
        return "is not a subclass of rollout.Environment"
    if missing := sorted(loaded_class.__abstractmethods__):
        return f"does not define {' and '.join(missing)}"
    for name in ("reset", "step") if issubclass(loaded_class, MultiTurnEnvironment) else ("run",):
        if not inspect.iscoroutinefunction(inspect.unwrap(getattr(loaded_class, name))):
            return f"has a {name} that is not a coroutine; write `async def {name}`"
    return None


class _ConfigChecker:
    def __init__(self, source: ConfigDocument) -> None:
        self._source = source
        self._problems: list[str] = []

    def check(self) -> Config:
        data = self._source.data
        section_names = ("environment", "tasks", *_SECTION_MODELS)
        for name in data:
            if name not in section_names:
                self._add_problem((name,), f"unknown section{_suggestion(name, section_names)}")
        class_path, environment_class = self._import_environment()
        settings_model = environment_class.Settings if environment_class else None
        tasks_model = environment_class.Tasks if environment_class else None
        settings = self._check_section(settings_model, "environment", exclude=("class",))
        tasks = self._check_section(tasks_model, "tasks")
        sections = {name: self._check_section(model, name) for name, model in _SECTION_MODELS.items()}
        if self._problems:
            raise ConfigFileError("\n".join(self._problems))
        return Config(self._source.file_name, class_path, environment_class, settings, tasks, **sections)  # type: ignore[arg-type]

    def _import_environment(self) -> tuple[str, type[Environment] | None]:
        section = self._source.data.get("environment")
        class_path = section.get("class") if isinstance(section, dict) else None
        key_path: KeyPath = ("environment", "class")
        if not isinstance(class_path, str) or class_path.count(":") != 1:
            self._add_problem(key_path, f"expected package.module:Class, found {class_path!r}")
            return "", None
        module, _, name = class_path.partition(":")
        if str(self._source.directory) not in sys.path:
            sys.path.append(str(self._source.directory))  # an environment may be in the directory of its YAML
        try:
            imported_module = importlib.import_module(module)
        except ModuleNotFoundError as error:
            self._add_problem(
                key_path, f"there is no module {error.name!r}; install it, or put it beside this file or on PYTHONPATH"
            )
            return class_path, None
        except Exception as error:  # noqa: BLE001 - whatever a user's module raises while it is imported
            self._add_problem(key_path, f"importing {module} failed: {type(error).__name__}: {error}")
            return class_path, None
        loaded_class = getattr(imported_module, name, None)
        if loaded_class is None:
            nearest = difflib.get_close_matches(name, vars(imported_module), n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            self._add_problem(key_path, f"{module} has no {name!r}{hint}")
        elif (problem := _environment_problem(loaded_class)) is not None:
            self._add_problem(key_path, f"{class_path} {problem}")
        else:
            return class_path, loaded_class
        return class_path, None

    def _check_section(self, model: type[_ModelT] | None, name: str, exclude: Sequence[str] = ()) -> _ModelT | None:
        section = self._source.data.get(name)
        if model is None:
            return None
        if section is not None and not isinstance(section, dict):
            self._add_problem((name,), f"expected keys and values, found {section!r}")
            return None
        values = {key: value for key, value in (section or {}).items() if key not in exclude}
        try:
            # As JSON, because only this is strict about scalars and still accepts a list as a tuple and text as a path.
            return model.model_validate_json(
                orjson.dumps(values, default=str), strict=True, context={"directory": self._source.directory}
            )
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                key_path: KeyPath = (name, *problem["loc"])
                if problem["type"] == "extra_forbidden":
                    valid_keys = _field_names_at(model, problem["loc"][:-1])
                    self._add_problem(key_path, f"unknown key{_suggestion(str(key_path[-1]), valid_keys)}")
                elif problem["type"] == "missing":
                    self._add_problem(key_path, "this key is required")
                elif problem["type"] == "credentials":
                    self._add_problem(key_path, problem["msg"])
                else:
                    self._add_problem(key_path, f"{problem['msg']}, found {problem['input']!r}")
            return None

    def _add_problem(self, key_path: KeyPath, message: str) -> None:
        ending = "" if message.endswith("?") else "."
        self._problems.append(
            f"{self._source.location_of(key_path)}: {'.'.join(str(part) for part in key_path)}: {message}{ending}"
        )


def _field_names_at(model: type[BaseModel], key_path: Sequence[str | int]) -> list[str]:
    for part in key_path:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _suggestion(name: str, valid_names: Sequence[str]) -> str:
    closest = difflib.get_close_matches(name, valid_names, n=1, cutoff=0.5)
    if closest:
        return f"; did you mean {closest[0]!r}?"
    return f"; known are {', '.join(valid_names)}" if valid_names else ""
