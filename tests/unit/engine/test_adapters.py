"""Whether adapters can be loaded into an engine. The answers are those of a real vLLM 0.32."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from rollout.engine.adapters import LOAD_VARIABLE, LORA_FLAG, AdapterSupport, fetch_adapter_support
from rollout.engine.errors import EngineBroken, EngineMisconfigured, EngineMismatch, EngineUnavailable
from rollout.engine.stand_in import StandInEngine

RECORDED: dict[str, Any] = orjson.loads((Path(__file__).parent / "recorded" / "descriptions.json").read_bytes())
ROUTE = "/v1/load_lora_adapter"
SERVER_INFO = "/server_info?config_format=json"
NOT_FOUND = (404, b'{"detail":"Not Found"}')
ROUTE_EXISTS = (400, orjson.dumps(RECORDED["load_refused"]))
VLLM = (200, orjson.dumps(RECORDED["version"]))
METRICS = (200, RECORDED["metrics"].encode())
METRICS_WITH_LORA = (200, RECORDED["metrics_with_lora"].encode())


def server_info(lora_config: Any) -> tuple[int, bytes]:
    config = {**RECORDED["server_info"]["vllm_config"], "lora_config": lora_config}
    return 200, orjson.dumps({"vllm_config": config})


async def support_of(answers: dict[str, tuple[int, bytes]]) -> AdapterSupport:
    """Return what is found out about an engine with these answers; all its other routes answer 404."""

    async def answer(url: str, body: bytes) -> tuple[int, bytes]:
        path = url.removeprefix("http://a")
        if path == ROUTE:
            assert body == b"{}", "an adapter with a name and a path would be loaded"
        return answers.get(path, NOT_FOUND)

    return await fetch_adapter_support(StandInEngine(answer), "http://a")


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param({"/metrics": METRICS_WITH_LORA}, id="by the metrics"),
        pytest.param({SERVER_INFO: server_info({"max_loras": 1})}, id="by the configuration"),
    ],
)
async def test_an_engine_with_the_variable_and_the_flag_can_load(answers: dict[str, Any]) -> None:
    support = await support_of({ROUTE: ROUTE_EXISTS, "/version": VLLM, **answers})
    assert (support.can_load, support.missing) == (True, ())


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param({"/metrics": METRICS}, id="by the metrics"),
        pytest.param({SERVER_INFO: server_info(None)}, id="by the configuration"),
    ],
)
async def test_the_missing_flag_is_named(answers: dict[str, Any]) -> None:
    support = await support_of({ROUTE: ROUTE_EXISTS, "/version": VLLM, **answers})
    assert (support.can_load, support.missing) == (False, (LORA_FLAG,))
    assert support.reason == "vLLM was started without --enable-lora."


@pytest.mark.parametrize("status", [404, 405])
async def test_the_missing_variable_is_named(status: int) -> None:
    support = await support_of({ROUTE: (status, b""), "/version": VLLM, "/metrics": METRICS_WITH_LORA})
    assert (support.can_load, support.missing) == (False, (LOAD_VARIABLE,))
    assert support.reason == "vLLM was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."


async def test_the_variable_and_the_flag_are_named_if_both_are_missing() -> None:
    support = await support_of({"/version": VLLM, SERVER_INFO: server_info(None)})
    assert (support.can_load, support.missing) == (False, (LOAD_VARIABLE, LORA_FLAG))


async def test_metrics_do_not_prove_that_the_flag_is_missing_without_the_route() -> None:
    """With several API servers, which the route excludes, vLLM does not report a metric that has no value yet."""
    support = await support_of({"/version": VLLM, "/metrics": METRICS})
    assert (support.can_load, support.missing) == (False, (LOAD_VARIABLE,))


@pytest.mark.parametrize("metrics", [NOT_FOUND, (200, b""), (403, b"closed"), (503, b"busy")])
async def test_without_a_description_nothing_is_known_about_the_flag(metrics: tuple[int, bytes]) -> None:
    support = await support_of({ROUTE: ROUTE_EXISTS, "/version": VLLM, "/metrics": metrics})
    assert (support.can_load, support.missing) == (None, ())
    assert "VLLM_SERVER_DEV_MODE=1" in support.reason


async def test_a_server_without_a_version_may_be_anything() -> None:
    support = await support_of({})
    assert (support.can_load, support.missing) == (None, ())
    assert "/version" in support.reason


async def test_our_engines_load_no_adapters() -> None:
    support = await support_of({"/version": (200, b'{"version": "rollout-0.1.0"}')})
    assert (support.can_load, support.missing) == (False, ())
    assert "only vLLM" in support.reason


@pytest.mark.parametrize(
    ("status", "error"), [(401, EngineMisconfigured), (500, EngineBroken), (503, EngineUnavailable)]
)
async def test_an_engine_that_cannot_be_asked_is_an_error(status: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{ROUTE} answered with status {status}"):
        await support_of({ROUTE: (status, b"no")})


async def test_a_server_that_accepts_no_adapter_as_an_adapter_is_an_error() -> None:
    with pytest.raises(EngineMismatch, match="is this a vLLM server"):
        await support_of({ROUTE: (200, b"ok")})
