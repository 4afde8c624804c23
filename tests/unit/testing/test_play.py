"""`play`: the environment gets exactly the answers of the test, and the test gets everything that happened."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from rollout.config.environment_class import EnvironmentUnusable
from rollout.environments.base import ContextExhausted, Environment, EnvironmentSettings, Model, Reply, Retry, Score
from rollout.environments.calculator import Calculator
from rollout.environments.color_codeword import ColorCodeword
from rollout.environments.multi_turn import MultiTurnEnvironment, Turn
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.messages import FinishReason, Message
from rollout.records.task import Task
from rollout.testing import Answer, AnswerUnusable, NotScored, OutOfAnswers, embedded_policy, play
from rollout.trainer import check

SUM = {"start": 7, "chain": [["add", 5], ["multiply", 3]]}
WORD: Message = {"role": "user", "content": "Say a word."}


class EchoSettings(EnvironmentSettings):
    turns: int = 2


class Echo(MultiTurnEnvironment):
    """Asks for words, and counts their letters."""

    Settings: ClassVar[type[EnvironmentSettings]] = EchoSettings
    settings: EchoSettings

    async def reset(self, task: Task) -> Sequence[Message]:
        self.replies: list[Reply] = []
        return [{"role": "user", "content": str(task.data.get("question", "Say a word."))}]

    async def step(self, reply: Reply) -> Turn:
        self.replies.append(reply)
        if len(self.replies) == self.settings.turns:
            letters = {f"word {at}": float(len(one.text)) for at, one in enumerate(self.replies)}
            score = Score(rewards=letters, weights={"word 1": 0.5}, metrics={"words": len(letters)})
            return Turn(score=score, reward=2.0)
        return Turn([{"role": "user", "content": f"You said {reply.text!r}. Another one."}], reward=1.0)


class Raises(Environment):
    """Fails after an answer."""

    async def run(self, task: Task, model: Model) -> Score:
        reply = await model.chat([WORD])
        raise ValueError(f"what is a {reply.text}?")


class Catches(Environment):
    """Returns a score for any error."""

    async def run(self, task: Task, model: Model) -> Score:
        try:
            await model.chat([WORD])
            await model.chat([WORD])
        except Exception:  # noqa: BLE001 - as environments do it
            return Score(-1.0)
        return Score(1.0)


class Says(Environment):
    """Keeps the only reply."""

    seen: ClassVar[list[Reply]] = []

    async def run(self, task: Task, model: Model) -> Score:
        self.seen[:] = [await model.chat([{"role": "system", "content": "Be short."}, WORD])]
        return Score(1.0)


async def reply_for(answer: str | Answer) -> Reply:
    """Return an answer as the environment gets it."""
    played = await play(Says, answers=[answer])
    assert played.reward == 1.0
    assert check(played.trajectory) == []
    return Says.seen[0]


async def test_the_environment_gets_the_answers_of_the_list_turn_by_turn() -> None:
    played = await play(Echo, answers=["moon", "sea"])
    assert [turn.reply.text for turn in played.turns] == ["moon", "sea"]
    assert played.turns[1].new_messages == ({"role": "user", "content": "You said 'moon'. Another one."},)
    assert [message["content"] for message in played.messages] == [
        *("Say a word.", "moon", "You said 'moon'. Another one.", "sea")
    ]
    assert played.unused_answers == ()
    assert check(played.trajectory) == []


async def test_the_score_has_every_value_of_the_environment() -> None:
    played = await play(Echo, answers=["moon", "sea"])
    assert (played.status, played.limit, played.error) == (RolloutStatus.OK, RolloutLimit.NONE, None)
    assert played.reward == played.score.reward == 5.5
    assert played.rewards == {"word 0": 4.0, "word 1": 3.0}
    assert played.score.weights == {"word 0": 1.0, "word 1": 0.5}
    assert played.turn_rewards == {0: 1.0, 1: 2.0}
    assert played.metrics == {"words": 2.0}
    assert played.attempts == 1


@pytest.mark.parametrize(
    "task", [{"question": "A colour?"}, Task("7", 7, 7, {"question": "A colour?"})], ids=["data", "task"]
)
async def test_a_task_may_be_given_as_its_data(task: Any) -> None:
    played = await play(Echo, task, answers=["red", "blue"])
    assert played.messages[0]["content"] == "A colour?"


@pytest.mark.parametrize("settings", [{"turns": 1}, EchoSettings(turns=1)], ids=["keys", "settings"])
async def test_a_class_is_created_with_the_settings_of_the_test(settings: Any) -> None:
    played = await play(Echo, settings=settings, answers=["moon", "sea", Answer("sky")])
    assert len(played.turns) == 1
    assert played.unused_answers == (Answer("sea"), Answer("sky"))


async def test_a_function_answers_each_conversation() -> None:
    def last_word(conversation: list[Message]) -> str:
        return str(conversation[-1]["content"]).split()[-1]

    played = await play(Echo(EchoSettings()), answers=last_word)
    assert [turn.reply.text for turn in played.turns] == ["word.", "one."]


async def test_a_function_may_be_a_coroutine_and_cannot_change_the_conversation() -> None:
    async def change(conversation: list[Message]) -> Answer:
        await asyncio.sleep(0)
        conversation[0]["content"] = "changed"
        return Answer("yes")

    played = await play(Echo, answers=change)
    assert played.messages[0] == WORD


async def test_an_error_of_the_function_ends_the_test_though_the_environment_catches_it() -> None:
    def fails(conversation: list[Message]) -> str:
        raise LookupError("no answer to this")

    with pytest.raises(LookupError, match="no answer to this"):
        await play(Catches, answers=fails)


async def test_the_error_of_a_used_up_list_has_the_turn_and_the_question() -> None:
    with pytest.raises(OutOfAnswers) as refused:
        await play(Echo, answers=["moon"])
    assert "asks for an answer in turn 1, but all answers of the test are used (1)" in str(refused.value)
    assert "  user:\n  You said 'moon'. Another one." in str(refused.value)


async def test_a_used_up_list_ends_the_test_though_the_environment_catches_the_error() -> None:
    with pytest.raises(OutOfAnswers):
        await play(Catches, answers=["moon"])


async def test_tool_calls_are_written_and_read_back_in_the_format_of_the_model() -> None:
    calls = [
        ("calculate", {"operation": "add", "a": 7, "b": 5}),
        ("calculate", {"operation": "multiply", "a": 12, "b": 3}),
    ]
    played = await play(Calculator, SUM, answers=[Answer("Let me see.", calls), "It is 36."])
    first = played.turns[0].reply
    assert first.text == "Let me see."
    assert [(call.name, call.arguments) for call in first.tool_calls] == calls
    assert [message["content"] for message in played.turns[1].new_messages] == ["12", "36"]
    assert [tool["function"]["name"] for tool in played.turns[0].tools] == ["calculate"]
    assert played.reward == 1.0
    assert check(played.trajectory) == []


async def test_arguments_that_spell_control_tokens_are_text() -> None:
    call = ("look", {"text": 'a "<tool_call>" and <|im_end|>\n', "list": [1, None, {"x": True}]})
    (read,) = (await reply_for(Answer(tool_calls=[call]))).tool_calls
    assert (read.name, read.arguments) == call


async def test_a_malformed_tool_call_is_written_as_text() -> None:
    (call,) = (await reply_for("<tool_call>\n{oops\n</tool_call>")).tool_calls
    assert call.error == "invalid_json"


async def test_an_answer_may_begin_with_reasoning() -> None:
    reply = await reply_for(Answer("Yes.", reasoning="Is it so?"))
    assert (reply.text, reply.message["reasoning_content"]) == ("Yes.", "Is it so?")


async def test_an_answer_may_stop_in_the_middle() -> None:
    assert (await reply_for(Answer("and then", finish_reason="length"))).finish_reason is FinishReason.LENGTH


async def test_an_answer_may_be_empty() -> None:
    reply = await reply_for("")
    assert (reply.text, reply.finish_reason) == ("", FinishReason.STOP)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (5, r"answers\[0\] is an? int; expected a string or an Answer"),
        (Answer(finish_reason="length"), r"answers\[0\] is empty and ends with length"),
        (
            Answer("x", finish_reason=FinishReason.ABORT),
            r"answers\[0\] has the finish_reason .*; expected stop or length",
        ),
        (Answer(tool_calls=[("look", {"x": 2**70})]), "the answer of turn 0 calls"),
    ],
    ids=["number", "empty", "abort", "integer"],
)
async def test_an_answer_that_no_model_gives_is_refused(answer: Any, problem: str) -> None:
    with pytest.raises(AnswerUnusable, match=problem):
        await play(Says, answers=[answer])


async def test_a_failed_rollout_has_no_reward_and_shows_the_traceback_of_the_environment() -> None:
    played = await play(Raises, answers=["moon"])
    assert (played.status, played.attempts) == (RolloutStatus.FAILED, 1)
    assert played.error is not None
    assert "what is a moon?" in played.error
    with pytest.raises(NotScored) as refused:
        _ = played.reward
    assert 'raise ValueError(f"what is a {reply.text}?")' in str(refused.value)
    assert "assistant:\n  moon" in str(refused.value)


async def test_a_full_context_makes_the_rollout_unscored(tmp_path: Path) -> None:
    class Endless(MultiTurnEnvironment):
        async def reset(self, task: Task) -> Sequence[Message]:
            return [WORD]

        async def step(self, reply: Reply) -> Turn:
            return Turn([WORD])

    async with embedded_policy(tmp_path, max_model_len=100) as policy:
        played = await play(Endless, policy=policy)
    assert (played.status, played.limit) == (RolloutStatus.UNSCORED, RolloutLimit.CONTEXT)
    with pytest.raises(NotScored, match=r"The rollout is unscored \(limit: context\), so it has no score.\nContextExh"):
        _ = played.score
    assert ContextExhausted.__name__ in str(played.error)


async def test_images_are_sent_and_recorded() -> None:
    conversations: list[list[Message]] = []

    def name_colors(conversation: list[Message]) -> str:
        conversations.append(conversation)
        return "red"

    codeword = {"codeword": ["red", "blue"]}
    played = await play(ColorCodeword, codeword, answers=name_colors)
    assert played.metrics == {"turn_accuracy": 0.5, "codeword_accuracy": 0.5}
    assert len(played.trajectory.images) == 2
    assert conversations[0][1]["content"][0]["image_url"]["url"].startswith("data:image/")
    assert check(played.trajectory) == []


async def test_a_message_may_name_an_image_file_in_an_allowed_directory(tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(picture)

    class Shows(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            await model.chat(
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture.as_uri()}}]}]
            )
            return Score(1.0)

    assert (await play(Shows, answers=["red"], allow=[tmp_path])).reward == 1.0
    assert "images.allow" in str((await play(Shows, answers=["red"])).error)


async def test_calls_at_the_same_time_are_turns_of_their_own() -> None:
    class Asks(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            questions = [[{"role": "user", "content": name}] for name in ("a", "b", "c")]
            replies = await asyncio.gather(*map(model.chat, questions))
            return Score(float([reply.text for reply in replies] == ["A", "B", "C"]))

    played = await play(Asks, answers=lambda conversation: conversation[0]["content"].upper())
    assert played.reward == 1.0
    assert [turn.new_messages[0]["content"] for turn in played.turns] == ["a", "b", "c"]


class AsksAgain(Environment):
    """Raises `Retry` until the answer is the moon; records what was created and closed."""

    events: ClassVar[list[str]] = []

    @classmethod
    @asynccontextmanager
    async def shared(cls, settings: Any) -> AsyncIterator[str]:
        cls.events[:] = ["shared"]
        yield "the moon"
        cls.events.append("left")

    async def run(self, task: Task, model: Model) -> Score:
        reply = await model.chat([WORD])
        if reply.text != self.shared_resources:
            raise Retry(f"no moon, but {reply.text}")
        return Score(1.0)

    def close(self) -> None:
        self.events.append("closed")


async def test_a_retry_is_played_again_with_the_next_answer() -> None:
    played = await play(AsksAgain, answers=["a star", "the moon", "a star"])
    assert (played.reward, played.attempts, played.unused_answers) == (1.0, 2, (Answer("a star"),))
    assert AsksAgain.events == ["shared", "closed", "closed", "left"]


@pytest.mark.parametrize(
    ("environment", "attempts"), [(AsksAgain, 3), (AsksAgain(EnvironmentSettings()), 1)], ids=["class", "instance"]
)
async def test_after_the_last_retry_the_rollout_fails(environment: Any, attempts: int) -> None:
    played = await play(environment, answers=["a star"] * attempts)
    assert (played.status, played.attempts) == (RolloutStatus.FAILED, attempts)
    assert "no moon, but a star" in str(played.error)


async def test_wrong_arguments_of_play_are_refused() -> None:
    with pytest.raises(TypeError, match=r"play\(\) takes either answers=\[…\] or policy=…"):
        await play(Echo)
    with pytest.raises(TypeError, match="expected a list of answers, or a function"):
        await play(Echo, answers="moon")
    with pytest.raises(TypeError, match="got an instance, which already has settings"):
        await play(Echo(EchoSettings()), settings={"turns": 1}, answers=["moon"])
    with pytest.raises(EnvironmentUnusable, match="MultiTurnEnvironment does not define reset and step"):
        await play(MultiTurnEnvironment, answers=["moon"])


class KeepsALog(Environment):
    """Writes the answer to a file, and fails the first attempt."""

    attempts: ClassVar[int] = 0

    async def run(self, task: Task, model: Model) -> Score:
        type(self).attempts += 1
        reply = await model.chat([WORD])
        (model.artifacts_directory() / "log.txt").write_text(reply.text)
        if self.attempts == 1:
            raise Retry("once more")
        return Score(1.0)


async def test_a_test_can_read_the_artifacts_of_the_last_attempt_as_long_as_it_has_the_rollout() -> None:
    KeepsALog.attempts = 0
    played = await play(KeepsALog, answers=["one", "two"])
    directory = played.artifacts
    assert directory is not None
    assert (directory / "log.txt").read_text() == "two"
    del played
    gc.collect()
    assert not directory.exists()


async def test_with_a_policy_the_artifacts_stay_in_its_directory(tmp_path: Path) -> None:
    KeepsALog.attempts = 1
    async with embedded_policy(tmp_path) as policy:
        directory = (await play(KeepsALog, policy=policy)).artifacts
    assert directory is not None
    assert directory.is_relative_to(tmp_path)
    assert (directory / "log.txt").exists()


async def test_an_environment_that_asks_for_no_artifacts_leaves_no_directory() -> None:
    assert (await play(Echo, answers=["a", "b"])).artifacts is None
