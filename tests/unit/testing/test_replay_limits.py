"""`replay` with retries, hanging environments, and environments or configurations that changed."""

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rollout.config.source import ConfigFileError
from rollout.environments.base import Environment, EnvironmentSettings, Model, Reply, Retry, Score
from rollout.environments.multi_turn import Turn
from rollout.records.task import Task
from rollout.testing import CannotReplay, replay
from rollout.testing.replaying import replay_at_once
from tests.unit.testing import games
from tests.unit.testing.recorded import ROLLOUT, WORDS, record, write_config


class AsksOnce(Environment):
    async def run(self, task: Task, model: Model) -> Score:
        await model.chat([{"role": "user", "content": "Say a word."}])
        return Score(1.0)


class ForgetsAwait(AsksOnce):
    """Calls the model once more, without waiting for it."""

    async def run(self, task: Task, model: Model) -> Score:
        score = await super().run(task, model)
        model.chat([{"role": "user", "content": "Say another one."}])  # type: ignore[unused-coroutine]
        return score


class AsksAgain(games.Game):
    """Its judge fails `failures_left` times."""

    failures_left: ClassVar[int]

    def score(self) -> Score:
        if AsksAgain.failures_left:
            AsksAgain.failures_left -= 1
            raise Retry("the judge sleeps")
        return super().score()


class Stays(games.Game):
    async def step(self, reply: Reply) -> Turn:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


class Holds(games.Game):
    async def step(self, reply: Reply) -> Turn:
        time.sleep(3600)  # noqa: ASYNC251 - that is the point
        raise AssertionError("never reached")


class CannotShare(games.Game):
    @classmethod
    @contextlib.asynccontextmanager
    async def shared(cls, settings: Any) -> Any:
        raise ConnectionRefusedError("no sandboxes")
        yield


async def test_a_call_without_await_is_an_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    await record(run, AsksOnce(EnvironmentSettings()), ["moon"])
    write_config(run, ForgetsAwait)
    (difference,) = (await replay(run, ROLLOUT)).differences
    assert difference.what == "error"
    assert "called `chat` without waiting for the reply" in difference.text


WRONG_SCORE = """
from rollout.environments.base import Environment
{comment}class WrongScore(Environment):
    async def run(self, task, model):
        return {score}
"""


@pytest.mark.parametrize(
    ("comment", "score", "same"), [("# more\n", "5", True), ("", "'5'", False)], ids=["moved", "other"]
)
async def test_the_place_in_an_error_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comment: str, score: str, same: bool
) -> None:
    module = tmp_path / f"wrong_score_{same}.py"
    module.write_text(WRONG_SCORE.format(comment="", score="5"))
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    imported = __import__(module.stem)
    await record(run, imported.WrongScore(EnvironmentSettings()), [])
    del sys.modules[module.stem]
    module.write_text(WRONG_SCORE.format(comment=comment, score=score))
    today = __import__(module.stem)
    write_config(run, today.WrongScore)
    report = await replay(run, ROLLOUT)
    assert report.same is same, report


async def test_a_retry_is_played_again(game: Path) -> None:
    write_config(game, AsksAgain)
    AsksAgain.failures_left = 2
    report = await replay(game, ROLLOUT)
    assert report.same, report
    assert report.same_turns == 3
    assert report.notes == ("played again after Retry: the judge sleeps; the judge sleeps",)


async def test_a_retry_in_every_attempt_is_an_error_and_not_a_difference(game: Path) -> None:
    write_config(game, AsksAgain)
    AsksAgain.failures_left = 4
    with pytest.raises(
        CannotReplay, match=r"each of 3 attempts ended with Retry: the judge sleeps\. A replay needs the judge"
    ):
        await replay(game, ROLLOUT)
    assert AsksAgain.failures_left == 1


async def test_a_rollout_that_failed_with_a_retry_is_compared_like_others(tmp_path: Path) -> None:
    AsksAgain.failures_left = 100
    await record(tmp_path / "run", AsksAgain(games.GameSettings()), WORDS)
    write_config(tmp_path / "run", AsksAgain)
    assert (await replay(tmp_path / "run", ROLLOUT)).same
    AsksAgain.failures_left = 0
    (difference,) = (await replay(tmp_path / "run", ROLLOUT)).differences
    assert difference.text == "the environment returns the reward 3.5; recorded: failed, Retry: the judge sleeps"


async def test_a_failure_of_shared_is_an_error_and_not_a_difference(game: Path) -> None:
    write_config(game, CannotShare)
    with pytest.raises(CannotReplay, match="no sandboxes"):
        await replay(game, ROLLOUT)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("today", "error"), [(Stays, "TimeoutError: the environment did not end"), (Holds, "EventLoopHeld")]
)
def test_an_environment_that_does_not_end_is_abandoned_or_interrupted(
    game: Path, today: type[Environment], error: str
) -> None:
    write_config(game, today)
    report = replay_at_once(game, ROLLOUT, timeout=0.2)
    assert report.differences[-1].text.startswith(f"the environment raises {error}")


@pytest.mark.parametrize(
    "config",
    [
        "environment:\n  class: missing.module:Game\n",
        "environment:\n  class: tests.unit.testing.games:Game\n  rounds: 3\n",
    ],
    ids=["module", "setting"],
)
async def test_the_error_of_an_outdated_configuration_names_the_option(game: Path, config: str) -> None:
    write_config(game, games.Game).write_text(config)
    with pytest.raises(ConfigFileError, match=r"do not change it\. .* give today's YAML with --config"):
        await replay(game, ROLLOUT)


async def test_a_configuration_of_another_environment_is_in_the_notes(game: Path, tmp_path: Path) -> None:
    write_config(game, games.Game)
    other = write_config(tmp_path, games.OtherScore, name="other.yaml")
    other.write_text(other.read_text().replace("name: game", "name: chess"))
    notes = (await replay(game, ROLLOUT, config=other)).notes
    assert notes == (
        f"{other} has another run.name: chess; recorded: game",
        f"{other} has another environment.class: tests.unit.testing.games:OtherScore; recorded: "
        "tests.unit.testing.games:Game",
    )
    assert (await replay(game, ROLLOUT, config=write_config(tmp_path, games.Game))).notes == ()


class KeepsALog(AsksOnce):
    async def run(self, task: Task, model: Model) -> Score:
        score = await super().run(task, model)
        (model.artifacts_directory() / "log.txt").write_text("played")
        return score


async def test_the_artifacts_of_a_replay_are_not_in_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    await record(run, AsksOnce(EnvironmentSettings()), ["moon"])
    write_config(run, KeepsALog)
    assert (await replay(run, ROLLOUT)).same
    assert not list(run.rglob("log.txt"))


class PlaysAProgram(AsksOnce):
    async def run(self, task: Task, model: Model) -> Score:
        async with model.endpoint():
            return Score(1.0)


async def test_the_rollout_of_a_program_cannot_be_replayed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    await record(run, AsksOnce(EnvironmentSettings()), ["moon"])
    write_config(run, PlaysAProgram)
    with pytest.raises(CannotReplay, match=r"plays an agent program over HTTP.*rollout run"):
        await replay(run, ROLLOUT)
