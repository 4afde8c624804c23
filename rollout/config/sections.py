"""The sections of a configuration: every key, its default and its purpose.

The sections `environment` and `tasks` are not here, because the class of the environment defines them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from renderers_adapter.decoding_memory import DEFAULT_DECODING_MEMORY
from renderers_adapter.options import TEMPLATE_FILE_ARGUMENT
from rollout.config.image_limits import (
    DEFAULT_MAX_IMAGE_BYTES,
    DEFAULT_MAX_PIXELS,
    ENGINE_MAX_PIXELS,
    MAX_IMAGE_BYTES,
)
from rollout.config.model_directory import ModelNotFound, resolve_model_path, written_model_path
from rollout.config.queue_urls import QueueUrl
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


def _resolve_template_file(template: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    if TEMPLATE_FILE_ARGUMENT not in template:
        return template
    file = template[TEMPLATE_FILE_ARGUMENT]
    if not isinstance(file, str):
        raise ValueError(
            f"expected the path of a chat template as {TEMPLATE_FILE_ARGUMENT}"
        )  # the caller adds the value
    return {**template, TEMPLATE_FILE_ARGUMENT: str(_resolve_path(Path(file), info))}


def _refuse_collection(value: Any) -> Any:
    if isinstance(value, dict | list):
        raise ValueError("expected a text, a number, true, false or null")
    return value


TemplateArgument = Annotated[str | int | float | bool | None, BeforeValidator(_refuse_collection)]
"""The value of an argument of a chat template."""

MultimodalMode = Literal["auto", "content_parts", "mmraw"]
"""How images are sent to an engine; see `EngineConfig.multimodal`."""

ConfigPath = Annotated[Path, AfterValidator(_resolve_path)]
"""A path; a relative path is relative to the directory of the YAML file."""


def _resolve_model_path(path: Path, info: ValidationInfo) -> Path:
    try:
        return resolve_model_path(path, info.context["directory"]) if info.context else path
    except PathUnusable as error:
        raise ValueError(error.reason) from None
    except ModelNotFound as error:
        raise ValueError(str(error)) from None


ModelPath = Annotated[Path, AfterValidator(_resolve_model_path), PlainSerializer(written_model_path)]
"""The directory of a model, or the name of a model that this package ships."""


class Section(BaseModel):
    """A section of the YAML file; it refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """The model that the engines serve."""

    name: str
    """The name under which the engines serve the model."""
    path: ModelPath
    """The directory with tokenizer.json and the configuration of the image processor. builtin:tiny is the small model
    that the package ships."""
    renderer: str
    """The name of the model's chat format in the package renderers, or template, which uses the chat template in the
    model's directory."""
    template: Annotated[dict[str, TemplateArgument], AfterValidator(_resolve_template_file)] = Field(
        default_factory=dict
    )
    """Arguments of the model's chat template by name, such as enable_thinking. With the renderer template, file is the
    path of another template."""
    tool_parser: str | None = None
    """With the renderer template: the parser of tool calls: qwen3, qwen3.5, glm, deepseek-v3, kimi-k2, minimax-m2 or
    llama-3. Without it, calls stay text."""
    reasoning_parser: str | None = None
    """With the renderer template: the parser of reasoning: think, for <think>. Without it, reasoning stays text."""

    @model_serializer(mode="wrap")
    def _leave_out_unset_parsers(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out parsers that are not set, so that configurations keep the digest of earlier versions."""
        return {key: value for key, value in serialize(self).items() if value is not None}

    special_text: Literal["text", "refuse", "allow"] = "text"
    """What happens if the text of a message contains a control token, such as <|im_end|>. text: it is encoded as plain
    text. refuse: the rollout fails. allow: it is encoded as the control token."""


class EmbeddedConfig(Section):
    """The embedded engine, which starts if engine.urls is empty."""

    policy: str = "rollout.serving.policies:ColorPolicy"
    """The class whose object answers, as package.module:Class."""
    max_model_len: int = Field(default=32768, ge=16)
    """The limit for the tokens of a prompt and its answer."""
    latency_ms: float = Field(default=0.0, ge=0)
    """Milliseconds to wait before each answer."""


def _check_engine_url(url: str) -> str:
    if "@" in url:
        raise PydanticCustomError(
            "secret", "a URL is logged, so it must not contain a key; engine.api_key_env names the key's variable"
        )
    try:
        parts = split_url(url)
    except QueueURLError as error:
        raise ValueError(str(error).removeprefix(f"{hide_passwords(url)}: ")) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected the root URL of a server, such as http://127.0.0.1:8000")
    if parts.path.strip("/") == "v1":
        raise ValueError("expected the root URL of the server, without /v1")
    return url.rstrip("/")


def _check_variable_name(name: str) -> str:
    if not (name.isascii() and name.isidentifier()):
        # The value is probably the key itself, so the message does not repeat it.
        raise PydanticCustomError("secret", "expected the name of an environment variable that holds the key")
    return name


EngineUrl = Annotated[str, AfterValidator(_check_engine_url)]
"""The root URL of an engine; it may have a path, for example behind a proxy."""


class EngineConfig(Section):
    """The engines, and how the workers call them."""

    urls: tuple[EngineUrl, ...] = ()
    """The root URL of each engine, such as http://127.0.0.1:8000. If empty, the embedded engine starts."""
    timeout: float = Field(default=300.0, gt=0)
    """Seconds for one turn, including all tries of its request, and the time for which engines are paused."""
    request_timeout: float | None = Field(default=None, gt=0)
    """Seconds for one try; then another engine gets the request. null: only engine.timeout counts."""
    retries: int = Field(default=5, ge=0)
    """How many times a request is repeated after a broken connection, the status 429 or 502-504, or a time-out."""
    affinity: bool = False
    """Send all requests of a rollout to the same engine while it is healthy, to use its prefix cache."""
    api_key_env: Annotated[str, AfterValidator(_check_variable_name)] | None = None
    """The name of the environment variable with the engines' API key. No file contains the key."""
    multimodal: MultimodalMode = "auto"
    """How images are sent. content_parts: in a form that any vLLM reads. mmraw: as references, for engines with our
    plugin. auto: mmraw to the engines that resolve references, content_parts to the others."""
    ban_placeholders: bool = True
    """Forbid the engines to sample the placeholder tokens of images and videos. If an answer contains such a token, its
    rollout ends."""
    sampling: SamplingConfig = SamplingConfig()
    """How the engines sample."""
    embedded: EmbeddedConfig = EmbeddedConfig()
    """Settings of the embedded engine."""


class ImagesConfig(Section):
    """Which images a run accepts, and where it keeps them."""

    mode: Literal["offload", "inline"] = "offload"
    """Where images are kept. offload: each becomes a file in the run's directory. inline: data: URIs stay in the
    messages."""
    allow: tuple[ConfigPath, ...] = ()
    """The directories from which file:// images are read."""
    max_bytes: int = Field(default=DEFAULT_MAX_IMAGE_BYTES, ge=1, le=MAX_IMAGE_BYTES)
    """The limit for the bytes of one encoded image. A vLLM with our plugin accepts at most 67,108,864."""
    max_pixels: int = Field(
        default=DEFAULT_MAX_PIXELS,
        ge=1,
        le=ENGINE_MAX_PIXELS,
        description="The limit for an image's width times height, in pixels. No engine accepts more than"
        f" {ENGINE_MAX_PIXELS:,}.",
    )
    memory: int = Field(default=DEFAULT_DECODING_MEMORY, ge=1)
    """The limit for the bytes of memory in which one process decodes images; other images wait."""


class QueueConfig(Section):
    """The URLs of the queues; {run_dir} stands for the run's directory, and {environment} for run.name."""

    url: QueueUrl = "file://{run_dir}/trajectories?retain=true"
    """The queue to which workers send the records of rollouts."""
    tasks: QueueUrl = "file://{run_dir}/tasks/{environment}"
    """The queue from which workers take orders."""
    control: QueueUrl = "file://{run_dir}/control/{environment}"
    """The queue on which the trainer publishes its progress and its policy version."""


class WorkerConfig(Section):
    """How a worker plays rollouts, and when it gives up."""

    concurrency: int = Field(default=32, ge=1)
    """The limit for the rollouts that one worker plays at the same time."""
    tokens_in_flight: int | None = Field(default=None, ge=1)
    """A worker starts no rollout while those that it plays have this many tokens. null: no limit."""
    rollout_timeout: float = Field(default=1800.0, gt=0)
    """Seconds for one attempt at a rollout."""
    turn_timeout: float = Field(default=600.0, gt=0)
    """Seconds from one turn of a rollout to the next, with the work of the environment between them."""
    block_timeout: float = Field(default=60.0, gt=0)
    """Seconds that one rollout may block the event loop. Other rollouts of the worker wait meanwhile."""
    max_attempts: int = Field(default=3, ge=1)
    """The limit for the attempts at one rollout. Another attempt follows if the worker dies, if the infrastructure
    fails, or if the environment raises Retry."""
    halt_after: int = Field(default=3, ge=1)
    """A worker ends after this many infrastructure failures in a row."""
    grace: float = Field(default=60.0, ge=0)
    """Seconds that a worker has to finish its rollouts when it is stopped."""
    restarts: int = Field(default=8, ge=0)
    """How many dead workers `rollout launch` restarts within an hour before it gives up."""


class PolicyConfig(Section):
    """The policy, and how workers keep up with its new weights."""

    version: str = "0"
    """The name of the weights with which the engines start."""
    max_staleness: int | None = Field(default=None, ge=0)
    """How many training steps a rollout may start before the step that trains on it. null: workers do not wait for the
    trainer."""
    batch: int = Field(default=64, ge=1)
    """The number of this environment's rollouts in a training step."""
    on_update: OnUpdate = "wait"
    """What happens to running requests when new weights come. keep: they continue with the new weights. wait: they
    finish first. abort: their turns start again."""
    update_timeout: float = Field(default=600.0, gt=0)
    """Seconds for loading new weights into all engines. It includes the wait for running requests."""
    stragglers: Literal["finish", "cut", "abandon"] = "finish"
    """What happens to the last rollouts of a group after policy.straggler_grace. finish: they continue. cut: they end
    as unscored. abandon: they end as abandoned."""
    straggler_grace: float = Field(default=120.0, gt=0)
    """Seconds that the last rollouts have after half of their group has ended."""
    partial_groups: Literal["keep", "cancel"] = "keep"
    """What happens to a group after one of its rollouts has failed for good. keep: the others are played. cancel: the
    others are abandoned."""


class MetricsConfig(Section):
    """Where a process serves its metrics."""

    serve: bool = True
    """Whether /metrics, /healthz and /readyz are served."""
    host: str = "127.0.0.1"
    """The address to listen at. 0.0.0.0: other machines can read the metrics, too."""
    port: int = Field(default=0, ge=0, le=65535)
    """The port to listen at. 0: a free port; RUN_DIR/metrics/*.json contains it. The workers of a launch always take
    free ports."""


def _check_max_failed(value: Any) -> Any:
    if value is None or (type(value) is int and value >= 0) or (type(value) is float and 0 <= value <= 1):
        return value
    raise ValueError("expected a whole number of rollouts, or a share between 0.0 and 1.0")


class RunConfig(Section):
    """The run: its name, its directory, and when it gives up."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")
    """The name of the environment in the run; the run's id begins with it."""
    directory: ConfigPath = Field(default="runs", validate_default=True)
    """The directory that contains the directory of each run."""
    max_failed: Annotated[int | float | None, BeforeValidator(_check_max_failed)] = None
    """How many rollouts may fail before the run stops: a whole number, or a share of the rollouts that ended. A share
    is checked from the 16th rollout on; 1.0 means no limit. null: the run stops if the first 16 all fail."""
