"""The same request gets the same turn until its answer was received, and only received turns train."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rollout.environments.endpoint import Endpoint
from rollout.gateway.flights import Flight
from rollout.testing import Played
from rollout.trainer import check
from tests.unit.gateway.raw_client import DIALECTS, DialectName, RawClient, body_of, echo_of, text_of
from tests.unit.gateway.served import HeldQueue, Served, serve, trained_turns, until

QUESTION = body_of("Say three words.")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as opened:
        yield opened


def require_turns(played: Played, *, trained: list[int], unreceived: list[int]) -> None:
    """Require these turns in the trajectory, and no findings."""
    trajectory = played.trajectory
    assert check(trajectory) == []
    assert trained_turns(trajectory) == trained
    assert sorted(trajectory.untrained_turns) == unreceived
    assert sorted(step.turn for step in trajectory.steps) == sorted({*trained, *unreceived})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_same_body_in_flight_gets_the_same_bytes(served: Served, dialect: DialectName, stream: bool) -> None:
    body = body_of("Say three words.", dialect, stream=stream)

    async def program(endpoint: Endpoint) -> None:
        served.engine.is_held = True
        first, second = RawClient.of(endpoint), RawClient.of(endpoint)
        await first.send(body, dialect)
        await until(lambda: served.engine.started == 1)
        await second.send(body, dialect)
        served.engine.is_held = False
        one, two = await first.read(), await second.read()
        assert one.status == 200
        assert text_of(one, dialect)
        assert one.without_comments == two.without_comments

    require_turns(await served.play(program), trained=[0], unreceived=[])


async def test_a_retry_after_a_killed_client_gets_the_same_turn(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        await client.send(QUESTION)
        await until(lambda: endpoint.transcript.turns and endpoint.transcript.turns[0].received)
        client.kill()
        await until(lambda: not endpoint.transcript.turns[0].received)
        answer = await RawClient.of(endpoint).ask(QUESTION)
        assert text_of(answer) == endpoint.transcript.turns[0].text
        assert endpoint.transcript.turns[0].received

    require_turns(await served.play(program), trained=[0], unreceived=[])


async def test_a_turn_of_a_killed_client_does_not_train(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        await client.send(QUESTION)
        await until(lambda: endpoint.transcript.turns and endpoint.transcript.turns[0].received)
        client.kill()
        await until(lambda: not endpoint.transcript.turns[0].received)

    require_turns(await served.play(program), trained=[], unreceived=[0])


async def test_a_client_that_closed_before_its_answer_came_has_not_received_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server reads the end of the client's stream, and never the reset that follows."""
    write = Flight.written_answer

    async def program(endpoint: Endpoint) -> None:
        connection = socket.create_connection(RawClient.of(endpoint).address)
        connection.sendall(RawClient.of(endpoint).encode(QUESTION))

        def close_and_write(flight: Flight) -> bytes:
            connection.close()
            return write(flight)

        monkeypatch.setattr(Flight, "written_answer", close_and_write)
        await until(lambda: endpoint.transcript.turns)
        await asyncio.sleep(0.05)  # the server notices it
        assert not endpoint.transcript.turns[0].received

    require_turns(await served.play(program), trained=[], unreceived=[0])


async def test_a_turn_that_is_committed_when_the_client_hangs_up_is_kept_for_the_retry(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program(endpoint: Endpoint) -> None:
        queue = HeldQueue(monkeypatch)
        client = RawClient.of(endpoint)
        await client.send(QUESTION)
        await until(lambda: queue.steps == 1)
        client.close()
        await asyncio.sleep(0.05)  # the server notices it
        retry = RawClient.of(endpoint)
        await retry.send(QUESTION)
        queue.may_pass.set()
        assert text_of(await retry.read()) == endpoint.transcript.turns[0].text
        assert served.engine.started == 1

    require_turns(await served.play(program), trained=[0], unreceived=[])


@pytest.mark.parametrize("way", ["close", "kill"])
async def test_a_client_that_hangs_up_cancels_its_request_at_the_engine(served: Served, way: str) -> None:
    async def program(endpoint: Endpoint) -> None:
        served.engine.is_held = True
        client = RawClient.of(endpoint)
        await client.send(QUESTION)
        await until(lambda: served.engine.started == 1)
        getattr(client, way)()
        await until(lambda: served.engine.aborted == 1)

    require_turns(await served.play(program), trained=[], unreceived=[])


async def test_a_retry_while_its_request_is_being_cancelled_gets_a_new_turn(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        served.engine.is_held = True
        client, retry = RawClient.of(endpoint), RawClient.of(endpoint)
        await client.send(QUESTION)
        await until(lambda: served.engine.started == 1)
        served.engine.is_stuck = True
        client.kill()
        await asyncio.sleep(0.05)  # the server notices it
        await retry.send(QUESTION)
        await asyncio.sleep(0.05)  # the server reads it
        served.engine.is_stuck = False
        await until(lambda: served.engine.started == 2)
        served.engine.is_held = False
        answer = await retry.read()
        assert (answer.status, text_of(answer)) == (200, endpoint.transcript.turns[0].text)

    require_turns(await served.play(program), trained=[1], unreceived=[])


async def test_a_client_that_hangs_up_does_not_cancel_a_request_that_another_waits_for(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        served.engine.is_held = True
        first, second = RawClient.of(endpoint), RawClient.of(endpoint)
        await first.send(QUESTION)
        await until(lambda: served.engine.started == 1)
        await second.send(QUESTION)
        await asyncio.sleep(0.05)  # the server reads it
        first.kill()
        await asyncio.sleep(0.05)  # the server notices it
        served.engine.is_held = False
        assert (await second.read()).status == 200
        assert (served.engine.started, served.engine.aborted) == (1, 0)

    require_turns(await served.play(program), trained=[0], unreceived=[])


async def test_asking_again_after_a_received_answer_makes_a_sibling_that_replaces_it(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        first, second = await client.ask(QUESTION), await client.ask(QUESTION)
        assert text_of(first) != text_of(second)

    require_turns(await served.play(program), trained=[1], unreceived=[0])


async def test_an_echo_makes_a_replaced_answer_count(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        first = await client.ask(QUESTION)
        await client.ask(QUESTION)
        history = [{"role": "user", "content": "Say three words."}, *echo_of(first)]
        await client.ask(body_of("More.", history=history))

    require_turns(await served.play(program), trained=[0, 1, 2], unreceived=[])


async def test_an_echo_shows_that_an_answer_was_received_although_the_connection_was_reset(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        first = await client.ask(QUESTION)
        client.kill()
        await until(lambda: not endpoint.transcript.turns[0].received)
        history = [{"role": "user", "content": "Say three words."}, *echo_of(first)]
        await client.ask(body_of("More.", history=history))
        assert endpoint.transcript.turns[0].received

    require_turns(await served.play(program), trained=[0, 1], unreceived=[])


async def test_a_reset_of_one_of_two_deliveries_leaves_the_turn_received(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        served.engine.is_held = True
        first, second = RawClient.of(endpoint), RawClient.of(endpoint)
        await first.send(QUESTION)
        await until(lambda: served.engine.started == 1)
        await second.send(QUESTION)
        await asyncio.sleep(0.05)  # the server reads it
        served.engine.is_held = False
        await first.read()
        await second.read()
        first.kill()
        await asyncio.sleep(0.05)  # the server notices it

    require_turns(await served.play(program), trained=[0], unreceived=[])


async def test_a_reset_after_the_next_request_of_a_connection_loses_only_the_last_answer(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        await client.ask(QUESTION)
        await client.ask(body_of("Say other words."))
        client.kill()
        await until(lambda: not endpoint.transcript.turns[1].received)

    require_turns(await served.play(program), trained=[0], unreceived=[1])


async def test_many_requests_over_one_connection_are_all_received(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        for at in range(10):
            assert (await client.ask(body_of(f"Question {at}", stream=bool(at % 2)))).status == 200
        client.close()

    require_turns(await served.play(program), trained=list(range(10)), unreceived=[])


async def test_choices_are_siblings_of_one_request(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        answer = await RawClient.of(endpoint).ask(body_of("Say three words.", n=3))
        texts = {choice["message"]["content"] for choice in answer.data["choices"]}
        assert texts == {turn.text for turn in endpoint.transcript.turns}
        assert len(endpoint.transcript.turns) == 3

    played = await served.play(program)
    require_turns(played, trained=[0, 1, 2], unreceived=[])
    assert len({step.parent for step in played.trajectory.steps[1:]}) == 1


async def test_an_echo_of_one_choice_shows_that_all_were_received(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        first = await client.ask(body_of("Say three words.", n=2))
        client.kill()
        await until(lambda: not endpoint.transcript.turns[0].received)
        history = [{"role": "user", "content": "Say three words."}, *echo_of(first)]
        await client.ask(body_of("More.", history=history))

    require_turns(await served.play(program), trained=[0, 1, 2], unreceived=[])


async def test_a_retry_of_a_lost_answer_with_choices_gets_the_same_choices(served: Served) -> None:
    body = body_of("Say three words.", n=2)

    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        first = await client.ask(body)
        client.kill()
        await until(lambda: not endpoint.transcript.turns[0].received)
        assert (await client.ask(body)).body == first.body

    require_turns(await served.play(program), trained=[0, 1], unreceived=[])


async def test_a_connection_that_asks_to_be_closed_has_received_its_answer(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nx-api-key: {endpoint.key}\r\nConnection: close\r\n"
        await client.send_bytes(f"{head}Content-Length: {len(QUESTION)}\r\n\r\n".encode() + QUESTION)
        assert (await client.read()).status == 200
        client.close()

    require_turns(await served.play(program), trained=[0], unreceived=[])
