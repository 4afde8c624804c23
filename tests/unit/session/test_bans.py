"""Banned tokens: the step names them, and an answer with a banned token is never used."""

import pytest

from rollout.engine.errors import UnusableCompletion
from rollout.trainer import check, samples
from tests.unit.session.scripted import ScriptedRollout, user


async def test_a_step_says_which_tokens_the_engine_was_forbidden_to_sample(script: ScriptedRollout) -> None:
    await script.answer([user("a")], "red")
    media = ("<|image_pad|>", "<|video_pad|>", "<|vision_pad|>")
    banned_ids = tuple(script.pool.tokenizer.token_id(token) for token in media)
    assert [step.banned_ids for step in script.in_process.steps] == [banned_ids]
    (sample,) = samples(await script.in_process.finish())
    assert sample.banned_ids == tuple(sorted(banned_ids))


async def test_a_step_of_an_engine_that_cannot_ban_says_that_nothing_was_forbidden(script: ScriptedRollout) -> None:
    messages = [user("a")]
    await script.answer(messages, "red")
    script.in_process.engine.refuses_bans = True
    await script.answer([*messages, user("b")], "blue")
    assert [bool(step.banned_ids) for step in script.in_process.steps] == [True, False]
    assert check(await script.in_process.finish()) == []


async def test_a_policy_that_samples_a_placeholder_is_not_built_upon(script: ScriptedRollout) -> None:
    with pytest.raises(UnusableCompletion):
        await script.answer([user("a")], "<|image_pad|>")


async def test_a_policy_that_samples_what_was_forbidden_is_not_built_upon(script: ScriptedRollout) -> None:
    with pytest.raises(UnusableCompletion, match="sampled a banned token"):
        await script.answer([user("a")], "<|video_pad|>")
