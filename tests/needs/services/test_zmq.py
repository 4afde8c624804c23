"""`zmq://`: the contract, and what becomes of records when a hub or a producer goes away."""

import asyncio
import socket
from pathlib import Path

import pytest
import zmq.auth

from transports import Delivery, Queue, QueueStorageError, QueueURLError, StaleLease, open_queue
from transports.testing import QueueConformance


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"zmq://127.0.0.1:{probe.getsockname()[1]}"


class TestZmqConformance(QueueConformance):
    @pytest.fixture
    def queue_url(self) -> str:
        return free_address()


def number(delivery: Delivery | None) -> int:
    assert delivery is not None
    return int(bytes(delivery.frames[0]))


async def test_a_hub_that_is_started_anew_gets_everything_that_is_not_settled_at_its_old_place() -> None:
    url = free_address()
    first = open_queue(url)
    await first.stats()
    async with open_queue(f"{url}?serve=false") as producer:
        for n in range(100):
            await producer.put((str(n).encode(),), key="k", tag=f"record {n}")
        lent = [await first.receive(timeout=10) for _ in range(10)]
        await first.ack([delivery for delivery in lent[:5] if delivery is not None])
        await asyncio.sleep(0.05)
        await first.aclose()
        async with open_queue(url) as second:
            again = [await second.receive(timeout=10) for _ in range(95)]
            assert [number(delivery) for delivery in again] == list(range(5, 100))
            assert again[0] is not None
            assert lent[5] is not None
            assert (again[0].lane, again[0].position) == (lent[5].lane, lent[5].position)
            await second.ack([delivery for delivery in again if delivery is not None])
            assert (await producer.stats()).backlog_records == 0


async def test_an_address_whose_owner_answers_nobody_is_served_as_soon_as_it_is_free() -> None:
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


async def test_who_is_not_heard_of_loses_what_was_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{free_address()}?lease_time=0.1"
    monkeypatch.setattr("transports.zeromq.remote._HeartbeatSender.start", lambda _: None)
    monkeypatch.setattr("transports.zeromq.remote._HELLO_INTERVAL", 60.0)
    async with open_queue(url) as hub:
        await hub.put((b"0",), key="k")
        frozen = open_queue(url)
        lent = await frozen.receive(timeout=10)
        taken = await hub.receive(timeout=10)
        assert taken is not None
        assert taken.redelivered
        assert lent is not None
        with pytest.raises(StaleLease):
            await lent.ack()
        await taken.ack()
        await frozen.aclose()


async def test_without_anybody_who_serves_a_put_ends_with_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
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
