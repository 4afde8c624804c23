"""The sections of a configuration: every key that we read, with its default and its purpose.

`environment` and `tasks` are not here: they belong to the environment.
"""

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationInfo
from pydantic_core import PydanticCustomError

from rollout.config.model_directory import ModelNotFound, resolve_model_path, written_model_path
from rollout.config.sampling import SamplingConfig
from rollout.paths import PathUnusable, expand_home, resolve_path
from rollout.records.versions import OnUpdate
from transports.errors import QueueURLError
from transports.redaction import hide_passwords
from transports.urls import split_url


def _resolve_path(path: Path, info: ValidationInfo) -> Path:
    try:
        return resolve_path(expand_home(path), info.context["directory"]) if info.context else path
    except PathUnusable as error:
        raise ValueError(error.reason) from None


MultimodalMode = Literal["auto", "content_parts", "mmraw"]
"""How images go to an engine: as parts that any vLLM reads (content_parts), as references (mmraw), or, with auto, as
references to an engine that resolves them.
"""

ConfigPath = Annotated[Path, AfterValidator(_resolve_path)]
"""A path; a relative one is relative to the YAML file."""


def _resolve_model_path(path: Path, info: ValidationInfo) -> Path:
    try:
        return resolve_model_path(path, info.context["directory"]) if info.context else path
    except PathUnusable as error:
        raise ValueError(error.reason) from None
    except ModelNotFound as error:
        raise ValueError(str(error)) from None


ModelPath = Annotated[Path, AfterValidator(_resolve_model_path), PlainSerializer(written_model_path)]
"""The directory of a model, or the name of one that this package ships."""


class Section(BaseModel):
    """A section of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    name: str = Field(description="The name under which the engine serves the model.")
    path: ModelPath = Field(
        description="Directory with tokenizer.json and the image processor's configuration; builtin:tiny is the small"
        " model that the package ships."
    )
    renderer: str = Field(description="The chat format, by the name the renderers package gives it.")
    template: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict,
        description="Arguments of the chat template, such as enable_thinking, by the names that the model's own gives"
        " them.",
    )
    special_text: Literal["text", "refuse", "allow"] = Field(
        default="text",
        description="What becomes of text in messages that spells control tokens, such as <|im_end|>: text, it is"
        " encoded as text; refuse, the rollout fails; allow, it is encoded as control tokens.",
    )


class EmbeddedConfig(Section):
    policy: str = Field(default="rollout.serving.policies:ColorPolicy", description="The script that answers.")
    max_model_len: int = Field(default=32768, ge=16)
    latency_ms: float = Field(default=0.0, ge=0)


def _check_engine_url(url: str) -> str:
    if "@" in url:
        raise PydanticCustomError("secret", "a URL is logged; name the variable of a key in engine.api_key_env")
    parts = _split_url(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected the root of a server, such as http://127.0.0.1:8000")
    if parts.path.strip("/") == "v1":
        raise ValueError("expected the root of the server, without /v1")
    return url.rstrip("/")


def _check_queue_url(url: str) -> str:
    _split_url(url)
    return url


def _split_url(url: str) -> SplitResult:
    try:
        return split_url(url)
    except QueueURLError as error:
        raise ValueError(str(error).removeprefix(f"{hide_passwords(url)}: ")) from None


def _check_variable_name(name: str) -> str:
    if not (name.isascii() and name.isidentifier()):
        # It is probably the key itself, so the message does not repeat it.
        raise PydanticCustomError("secret", "expected the name of an environment variable that holds the key")
    return name


EngineUrl = Annotated[str, AfterValidator(_check_engine_url)]
"""The root of an engine; a path in it, as that of a proxy, is kept."""


QueueUrl = Annotated[str, AfterValidator(_check_queue_url), Field(repr=False)]
"""The URL of a queue, which may have a password."""


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
    ban_placeholders: bool = Field(
        default=True,
        description="Forbid the engines to sample the placeholders of images and videos: an answer that holds one ends"
        " its rollout.",
    )
    sampling: SamplingConfig = SamplingConfig()
    embedded: EmbeddedConfig = EmbeddedConfig()


class ImagesConfig(Section):
    mode: Literal["offload", "inline"] = "offload"
    allow: tuple[ConfigPath, ...] = Field(default=(), description="Directories that file:// images may come from.")
    max_bytes: int = Field(default=20_000_000, ge=1)
    max_pixels: int = Field(
        default=33_554_432,
        ge=1,
        le=178_956_970,
        description="Width times height of one image; no engine takes more than 178,956,970.",
    )
    memory: int = Field(
        default=1_610_612_736,
        ge=1,
        description="Bytes of memory for decoding images, in one process; more images wait.",
    )


class QueueConfig(Section):
    """URLs of queues; {run_dir} is the run's directory, {environment} is run.name."""

    url: QueueUrl = Field(default="file://{run_dir}/trajectories?retain=true", description="Where trajectories go.")
    tasks: QueueUrl = Field(
        default="file://{run_dir}/tasks/{environment}", description="Where workers take orders from."
    )
    control: QueueUrl = Field(
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
        default=3,
        ge=1,
        description="Attempts at a rollout: of a worker that died, of an infrastructure that failed, or after a Retry.",
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
        default=0,
        ge=0,
        le=65535,
        description="0: a free one, which the workers of a launch always take; RUN_DIR/metrics/*.json says which.",
    )


def _check_max_failed(value: Any) -> Any:
    if value is None or (type(value) is int and value >= 0) or (type(value) is float and 0 <= value <= 1):
        return value
    raise ValueError("expected a whole number of rollouts, or a share between 0.0 and 1.0")


class RunConfig(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", description="Begins the run's id.")
    directory: ConfigPath = Field(default="runs", validate_default=True, description="Holds the runs' directories.")
    max_failed: Annotated[int | float | None, BeforeValidator(_check_max_failed)] = Field(
        default=None,
        description="How many rollouts may fail before the run stops: a number, or a share of those that ended, judged"
        " from the 16th on. none: it stops when the first 16 all failed; 1.0: no limit.",
    )
