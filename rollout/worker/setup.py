"""Prepares a worker for its first rollout: finds or starts engines, opens the renderer, and checks the engines."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from renderers_adapter.pool import RendererPool, shared_pool
from rollout.config.gateway import GatewayConfig
from rollout.config.load import Config
from rollout.config.model_directory import require_model
from rollout.config.model_type import check_model_type
from rollout.config.renderer_options import renderer_options
from rollout.engine.client import WaitObserver
from rollout.engine.from_config import api_key_from_config, engine_client_from_config
from rollout.errors import RolloutError
from rollout.gateway.server import Gateway
from rollout.images import ImagePolicy
from rollout.metrics.worker import WorkerMetrics
from rollout.rundir.directory import RunDirectory
from rollout.session.policy import PolicyClient, PolicyVersionState
from rollout.worker.attempt import RunMetadata

log = structlog.get_logger()

_START_TIMEOUT = 60.0


def find_or_start_engines(config: Config, directory: RunDirectory, engine_stack: ExitStack) -> tuple[str, ...]:
    """Return the URLs of the configured engines.

    If no URL is configured, start an embedded engine and return its URL. It stops when `engine_stack` closes.

    Raises:
        ConfigurationError: the environment variable with the API key is not set.
        RolloutError: the embedded engine cannot be started.
    """
    if config.engine.urls:
        return config.engine.urls
    require_model(config.model.path, Path(config.file_name))
    from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings

    embedded = config.engine.embedded
    server = EmbeddedServer(
        EmbeddedSettings(
            model_dir=config.model.path,
            model_name=config.model.name,
            policy=embedded.policy,
            max_model_len=embedded.max_model_len,
            weight_version=config.policy.version,
            allowed_directories=(directory.path / "assets",),
            latency_ms=embedded.latency_ms,
            image_memory=config.images.memory,
        ),
        api_key=api_key_from_config(config),
    )
    engine_stack.callback(server.stop)
    return (server.start(),)


@asynccontextmanager
async def open_policy(
    config: Config,
    directory: RunDirectory,
    get_engine_urls: Callable[[], tuple[str, ...]],
    metrics: WorkerMetrics,
    on_wait: WaitObserver = lambda text: log.warning("the worker waits for its engines", text=text),
    *,
    gateway_config: GatewayConfig | None = None,
) -> AsyncIterator[PolicyClient]:
    """Open the renderers, check the engines, and yield the client of the policy.

    One thread opens the renderers while another calls `get_engine_urls`. `on_wait` is called with a sentence when a
    wait for the engines begins, and when it ends. `gateway_config` replaces the section `gateway`.

    Raises:
        EngineError: no engine answers, or an engine's answer is wrong.
        ModelNotFound: there is nothing at `model.path`.
        ConfigurationError: the renderer belongs to another model than `model.path`.
        AdapterError: the tokenizer or the renderer cannot be opened.
    """
    require_model(config.model.path, Path(config.file_name))
    check_model_type(config.model)
    renderer_pools: list[RendererPool] = []
    found_urls: list[tuple[str, ...]] = []

    async def open_renderers() -> None:
        model = config.model
        renderer_pool = await anyio.to_thread.run_sync(
            partial(shared_pool, model.path, model.renderer, renderer_options(model))
        )
        renderer_pools.append(renderer_pool)

    async def start_engines() -> None:
        found_urls.append(await anyio.to_thread.run_sync(get_engine_urls))

    with _fail_after_start_timeout("the renderer and the engine"):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(open_renderers)
            task_group.start_soon(start_engines)
    async with engine_client_from_config(
        config, found_urls[0], renderer_pools[0].geometry, on_try=metrics.record_engine_request
    ) as engine:
        await engine.wait_until_checked(on_wait)
        images = ImagePolicy(
            mode=config.images.mode,
            directory=directory.images_path,
            allow=config.images.allow,
            max_bytes=config.images.max_bytes,
            max_pixels=config.images.max_pixels,
            memory=config.images.memory,
        )
        async with Gateway(gateway_config or config.gateway, model=config.model.name, metrics=metrics) as gateway:
            yield PolicyClient(
                renderer_pools[0],
                engine,
                images,
                config.engine.sampling.model_dump(mode="json"),  # the keys of a JSON object are strings
                PolicyVersionState(config.policy.version),
                metrics,
                ban_placeholders=config.engine.ban_placeholders,
                open_endpoint=gateway.open_endpoint,
                artifacts=directory.artifacts_path(config.run.name),
            )


def build_run_metadata(config: Config, run_id: str) -> RunMetadata:
    """Return the facts about a run that the started record of each rollout contains.

    The environment's name is `run.name` and not its class, because two environments of a run may have the same class.
    """
    return RunMetadata(
        run_id=run_id,
        environment=config.run.name,
        model=config.model.name,
        policy_version=config.policy.version,
        config_digest=config.digest(),
    )


@contextmanager
def _fail_after_start_timeout(description: str) -> Iterator[None]:
    try:
        with anyio.fail_after(_START_TIMEOUT):
            yield
    except TimeoutError:
        raise RolloutError(f"{description} did not start within {_START_TIMEOUT:g} s.") from None
