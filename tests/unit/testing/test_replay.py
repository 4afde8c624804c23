"""`replay`: today's environment with recorded answers, and the first turn that is different."""

from pathlib import Path
from typing import Any

import pytest

from rollout.config.source import ConfigFileError
from rollout.environments.base import Environment, EnvironmentSettings
from rollout.testing import CannotReplay, Difference, ReplayReport, replay
from rollout.trainer.errors import NoArchive, RolloutNotFound
from tests.unit.testing import games
from tests.unit.testing.recorded import ROLLOUT, record, record_until_full, write_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


async def replay_as(directory: Path, today: type[Environment], **settings: int) -> ReplayReport:
    write_config(directory, today, settings=settings)
    return await replay(directory, ROLLOUT)


async def only_difference(directory: Path, today: type[Environment], **settings: int) -> Difference:
    (difference,) = (await replay_as(directory, today, **settings)).differences
    return difference


async def test_the_same_environment_says_the_same(game: Path) -> None:
    report = await replay_as(game, games.Game)
    assert report.same, report
    assert (report.recorded_turns, report.same_turns, report.notes) == (3, 3, ())
    assert str(report) == f"{game.name}/game/task.0: the same as recorded; 3 of 3 turns are the same"


async def test_another_message_is_shown_with_its_turn(game: Path) -> None:
    report = await replay_as(game, games.OtherHint)
    (difference,) = report.differences
    assert (difference.what, difference.turn, report.same_turns) == ("messages", 2, 2)
    assert difference.text == "messages[5] is different"
    assert difference.details == (
        *("--- recorded", "+++ today", "@@ -1,2 +1,3 @@", " user:"),
        *("-Turn 1: '' with the calls ['invalid_json'].", "+Line one.", "+Line two."),
    )


async def test_an_additional_message_is_shown(game: Path) -> None:
    difference = await only_difference(game, games.MessageMore)
    assert (difference.turn, difference.text) == (0, "messages[2] is new; the recorded conversation has 2 messages")


async def test_the_same_text_in_another_form_is_shown_as_json(game: Path) -> None:
    difference = await only_difference(game, games.OtherForm)
    assert (difference.turn, difference.text) == (0, "messages[1] is different")
    assert '-  "content": "Say a word.",' in difference.details


async def test_other_tools_are_shown(game: Path) -> None:
    difference = await only_difference(game, games.OtherTools)
    assert (difference.what, difference.turn) == ("tools", 0)
    assert [line.strip("+- ,") for line in difference.details if line[0] in "+-" and "name" in line] == [
        *('"name": "look"', '"name": "search"')
    ]


async def test_every_part_of_the_score_is_compared(game: Path) -> None:
    report = await replay_as(game, games.OtherScore)
    assert [(difference.what, difference.text) for difference in report.differences] == [
        ("score", "reward: 1; recorded is 3.5"),
        ("score", "reward letters: 1; recorded is 7"),
        ("score", "weight of letters: 1; recorded is 0.5"),
        ("score", "metric new: 1; recorded is none"),
        ("score", "limit: turns; recorded is none"),
    ]


async def test_the_settings_of_the_yaml_are_used(game: Path) -> None:
    difference = await only_difference(game, games.Game, turns=4)
    assert (difference.what, difference.turn) == ("turns", 3)
    assert "asks for another answer; the recorded rollout ended here: ok, reward 3.5" in difference.text


async def test_an_environment_that_ends_early_is_found(game: Path) -> None:
    report = await replay_as(game, games.EndsEarly)
    assert (report.differences[0].what, report.differences[0].turn) == ("turns", 2)
    assert report.same_turns == 2


async def test_an_error_that_is_new_has_its_traceback(game: Path) -> None:
    report = await replay_as(game, games.Raises)
    assert [(difference.what, difference.turn) for difference in report.differences] == [("turns", 2), ("error", None)]
    error = report.differences[1]
    assert error.text.startswith("the environment raises ValueError: no hint for ; recorded is ok, reward 3.5")
    assert 'raise ValueError(f"no hint for {reply.text}")' in [line.strip() for line in error.details]


async def test_only_another_error_is_a_difference(run: Path) -> None:
    await record(run, games.Raises(games.GameSettings()), ["moon", "sea"])
    assert (await replay_as(run, games.Raises)).same
    other = await only_difference(run, games.RaisesOtherwise)
    assert other.text == "the environment raises KeyError: 'sea'; recorded is failed, ValueError: no hint for sea"


@pytest.mark.parametrize("today", [games.Closes, games.ClosesWithOtherHint])
async def test_the_environment_is_closed_and_has_its_shared_resources(game: Path, today: type[games.Closes]) -> None:
    report = await replay_as(game, today)
    assert report.same == (today is games.Closes), report
    assert games.Closes.events == ["shared", "closed", "left"]


@pytest.mark.parametrize("today", [games.CancelsItself, games.Exits])
async def test_an_error_that_ended_the_rollout_ends_only_its_replay(run: Path, today: type[games.Game]) -> None:
    await record(run, today(games.GameSettings()), ["moon"])
    report = await replay_as(run, today)
    assert report.same, report
    assert (await only_difference(run, games.Game)).what == "turns"


async def test_a_fixed_error_is_a_difference(run: Path) -> None:
    await record(run, games.Raises(games.GameSettings()), ["moon", "sea"])
    fixed = await only_difference(run, games.Game)
    assert (fixed.what, fixed.turn) == ("turns", 2)
    assert "the recorded rollout ended here: failed, ValueError: no hint for sea" in fixed.text
    scored = await only_difference(run, games.Game, turns=2)
    assert scored.text == "the environment gives the reward 3.5; recorded is failed, ValueError: no hint for sea"


async def test_a_full_context_ends_the_replay_like_the_rollout(run: Path) -> None:
    await record_until_full(run, games.GoesOn(games.GameSettings()), 300)
    report = await replay_as(run, games.GoesOn)
    assert report.same, report
    assert report.same_turns == report.recorded_turns > 1
    assert (await only_difference(run, games.Scores)).text.startswith(
        "the environment gives the reward 0.5; recorded is"
    )


async def test_a_full_context_in_the_middle_is_replayed(run: Path) -> None:
    await record_until_full(run, games.Shortens(EnvironmentSettings()), 300)
    report = await replay_as(run, games.Shortens)
    assert report.same, report
    assert report.same_turns == 1


async def test_images_are_compared_by_their_bytes(run: Path) -> None:
    await record(run, games.Shows(EnvironmentSettings()), ["red", "blue"])
    assert (await replay_as(run, games.Shows)).same
    difference = await only_difference(run, games.ShowsOthers)
    assert (difference.turn, difference.text) == (1, "messages[2] is different")
    assert [line[:8] for line in difference.details if "<image" in line] == ["-<image ", "+<image "]


async def test_calls_at_the_same_time_are_matched_by_their_conversations(run: Path) -> None:
    await record(run, games.Branches(EnvironmentSettings()), lambda messages: messages[0]["content"].upper())
    assert (await replay_as(run, games.BranchesTurned)).same
    difference = await only_difference(run, games.BranchesOthers)
    assert (difference.what, difference.text) == ("messages", "messages[0] is different")


async def test_a_rollout_that_was_ended_from_outside_is_compared_up_to_its_end(run: Path) -> None:
    await record(run, games.HoldsOn(games.GameSettings()), ["moon"], timeout=0.5)
    report = await replay_as(run, games.Game)
    assert report.same, report
    assert "was ended from outside, so its end is not compared: failed, limit time, RolloutTimeout" in report.notes[0]


async def test_a_replay_of_an_environment_that_hangs_ends_at_its_timeout(game: Path) -> None:
    write_config(game, games.HoldsOn)
    report = await replay(game, ROLLOUT, timeout=0.2)
    assert report.differences[-1].text.startswith("the environment raises TimeoutError: the environment did not end")


async def test_without_the_tokenizer_the_recorded_messages_are_the_answers(game: Path, tmp_path: Path) -> None:
    config = write_config(game, games.Game)
    config.write_text(config.read_text().replace("builtin:tiny", str(tmp_path)))
    report = await replay(game, ROLLOUT)
    assert "malformed tool calls are text" in report.notes[0]
    assert report.differences[0].turn == 2


async def test_the_configuration_of_a_launch_is_found_by_the_name_of_the_environment(game: Path) -> None:
    (game / "config.yaml").unlink(missing_ok=True)
    config = write_config(game, games.Game, name="game.yaml")
    assert (await replay(game, f"game/{ROLLOUT}")).same
    config.unlink()


async def test_another_configuration_may_be_named(game: Path, tmp_path: Path) -> None:
    write_config(game, games.Game)
    other = write_config(tmp_path, games.OtherHint, name="other.yaml")
    assert not (await replay(game, ROLLOUT, config=other)).same


@pytest.mark.parametrize(
    ("rollout", "config", "error", "complaint"),
    [
        ("z.9", "run:\n  name: game\n", RolloutNotFound, r"has no rollout 'z\.9'"),
        (ROLLOUT, None, CannotReplay, "neither in game.yaml nor in config.yaml. Give its YAML with --config"),
        (ROLLOUT, "environment:\n  class: missing.module:Game\n", ConfigFileError, "there is no module 'missing'"),
    ],
    ids=["rollout", "configuration", "module"],
)
async def test_a_replay_without_its_rollout_configuration_or_class_is_refused(
    game: Path, rollout: str, config: str | None, error: Any, complaint: str
) -> None:
    path = write_config(game, games.Game)
    path.unlink() if config is None else path.write_text(config)
    with pytest.raises(error, match=complaint):
        await replay(game, rollout)


async def test_a_directory_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoArchive, match="has no recorded trajectories"):
        await replay(tmp_path, ROLLOUT)
