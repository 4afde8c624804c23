"""`zmq://`: the contract, and the records of a hub or a producer that ends."""

import asyncio
import socket
from pathlib import Path

import pytest
import zmq
import zmq.auth

from tests.needs.services.redis_server import free_port
from transports import (
    Delivery,
    Queue,
    QueueStorageError,
    QueueURLError,
    QueueVersionMismatch,
    StaleLease,
    open_queue,
)
from transports.testing import QueueConformance


def free_address() -> str:
    return f"zmq://127.0.0.1:{free_port()}"


class TestZmqConformance(QueueConformance):
    @pytest.fixture
    def queue_url(self) -> str:
        return free_address()


def number(delivery: Delivery | None) -> int:
    assert delivery is not None
    return int(bytes(delivery.frames[0]))


async def test_a_new_hub_gets_all_unsettled_records_at_their_old_positions() -> None:
    url = free_address()
    first = open_queue(url)
    await first.stats()
    async with open_queue(f"{url}?serve=false") as producer:
        for n in range(100):
            await producer.put((str(n).encode(),), key="k", tag=f"record {n}")
        leased = [await first.receive(timeout=10) for _ in range(10)]
        await first.ack([delivery for delivery in leased[:5] if delivery is not None])
        await asyncio.sleep(0.05)
        await first.aclose()
        async with open_queue(url) as second:
            again = [await second.receive(timeout=10) for _ in range(95)]
            assert [number(delivery) for delivery in again] == list(range(5, 100))
            assert again[0] is not None
            assert leased[5] is not None
            assert (again[0].lane, again[0].position) == (leased[5].lane, leased[5].position)
            await second.ack([delivery for delivery in again if delivery is not None])
            assert (await producer.stats()).backlog_records == 0


async def test_an_address_without_answers_is_served_when_it_is_free() -> None:
    with socket.socket() as closing:
        closing.bind(("127.0.0.1", 0))
        closing.listen()
        url = f"zmq://127.0.0.1:{closing.getsockname()[1]}"
        consumer = open_queue(url)
        receiving = asyncio.create_task(consumer.receive(timeout=20))
        await asyncio.sleep(0.05)
        assert not receiving.done()
    async with consumer, open_queue(f"{url}?serve=false") as producer:
        await producer.put((b"0",), key="k")
        assert number(await receiving) == 0


async def test_a_delivery_of_a_hub_that_is_gone_cannot_be_acked() -> None:
    url = free_address()
    first = open_queue(url)
    await first.put((b"0",), key="k")
    async with open_queue(f"{url}?serve=false") as consumer:
        delivery = await consumer.receive(timeout=10)
        assert delivery is not None
        await first.aclose()
        async with open_queue(url) as second:
            await second.stats()
            with pytest.raises(StaleLease):
                await delivery.ack()


async def test_a_handle_without_heartbeats_loses_its_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{free_address()}?lease_time=0.1"
    monkeypatch.setattr("transports.zeromq.connection._HeartbeatSender.start", lambda _: None)
    monkeypatch.setattr("transports.zeromq.remote._HELLO_INTERVAL", 60.0)
    async with open_queue(url) as hub:
        await hub.put((b"0",), key="k")
        frozen = open_queue(url)
        leased = await frozen.receive(timeout=10)
        taken = await hub.receive(timeout=10)
        assert taken is not None
        assert taken.redelivered
        assert leased is not None
        with pytest.raises(StaleLease):
            await leased.ack()
        await taken.ack()
        await frozen.aclose()


async def test_a_put_without_a_hub_ends_with_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transports.zeromq.queue.HUB_TIMEOUT", 0.1)
    async with open_queue(f"{free_address()}?serve=false") as queue:
        with pytest.raises(QueueStorageError, match="no hub"):
            await queue.put((b"0",), key="k")


async def test_curve_keys_from_a_file_encrypt_and_prove_the_hub(tmp_path: Path) -> None:
    public, secret = zmq.auth.create_certificates(tmp_path, "hub")
    other, _ = zmq.auth.create_certificates(tmp_path, "other")
    url = free_address()
    async with open_queue(f"{url}?certificate={secret}") as hub:
        await hub.stats()
        async with open_queue(f"{url}?serve=false&certificate={public}") as producer:
            await producer.put((b"5",), key="k")
            assert number(await hub.receive(timeout=10)) == 5
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("transports.zeromq.queue.HUB_TIMEOUT", 0.3)
            async with open_queue(f"{url}?serve=false&certificate={other}") as stranger:
                with pytest.raises(QueueStorageError, match="no hub"):
                    await stranger.stats()
    with pytest.raises(QueueURLError, match="secret"):
        await open_queue(f"{free_address()}?certificate={public}").stats()
    with pytest.raises(QueueURLError, match="not a CURVE certificate"):
        await open_queue(f"{free_address()}?certificate={tmp_path}/nothing").stats()


async def test_large_records_pass_the_window() -> None:
    url = free_address()
    async with open_queue(url) as hub:
        await hub.stats()
        async with open_queue(f"{url}?serve=false") as producer:
            blob = bytes(9 << 20)
            putting = asyncio.create_task(_put_all(producer, blob, 12))
            for n in range(12):
                delivery = await hub.receive(timeout=20)
                assert number(delivery) == n
                assert delivery is not None
                await delivery.ack()
            await putting


async def _put_all(queue: Queue, blob: bytes, count: int) -> None:
    for n in range(count):
        await queue.put((str(n).encode(), blob), key="k")


def connect(url: str, socket_type: int, identity: bytes = b"") -> "zmq.Socket[bytes]":
    stranger: zmq.Socket[bytes] = zmq.Context.instance().socket(socket_type)
    stranger.setsockopt(zmq.LINGER, 1000)
    if identity:
        stranger.setsockopt(zmq.IDENTITY, identity)
    if socket_type == zmq.ROUTER:
        stranger.bind(url.replace("zmq://", "tcp://"))
    else:
        stranger.connect(url.replace("zmq://", "tcp://"))
    return stranger


async def test_malformed_messages_are_refused_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    url = free_address()
    async with open_queue(url) as hub:
        assert await hub.receive(timeout=0) is None
        stranger = connect(url, zmq.DEALER)
        malformed = [[b""], [b"H2"], [b"P", b"\xc1"], [b"Q", b"x", b"y"], [b"B", b"\x91\x90"], [b"S", b"\x90", b""]]
        for message in malformed:
            stranger.send_multipart(message)
        async with open_queue(f"{url}?serve=false") as producer, asyncio.timeout(20):
            while (await producer.stats()).refused_messages < len(malformed):  # noqa: ASYNC110 - in another thread
                await asyncio.sleep(0.01)
            await producer.put((b"5",), key="k")
            assert number(await hub.receive(timeout=10)) == 5
        assert (await hub.stats()).refused_messages == len(malformed)
        stranger.close()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "transports.zeromq.refusals"]
    assert "refused a message from 127.0.0.1" in said


async def test_a_handle_and_a_hub_of_other_versions_tell_each_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = free_address()
    async with open_queue(url) as hub:
        assert await hub.receive(timeout=0) is None
        monkeypatch.setattr("transports.zeromq.remote.PROTOCOL_VERSION", 3)
        async with open_queue(url) as newer:
            with pytest.raises(
                QueueVersionMismatch, match=r"hub uses version 2 .* this process uses version 3; install"
            ):
                await newer.put((b"0",), key="k")
    assert "version 3 of the zmq:// protocol; this hub uses version 2: install the same release" in caplog.text


async def test_the_error_names_the_address_of_a_program_that_is_not_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transports.zeromq.queue.HUB_TIMEOUT", 0.5)
    url = free_address()
    other_program = connect(url, zmq.ROUTER)
    async with open_queue(f"{url}?serve=false") as handle:
        asking = asyncio.create_task(handle.stats())
        identity, *_ = await asyncio.to_thread(other_program.recv_multipart)
        other_program.send_multipart([identity, b"HTTP/1.1 400 Bad Request"])
        with pytest.raises(
            QueueStorageError, match=r"no hub answers.* The hub sent 1 malformed message.*the last problem"
        ):
            await asking
    other_program.close()


async def test_waiting_calls_raise_when_the_hub_ends_because_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("surprise")

    async with open_queue(free_address()) as hub:
        waiting = asyncio.create_task(hub.receive(timeout=60))
        await asyncio.sleep(0.05)
        monkeypatch.setattr("transports.zeromq.remote_handles.RemoteHandles.send_progress", fail)
        with pytest.raises(QueueStorageError, match=r"hub of this queue has failed: KeyError\('surprise'\)"):
            await waiting
        with pytest.raises(QueueStorageError, match="has failed"):
            await hub.put((b"0",), key="k")


async def test_large_and_small_records_that_wait_for_the_hub_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transports.zeromq.remote.WINDOW_BYTES", 100)
    url = free_address()
    async with open_queue(url) as hub:
        await hub.receive(timeout=0)
        async with open_queue(f"{url}?serve=false") as producer, asyncio.TaskGroup() as puts:
            for n in range(12):
                puts.create_task(producer.put((str(n).encode(), bytes(90 * (n % 3 == 1))), key="k"))
            assert [number(await hub.receive(timeout=10)) for _ in range(12)] == list(range(12))


async def test_a_put_that_is_cancelled_while_it_waits_for_the_hub_harms_no_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transports.zeromq.remote.WINDOW_RECORDS", 1)
    url = free_address()
    async with open_queue(url) as hub:
        await hub.receive(timeout=0)
        async with open_queue(f"{url}?serve=false") as producer:
            await producer.stats()
            puts = [asyncio.create_task(producer.put((str(n).encode(),), key="k")) for n in range(4)]
            await asyncio.sleep(0)
            puts[1].cancel()
            await asyncio.wait(puts)
            assert puts[1].cancelled()
            assert [number(await hub.receive(timeout=10)) for _ in range(3)] == [0, 2, 3]
