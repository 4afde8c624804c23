"""Banned tokens: the step has them, and an answer with a banned token is never used."""

import pytest

from rollout.engine.errors import UnusableCompletion
from rollout.trainer import check, samples
from tests.unit.session.scripted import ScriptedRollout, user


async def test_a_step_has_the_tokens_that_its_request_banned(script: ScriptedRollout) -> None:
    await script.answer([user("a")], "red")
    media = ("<|image_pad|>", "<|video_pad|>", "<|vision_pad|>")
    banned_ids = tuple(script.pool.tokenizer.token_id(token) for token in media)
    assert [step.banned_ids for step in script.in_process.steps] == [banned_ids]
    (sample,) = samples(await script.in_process.finish())
    assert sample.banned_ids == tuple(sorted(banned_ids))


async def test_a_step_of_an_engine_that_cannot_ban_has_no_banned_tokens(script: ScriptedRollout) -> None:
    messages = [user("a")]
    await script.answer(messages, "red")
    script.in_process.engine.refuses_bans = True
    await script.answer([*messages, user("b")], "blue")
    assert [bool(step.banned_ids) for step in script.in_process.steps] == [True, False]
    assert check(await script.in_process.finish()) == []


@pytest.mark.parametrize(
    ("token", "problem"), [("<|image_pad|>", "an image pad token"), ("<|video_pad|>", "sampled a banned token")]
)
async def test_an_answer_with_a_banned_token_is_refused(script: ScriptedRollout, token: str, problem: str) -> None:
    with pytest.raises(UnusableCompletion, match=problem):
        await script.answer([user("a")], token)
