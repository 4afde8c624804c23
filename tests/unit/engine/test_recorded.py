"""Recorded answers of a real vLLM 0.32 for three turns of a mixture of experts, and what we read from them.

No CI machine can record them again: experts and masks need vLLM's second model runner. Its Triton kernels ran in
Triton's interpreter on a CPU (`--enable-return-routed-experts --return-sampling-mask --logprobs-mode
processed_logprobs`; a random Qwen3-MoE of two layers, two of eight experts). `whole` is its answer when the finished
conversation was one prompt. transformers routes all tokens of it to the same experts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from renderers_adapter.tokens import ExpandedIds, as_logical_ids
from rollout.engine.answer_evidence import read_experts
from rollout.engine.protocol import Generation, decode_response, encode_request
from rollout.engine.request import GenerateRequest


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((Path(__file__).parent / "recorded" / "experts_and_masks.json").read_bytes())
    return found


@pytest.fixture(scope="module")
def generations(recorded: dict[str, Any]) -> list[Generation]:
    return [decode_response(orjson.dumps(turn["answer"]), request_of_turn(turn)) for turn in recorded["turns"]]


def request_of_turn(turn: dict[str, Any]) -> GenerateRequest:
    prompt = as_logical_ids(turn["request"]["token_ids"])
    sampling = turn["request"]["sampling_params"]
    ours = ("logprobs", "stop_token_ids", "routed_experts_prompt_start")
    return GenerateRequest(
        request_id="r",
        session_id="r",
        prompt=prompt,
        images=(),
        expanded_prompt=ExpandedIds(prompt),
        known_token_count=turn["known"],
        placeholders=(),
        pad_id=None,
        sampling={key: value for key, value in sampling.items() if key not in ours},
        stop_token_ids=tuple(sampling["stop_token_ids"]),
    )


def test_a_turn_asks_only_for_the_experts_that_earlier_turns_did_not_return(recorded: dict[str, Any]) -> None:
    wanted = [turn["request"]["sampling_params"].get("routed_experts_prompt_start") for turn in recorded["turns"]]
    assert wanted == [None, 22, 41]
    for turn, first in zip(recorded["turns"], wanted, strict=True):
        name = turn["request"]["request_id"]
        assert orjson.loads(encode_request(request_of_turn(turn), "tiny", name, experts_start=first)) == turn["request"]


def test_the_experts_of_all_turns_are_those_of_the_whole_conversation(
    recorded: dict[str, Any], generations: list[Generation]
) -> None:
    whole = recorded["whole"]
    tokens = len(whole["prompt_token_ids"]) + len(whole["choices"][0]["token_ids"])
    expected = read_experts(whole["choices"][0]["routed_experts"], first_token=0, conversation_length=tokens)
    found = [generation.routed_experts for generation in generations]
    assert expected is not None
    position = 0
    for experts in found:
        assert experts is not None
        assert experts.first == position
        assert np.array_equal(experts.rows, expected.rows[position : position + len(experts.rows)])
        position += len(experts.rows)
    # The last sampled token has experts only in `whole`, where it is a part of the prompt.
    assert position == len(whole["prompt_token_ids"]) - 1
    assert expected.rows.shape[1:] == (2, 2)


def test_masks_contain_the_nucleus_of_every_sampled_token(generations: list[Generation]) -> None:
    for generation in generations:
        mask = generation.sampling_mask
        assert mask is not None
        assert mask.lengths.tolist() == [3] * 4
        for token, allowed in zip(generation.token_ids, mask.ids.reshape(4, 3), strict=True):
            assert token in allowed
