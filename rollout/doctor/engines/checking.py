"""Makes all checks of each engine, in an order in which each check may rely on the checks before it.

If a check fails, the later checks of the engine are left out, because they would fail, too.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.errors import AdapterError
from rollout.config.load import Config
from rollout.config.renderer_options import renderer_options
from rollout.doctor.engines.pixels import check_pixels
from rollout.doctor.engines.probe_requests import PROBE_SIZES, probe_directory, probe_request
from rollout.doctor.engines.rendering import check_rendering, rendering_fix
from rollout.doctor.engines.serving import (
    check_endpoint,
    check_images,
    check_model,
    check_weights,
    endpoint_fix,
    images_fix,
    model_fix,
)
from rollout.doctor.engines.tokenizer import check_tokens, tokens_fix
from rollout.doctor.engines.under_test import (
    CheckFailed,
    CheckNotMade,
    CheckPartlyMade,
    EngineUnderTest,
    NothingToCheck,
)
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.engine.errors import EngineBroken, EnginePaused
from rollout.engine.from_config import api_key_from_config, engine_client_from_config
from rollout.engine.httpx_transport import HttpxTransport
from rollout.errors import RolloutError
from rollout.images import ImagePolicy
from transports.redaction import hide_passwords

_BROKEN_FIX = "read the engine's log, because the engine failed while it handled the request"
_PAUSED_FIX = "if no trainer is updating the engine now: rollout policy push CONFIG --run RUN_DIR"

EngineCheck = Callable[[EngineUnderTest], Awaitable[str]]
"""Makes one check and returns the finding. It raises an exception of `under_test`, or a RolloutError."""
FixFinder = Callable[[EngineUnderTest, Exception], str | None]
"""Returns what corrects a RolloutError of the check."""


def _no_fix(engine: EngineUnderTest, error: Exception) -> None:
    """Return None, because the errors of the check say what to do."""


NamedEngineCheck = tuple[str, EngineCheck, FixFinder]

_ENGINE_CHECKS: tuple[NamedEngineCheck, ...] = (
    ("model", check_model, model_fix),
    ("weights", check_weights, lambda engine, error: None),
    ("tokens", check_tokens, tokens_fix),
    ("endpoint", check_endpoint, endpoint_fix),
    ("images", check_images, images_fix),
    ("rendering", check_rendering, rendering_fix),
    ("pixels", check_pixels, _no_fix),
)


async def check_engines(
    config: Config, *, forward: bool = False, on_progress: Callable[[str], object] = lambda line: None
) -> AsyncIterator[CheckResult]:
    """Check every configured engine, and yield the result of each check.

    With `forward`, the last check of an engine compares its log-probs with those of the checkpoint. `on_progress` is
    called with a line before the checks of an engine.

    Raises:
        RolloutError, AdapterError: the configuration is wrong; the checks without `--live` report this.
    """
    if not config.engine.urls:
        yield CheckResult(
            "engine", "embedded: it starts with the run, so there is no engine to check", CheckStatus.NOTHING
        )
        return
    adapter = RendererAdapter.open(config.model.path, config.model.renderer, renderer_options(config.model))
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(probe_directory(config.run.directory))
            image_policy = ImagePolicy(config.images.mode, directory.images_path)
            text_request = probe_request(adapter, image_policy, ())
            image_request = probe_request(adapter, image_policy, PROBE_SIZES if adapter.geometry else ())
        except (RolloutError, AdapterError) as error:
            yield CheckResult("engines", f"no probe can be made for them: {error}", CheckStatus.BAD)
            return
        engine_api_key = api_key_from_config(config)
        checks = (*_ENGINE_CHECKS, *(_forward_check(image_policy) if forward else ()))
        for url in config.engine.urls:
            on_progress(f"checks {hide_passwords(url)}")
            async with (
                HttpxTransport(engine_api_key) as transport,
                engine_client_from_config(config, [url], adapter.geometry) as client,
            ):
                engine = EngineUnderTest(url, config, adapter, transport, client, text_request, image_request)
                async for result in _check_engine(engine, checks):
                    yield result


def _forward_check(image_policy: ImagePolicy) -> tuple[NamedEngineCheck, ...]:
    from rollout.doctor.engines.forward.checking import ForwardCheck

    return (("forward", ForwardCheck(image_policy).check, _no_fix),)


async def _check_engine(engine: EngineUnderTest, checks: tuple[NamedEngineCheck, ...]) -> AsyncIterator[CheckResult]:
    for subject, make_check, fix_for in checks:
        result = await _make_check(engine, f"{engine.url} {subject}", make_check, fix_for)
        yield result
        if result.status is CheckStatus.BAD:
            return


async def _make_check(
    engine: EngineUnderTest, subject: str, make_check: EngineCheck, fix_for: FixFinder
) -> CheckResult:
    try:
        return CheckResult(subject, await make_check(engine))
    except CheckNotMade as reason:
        return CheckResult(subject, f"not checked: {reason}", CheckStatus.UNKNOWN)
    except CheckPartlyMade as finding:
        return CheckResult(subject, f"only partly checked: {finding}", CheckStatus.UNKNOWN)
    except NothingToCheck as reason:
        return CheckResult(subject, str(reason), CheckStatus.NOTHING)
    except CheckFailed as failure:
        return CheckResult(subject, str(failure), CheckStatus.BAD, failure.fix)
    except (RolloutError, AdapterError) as error:
        return CheckResult(subject, str(error), CheckStatus.BAD, _find_fix(engine, error, fix_for))


def _find_fix(engine: EngineUnderTest, error: RolloutError | AdapterError, fix_for: FixFinder) -> str | None:
    match error:
        case EngineBroken():
            return _BROKEN_FIX
        case EnginePaused():
            return _PAUSED_FIX
    return fix_for(engine, error)
