"""The evidence in an answer (log-probs, versions, experts, masks) must belong to exactly its tokens."""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest

from rollout.engine.answer_evidence import read_experts, read_sampling_mask
from rollout.engine.errors import EngineMismatch, InvalidEvidence
from rollout.engine.protocol import Generation, decode_response
from rollout.engine.request import GenerateRequest

TOKENS = [5, 6, 7]


def entry(token: int, logprob: Any = -0.25) -> dict[str, Any]:
    return {"token_id": token, "logprob": logprob, "rank": 1, "top_logprobs": []}


def decode(request: GenerateRequest, content: Any = None, **changed: Any) -> Generation:
    evidence = [entry(token) for token in TOKENS] if content is None else content
    choice = {"token_ids": TOKENS, "logprobs": {"content": evidence}, "finish_reason": "stop", **changed}
    prompt = request.expanded_prompt.tolist()
    return decode_response(orjson.dumps({"choices": [choice], "prompt_token_ids": prompt}), request)


def test_log_probs_are_read_in_both_forms(text: GenerateRequest) -> None:
    older = [{"token": f"token_id:{token}", "logprob": -0.25, "bytes": None} for token in TOKENS]
    assert decode(text).logprobs.tolist() == decode(text, older).logprobs.tolist() == [-0.25] * 3


@pytest.mark.parametrize(
    ("content", "expected_text"),
    [
        ([], "the answer has 3 tokens, but 0 log-probs"),
        ([entry(5), entry(6)], "the answer has 3 tokens, but 2 log-probs"),
        ([entry(5), entry(7), entry(6)], "log-prob at position 1 is for token 7, but token 6 was sampled"),
        ([entry(5), entry(6), {"token": "token_id:8", "logprob": 0.0}], "for token 8, but token 7 was sampled"),
        ([entry(5), entry(6), entry(7, 0.5)], "log-prob at position 2 is 0.5"),
        ([entry(5), entry(6), entry(7, -12000.0)], "log-prob at position 2 is -12000"),
        ([entry(5), entry(6), {"token": " word", "logprob": 0.0}], "for token  word"),
        ([entry(5), entry(6), entry(7, -9999.0)], "the log-prob at position 2 is -9999.0"),
        ([entry(5), entry(6), entry(7, None)], "the log-prob at position 2 is None"),
        ([entry(5), entry(6), "?"], "does not have the expected form"),
    ],
)
def test_log_probs_that_do_not_fit_the_tokens_are_refused(
    text: GenerateRequest, content: Any, expected_text: str
) -> None:
    with pytest.raises(InvalidEvidence, match=r"^r-0: ") as refused:
        decode(text, content)
    assert expected_text in str(refused.value)


def test_an_answer_without_log_probs_is_refused(text: GenerateRequest) -> None:
    with pytest.raises(InvalidEvidence):
        decode(text, logprobs=None)


@pytest.mark.parametrize("spans", [[("1", 1, 3)], [("1", 0, 1), ("2", 2, 3)], [("1", 0, 2)], [("1", 0, 4)]])
def test_weight_versions_that_leave_tokens_out_are_refused(text: GenerateRequest, spans: Any) -> None:
    with pytest.raises(InvalidEvidence, match="weight_versions"):
        decode(text, weight_versions=[{"version": v, "start": a, "end": b} for v, a, b in spans])


def test_weights_may_change_within_a_completion(text: GenerateRequest) -> None:
    spans = [{"version": "1", "start": 0, "end": 2}, {"version": "2", "start": 2, "end": 3}]
    assert [span.version for span in decode(text, weight_versions=spans).versions] == ["1", "2"]


@pytest.mark.parametrize(
    "changed",
    [
        {"token_ids": None},
        {"finish_reason": "error"},
        {"token_ids": ["a"]},
        {"token_ids": [-1]},
        {"token_ids": [2**40]},
    ],
)
def test_an_answer_in_another_form_is_refused(text: GenerateRequest, changed: Any) -> None:
    with pytest.raises(EngineMismatch):
        decode(text, **changed)


def test_a_prompt_that_the_engine_saw_differently_is_refused(pictures: GenerateRequest) -> None:
    answer = {"choices": [{"token_ids": [], "finish_reason": "stop"}], "prompt_token_ids": pictures.prompt.tolist()}
    with pytest.raises(EngineMismatch, match="another prompt"):
        decode_response(orjson.dumps(answer), pictures)
    answer["prompt_token_ids"] = pictures.expanded_prompt.tolist()
    elsewhere: list[Any] = [None, {}, {"image": None}, {"image": [{"offset": 0, "length": 1}]}]
    for marks in elsewhere:
        with pytest.raises(EngineMismatch, match="placed the images at"):
            decode_response(orjson.dumps(answer | {"mm_placeholders": marks}), pictures)
    malformed: list[Any] = [
        [],
        {"image": [None]},
        {"image": [{"offset": 0}]},
        {"image": [{"offset": "x", "length": 1}]},
    ]
    for marks in malformed:
        with pytest.raises(EngineMismatch):
            decode_response(orjson.dumps(answer | {"mm_placeholders": marks}), pictures)


CHOICE = {"token_ids": TOKENS, "logprobs": {"content": [entry(token) for token in TOKENS]}, "finish_reason": "stop"}


def test_the_prompt_digest_does_not_depend_on_white_space(text: GenerateRequest) -> None:
    answer = {"choices": [CHOICE], "prompt_token_ids": text.expanded_prompt.tolist()}
    read = [
        decode_response(body, text) for body in (orjson.dumps(answer), orjson.dumps(answer, option=orjson.OPT_INDENT_2))
    ]
    assert len({generation.prompt_digest for generation in read}) == 1


def test_the_prompt_counts_only_at_the_top_of_the_answer(text: GenerateRequest) -> None:
    prompt_ids = text.expanded_prompt.tolist()
    elsewhere: list[dict[str, Any]] = [
        {"choices": [CHOICE | {"prompt_token_ids": prompt_ids}]},
        {"choices": [CHOICE | {"prompt_token_ids": prompt_ids}], "prompt_token_ids": [*prompt_ids, 1]},
        {"choices": [CHOICE], "prompt_token_ids": None},
        {"choices": [CHOICE], "prompt_token_ids": [*prompt_ids, 1]},
        {"choices": [CHOICE], "prompt_token_ids": prompt_ids[:-1]},
    ]
    for answer in elsewhere:
        with pytest.raises(EngineMismatch):
            decode_response(orjson.dumps(answer), text)


def npy(rows: npt.NDArray[Any]) -> str:
    file = io.BytesIO()
    np.save(file, rows)
    return base64.b64encode(file.getvalue()).decode()


EXPERT_ROWS = np.arange(9 * 2 * 4, dtype=np.uint8).reshape(9, 2, 4)
"""Ten tokens have nine rows, because the last token has no experts yet. A row has two layers with four experts each."""


def test_experts_are_those_of_the_tokens_that_a_turn_added() -> None:
    whole = read_experts(npy(EXPERT_ROWS), first_token=0, conversation_length=10)
    asked = read_experts(npy(EXPERT_ROWS[6:]), first_token=6, conversation_length=10)
    not_asked = read_experts(npy(EXPERT_ROWS), first_token=6, conversation_length=10)
    assert whole is not None
    assert asked is not None
    assert not_asked is not None
    assert np.array_equal(whole.rows, EXPERT_ROWS)
    assert (asked.first, not_asked.first) == (6, 6)
    assert np.array_equal(asked.rows, not_asked.rows)
    assert np.array_equal(asked.rows, EXPERT_ROWS[6:])


def test_experts_of_two_turns_join_without_a_gap(text: GenerateRequest) -> None:
    """The second turn begins with the token that the first one sampled last: its row exists only now."""
    later = replace(text, known_token_count=5)
    first = read_experts(npy(EXPERT_ROWS[:4]), first_token=text.experts_start, conversation_length=5)
    second = read_experts(npy(EXPERT_ROWS[4:]), first_token=later.experts_start, conversation_length=10)
    assert first is not None
    assert second is not None
    assert second.first == first.first + len(first.rows)
    assert np.array_equal(np.concatenate([first.rows, second.rows]), EXPERT_ROWS)


@pytest.mark.parametrize(
    "encoded", [npy(EXPERT_ROWS[:5]), npy(EXPERT_ROWS[0]), npy(EXPERT_ROWS.astype(np.float32)), "AAAA", "?"]
)
def test_experts_of_other_tokens_are_refused(encoded: str) -> None:
    with pytest.raises(InvalidEvidence, match="routed_experts"):
        read_experts(encoded, first_token=6, conversation_length=10)


def test_a_sampling_mask_covers_each_token() -> None:
    mask = read_sampling_mask(TOKENS, [[5, 6], [6], [7, 8, 9]])
    assert mask is not None
    assert (mask.ids.tolist(), mask.lengths.tolist()) == ([5, 6, 6, 7, 8, 9], [2, 1, 3])
    with pytest.raises(InvalidEvidence, match="2 positions, but the answer has 3 tokens"):
        read_sampling_mask(TOKENS, [[5], [6]])
    with pytest.raises(InvalidEvidence, match="position 2 does not have the sampled token 7"):
        read_sampling_mask(TOKENS, [[5], [6], [8, 9]])
