"""`zmq://` without sockets: malformed messages, other versions, and puts that fail."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

from tests.unit.transports.zmq_in_one_loop import OneLoopHub
from transports.errors import QueueError, QueueStorageError, QueueVersionMismatch
from transports.zeromq.links import LeaseToken
from transports.zeromq.remote import RemoteHubLink

STRANGER = b"5" * 16
TOKEN = ["hub", 0, 0, 1]


@pytest.fixture
async def hub() -> AsyncIterator[OneLoopHub]:
    hub = OneLoopHub()
    yield hub
    await hub.close()


def header(*values: Any) -> bytes:
    packed: bytes = msgpack.packb(values)
    return packed


def hello(*values: Any, version: bytes = b"2") -> tuple[bytes, bytes]:
    return b"H" + version, header(*(values or ("record", None, 0)))


def request(operation: str, *arguments: Any) -> tuple[bytes, bytes]:
    return b"Q", header(1, operation, arguments)


async def open_link(hub: OneLoopHub) -> RemoteHubLink:
    link = hub.link()
    await link.wait_until_ready(10)
    return link


@pytest.fixture
async def link(hub: OneLoopHub) -> AsyncIterator[RemoteHubLink]:
    link = await open_link(hub)
    yield link
    await link.close()


async def put_and_receive(link: RemoteHubLink, frame: bytes = b"x") -> None:
    await link.put((frame,), "k", "tag")
    leased = await link.receive(10)
    assert leased is not None
    assert (leased.frames, leased.key, leased.tag) == ((frame,), "k", "tag")
    assert await link.ack([leased.token]) == []


# What a hub refuses

MALFORMED = {
    "nothing": (),
    "no header": (b"H2",),
    "an empty part": (b"", b""),
    "an unknown kind": (b"Z", header()),
    "bytes that are not a header": (b"P", b"\xc1"),
    "a header that is cut off": (b"P", b"\xdd\xff\xff\xff\xff"),
    "a header that nests deeply": (b"P", b"\x91" * 5000),
    "a header that is not a list": (b"P", msgpack.packb({"a": 1})),
    "a hello of few values": hello("record"),
    "a hello of many values": hello("record", None, 0, 0),
    "a hello with no lease": hello("all", None, 0),
    "a hello with a text as a partition": hello("record", ["0"], 0),
    "a hello with a negative number": hello("record", None, -1),
    "a hello with a huge number": hello("record", None, 2**63),
    "a hello with a damaged version": hello(version=b"x"),
    "a record without frames": (b"P", header(0, "k", "t")),
    "a record with bytes as its key": (b"P", header(0, b"k", "t"), b"x"),
    "a record with true as its number": (b"P", header(True, "k", "t"), b"x"),
    "a heartbeat of a list": (b"B", header([])),
    "a heartbeat of a text": (b"B", header("5" * 16)),
    "an unknown request": request("format"),
    "a request with few arguments": request("take"),
    "a take that waits forever": request("take", math.inf),
    "a take that waits for nan": request("take", math.nan),
    "an ack of something that is not a token": request("ack", [[1, 2]]),
    "an ack of a list as a hub": request("ack", [[[], 0, 0, 1]]),
    "a nack with a negative delay": request("nack", TOKEN, -1.0),
    "a reject without a reason": request("reject", TOKEN, None),
    "a peek of a text": request("peek", "all"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_message_is_refused_and_the_queue_still_works(
    name: str, hub: OneLoopHub, link: RemoteHubLink
) -> None:
    hub.receive(STRANGER, *hello())
    hub.receive(STRANGER, *MALFORMED[name])
    await put_and_receive(link)
    assert (await link.stats()).refused_messages == 1


async def test_a_hello_without_the_name_of_a_producer_is_refused(hub: OneLoopHub) -> None:
    hub.receive(b"\x00abcd", *hello())
    assert (hub.refusals.count, hub.sent) == (1, [])


async def test_a_malformed_message_is_logged_once_for_each_peer(
    hub: OneLoopHub, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        hub.receive(STRANGER, b"P", b"garbage", b"x")
    (message,) = caplog.messages
    assert "refused a message from 10.0.0.9: a header that cannot be read" in message
    assert hub.refusals.count == 5


@pytest.mark.parametrize("token", [["another hub", 0, 0, 1], ["", 0, 0, 1], ["", 4095, 0, 1], ["", 0, 10**6, 1]])
async def test_a_token_without_a_leased_record_is_stale(token: list[Any], hub: OneLoopHub, link: RemoteHubLink) -> None:
    await link.put((b"x",), "k", "tag")
    leased = LeaseToken(token[0] or hub.name, *token[1:])
    assert not await link.nack(leased, 0.0)
    assert not await link.reject(leased, "no")
    assert (await link.stats()).backlog_records == 1


async def test_a_handle_cannot_ack_a_record_of_another_handle(hub: OneLoopHub, link: RemoteHubLink) -> None:
    other = await open_link(hub)
    for frame in (b"0", b"1"):
        await link.put((frame,), "k", "tag")
    mine, theirs = await link.receive(10), await other.receive(10)
    assert mine is not None
    assert theirs is not None
    await link.ack([mine.token._replace(position=theirs.token.position)])
    assert (await link.stats()).backlog_records == 2
    await other.close()


# Versions


async def test_a_handle_of_another_version_gets_the_version_of_the_hub(
    hub: OneLoopHub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.receive(STRANGER, b"H7", b"whatever version 7 says")
    assert hub.sent == [(STRANGER, [b"V", b"2"])]
    assert "version 7" in caplog.text
    assert "this hub speaks version 2: install the same release" in caplog.text


async def test_a_handle_that_sends_no_version_is_refused(hub: OneLoopHub, caplog: pytest.LogCaptureFixture) -> None:
    hub.receive(STRANGER, *hello(version=b""))
    assert hub.sent == []
    assert "version 1" in caplog.text


async def test_calls_fail_if_the_hub_has_another_version(hub: OneLoopHub, link: RemoteHubLink) -> None:
    waiting = asyncio.create_task(link.receive(10))
    await asyncio.sleep(0)
    link.handle_message([b"V", b"7"], "10.0.0.1")
    for call in (waiting, link.stats(), link.wait_until_ready(10)):
        with pytest.raises(QueueVersionMismatch, match=r"hub speaks version 7 .* version 2; install the same release"):
            await call
    hub.receive(STRANGER, b"B", header(STRANGER))
    link.handle_message([b"W", header(hub.name, 1, 0)], "10.0.0.1")
    assert (await link.stats()).backlog_records == 0


# What a handle refuses

MALFORMED_OF_THE_HUB = {
    "nothing": [],
    "no header": [b"W"],
    "an unknown kind": [b"Z", header()],
    "an answer that is not a header": [b"A", b"\xc1"],
    "an answer of few values": [b"A", header(0)],
    "an answer with a list as its number": [b"A", header([], "", None)],
    "progress with a text": [b"S", header("1", [])],
    "progress with no list": [b"S", header(0, 5)],
    "progress of records that were never sent": [b"S", header(10**9, [])],
    "a welcome of few values": [b"W", header("hub")],
    "a welcome with no partitions": [b"W", header("hub", 0, 0)],
    "a welcome with too many partitions": [b"W", header("hub", 10**6, 0)],
    "a welcome with a list as its name": [b"W", header([], 1, 0)],
    "a welcome that expects what was not sent": [b"W", header("hub", 1, 10**6)],
    "a version that is not a number": [b"V", b"\xff"],
    "a refusal of the same version": [b"V", b"2"],
}


@pytest.mark.parametrize("name", MALFORMED_OF_THE_HUB)
async def test_a_malformed_message_of_the_hub_is_ignored(
    name: str, link: RemoteHubLink, caplog: pytest.LogCaptureFixture
) -> None:
    link.handle_message(MALFORMED_OF_THE_HUB[name], "10.0.0.1")
    await put_and_receive(link)
    assert "refused a message from 10.0.0.1" in caplog.text


@pytest.mark.parametrize(
    ("operation", "value"),
    [
        ("receive", ["no token", "k", "n", False]),
        ("receive", [TOKEN, "k", "a damaged name", False]),
        ("receive", [TOKEN, "k", "0" * 32, False]),
        ("stats", [0]),
        ("stats", [0, 0, math.nan, 0, 0, 0, 0]),
        ("dead_letters", [["id", 5, "k", "t", "r"]]),
        ("dead_letters", [7]),
        ("peek", [[0, "k", "t", -1, 0, True]]),
        ("release", "done"),
    ],
)
async def test_a_malformed_answer_raises_a_storage_error(operation: str, value: Any, link: RemoteHubLink) -> None:
    call = {"receive": link.receive, "dead_letters": link.dead_letters, "peek": link.peek}.get(operation)
    asking = asyncio.create_task(getattr(link, operation)() if call is None else call(5))
    link.handle_message([b"A", header(0, "", value)], "10.0.0.1")  # nobody waits for it yet
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    link.handle_message([b"A", header(0, "", value)], "10.0.0.1")
    with pytest.raises(QueueStorageError, match=r"the answer of the hub to .* is malformed"):
        await asking


async def test_an_error_in_the_hub_raises_a_storage_error(link: RemoteHubLink, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("transports.zeromq.links.LocalHubLink.peek", fail)
    with pytest.raises(QueueStorageError, match="could not do 'peek': 'surprise'"):
        await link.peek(1)
    await put_and_receive(link)


# Puts that fail


async def test_a_put_that_fails_leaves_no_gap(
    hub: OneLoopHub, link: RemoteHubLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QueueError, match="at most"):
        await link.put((b"x",), "k" * (17 << 20), "tag")
    monkeypatch.setattr("transports.zeromq.remote.WINDOW_RECORDS", 1)
    monkeypatch.setattr("transports.zeromq.remote.HUB_TIMEOUT", 0.0)
    with hub.silence():
        await link.put((b"0",), "k", "tag")
        with pytest.raises(QueueStorageError, match="receives nothing"):
            await link.put((b"no room",), "k", "tag")
    monkeypatch.undo()
    await link.put((b"1",), "k", "tag")
    got = [await link.receive(10), await link.receive(10)]
    assert [leased.frames for leased in got if leased is not None] == [(b"0",), (b"1",)]


async def test_a_put_that_is_cancelled_while_it_waits_leaves_no_gap(
    hub: OneLoopHub, link: RemoteHubLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transports.zeromq.remote.WINDOW_BYTES", 10)
    with hub.silence():
        await link.put((b"first",), "k", "tag")
        waiting = asyncio.create_task(link.put((b"too large",), "k", "tag"))
        await asyncio.sleep(0)
        waiting.cancel()
    await link.put((b"last",), "k", "tag")
    got = [await link.receive(10), await link.receive(10)]
    assert [leased.frames for leased in got if leased is not None] == [(b"first",), (b"last",)]
