"""How requests end: at a limit, without an engine, after the rollout, and with an error of the infrastructure."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.config.gateway import GatewayConfig
from rollout.engine.errors import EngineUnreachable
from rollout.environments.endpoint import Endpoint
from rollout.gateway.echoes import ConversationTree, Resolved
from rollout.records.conversations import Echo
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.testing import play
from rollout.trainer import check
from tests.unit.gateway.raw_client import DIALECTS, DialectName, RawClient, Response, body_of, echo_of, text_of
from tests.unit.gateway.served import Served, serve, trained_turns, until

QUESTION = "Say three words."
LONG = "word " * 400
CONTEXT = 300


def limited(**limits: float) -> GatewayConfig:
    return GatewayConfig.model_validate({"limits": limits})


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as opened:
        yield opened


def limit_of(response: Response) -> str | None:
    """Return the limit with which an answer is marked; None if it is the policy's."""
    marked = [response.data] if not response.is_stream else [event for event in response.events if event != "[DONE]"]
    found = {
        holder["rollout"]["limit"]
        for event in marked
        for holder in (event, event.get("response") or {}, event.get("message") or {})
        if "rollout" in holder
    }
    return found.pop() if found else None


def finish_of(response: Response, dialect: DialectName) -> str:
    """Return why an answer ended, in the words of its dialect."""
    events = response.events if response.is_stream else []
    match dialect:
        case "chat":
            holders = [event for event in events if event != "[DONE]"] or [response.data]
            return str([choice["finish_reason"] for holder in holders for choice in holder["choices"]][-1])
        case "responses":
            return str((events[-1]["response"] if events else response.data)["status"])
        case "messages":
            deltas = [event["delta"] for event in events if event["type"] == "message_delta"]
            return str((deltas[0] if deltas else response.data)["stop_reason"])


USUAL_FINISH: dict[DialectName, str] = {"chat": "stop", "responses": "completed", "messages": "end_turn"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("limit", [RolloutLimit.TURNS, RolloutLimit.TOKENS, RolloutLimit.TIME, RolloutLimit.CONTEXT])
async def test_at_a_limit_a_program_gets_a_usual_answer_that_is_no_step(
    tmp_path: Path, limit: RolloutLimit, dialect: DialectName, stream: bool
) -> None:
    config = {
        RolloutLimit.TURNS: limited(turns=1),
        RolloutLimit.TOKENS: limited(tokens=2),
        RolloutLimit.TIME: limited(seconds=0.3),
        RolloutLimit.CONTEXT: limited(),
    }[limit]
    async with serve(tmp_path, config, max_model_len=CONTEXT) as served:

        async def program(endpoint: Endpoint) -> None:
            client = RawClient.of(endpoint)
            first = await client.ask(body_of(QUESTION, dialect), dialect)
            assert (first.status, limit_of(first)) == (200, None)
            if limit is RolloutLimit.TIME:
                await asyncio.sleep(0.3)
            text = LONG if limit is RolloutLimit.CONTEXT else "More."
            for _ in range(2):
                last = await client.ask(body_of(text, dialect, stream=stream), dialect)
                assert (last.status, last.is_stream) == (200, stream)
                assert text_of(last, dialect).strip()
                assert limit_of(last) == limit
                assert finish_of(last, dialect) == USUAL_FINISH[dialect]

        played = await served.play(program)
    assert (played.status, played.limit) == (RolloutStatus.OK, limit)
    assert [step.turn for step in played.trajectory.steps] == [0]
    assert trained_turns(played.trajectory) == [0]
    assert check(played.trajectory) == []


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_last_answer_never_trains_although_the_program_goes_on_after_it(
    tmp_path: Path, dialect: DialectName
) -> None:
    async with serve(tmp_path, max_model_len=CONTEXT) as served:

        async def program(endpoint: Endpoint) -> None:
            client = RawClient.of(endpoint)
            last = await client.ask(body_of(LONG, dialect), dialect)
            assert limit_of(last) == RolloutLimit.CONTEXT
            shortened = [{"role": "user", "content": "A summary."}, *echo_of(last, dialect)]
            after = await client.ask(body_of("Go on.", dialect, history=shortened), dialect)
            assert limit_of(after) is None

        played = await served.play(program)
    assert (played.limit, trained_turns(played.trajectory)) == (RolloutLimit.NONE, [1])
    assert [node.sampled for node in played.trajectory.path(played.trajectory.leaves()[0])].count(True) == 1
    assert check(played.trajectory) == []


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_echo_of_the_last_answer_is_recognised(tmp_path: Path, dialect: DialectName) -> None:
    async with serve(tmp_path, limited(turns=1)) as served:

        async def program(endpoint: Endpoint) -> None:
            client = RawClient.of(endpoint)
            await client.ask(body_of("First.", dialect), dialect)
            last = await client.ask(body_of(QUESTION, dialect), dialect)
            resolved: list[Resolved] = []
            resolve = ConversationTree.resolve

            def note(tree: ConversationTree, *args: Any) -> Resolved:
                resolved.append(resolve(tree, *args))
                return resolved[-1]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ConversationTree, "resolve", note)
                history = [{"role": "user", "content": QUESTION}, *echo_of(last, dialect)]
                again = await client.ask(body_of("Go on.", dialect, history=history), dialect)
            assert limit_of(again) == RolloutLimit.TURNS
            assert (resolved[0].echo, resolved[0].foreign_reason) == (Echo.EXACT, None)

        assert len((await served.play(program)).trajectory.steps) == 1


async def test_a_limit_of_turns_counts_the_turns_in_flight(tmp_path: Path) -> None:
    async with serve(tmp_path, limited(turns=2)) as served:

        async def program(endpoint: Endpoint) -> None:
            served.engine.is_held = True
            clients = [RawClient.of(endpoint) for _ in range(3)]
            for at, client in enumerate(clients):
                await client.send(body_of(f"Question {at}"))
                await asyncio.sleep(0.05)  # so that the requests come in this order
            assert limit_of(await clients[2].read()) == RolloutLimit.TURNS
            served.engine.is_held = False
            assert [limit_of(await client.read()) for client in clients[:2]] == [None, None]

        assert len((await served.play(program)).trajectory.steps) == 2


async def test_a_cancelled_request_does_not_use_up_a_turn(tmp_path: Path) -> None:
    async with serve(tmp_path, limited(turns=1)) as served:

        async def program(endpoint: Endpoint) -> None:
            served.engine.is_held = True
            client = RawClient.of(endpoint)
            await client.send(body_of(QUESTION))
            await until(lambda: served.engine.started == 1)
            client.kill()
            await until(lambda: served.engine.aborted == 1)
            await asyncio.sleep(0.1)  # the request ends
            served.engine.is_held = False
            assert limit_of(await client.ask(body_of("Other words."))) is None

        await served.play(program)


async def test_more_choices_than_turns_are_left_get_the_last_answer(tmp_path: Path) -> None:
    async with serve(tmp_path, limited(turns=2)) as served:

        async def program(endpoint: Endpoint) -> None:
            client = RawClient.of(endpoint)
            answer = await client.ask(body_of(QUESTION, n=3))
            assert limit_of(answer) == RolloutLimit.TURNS
            assert len(answer.data["choices"]) == 3
            assert all(choice["message"]["content"] for choice in answer.data["choices"])

        assert (await served.play(program)).trajectory.steps == ()


async def test_a_retry_of_a_lost_answer_at_the_limit_gets_the_lost_turn(tmp_path: Path) -> None:
    async with serve(tmp_path, limited(turns=1)) as served:

        async def program(endpoint: Endpoint) -> None:
            client = RawClient.of(endpoint)
            await client.send(body_of(QUESTION))
            await until(lambda: endpoint.transcript.turns and endpoint.transcript.turns[0].received)
            client.kill()
            await until(lambda: not endpoint.transcript.turns[0].received)
            answer = await client.ask(body_of(QUESTION))
            assert (limit_of(answer), text_of(answer)) == (None, endpoint.transcript.turns[0].text)

        assert trained_turns((await served.play(program)).trajectory) == [0]


async def test_tokens_that_are_left_limit_an_answer(tmp_path: Path) -> None:
    async with serve(tmp_path, limited(tokens=2)) as served:

        async def program(endpoint: Endpoint) -> None:
            answer = await RawClient.of(endpoint).ask(body_of(QUESTION))
            assert answer.data["choices"][0]["finish_reason"] == "length"
            assert answer.data["usage"]["completion_tokens"] == 2

        assert (await served.play(program)).limit == RolloutLimit.TOKENS


async def test_a_request_waits_for_an_engine_that_is_away(served: Served) -> None:
    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        await client.ask(body_of(QUESTION))
        served.server.stop()
        await client.send(body_of("More."))
        await asyncio.sleep(0.3)
        await anyio.to_thread.run_sync(served.restart_engine)
        answer = await client.read()
        assert (answer.status, text_of(answer)) == (200, endpoint.transcript.turns[1].text)

    assert trained_turns((await served.play(program)).trajectory) == [0, 1]


class Program(Environment):
    """Waits for a program after it has stopped the engine for good, and would score it in any case."""

    def __init__(self, served: Served, dialect: DialectName, stream: bool) -> None:
        super().__init__(EnvironmentSettings())
        self.served = served
        self.dialect = dialect
        self.stream = stream
        self.was_cancelled = False
        self.raised: Exception | None = None
        self.asking: asyncio.Task[Response] | None = None

    async def run(self, task: Task, model: Model) -> Score:
        try:
            async with model.endpoint() as endpoint:
                self.served.server.stop()
                body = body_of(QUESTION, self.dialect, stream=self.stream)
                self.asking = asyncio.ensure_future(RawClient.of(endpoint).ask(body, self.dialect))
                await self._wait()
        except Exception as error:
            self.raised = error
            raise
        return Score(1.0)

    async def _wait(self) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_engine_that_is_away_for_good_ends_the_attempt_as_a_failure_of_the_infrastructure(
    tmp_path: Path, dialect: DialectName, stream: bool
) -> None:
    async with serve(tmp_path, retries=0) as served:
        environment = Program(served, dialect, stream)
        # The worker plays another attempt after this error, because it is one of the infrastructure.
        with pytest.raises(EngineUnreachable) as raised:
            await play(environment, policy=served.policy)
    assert raised.value.infrastructure
    assert environment.was_cancelled
    assert isinstance(environment.raised, EngineUnreachable)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_program_learns_that_the_rollout_cannot_continue(tmp_path: Path, dialect: DialectName) -> None:
    """The client is not a task of the attempt, so it goes on after the environment was cancelled."""
    async with serve(tmp_path, retries=0) as served:
        answers: list[Response] = []

        async def client(endpoint: Endpoint) -> None:
            await anyio.to_thread.run_sync(served.server.stop)
            answers.append(await RawClient.of(endpoint).ask(body_of(QUESTION, dialect), dialect))

        with pytest.raises(EngineUnreachable):
            await served.play_beside(client)
        assert answers[0].status == 500
        assert "The rollout cannot continue" in answers[0].data["error"]["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_request_in_flight_gets_an_error_when_its_environment_ends(
    served: Served, dialect: DialectName, stream: bool
) -> None:
    clients: list[RawClient] = []
    served.engine.is_held = True
    answers: list[asyncio.Task[Response]] = []

    async def program(endpoint: Endpoint) -> None:
        clients.append(RawClient.of(endpoint))
        await clients[0].send(body_of(QUESTION, dialect, stream=stream), dialect)
        await until(lambda: served.engine.started)
        await asyncio.sleep(0.05)

    async def read_beside() -> Response:
        await until(lambda: clients and served.engine.started)
        return await clients[0].read()

    answers.append(asyncio.ensure_future(read_beside()))
    played = await served.play(program)
    answer = await answers[0]
    assert (played.status, played.trajectory.steps) == (RolloutStatus.OK, ())
    await until(lambda: served.engine.aborted == 1)
    if stream:
        assert "has ended" in str(answer.events)
    else:
        assert answer.status == 400
        assert "has ended" in answer.data["error"]["message"]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_key_is_refused_after_its_rollout_and_an_unknown_key_at_any_time(
    served: Served, dialect: DialectName
) -> None:
    body = body_of(QUESTION, dialect)
    ended: list[RawClient] = []

    async def program(endpoint: Endpoint) -> None:
        unknown = await RawClient.of(endpoint, "sk-unknown").ask(body, dialect)
        ended.append(RawClient.of(endpoint))
        assert unknown.status == 401
        assert unknown.data["error"]["type"] == "authentication_error"
        assert "sk-unknown" not in unknown.body.decode()

    await served.play(program)
    after = await ended[0].ask(body, dialect)
    ended[0].close()
    assert after.status == 400
    assert "has ended" in after.data["error"]["message"]
    assert (after.data.get("type") == "error") == (dialect == "messages")


async def test_a_body_that_arrives_after_the_end_is_refused(served: Served) -> None:
    clients: list[RawClient] = []

    async def program(endpoint: Endpoint) -> None:
        client = RawClient.of(endpoint)
        clients.append(client)
        request = client.encode(body_of(QUESTION))
        await client.send_bytes(request[:-10])
        await asyncio.sleep(0.1)  # the server waits for the rest

    played = await served.play(program)
    await clients[0].send_bytes(RawClient.encode(clients[0], body_of(QUESTION))[-10:])
    answer = await clients[0].read()
    clients[0].close()
    assert (answer.status, played.trajectory.steps) == (400, ())
    assert "has ended" in answer.data["error"]["message"]


async def test_the_session_cannot_be_used_through_an_endpoint_that_was_closed(served: Served) -> None:
    """The rollout goes on after the endpoint, so only the endpoint can refuse the request."""
    answers: list[Response] = []

    class GoesOn(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            async with model.endpoint() as endpoint:
                client = RawClient.of(endpoint)
                request = client.encode(body_of(QUESTION))
                await client.send_bytes(request[:-10])
                await asyncio.sleep(0.1)  # the server waits for the rest
            await client.send_bytes(request[-10:])
            answers.append(await client.read())
            client.close()
            await model.chat([{"role": "user", "content": QUESTION}])
            return Score(1.0)

    played = await play(GoesOn(EnvironmentSettings()), policy=served.policy)
    assert answers[0].status == 400
    assert len(played.trajectory.steps) == 1
