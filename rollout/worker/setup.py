"""What must stand before a first rollout is played: an engine, a renderer, and a client that has spoken to both."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial

import anyio
import anyio.to_thread

from renderers_adapter.pool import RendererPool, shared_pool
from rollout.config.load import Config
from rollout.engine.from_config import engine_client
from rollout.errors import RolloutError
from rollout.images import ImagePolicy
from rollout.metrics.worker import WorkerMetrics
from rollout.rundir.directory import RunDirectory
from rollout.session.session import Policy, PolicyVersion
from rollout.worker.attempt import RunFacts

_START_TIMEOUT = 60.0


def engine_urls(config: Config, directory: RunDirectory, stack: ExitStack) -> tuple[str, ...]:
    """Where the engines are; where none is configured, an embedded one is started, and stopped with the stack."""
    if config.engine.urls:
        return config.engine.urls
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
        )
    )
    stack.callback(server.stop)
    return (server.start(),)


@asynccontextmanager
async def open_policy(
    config: Config,
    directory: RunDirectory,
    engines: Callable[[], tuple[str, ...]],
    metrics: WorkerMetrics,
) -> AsyncIterator[Policy]:
    """The policy, ready: the renderer warms up in one thread while another sees to the engines.

    Raises:
        EngineError: no engine answers, or not as one should.
        AdapterError: the tokenizer or the renderer cannot be opened.
    """
    renderers: list[RendererPool] = []
    urls: list[tuple[str, ...]] = []

    async def open_renderers() -> None:
        model = config.model
        opened = await anyio.to_thread.run_sync(partial(shared_pool, model.path, model.renderer, model.template))
        renderers.append(opened)

    async def see_to_engines() -> None:
        urls.append(await anyio.to_thread.run_sync(engines))

    with _deadline("the renderer and the engine"):
        async with anyio.create_task_group() as starting:
            starting.start_soon(open_renderers)
            starting.start_soon(see_to_engines)
    async with engine_client(config, urls[0], renderers[0].geometry, observe=metrics.engine_tried) as engine:
        await engine.check()
        images = ImagePolicy(
            mode=config.images.mode,
            directory=directory.images,
            allow=config.images.allow,
            max_bytes=config.images.max_bytes,
            max_pixels=config.images.max_pixels,
        )
        yield Policy(
            renderers[0],
            engine,
            images,
            config.engine.sampling.model_dump(),
            PolicyVersion(config.policy.version),
            metrics,
        )


def run_facts(config: Config, run: str) -> RunFacts:
    """What the rollouts of a run say about it. An environment goes by `run.name`: two may be of one class."""
    return RunFacts(
        run=run,
        environment=config.run.name,
        model=config.model.name,
        policy_version=config.policy.version,
        config_digest=config.digest(),
    )


@contextmanager
def _deadline(what: str) -> Iterator[None]:
    try:
        with anyio.fail_after(_START_TIMEOUT):
            yield
    except TimeoutError:
        raise RolloutError(f"{what} did not start within {_START_TIMEOUT:g} s.") from None
