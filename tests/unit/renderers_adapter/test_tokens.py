"""From logical to expanded ids, compared with a simple loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import (
    ExpandedPath,
    ImageSlot,
    PlaceholderError,
    TokenRun,
    as_logical_ids,
    expand,
    extend_path,
)

PAD = 99

pieces = st.one_of(st.integers(0, 50).map(lambda token: (token, 1)), st.integers(1, 9).map(lambda n: (PAD, n)))


@st.composite
def runs(draw: st.DrawFn) -> TokenRun:
    context = draw(st.lists(pieces, max_size=12))
    sampled = draw(st.lists(st.integers(0, 50), max_size=6))
    slots = tuple(ImageSlot(f"{at:032x}", at, n) for at, (token, n) in enumerate(context) if token == PAD)
    ids = as_logical_ids([token for token, _ in context] + sampled)
    return TokenRun(ids, len(context), np.full(len(sampled), -0.5, np.float32), slots)


@given(st.lists(runs(), max_size=6))
def test_expansion_equals_a_simple_loop(path: list[TokenRun]) -> None:
    ids: list[int] = []
    sampled: list[bool] = []
    types: list[int] = []
    places: list[tuple[str, int, int]] = []
    starts = [0]
    for run in path:
        lengths = {slot.offset: slot for slot in run.images}
        for at, token in enumerate(run.ids.tolist()):
            slot = lengths.get(at)
            if slot:
                places.append((slot.hash, len(ids), slot.length))
            times = slot.length if slot else 1
            ids += [token] * times
            sampled += [at >= run.sampled_from] * times
            types += [int(slot is not None)] * times
        starts.append(len(ids))

    expanded = expand(path, pad_id=PAD)
    labels = expanded.labels()

    assert expanded.ids.tolist() == ids
    assert labels.sampled.tolist() == sampled
    assert labels.token_types.tolist() == types
    assert [(mark.hash, mark.offset, mark.length) for mark in expanded.placeholders] == places
    assert labels.logprobs.tolist() == [-0.5 if s else 0.0 for s in sampled]
    assert list(expanded.run_starts) == starts


@given(st.lists(runs(), max_size=6), st.integers(0, 6))
def test_extending_a_path_equals_expanding_all_of_it(path: list[TokenRun], cut: int) -> None:
    whole = expand(path, pad_id=PAD)
    extended = extend_path(expand(path[:cut], pad_id=PAD), expand(path[cut:], pad_id=PAD))
    assert_same(extended, whole)


@given(st.lists(runs(), max_size=6), st.integers(0, 6))
def test_the_first_runs_of_a_path_equal_the_shorter_path_and_share_its_memory(path: list[TokenRun], cut: int) -> None:
    whole, cut = expand(path, pad_id=PAD), min(cut, len(path))
    beginning = whole.first_runs(cut)
    assert_same(beginning, expand(path[:cut], pad_id=PAD))
    assert beginning.ids.base is whole.ids


def assert_same(path: ExpandedPath, other: ExpandedPath) -> None:
    assert (path.runs, path.placeholders, path.run_starts) == (other.runs, other.placeholders, other.run_starts)
    assert np.array_equal(path.ids, other.ids)


@given(runs())
def test_an_offset_within_a_run_grows_by_the_images_before_it(run: TokenRun) -> None:
    expanded = expand([run], pad_id=PAD).ids.tolist()
    for offset, token in enumerate(run.ids.tolist()):
        assert expanded[run.expanded_offset(offset)] == token
    assert run.expanded_offset(len(run.ids)) == len(expanded)


@pytest.mark.parametrize(
    ("ids", "slots"),
    [
        ([1, PAD, 2], ()),
        ([1, 2, 3], (ImageSlot("a" * 32, 1, 4),)),
        ([1, PAD, 2], (ImageSlot("a" * 32, 2, 4),)),
        ([1, PAD, PAD], (ImageSlot("a" * 32, 1, 4),)),
        ([1, PAD], (ImageSlot("a" * 32, 1, 0),)),
    ],
)
def test_pads_and_images_that_do_not_match_are_refused(ids: list[int], slots: tuple[ImageSlot, ...]) -> None:
    with pytest.raises(PlaceholderError):
        expand([TokenRun(as_logical_ids(ids), len(ids), images=slots)], pad_id=PAD)


def test_a_missing_log_prob_is_refused() -> None:
    with pytest.raises(AdapterError, match="2 sampled tokens but 0 log-probs"):
        expand([TokenRun(as_logical_ids([1, 2, 3]), 1)], pad_id=PAD)
