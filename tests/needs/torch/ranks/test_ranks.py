"""Several ranks, as real processes: equal steps, balance, equal data, and errors that reach every rank."""

import json
from collections import Counter
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from typing import Any

import anyio
import pytest

from rollout.trainer.testing import put_all, scripted_rollout
from tests.needs.torch.processors import QWEN
from tests.needs.torch.ranks.launching import Launch, fill, launch, stats_of, torchrun
from transports import open_queue

STEPS, GROUPS_PER_STEP, PACKING = 200, 4, 1024
RECORDS = 2 * 3
"""The records of a group: two members with a start, a step and an end."""


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """A finished run with 200 steps and two groups more, and the ids of its groups."""
    url = f"file://{tmp_path_factory.mktemp('long')}/trajectories?retain=true"
    return f"{url}&replay=true", fill(url, STEPS * GROUPS_PER_STEP + 2)


def assert_equal_steps(run: Launch, ids: list[str]) -> None:
    """All ranks take the same steps with equally many rows, and each rollout is on one rank."""
    ranks = [run.steps(rank) for rank in range(len(run.lines))]
    for steps in zip(*ranks, strict=True):
        for name in ("step", "groups", "samples", "trained_tokens", "rows"):
            assert len({str(step[name]) for step in steps}) == 1
        rollouts = sorted(rollout for step in steps for rollout in step["rollouts"])
        assert rollouts == sorted(f"{group}.{member}" for group in steps[0]["groups"] for member in range(2))
    assert [group for step in ranks[0] for group in step["groups"]] == ids


def assert_balanced(run: Launch) -> None:
    """The heaviest rank has at most 1.15 times the mean, or the tokens of the longest sample."""
    ranks = [run.steps(rank) for rank in range(len(run.lines))]
    for steps in zip(*ranks, strict=True):
        loads = [sum(step["lengths"]) for step in steps]
        longest = max(max(step["lengths"], default=0) for step in steps)
        assert max(loads) <= max(1.15 * sum(loads) / len(loads), longest)


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_take_equal_and_balanced_steps_until_the_end(
    long_run: tuple[str, list[str]], tmp_path: Path, ranks: int
) -> None:
    url, ids = long_run
    run = torchrun(tmp_path, ranks, url=url, arguments={"groups_per_step": GROUPS_PER_STEP, "packing": PACKING})
    assert [lines[-1:] for lines in run.lines] == [[{"ended": True, "left_over": 2}]] * ranks, run.output
    assert_equal_steps(run, ids[:-2])
    assert len(run.steps(0)) == STEPS
    assert_balanced(run)


def test_killed_ranks_end_the_others_and_each_group_trains_once(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/trajectories?lease_time=1"
    ids = fill(url, STEPS * 2 + 1)
    options: dict[str, Any] = {
        "url": url,
        "arguments": {"groups_per_step": 2, "packing": PACKING},
        "checkpoint": str(tmp_path / "checkpoint.json"),
        "save_every": 5,
        "last_step": STEPS,
    }
    for ranks, killed, step, place in ((4, 2, 37, "trained"), (2, 0, 85, "saved"), (3, 0, 133, "trained")):
        run = launch(tmp_path, ranks, signals=[(killed, step, place, SIGKILL)], **options)
        others = [rank for rank in range(ranks) if rank != killed]
        assert [run.codes[rank] for rank in range(ranks)] == [
            -SIGKILL if rank == killed else 1 for rank in range(ranks)
        ]
        for rank in others:
            assert run.errors()[rank] == "RankFailed", run.output
            assert f"rank {killed}: it has closed its connection" in run.text(rank)
    run = launch(tmp_path, 2, **options)
    assert run.codes == [0, 0], run.output
    assert run.steps(0)[0]["step"] == 131
    assert run.steps(0)[-1]["step"] == STEPS
    assert json.loads((tmp_path / "checkpoint.json").read_text())["weights"] == ids[:-1]
    assert stats_of(url).backlog_records == RECORDS


def test_torchrun_restarts_killed_ranks_and_each_group_trains_once(
    long_run: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, ids = long_run
    run = torchrun(
        tmp_path,
        2,
        restarts=3,
        url=url,
        arguments={"groups_per_step": GROUPS_PER_STEP, "packing": PACKING},
        checkpoint=str(tmp_path / "checkpoint.json"),
        signals=[(1, 23, "trained", SIGKILL), (0, 65, "saved", SIGKILL), (1, 150, "saved", SIGKILL)],
    )
    assert [lines[-1:] for lines in run.lines] == [[{"ended": True, "left_over": 2}]] * 2, run.output
    assert [sum("opened" in line for line in lines) for lines in run.lines] == [4, 4]
    assert json.loads((tmp_path / "checkpoint.json").read_text())["weights"] == ids[:-2]


def test_two_ranks_train_on_queues_in_proportion_to_their_weights(tmp_path: Path) -> None:
    many, few = f"file://{tmp_path}/many", f"file://{tmp_path}/few"
    fill(many, 12, prefix="many")
    fill(few, 4, prefix="few")
    weights = {f"{many}?replay=true": 3.0, f"{few}?replay=true": 1.0}
    run = launch(tmp_path, 2, url=weights, arguments={"groups_per_step": 4})
    assert run.codes == [0] * 2, run.output
    assert_equal_steps(run, [group for step in run.steps(0) for group in step["groups"]])
    shares = [Counter(group.rstrip("0123456789") for group in step["groups"]) for step in run.steps(1)]
    assert shares == [Counter(many=3, few=1)] * 4


def test_ranks_with_the_same_data_get_identical_batches(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/trajectories"
    fill(url, 20)
    data_ranks = {str(rank): {"data_rank": rank // 2} for rank in range(4)}
    arguments = {"groups_per_step": 2, "packing": None}
    run = launch(tmp_path, 4, url=f"{url}?replay=true", arguments=arguments, rank_arguments=data_ranks)
    assert run.codes == [0] * 4, run.output
    digests = [[step["digest"] for step in run.steps(rank)] for rank in range(4)]
    assert digests[0] == digests[1]
    assert digests[2] == digests[3]
    assert not set(digests[0]) & set(digests[2])
    assert [len(steps) for steps in digests] == [10] * 4


def test_a_rank_without_samples_has_rows_of_padding(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/trajectories"
    fill(url, 2, size=1)
    run = launch(tmp_path, 3, url=f"{url}?replay=true", arguments={"groups_per_step": 1})
    assert run.codes == [0] * 3, run.output
    for steps in zip(*(run.steps(rank) for rank in range(3)), strict=True):
        assert Counter(len(step["rollouts"]) for step in steps) == {1: 1, 0: 2}
        assert [step["rows"] for step in steps] == [1] * 3


def put_image_rollout(url: str) -> None:
    async def put() -> None:
        async with open_queue(url) as queue:
            await put_all(queue, await scripted_rollout("image.0", image_tokens=4))
            await put_all(queue, await scripted_rollout("text.0", turns=9))

    anyio.run(put)


@pytest.mark.parametrize(
    ("options", "failed", "name", "text"),
    [
        ({"processor": QWEN}, None, "MaterializeError", "rollout image.0"),
        ({"arguments": {"groups_per_step": 9, "timeout": 0.5}}, 0, "NothingArrived", "no whole group came"),
        ({"arguments": {"groups_per_step": 1}, "fail": (1, 1)}, 1, "ValueError", "the loss is not a number"),
        ({"arguments": {"groups_per_step": 1}, "fail": (0, 1)}, 0, "ValueError", "the loss is not a number"),
    ],
    ids=["materializer", "reading rank", "training loop", "training loop of the reading rank"],
)
def test_an_error_of_one_rank_reaches_all_ranks(
    tmp_path: Path, options: dict[str, Any], failed: int | None, name: str, text: str
) -> None:
    url = f"file://{tmp_path}/trajectories"
    put_image_rollout(url)
    arguments = {"groups_per_step": 2, "rank_timeout": 30} | options.get("arguments", {})
    run = launch(tmp_path, 3, url=url, **{**options, "arguments": arguments})
    if failed is None:
        failed = run.errors().index(name)
    assert run.errors() == [name if rank == failed else "RankFailed" for rank in range(3)], run.output
    assert text in run.text(failed)
    for rank in {0, 1, 2} - {failed}:
        assert f"rank {failed}: it has failed with {name}: " in run.text(rank)
        assert text in run.text(rank)


@pytest.mark.parametrize("leaving", [0, 1])
def test_a_rank_that_leaves_its_loop_alone_is_named_on_the_others(tmp_path: Path, leaving: int) -> None:
    url = f"file://{tmp_path}/trajectories"
    fill(url, 9)
    run = launch(tmp_path, 3, url=url, arguments={"groups_per_step": 1}, leave=(leaving, 3))
    assert run.errors() == [None if rank == leaving else "RankFailed" for rank in range(3)], run.output
    for rank in {0, 1, 2} - {leaving}:
        assert f"rank {leaving}: it has left its loop before the end" in run.text(rank)


def test_a_group_of_some_ranks_has_batches_of_its_own(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/trajectories"
    ids = fill(url, 6)
    run = launch(tmp_path, 3, url=f"{url}?replay=true", arguments={"groups_per_step": 2}, group=[1, 2])
    assert run.codes == [0] * 3, run.output
    run.lines = run.lines[1:]
    assert_equal_steps(run, ids)


def test_a_rank_may_have_more_process_groups_than_the_others(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/trajectories"
    ids = fill(url, 4)
    arguments = {"groups_per_step": 2, "rank_timeout": 20}
    run = launch(tmp_path, 2, url=f"{url}?replay=true", arguments=arguments, group_of_its_own=1)
    assert run.codes == [0] * 2, run.output
    assert_equal_steps(run, ids)


def test_batches_can_be_opened_again_in_the_same_processes(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/trajectories"
    ids = fill(url, 4)
    arguments = {"groups_per_step": 2, "rank_timeout": 20}
    run = launch(tmp_path, 2, url=f"{url}?replay=true", arguments=arguments, openings=3)
    assert run.codes == [0] * 2, run.output
    assert_equal_steps(run, ids * 3)


@pytest.mark.parametrize(("stopped", "seconds"), [(1, 2), (0, 12)], ids=["another rank", "the reading rank"])
def test_a_stopped_rank_is_named_on_the_others_within_the_deadline(tmp_path: Path, stopped: int, seconds: int) -> None:
    url = f"file://{tmp_path}/trajectories"
    fill(url, 40)
    arguments = {"groups_per_step": 1, "rank_timeout": 2}
    run = launch(tmp_path, 3, stopped=stopped, url=url, arguments=arguments, signals=[(stopped, 5, "trained", SIGSTOP)])
    assert run.errors() == [None if rank == stopped else "RankFailed" for rank in range(3)], run.output
    for rank in {0, 1, 2} - {stopped}:
        assert f"rank {stopped}: it did not answer within {seconds} s" in run.text(rank)
        assert "`rank_timeout`" in run.text(rank)


@pytest.mark.parametrize(
    ("rank_arguments", "text"),
    [
        ({"1": {"data_rank": 5}}, r"the values of `data_rank` do not fit (rank 0: 0, rank 1: 5)"),
        ({"1": {"packing": 512}}, "`packing` is 512 on rank 1, but 32768 on rank 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_on_all_ranks(
    tmp_path: Path, rank_arguments: dict[str, Any], text: str
) -> None:
    run = launch(tmp_path, 2, url=f"file://{tmp_path}/trajectories", rank_arguments=rank_arguments)
    assert run.errors() == ["RankError", "RankError"], run.output
    for rank in range(2):
        assert text in run.text(rank)
