"""`rollout queue` with queues in directories."""

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout import Task
from rollout.records.endings import RolloutStatus
from rollout.records.kinds import RecordHeader, RolloutFinished
from rollout.records.wire import encode_record
from rollout.tasks.orders import RolloutOrder, encode_order
from tests.unit.cli import in_process
from transports import Frames, Queue, open_queue
from transports.codec import encode
from transports.testing.cases import receive_one

FINISHED = RolloutFinished(
    header=RecordHeader("run-1", "colors", "group-2", "colors-2-0", 0, 3),
    status=RolloutStatus.OK,
    reward=0.5,
    metrics={"turns": 2.0},
    error=None,
    steps=2,
    digest=bytes(16),
    seconds=1.5,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/queue"


def run_queue_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return in_process.run_cli("queue", *arguments)


def report(*arguments: str) -> Any:
    result = run_queue_command(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


async def put(url: str, *records: Frames, tag: str = "the tag") -> None:
    async with open_queue(url) as queue:
        for frames in records:
            await queue.put(frames, key="group-2", tag=tag)


async def reject(url: str, count: int, reason: str) -> None:
    async with open_queue(url) as queue:
        for _ in range(count):
            delivery = await receive_one(queue)
            await delivery.reject(reason)


async def run_with_consumer(
    command: Callable[[], Any], holding: Callable[[Queue], Coroutine[Any, Any, None]], queue: Queue
) -> Any:
    """Return what a command returns while this process is a consumer of its queue."""
    async with queue:
        await holding(queue)
        return await asyncio.to_thread(command)


async def test_stats_show_backlog_and_dead_letters(url: str) -> None:
    await put(url, *[encode({"n": n, "blob": bytes(60_000)}) for n in range(3)])
    await reject(url, 1, "not today")
    found = report("stats", url)
    assert (found["backlog_records"], found["dead_letters"], found["redeliveries"]) == (2, 1, 0)
    assert found["oldest_age"] > 0
    table = run_queue_command("stats", url).stdout
    assert "2 records" in table
    assert "120.0 kB" in table


async def test_peek_shows_a_record_of_a_trajectory_and_does_not_consume_it(url: str) -> None:
    await put(url, encode_record(FINISHED), tag=FINISHED.header.tag)
    (found,) = report("peek", url)["records"]
    assert (found["kind"], found["rollout"]) == ("rollout_finished", "run-1/colors/colors-2-0#0.3")
    assert (found["delivered"], found["key"], found["frames"]) == (False, "group-2", 1)
    assert found["content"]["status"] == "ok"
    assert found["content"]["header"]["seq"] == 3
    text = run_queue_command("peek", url).stdout
    assert "rollout_finished  run-1/colors/colors-2-0#0.3" in text
    assert "reward: 0.5" in text
    assert report("stats", url)["backlog_records"] == 1


async def test_peek_shows_an_order(url: str) -> None:
    await put(url, encode_order(RolloutOrder(Task("colors-7", 7, 1, {"color": "red"}), 0, 2, "v3")))
    (found,) = report("peek", url)["records"]
    assert found["kind"] == "order"
    assert found["content"]["task"]["data"] == {"color": "red"}


async def test_peek_shortens_long_values_except_with_full(url: str) -> None:
    uri = "data:image/png;base64," + "A" * 3000
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    value = {"text": "word " * 200, "uri": uri, "array": array, "many": list(range(100)), "raw": bytes(500)}
    await put(url, encode(value))
    (short,) = report("peek", url)["records"]
    content = short["content"]
    assert content["array"] == "float32[3, 4]"
    assert content["uri"].endswith("… (3,022 characters)")
    assert content["text"].endswith("… (1,000 characters)")
    assert content["raw"].endswith("… (500 bytes)")
    assert content["many"][-1] == "… (100 items)"
    assert len(run_queue_command("peek", url).stdout) < 1500
    (full,) = report("peek", url, "--full")["records"]
    assert full["content"] == {**value, "array": array.tolist(), "raw": "0x" + bytes(500).hex()}


@pytest.mark.parametrize("frames", [(b"\xc1 not msgpack",), encode({"kind": "step", "schema": 900})])
async def test_peek_marks_a_record_that_cannot_be_decoded(url: str, frames: Frames) -> None:
    await put(url, frames, tag="whose it is")
    (found,) = report("peek", url)["records"]
    assert (found["kind"], found["tag"]) == ("undecodable", "whose it is")
    assert found["content"]["error"]
    assert "undecodable  whose it is" in run_queue_command("peek", url).stdout


async def test_control_characters_are_not_printed(url: str) -> None:
    await put(url, encode({"text": "\x1b[31m red \udc80"}), tag="\x1b]0;title\x07 \udc80")
    await put(url, encode(None), tag="second")
    for command in ("peek", "dead"):
        shown = run_queue_command(command, url)
        assert shown.returncode == 0, shown.stderr
        assert "\x1b" not in shown.stdout
        assert "\x07" not in shown.stdout
        report(command, url)
        await reject(url, 1, "\x1b[31m no \udc80")


async def test_peek_stops_at_its_limit_and_reports_an_empty_queue(url: str) -> None:
    await put(url)
    assert "empty" in run_queue_command("peek", url).stdout
    await put(url, *[encode(n) for n in range(5)])
    assert [record["content"] for record in report("peek", url, "--limit", "2")["records"]] == [0, 1]


@pytest.mark.parametrize("replay", ["", "&replay=true"])
async def test_acked_records_of_an_archive_are_shown_as_retained(url: str, replay: str) -> None:
    retaining = f"{url}?retain=true"
    await put(retaining, *[encode(n) for n in range(3)])
    async with open_queue(retaining) as queue:
        await queue.ack([delivery for _ in range(3) if (delivery := await queue.receive(timeout=10))])
    stats = run_queue_command("stats", f"{retaining}{replay}").stdout
    assert re.search(r"^waiting +0 records", stats)
    assert re.search(r"^retained +3 acked records", stats, re.MULTILINE)
    assert report("stats", f"{retaining}{replay}")["retained_records"] == 3
    found = report("peek", f"{retaining}{replay}", "--limit", "2")
    assert (found["waiting"], found["retained"]) == (0, 3)
    assert [(record["content"], record["retained"]) for record in found["records"]] == [(0, True), (1, True)]
    text = run_queue_command("peek", f"{url}?retain=true{replay}").stdout
    assert text.startswith("no record waits; 3 acked records are retained\n\nother  ")
    assert text.count("  retained\n") == 3


async def test_dead_letters_are_listed_and_requeued(url: str) -> None:
    await put(url, *[encode(n) for n in range(3)], tag="rollout-9")
    await reject(url, 3, "cannot be [decoded]")
    found = report("dead", url)
    assert found["dead_letters"] == 3
    assert found["letters"][0] == {"reason": "cannot be [decoded]", "tag": "rollout-9", "key": "group-2", "bytes": 1}
    assert "cannot be [decoded]" in run_queue_command("dead", url).stdout
    assert "the first 2 are shown" in run_queue_command("dead", url, "--limit", "2").stdout
    assert report("requeue", url, "--limit", "1") == {"requeued": 1, "dead_letters": 2}
    assert "2 dead letters put back as new records; 0 are left" in run_queue_command("requeue", url).stdout
    assert report("stats", url)["backlog_records"] == 3


async def test_drain_removes_all_records_without_a_lease(url: str) -> None:
    await put(url, *[encode(n) for n in range(70)])
    assert report("drain", url, "--yes") == {"drained": 70, "left": 0}
    assert report("stats", url)["backlog_records"] == 0


async def test_drain_reports_the_records_that_another_consumer_has_leased(url: str) -> None:
    async def lease(queue: Queue) -> None:
        assert await queue.receive(timeout=10) is not None

    await put(f"{url}?partitions=2", *[encode(n) for n in range(4)])
    text = (
        await run_with_consumer(
            lambda: run_queue_command("drain", url, "--yes", "--wait", "0.2"), lease, open_queue(url)
        )
    ).stdout
    assert text.startswith("0 records removed; 4 are left: another consumer has leased them")
    tasks = open_queue(f"{url}-tasks", lease="record")
    await put(f"{url}-tasks", *[encode(n) for n in range(4)])
    arguments = ("drain", f"{url}-tasks", "--yes", "--wait", "0.2", "--lease", "record")
    assert await run_with_consumer(lambda: report(*arguments), lease, tasks) == {"drained": 3, "left": 1}


async def test_drain_needs_yes_without_a_terminal(url: str) -> None:
    await put(url, encode(1))
    refused = run_queue_command("drain", url)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert report("stats", url)["backlog_records"] == 1


def test_a_wrong_url_exits_with_2() -> None:
    refused = run_queue_command("stats", "fiel:///data/queue")
    assert refused.returncode == 2
    assert "did you mean 'file://'" in refused.stderr


def test_a_command_does_not_create_a_missing_queue(url: str, tmp_path: Path) -> None:
    refused = run_queue_command("stats", url)
    assert refused.returncode == 2
    assert "no queue" in refused.stderr
    assert not any(tmp_path.iterdir())


async def test_a_queue_that_refuses_a_record_exits_with_1(url: str) -> None:
    await put(url, encode(bytes(2000)))
    await reject(url, 1, "too large for now")
    refused = run_queue_command("requeue", f"{url}?high_water=1000&hard_limit=1000")
    assert refused.returncode == 1
    assert "2003" in refused.stderr
    assert report("stats", url)["dead_letters"] == 1
