"""The recorded contracts of vLLM: each version accepts what we send, and its answers have what we read."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest

from renderers_adapter.geometry import geometry_for
from rollout.config.sampling import SamplingConfig, check_sampling
from rollout.engine.error_answers import refused_sampling_key, require_success
from rollout.engine.errors import EnginePaused
from rollout.engine.protocol import encode_request
from rollout.engine.request import GenerateRequest
from rollout.engine.stand_in import StandInEngine
from rollout.engine.weight_updates import EngineState, fetch_engine_state, update_weights
from rollout.records.versions import OnUpdate, loading_version
from tests.unit.engine.faulty import REFUSED_DURING_PAUSE
from tests.unit.engine.vllm_contract import VERSIONS, Contract, differences

GENERATE = "POST /inference/v1/generate"
RENDER = "POST /v1/chat/completions/render"
URL = "http://engine"
QWEN = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 1024, "max_pixels": 65536}
GEOMETRY = geometry_for("qwen_vl", QWEN)
SAMPLING: Mapping[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "max_tokens": 8,
    "min_tokens": 1,
    "seed": 5,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "repetition_detection": {"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 3},
    "stop": ["stop"],
    "stop_token_ids": [3],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "bad_words": ["bad"],
    "allowed_token_ids": [1, 2],
    "logit_bias": {5: 1.5},
    "structured_outputs": {"regex": "a+"},
    "thinking_token_budget": 4,
    "detokenize": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "skip_reading_prefix_cache": True,
    "extra_args": {"plugin": 1},
}
ANSWER_FIELDS = {
    GENERATE: (
        "choices.finish_reason",
        "choices.logprobs.content.logprob",
        "choices.logprobs.content.token_id",
        "choices.routed_experts",
        "choices.sampling_mask",
        "choices.stop_reason",
        "choices.token_ids",
        "choices.weight_versions.end",
        "choices.weight_versions.start",
        "choices.weight_versions.version",
        "mm_placeholders.length",
        "mm_placeholders.offset",
        "prompt_token_ids",
        "usage.prompt_tokens_details.cached_tokens",
    ),
    RENDER: ("features.kwargs_data",),
    "GET /v1/models": ("data.id", "data.max_model_len"),
    "POST /tokenize": ("tokens",),
}
"""The fields that the code reads from the answers to each route."""
CHANGES = {
    ("0.32.0", "0.33.0"): [
        "models > ChatCompletionNamedFunction: added",
        "models > ChatCompletionNamedToolChoiceParam: added",
        "models > ChatCompletionToolsParam: added",
        "models > FunctionDefinition-Output: added",
        'models > GenerateRequest > output_mode > enum: ["tokens","text"] became ["tokens","text","derender"]',
        "models > GenerateRequest > parse_context: added",
        "models > ParseContext: added",
        'refusal during a pause: null became {"answer":{"error":{"code":503,"message":"Generation is paused. Please '
        'retry after it resumes.","param":null,"type":"ServiceUnavailableError"}},"status":503}',
        # The text says that a pause with `abort` or `wait` answers new requests with status 503 until it ends.
        'routes > POST /pause > digest of its text: "272f5db021ed" became "43ab6d6e2666"',
        'vllm: "0.32.0" became "0.33.0"',
    ]
}
"""All differences between each recorded version and the next one."""


@pytest.fixture(params=VERSIONS)
def contract(request: pytest.FixtureRequest) -> Contract:
    return Contract.of_version(request.param)


@pytest.fixture
def sent_bodies(text: GenerateRequest, pictures: GenerateRequest) -> dict[str, Any]:
    """The bodies of requests that have everything that a request can have."""
    bodies = {
        "text": encode_request(text, "tiny", "r-0.0"),
        "every sampling key": encode_request(replace(text, sampling=check_sampling(SAMPLING)), "tiny", "r-0.0"),
        "banned tokens": encode_request(replace(text, banned_ids=(7, 9)), "tiny", "r-0.0"),
        "routed experts": encode_request(text, "tiny", "r-0.0", experts_start=4),
        "required version": encode_request(replace(text, required_version="7"), "tiny", "r-0.0"),
        "image parts": encode_request(pictures, "tiny", "r-0.0"),
        "image references": encode_request(pictures, "tiny", "r-0.0", geometry=GEOMETRY),
    }
    return {name: orjson.loads(body) for name, body in bodies.items()}


def test_the_bodies_have_every_key_that_we_can_send(sent_bodies: dict[str, Any]) -> None:
    assert set(SAMPLING) == set(SamplingConfig.model_fields)
    top_keys = {key for body in sent_bodies.values() for key in body}
    assert {"cache_salt", "content_parts", "features"} < top_keys
    sampling_keys = {key for body in sent_bodies.values() for key in body["sampling_params"]}
    assert sampling_keys == SamplingConfig.model_fields.keys() | {"logprobs", "routed_experts_prompt_start"}


def test_every_version_knows_all_that_we_send(contract: Contract, sent_bodies: dict[str, Any]) -> None:
    model = contract.model_of(GENERATE, "request")
    problems = [
        f"{name}: {problem}" for name, body in sent_bodies.items() for problem in contract.problems(body, model)
    ]
    assert problems == []


@pytest.mark.parametrize("route", ANSWER_FIELDS)
def test_the_answers_of_every_version_have_what_we_read(contract: Contract, route: str) -> None:
    model = contract.model_of(route, "status 200")
    assert [path for path in ANSWER_FIELDS[route] if not contract.has_field(model, path)] == []


@pytest.mark.parametrize("mode", get_args(OnUpdate))
async def test_the_requests_of_an_update_are_those_that_are_recorded(contract: Contract, mode: OnUpdate) -> None:
    unrecorded = []

    async def answer(url: str, body: bytes) -> tuple[int, bytes]:
        exchange = contract.facts["exchanges"].get(f"POST {url.removeprefix(URL)}")
        sent = orjson.loads(body) if body else None
        if sent == {"new_version": loading_version("7")}:
            sent = {"new_version": "7"}
        if exchange is None or exchange["body"] != sent:
            unrecorded.append((url, sent))
            return 404, b""
        return exchange["status"], b"" if exchange["answer"] is None else orjson.dumps(exchange["answer"])

    await update_weights(
        StandInEngine(answer),
        URL,
        weights_directory=Path("/runs/one/policy"),
        version="7",
        mode=mode,
        weights_unchanged=lambda: True,
    )
    assert unrecorded == []


async def test_the_recorded_answers_about_weights_are_understood(contract: Contract) -> None:
    async def answer(url: str, _: bytes) -> tuple[int, bytes]:
        return 200, orjson.dumps(contract.facts["exchanges"][f"GET {url.removeprefix(URL)}"]["answer"])

    assert await fetch_engine_state(StandInEngine(answer), URL) == EngineState("7", True)


def test_the_recorded_refusal_names_the_sampling_key(contract: Contract) -> None:
    refusal = contract.facts["exchanges"][GENERATE]
    assert refusal["status"] == 400
    refused = refused_sampling_key(orjson.dumps(refusal["answer"]))
    assert refused is not None
    assert refused.startswith("temperature: ")


@pytest.mark.parametrize(("old", "new"), list(pairwise(VERSIONS)))
def test_the_differences_of_two_versions_are_known(old: str, new: str) -> None:
    found = list(differences(Contract.of_version(old).facts, Contract.of_version(new).facts))
    assert found == CHANGES.get((old, new), []), "read what changed, then write these lines into CHANGES"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"new_key": 1}, "new_key: GenerateRequest does not have this key"),
        ({"stream": "no"}, "stream: 'no' is not of the type boolean"),
        ({"token_ids": []}, "token_ids: 0 is below 1 (minItems)"),
        ({"token_ids": [1, "2"]}, "token_ids[1]: '2' is not of the type integer"),
        ({"cache_salt": ""}, "cache_salt: 0 is below 1 (minLength)"),
        ({"cache_salt": "x" * 1025}, "cache_salt: 1025 is above 1024 (maxLength)"),
        ({"output_mode": "audio"}, "output_mode: 'audio' is not one of ['tokens', 'text', 'derender']"),
        ({"sampling_params": {"tempo": 1}}, "sampling_params.tempo: SamplingParams does not have this key"),
        (
            {"sampling_params": {"logit_bias": {"5": "x"}}},
            "sampling_params.logit_bias.5: 'x' is not of the type number",
        ),
        (
            {"features": {"mm_hashes": {}, "mm_placeholders": {"image": [{"offset": 0, "length": 0}]}}},
            "features.mm_placeholders.image[0].length: 0 is not above 0.0",
        ),
        ({"features": {"mm_hashes": {}}}, "features.mm_placeholders: MultiModalFeatures requires this key"),
    ],
)
def test_the_check_finds_what_a_version_does_not_know(change: dict[str, Any], problem: str) -> None:
    body = {"token_ids": [1], "sampling_params": {}, **change}
    assert list(Contract.of_version("0.33.0").problems(body, "GenerateRequest")) == [problem]


def test_a_field_that_no_model_has_is_not_found() -> None:
    contract = Contract.of_version("0.33.0")
    assert contract.has_field("GenerateTokensResponse", "choices.logprobs.content.token_id")
    assert not contract.has_field("GenerateTokensResponse", "choices.logprobs.content.token")


@pytest.mark.parametrize(
    "version", [version for version in VERSIONS if Contract.of_version(version).facts["refusal during a pause"]]
)
def test_a_refusal_during_a_pause_is_recognised(version: str) -> None:
    refusal = Contract.of_version(version).facts["refusal during a pause"]
    with pytest.raises(EnginePaused):
        require_success(URL, refusal["status"], orjson.dumps(refusal["answer"]))


def test_the_tests_refuse_during_a_pause_as_vllm_does() -> None:
    status, body = REFUSED_DURING_PAUSE
    recorded = Contract.of_version("0.33.0").facts["refusal during a pause"]
    assert {"status": status, "answer": orjson.loads(body)} == recorded
