"""Reads the YAML of one environment into frozen models. The error about an unknown key suggests the nearest one.

The models `Settings` and `Tasks` of the environment's class check the sections `environment` and `tasks` in the same
way.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from renderers_adapter.options import TEMPLATE_FILE_ARGUMENT
from rollout.config.environment_class import class_problem
from rollout.config.gateway import GatewayConfig
from rollout.config.problems import KeyPath, describe_problem, key_of, show_key, show_written, suggest_name
from rollout.config.references import Reference, put_all_back
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
from rollout.config.source import ConfigDocument, ConfigFileError, read_document
from rollout.environments.base import Environment, EnvironmentSettings, TaskSettings
from rollout.environments.user_objects import ImportRefused, import_object, is_object_path
from rollout.import_path import search_last


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration.

    Attributes:
        file_name: the file that was read, for messages.
        environment_class_path: the environment's class, as `package.module:Class`.
        environment_class: the class at this path.
        environment_settings: the other keys of the section `environment`.
        references: the values that contain variables, such as `${NAME}`, by their keys.
        plain_passwords: where a URL contains a password instead of a variable, each as `place: key`.
        tasks: the section `tasks`.
        model: the section `model`.
        engine: the section `engine`.
        images: the section `images`.
        queue: the section `queue`.
        worker: the section `worker`.
        policy: the section `policy`.
        metrics: the section `metrics`.
        gateway: the section `gateway`.
        run: the section `run`.
    """

    file_name: str
    environment_class_path: str
    environment_class: type[Environment]
    environment_settings: EnvironmentSettings
    references: Mapping[KeyPath, Reference] = field(repr=False)
    plain_passwords: tuple[str, ...]
    tasks: TaskSettings
    model: ModelConfig
    engine: EngineConfig
    images: ImagesConfig
    queue: QueueConfig
    worker: WorkerConfig
    policy: PolicyConfig
    metrics: MetricsConfig
    gateway: GatewayConfig
    run: RunConfig

    def new_environment(self) -> Environment:
        """Make a new environment; every attempt at a rollout gets its own."""
        return self.environment_class(self.environment_settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole configuration with its defaults, in the form of the YAML."""
        settings = self.environment_settings.model_dump(mode="json", by_alias=True)
        names = ("tasks", *_SECTION_MODELS)
        sections = {name: getattr(self, name).model_dump(mode="json", by_alias=True) for name in names}
        return {"environment": {"class": self.environment_class_path, **settings}, **sections}

    def as_written(self) -> dict[str, Any]:
        """Return the same as `to_dict`, but with variables as the user wrote them.

        A relative path with a variable gets the directory of the YAML file before it.
        """
        values = self.to_dict()
        put_all_back(values, self.references, Path(self.file_name).resolve().parent)
        return values

    def section_digest(self, name: str) -> str:
        """Return a hash of a section. A resumed run compares it with the hash that was saved at its start."""
        return hashlib.sha256(orjson.dumps(self.to_dict()[name], option=orjson.OPT_SORT_KEYS)).hexdigest()

    def digest(self) -> str:
        """Return a hash of the settings that decide what is played and how.

        It is the same on every machine, because it leaves out paths, addresses and the name of the run.
        """
        left_out = ("run", "queue", "metrics", "gateway")
        identifying = {key: value for key, value in self.to_dict().items() if key not in left_out}
        identifying["environment"] = {"class": self.environment_class_path, **self.environment_settings.identity()}
        if gateway := self.gateway.identity():  # so configurations without the section keep the hash that they had
            identifying["gateway"] = gateway
        for section, key in (("model", "path"), ("images", "allow"), ("engine", "urls")):
            identifying[section].pop(key)
        if file := self.model.template.get(TEMPLATE_FILE_ARGUMENT):
            identifying["model"]["template"][TEMPLATE_FILE_ARGUMENT] = Path(str(file)).name
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
    "gateway": GatewayConfig,
    "run": RunConfig,
}
_MAX_PROBLEMS_SHOWN = 20
_ModelT = TypeVar("_ModelT", bound=BaseModel)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a YAML file. `overrides` are texts like `KEY=VALUE`, as after `--set`.

    Raises:
        ConfigFileError: the file is not usable; the message has one line for each problem.
    """
    return _ConfigChecker(read_document(path, overrides)).check()


class _ConfigChecker:
    def __init__(self, source: ConfigDocument) -> None:
        self._source = source
        self._problems: list[str] = []

    def check(self) -> Config:
        data = self._source.data
        section_names = ("environment", "tasks", *_SECTION_MODELS)
        for name in data:
            if name not in section_names:
                self._add_problem((name,), f"unknown section{suggest_name(name, section_names)}")
        class_path, environment_class = self._import_environment()
        settings_model = environment_class.Settings if environment_class else None
        tasks_model = environment_class.Tasks if environment_class else None
        settings = self._check_section(settings_model, "environment", exclude=("class",))
        tasks = self._check_section(tasks_model, "tasks")
        sections = {name: self._check_section(model, name) for name, model in _SECTION_MODELS.items()}
        if self._problems:
            more = len(self._problems) - _MAX_PROBLEMS_SHOWN
            shown = [*self._problems[:_MAX_PROBLEMS_SHOWN], *([f"… and {more:,} more problems."] if more > 0 else [])]
            raise ConfigFileError("\n".join(shown))
        plain_passwords = tuple(
            f"{self._source.location_of(key)}: {show_key(key)}" for key in self._source.plain_passwords
        )
        references = self._source.references
        return Config(
            self._source.file_name,
            class_path,
            environment_class,  # type: ignore[arg-type]
            settings,  # type: ignore[arg-type]
            references,
            plain_passwords,
            tasks,  # type: ignore[arg-type]
            **sections,  # type: ignore[arg-type]
        )

    def _import_environment(self) -> tuple[str, type[Environment] | None]:
        section = self._source.data.get("environment")
        class_path = section.get("class") if isinstance(section, dict) else None
        key_path: KeyPath = ("environment", "class")
        if not isinstance(class_path, str) or not is_object_path(class_path):
            found = show_written(self._source.written_at(key_path)) if isinstance(section, dict) else "no key `class`"
            self._add_problem(key_path, f"expected package.module:Class, found {found}{_suggest_class(class_path)}")
            return "", None
        directory = str(self._source.directory)
        search_last(directory)  # the environment's module may be next to the YAML file
        try:
            loaded_class = import_object(class_path, directory)
        except ImportRefused as error:
            self._add_problem(key_path, str(error))
            return class_path, None
        if (problem := class_problem(loaded_class)) is not None:
            self._add_problem(key_path, f"{class_path} {problem}")
            return class_path, None
        assert isinstance(loaded_class, type)
        return class_path, loaded_class

    def _check_section(self, model: type[_ModelT] | None, name: str, exclude: Sequence[str] = ()) -> _ModelT | None:
        section = self._source.data.get(name)
        if model is None:
            return None
        if section is not None and not isinstance(section, dict):
            found = show_written(self._source.written_at((name,)))
            self._add_problem((name,), f"expected keys and values, found {found}")
            return None
        values = {key: value for key, value in (section or {}).items() if key not in exclude}
        try:
            # Validate the values as JSON. Otherwise strict mode refuses a list for a tuple, and a string for a path.
            return model.model_validate_json(
                json.dumps(values, default=str), strict=True, context={"directory": self._source.directory}
            )
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                if problem["type"] == "default_factory_not_called":  # caused by the problem of another key
                    continue
                key_path: KeyPath = (name, *key_of(problem))
                self._add_problem(key_path, describe_problem(model, problem, self._source.written_at(key_path)))
            return None

    def _add_problem(self, key_path: KeyPath, message: str) -> None:
        ending = "" if message.endswith("?") or "\n" in message else "."
        self._problems.append(f"{self._source.location_of(key_path)}: {show_key(key_path)}: {message}{ending}")


def _suggest_class(path: object) -> str:
    """Return the form that was meant by a path with a dot in place of the colon; empty for any other value."""
    module, _, name = str(path).rpartition(".")
    meant = f"{module}:{name}"
    return f"; did you mean {meant}?" if name[:1].isupper() and is_object_path(meant) else ""
