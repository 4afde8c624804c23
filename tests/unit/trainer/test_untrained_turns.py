"""Turns that do not train: those that were not received, and those that the reader's settings leave out."""

import asyncio
import sys
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.records.conversations import RootKind
from rollout.records.endings import RolloutStatus
from rollout.records.kinds import RecordError, RecordHeader, RolloutFinished, Step, StepsDigest
from rollout.records.wire import decode_record, encode_record
from rollout.testing import embedded_policy, play
from rollout.trainer import ReaderSettings, Trajectory, check, samples
from rollout.trainer.testing import Packet, put_all, read_all, scripted_rollout
from rollout.trainer.trajectory import assemble
from tests.unit.trainer.readers import reader_of
from transports import Queue

CHECKER = sys.modules[check.__module__]
TURNS = range(6)
TITLE = 7


class Program(Environment):
    """Node 0 is a question with the answers 1 and 2. Nodes 3-4 and 5-6 follow answer 2. Nodes 7-10 are for a title."""

    async def run(self, task: Task, model: Model) -> Score:
        question = {"role": "user", "content": "What colour has the sky?"}
        await model.chat([question])
        twin = await model.chat([question])
        await model.chat([question, twin.message, {"role": "user", "content": "And the sea?"}])
        await model.chat([question, twin.message, {"role": "user", "content": "And the grass?"}])
        title_request = {"role": "user", "content": "Write a title."}
        title = await model.chat([title_request])
        await model.chat([title_request, title.message, {"role": "user", "content": "Shorter."}])
        return Score(1.0)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    async def play_program() -> Trajectory:
        async with embedded_policy(tmp_path_factory.mktemp("images")) as policy:
            return (await play(Program(EnvironmentSettings()), Task("0", 0, 1), policy=policy)).trajectory

    return asyncio.run(play_program())


def assembled(
    played: Trajectory,
    *,
    unreceived_turns: tuple[int, ...] = (),
    root_kinds: dict[int, RootKind] | None = None,
    constrained: Collection[int] = (),
    **settings: bool,
) -> Trajectory:
    assert played.started is not None
    finished = RolloutFinished(
        RecordHeader(played.run, played.environment, played.group, played.rollout, played.attempt, 7),
        *(RolloutStatus.OK, 1.0, {}, None, len(played.steps), b"", 1.0),
        unreceived_turns=unreceived_turns,
        root_kinds=root_kinds or {},
    )
    steps = [replace(step, constrained=step.turn in constrained) for step in played.steps]
    return assemble(played.started, steps, finished, **settings)


def trained_turns(trajectory: Trajectory) -> list[int]:
    """Return the turns that train, once for each sample that trains them."""
    return sorted(turn for sample in samples(trajectory) for turn in set(sample.turn_index[sample.mask].tolist()))


def leaves(trajectory: Trajectory) -> list[int]:
    return [sample.leaf for sample in samples(trajectory)]


def test_every_turn_trains_if_the_records_name_none(played: Trajectory) -> None:
    whole = assembled(played)
    assert (trained_turns(whole), leaves(whole)) == ([*TURNS], [1, 4, 6, 10])
    assert check(whole) == []


def test_an_answer_that_was_not_received_does_not_train_beside_its_received_twin(played: Trajectory) -> None:
    retried = assembled(played, unreceived_turns=(0,))
    assert (trained_turns(retried), leaves(retried)) == ([1, 2, 3, 4, 5], [4, 6, 10])
    assert check(retried) == []


def test_a_shared_answer_trains_with_the_branch_that_trains(played: Trajectory) -> None:
    cut = assembled(played, unreceived_turns=(2,))
    assert (trained_turns(cut), leaves(cut)) == ([0, 1, 3, 4, 5], [1, 6, 10])


def test_a_sample_ends_with_the_last_answer_that_trains(played: Trajectory) -> None:
    cut = assembled(played, unreceived_turns=(2, 3))
    assert leaves(cut) == [1, 2, 10]
    assert samples(cut)[1].mask[-1]


def test_an_untrained_answer_is_context_of_later_answers(played: Trajectory) -> None:
    left_out = assembled(played, constrained=[1], train_constrained_turns=False)
    whole_branch, cut_branch = (
        next(sample for sample in samples(trajectory) if sample.leaf == 4)
        for trajectory in (assembled(played), left_out)
    )
    assert cut_branch.token_ids.tolist() == whole_branch.token_ids.tolist()
    assert set(cut_branch.turn_index[cut_branch.mask].tolist()) == {2}
    assert set(cut_branch.turn_index[~cut_branch.mask].tolist()) == {-1, 1}
    assert check(left_out) == []


def test_a_constrained_turn_trains_by_default(played: Trajectory) -> None:
    assert trained_turns(assembled(played, constrained=[1, 5])) == [*TURNS]


def test_an_auxiliary_conversation_does_not_train(played: Trajectory) -> None:
    titled = assembled(played, root_kinds={TITLE: RootKind.AUXILIARY})
    assert trained_turns(titled) == [0, 1, 2, 3]
    assert check(titled) == []


def test_an_auxiliary_conversation_trains_if_it_is_asked_for(played: Trajectory) -> None:
    titled = assembled(played, root_kinds={TITLE: RootKind.AUXILIARY}, train_auxiliary_roots=True)
    assert trained_turns(titled) == [*TURNS]
    assert check(titled) == []


def test_the_conversation_of_a_subagent_trains(played: Trajectory) -> None:
    assert trained_turns(assembled(played, root_kinds={TITLE: RootKind.SUBAGENT})) == [*TURNS]


def test_no_setting_trains_an_answer_that_was_not_received(played: Trajectory) -> None:
    titled = assembled(
        played, unreceived_turns=(5,), root_kinds={TITLE: RootKind.AUXILIARY}, train_auxiliary_roots=True
    )
    assert trained_turns(titled) == [0, 1, 2, 3, 4]


@given(st.sets(st.sampled_from(TURNS)))
def test_every_turn_that_was_received_trains_once_and_no_other(played: Trajectory, unreceived: set[int]) -> None:
    cut = assembled(played, unreceived_turns=tuple(sorted(unreceived)))
    assert trained_turns(cut) == [turn for turn in TURNS if turn not in unreceived]
    assert all(sample.mask.any() for sample in samples(cut))
    assert check(cut) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"unreceived_turns": (2, 6)}, "turn 6 was not received, but it has no step"),
        ({"root_kinds": {1: RootKind.SUBAGENT}}, "node 1 has a kind of root, but it is no root"),
        ({"root_kinds": {3: RootKind.AUXILIARY}}, "node 3 has a kind of root, but it is no root"),
        ({"root_kinds": {0: RootKind.SUBAGENT, 99: RootKind.AUXILIARY}}, "node 99 has a kind of root"),
    ],
)
def test_a_mark_on_a_turn_or_a_root_that_does_not_exist_is_refused(
    played: Trajectory, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RecordError, match=complaint):
        assembled(played, **changes)


def test_an_untrained_turn_that_trains_is_named(played: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    every_sample = samples(assembled(played))
    monkeypatch.setattr(CHECKER, "samples", lambda _: every_sample)
    found = check(assembled(played, root_kinds={TITLE: RootKind.AUXILIARY}))
    assert [(violation.invariant, violation.where) for violation in found] == [(6, "node 8"), (6, "node 10")]


def test_an_unreceived_turn_that_is_not_left_out_is_named(played: Trajectory) -> None:
    (violation,) = check(replace(assembled(played, unreceived_turns=(2,)), untrained_turns=frozenset()))
    assert (violation.invariant, violation.where) == (6, "node 4")
    assert violation.detail == "it trains in 1 samples; expected 0"


async def marked_rollout() -> list[Packet]:
    """Return the records of three turns in an auxiliary conversation, of which turn 1 is constrained."""
    started, *others = await scripted_rollout("g.0", turns=3)
    digest, packets = StepsDigest(), [started]
    for packet in others:
        record = decode_record(packet.frames)
        if isinstance(record, Step):
            frames = encode_record(replace(record, constrained=record.turn == 1))
            digest.add(frames)
        else:
            assert isinstance(record, RolloutFinished)
            kinds = {0: RootKind.AUXILIARY}
            frames = encode_record(replace(record, digest=digest.digest(), root_kinds=kinds, unreceived_turns=(2,)))
        packets.append(packet._replace(frames=frames))
    return packets


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ReaderSettings(), []),
        (ReaderSettings(train_auxiliary_roots=True), [0, 1]),
        (ReaderSettings(train_auxiliary_roots=True, train_constrained_turns=False), [0]),
    ],
)
async def test_the_settings_of_a_reader_say_which_turns_train(
    queue: Queue, settings: ReaderSettings, expected: list[int]
) -> None:
    await put_all(queue, await marked_rollout())
    async with reader_of(settings) as reader:
        (trajectory,) = await read_all(reader)
    assert trajectory.error is None
    assert trained_turns(trajectory) == expected
    assert trajectory.unreceived_turns == {2}
    assert trajectory.root_kinds == {0: RootKind.AUXILIARY}
