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
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import PydanticCustomError

from rollout.config_source import ConfigError, ConfigSource, KeyPath, read_source
from rollout.engine.features import Multimodal
from rollout.environments.base import Environment, EnvironmentSettings, TaskSettings
from rollout.versions import OnUpdate


def _relative_to_file(path: Path, info: ValidationInfo) -> Path:
    return Path(info.context["directory"], path.expanduser()).resolve() if info.context else path


ConfigPath = Annotated[Path, AfterValidator(_relative_to_file)]
"""A path; a relative one is relative to the YAML file."""


class Section(BaseModel):
    """A section of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    name: str = Field(description="The name under which the engine serves the model.")
    path: ConfigPath = Field(description="Directory with tokenizer.json and the image processor's configuration.")
    renderer: str = Field(description="The chat format, by the name the renderers package gives it.")
    template: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict,
        description="Arguments of the chat template, such as enable_thinking, by the names that the model's own gives"
        " them.",
    )


class SamplingConfig(Section):
    temperature: float = Field(default=1.0, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=512, ge=1)
    seed: int | None = Field(default=None, ge=0, description="Each rollout and turn derives a seed of its own from it.")


class EmbeddedConfig(Section):
    policy: str = Field(default="rollout.serving.policies:ColorPolicy", description="The script that answers.")
    max_model_len: int = Field(default=32768, ge=16)
    latency_ms: float = Field(default=0.0, ge=0)


def _engine_root(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected the root of a server, such as http://127.0.0.1:8000")
    if "@" in parts.netloc:
        raise PydanticCustomError("credentials", "a URL is logged; name the variable of a key in engine.api_key_env")
    if parts.path.strip("/") == "v1":
        raise ValueError("expected the root of the server, without /v1")
    return url.rstrip("/")


def _variable_name(name: str) -> str:
    if not (name.isascii() and name.isidentifier()):
        # Most likely it is the key itself: whatever it is, it is not repeated.
        raise PydanticCustomError("credentials", "expected the name of an environment variable that holds the key")
    return name


EngineUrl = Annotated[str, AfterValidator(_engine_root)]
"""The root of an engine; a path before it, as of a proxy, is kept."""


class EngineConfig(Section):
    urls: tuple[EngineUrl, ...] = Field(
        default=(), description="Roots of the engines; empty: the embedded engine is started."
    )
    timeout: float = Field(default=300.0, gt=0, description="Seconds for one turn, all of its tries included.")
    request_timeout: float | None = Field(
        default=None, gt=0, description="Seconds for one try, after which another engine is asked; none: the turn's."
    )
    retries: int = Field(
        default=5, ge=0, description="Further tries after a broken connection, 429, 502-504 or a time-out."
    )
    affinity: bool = Field(
        default=False, description="Keep a rollout on one engine, for its prefix cache; nothing depends on it."
    )
    api_key_env: Annotated[str, AfterValidator(_variable_name)] | None = Field(
        default=None,
        description="Name of the environment variable with the engines' API key; the key itself is never written.",
    )
    multimodal: Multimodal = Field(
        default="auto",
        description="How images go out: content_parts, which any vLLM reads; mmraw, references for engines with our"
        " plugin; auto: mmraw to those that resolve them, else content_parts.",
    )
    sampling: SamplingConfig = SamplingConfig()
    embedded: EmbeddedConfig = EmbeddedConfig()


class ImagesConfig(Section):
    mode: Literal["offload", "inline"] = "offload"
    allow: tuple[ConfigPath, ...] = Field(default=(), description="Directories that file:// images may come from.")
    max_bytes: int = Field(default=20_000_000, ge=1)
    max_pixels: int = Field(default=178_956_970, ge=1)


class QueueConfig(Section):
    """URLs of queues; {run_dir} is the run's directory, {environment} is run.name."""

    url: str = Field(default="file://{run_dir}/trajectories?retain=true", description="Where trajectories go.")
    tasks: str = Field(default="file://{run_dir}/tasks/{environment}", description="Where workers take orders from.")
    control: str = Field(
        default="file://{run_dir}/control/{environment}",
        description="Where the trainer says how far it is, and with which version.",
    )


class WorkerConfig(Section):
    concurrency: int = Field(default=32, ge=1, description="Rollouts in flight in one worker.")
    tokens_in_flight: int | None = Field(
        default=None, ge=1, description="No rollout starts while those in flight hold more tokens than this."
    )
    rollout_timeout: float = Field(default=1800.0, gt=0, description="Seconds for one rollout.")
    turn_timeout: float = Field(
        default=600.0,
        gt=0,
        description="Seconds from one turn of a rollout to the next, the environment's part included.",
    )
    block_timeout: float = Field(
        default=60.0, gt=0, description="Seconds for which one rollout may hold up all others of its worker."
    )
    max_attempts: int = Field(
        default=3, ge=1, description="Attempts at a rollout whose worker died or whose infrastructure failed."
    )
    halt_after: int = Field(default=3, ge=1, description="Infrastructure failures in a row that end a worker.")
    grace: float = Field(
        default=60.0, ge=0, description="Seconds in which a worker told to stop finishes what it began."
    )
    restarts: int = Field(
        default=8, ge=0, description="Restarts of dead workers within an hour before `rollout launch` gives up."
    )


class PolicyConfig(Section):
    version: str = Field(default="0", description="Names the weights that the engines start with.")
    max_staleness: int | None = Field(
        default=None,
        ge=0,
        description="How many training steps a rollout may start ahead of its own; none: they are not paced.",
    )
    batch: int = Field(default=64, ge=1, description="Rollouts of this environment in one training step.")
    on_update: OnUpdate = Field(
        default="wait",
        description="What becomes of requests in flight when new weights come: keep, they go on with the new ones;"
        " wait, they finish first; abort, their turn is begun anew.",
    )
    update_timeout: float = Field(
        default=600.0, gt=0, description="Seconds for bringing new weights to all engines, that wait included."
    )
    stragglers: Literal["finish", "cut", "abandon"] = Field(
        default="finish", description="What becomes of the last rollouts of a group once `straggler_grace` is over."
    )
    straggler_grace: float = Field(
        default=120.0, gt=0, description="Seconds from the moment when half of a group is done."
    )
    partial_groups: Literal["keep", "cancel"] = Field(
        default="keep", description="cancel: once a rollout has failed for good, the rest of its group is abandoned."
    )


class MetricsConfig(Section):
    serve: bool = Field(default=True, description="Serve /metrics, /healthz and /readyz.")
    host: str = Field(
        default="127.0.0.1", description="Address to listen at; 0.0.0.0 for others, who then read it all."
    )
    port: int = Field(
        default=0, ge=0, le=65535, description="0: a free one; RUN_DIR/metrics/*.json and the log say which."
    )


class RunSection(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_.-]+$", description="Begins the run's id.")
    directory: ConfigPath = Field(default="runs", validate_default=True, description="Holds the runs' directories.")


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
