"""Records that contradict each other make no trajectory, so later steps can rely on it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from renderers_adapter.tokens import ImageSlot, TokenRun, as_logical_ids
from rollout.records.bounds import MAX_IMAGE_TOKENS
from rollout.records.kinds import MessageTokens, RecordError, RolloutFinished, RolloutStarted, Step
from rollout.records.wire import decode_record
from rollout.trainer import Trajectory, check, samples
from rollout.trainer.testing import PAD_ID, scripted_rollout
from rollout.trainer.trajectory import assemble

Records = tuple[RolloutStarted, list[Step], RolloutFinished]


@pytest.fixture
async def records() -> Records:
    started, *steps, finished = [
        decode_record(packet.frames) for packet in await scripted_rollout(turns=3, image_tokens=4)
    ]
    assert isinstance(started, RolloutStarted)
    assert isinstance(finished, RolloutFinished)
    return started, [step for step in steps if isinstance(step, Step)], finished


def joined(records: Records, at: int = 1, **changes: Any) -> Trajectory:
    started, steps, finished = records
    return assemble(started, [*steps[:at], replace(steps[at], **changes), *steps[at + 1 :]], finished)


def with_first_run(step: Step, **changes: Any) -> tuple[MessageTokens, ...]:
    first, *others = step.nodes
    return replace(first, run=replace(first.run, **changes)), *others


def test_valid_records_are_joined(records: Records) -> None:
    assert check(joined(records)) == []


def test_a_path_without_the_length_of_the_prompt_is_refused(records: Records) -> None:
    with pytest.raises(RecordError, match="its recorded prompt has 16 tokens, but the engine's prompt had 17"):
        joined(records, prompt_length=17)


def test_an_image_without_a_descriptor_is_refused(records: Records) -> None:
    with pytest.raises(RecordError, match="describes image"):
        joined(records, images={})


@pytest.mark.parametrize("pads", [[], [0, 1], [1]])
def test_images_that_are_not_at_the_pad_tokens_are_refused(records: Records, pads: Sequence[int]) -> None:
    ids = np.full(3, 5, np.int32)
    ids[pads] = PAD_ID
    with pytest.raises(RecordError, match="are not at the positions of its"):
        joined(records, nodes=with_first_run(records[1][1], ids=as_logical_ids(ids)))


def test_branches_with_too_many_tokens_together_are_refused(records: Records) -> None:
    started, (first, second, _), finished = records
    (slot,) = first.nodes[0].run.images
    large = with_first_run(first, images=(ImageSlot(slot.hash, 0, MAX_IMAGE_TOKENS),))
    grown = MAX_IMAGE_TOKENS - slot.length
    steps = [replace(first, nodes=large, prompt_length=first.prompt_length + grown)]
    answer = TokenRun(as_logical_ids([7, 20]), 1, np.array([-0.5], np.float32))
    for number in range(520):
        nodes = (MessageTokens({"role": "assistant", "content": str(number)}, answer, ()),)
        prompt_length = steps[0].prompt_length + 3
        steps.append(replace(second, parent=1, first=2 + number, nodes=nodes, images={}, prompt_length=prompt_length))
    with pytest.raises(RecordError, match="its 520 branches have 34083920 tokens and messages in total; the maximum"):
        assemble(started, steps, finished)


def test_more_versions_than_16_bits_can_number_are_distinguished(records: Records) -> None:
    started, (first, *_), finished = records
    count = 40_000
    question, answer = first.nodes
    run = TokenRun(as_logical_ids([7, *range(count)]), 1, np.full(count, -0.5, np.float32))
    spans = tuple(replace(first.versions[0], version=str(at), start=at, end=at + 1) for at in range(count))
    step = replace(first, nodes=(question, replace(answer, run=run)), versions=spans)
    (sample,) = samples(assemble(started, [step], finished))
    assert sample.version_index[-1] == count - 1
