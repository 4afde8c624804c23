"""The sections of a configuration: every key that we read, with its default and its purpose.

`environment` and `tasks` are not here: they belong to the environment.
"""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from rollout.records.versions import OnUpdate


def _resolve_path(path: Path, info: ValidationInfo) -> Path:
    return Path(info.context["directory"], path.expanduser()).resolve() if info.context else path


MultimodalMode = Literal["auto", "content_parts", "mmraw"]
"""How images go to an engine: as parts that any vLLM reads (content_parts), as references (mmraw), or, with auto, as
references to an engine that resolves them.
"""

ConfigPath = Annotated[Path, AfterValidator(_resolve_path)]
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


def _check_engine_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected the root of a server, such as http://127.0.0.1:8000")
    if "@" in parts.netloc:
        raise PydanticCustomError("credentials", "a URL is logged; name the variable of a key in engine.api_key_env")
    if parts.path.strip("/") == "v1":
        raise ValueError("expected the root of the server, without /v1")
    return url.rstrip("/")


def _check_variable_name(name: str) -> str:
    if not (name.isascii() and name.isidentifier()):
        # It is probably the key itself, so the message does not repeat it.
        raise PydanticCustomError("credentials", "expected the name of an environment variable that holds the key")
    return name


EngineUrl = Annotated[str, AfterValidator(_check_engine_url)]
"""The root of an engine; a path in it, as that of a proxy, is kept."""


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
    api_key_env: Annotated[str, AfterValidator(_check_variable_name)] | None = Field(
        default=None,
        description="Name of the environment variable with the engines' API key; the key itself is never written.",
    )
    multimodal: MultimodalMode = Field(
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


class RunConfig(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", description="Begins the run's id.")
    directory: ConfigPath = Field(default="runs", validate_default=True, description="Holds the runs' directories.")
