"""One open endpoint: answers the requests of a program with the turns of one attempt's session.

A request takes this way. Its dialect reads it. The tree finds the answers that it repeats. The limits are checked. The
session plays a turn for each choice, and the tree learns the answers. The HTTP layer writes what the dialect returns.
"""

import asyncio
import contextvars
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog

from rollout.config.gateway import GatewayConfig
from rollout.engine.errors import EngineRefused
from rollout.environments.base import ContextExhausted
from rollout.environments.endpoint import EndpointOptions, EndpointTurn, PostedReward, Transcript
from rollout.errors import RolloutError
from rollout.gateway.addresses import EndpointAddresses
from rollout.gateway.answers import build_choice, final_choice
from rollout.gateway.deliveries import Deliveries
from rollout.gateway.dialects.base import Answer, Dialect, RefusalReason, RequestRefused, TurnRequest, rollout_ended
from rollout.gateway.dialects.messages import MessagesDialect
from rollout.gateway.dialects.request_body import RequestBody
from rollout.gateway.echoes import ConversationTree, EchoMode, Resolved
from rollout.gateway.flights import Flight, Flights
from rollout.gateway.refusals import REFUSED_ERRORS, refusal_of
from rollout.gateway.rewards import read_reward, reward_not_accepted
from rollout.gateway.root_notes import RootNotes
from rollout.gateway.roots import root_kinds
from rollout.gateway.turn_rules import TurnRules
from rollout.metrics.worker import WorkerMetrics
from rollout.records.conversations import RootKind
from rollout.records.endings import RolloutLimit
from rollout.records.gateway_counts import GatewayCount, add_ignored_tool, foreign_count
from rollout.records.kinds import PromptSource
from rollout.records.messages import digest_tools
from rollout.records.stream import RolloutAlreadyFinished
from rollout.session.turns import EndpointSession, SessionTurn
from transports import QueueError

log = structlog.get_logger()


class RootRuleError(RolloutError):
    """The rule of an environment for the kinds of roots returned something else than one kind for each root."""


class GatewayEndpoint:
    """An endpoint of one attempt; `rollout.environments.endpoint.Endpoint` is what the environment sees of it.

    Attributes:
        failure: the error of the infrastructure that ended the endpoint; None if there was none.
    """

    def __init__(
        self,
        session: EndpointSession,
        config: GatewayConfig,
        addresses: EndpointAddresses,
        metrics: WorkerMetrics,
        options: EndpointOptions,
    ) -> None:
        self.base_url = addresses.base_url
        self.anthropic_base_url = addresses.anthropic_base_url
        self.keyed_base_url = addresses.keyed_base_url
        self.keyed_anthropic_base_url = addresses.keyed_anthropic_base_url
        self.key = addresses.key
        self.model = addresses.model
        self.environ: Mapping[str, str] = addresses.environ()
        self.unix_socket: Path | None = addresses.unix_socket
        self.failure: BaseException | None = None
        self.cancel_scope = anyio.CancelScope()
        self.deliveries = Deliveries()
        self._session = session
        self._config = config
        self._metrics = metrics
        self._rule = options.root_kinds or root_kinds
        self._accepts_reward = options.accept_reward
        self._posted_reward: PostedReward | None = None
        self._tree = ConversationTree(EchoMode(config.echo))
        self._flights = Flights(self.deliveries)
        self._dialects: dict[type[Dialect], Dialect] = {}
        self._slots = asyncio.Semaphore(config.limits.parallel)
        self._unplayed: set[_ChoiceObserver] = set()
        self._is_closed = False
        self._rules = TurnRules(config, session)
        self._answer_numbers = itertools.count(len(session.endpoint_reports) << 20)
        self._context = contextvars.copy_context()
        self._has_warned_of_tools = False
        self._has_warned_of_paths = False
        self._turns: dict[int, EndpointTurn] = {}
        self._roots = RootNotes()
        self._tools: tuple[Any, bytes] = (None, b"")

    # What the environment and the attempt read

    @property
    def transcript(self) -> Transcript:
        """What was played until now; see `rollout.environments.endpoint.Endpoint`."""
        turns = (
            replace(turn, received=self.deliveries.is_received(number)) for number, turn in sorted(self._turns.items())
        )
        return Transcript(tuple(turns), self.root_kinds())

    @property
    def posted_reward(self) -> PostedReward | None:
        """The reward that the program sent; None if it sent none."""
        return self._posted_reward

    def unreceived_turns(self) -> Sequence[int]:
        """Return the turns whose answer the program did not receive."""
        return self.deliveries.unreceived_turns()

    def root_kinds(self) -> Mapping[int, RootKind]:
        """Return the kind of each root, by the index of its first node."""
        roots = self._roots.in_order()
        kinds: object = self._rule(roots)
        if not (
            isinstance(kinds, Sequence) and len(kinds) == len(roots) and all(isinstance(k, RootKind) for k in kinds)
        ):
            raise RootRuleError(
                f"the rule root_kinds returned {kinds!r:.200} for {len(roots)} roots; it must return a list with one "
                "RootKind for each."
            )
        return {root.node: kind for root, kind in zip(roots, kinds, strict=True)}

    # What the HTTP layer calls

    def fly(self, dialect_class: type[Dialect], body: RequestBody) -> Flight:
        """Return the flight of a request: that of an earlier request with the same body, or a new one.

        Raises:
            RequestRefused: the endpoint was closed.
        """
        self._require_open()
        flight, is_new = self._flights.find_or_add(self._dialect(dialect_class), body)
        if is_new:
            self._context.copy().run(flight.start, lambda flight: self._play(flight, body))
        else:
            self._session.counters.gateway[GatewayCount.RETRIES] += 1
            self._metrics.record_gateway_retry(dialect_class.name)
        return flight

    async def count_tokens(self, body: RequestBody) -> int:
        """Return the number of tokens in the prompt of a Messages request. Raises RequestRefused."""
        self._require_open()
        return await asyncio.create_task(self._count_tokens(body), context=self._context.copy())

    def require_reward_accepted(self) -> None:
        """Raise RequestRefused if the environment wants no reward from the program."""
        if not self._accepts_reward:
            raise reward_not_accepted()

    def post_reward(self, body: RequestBody) -> None:
        """Keep the reward that a program sends, in the place of an earlier one. Raises RequestRefused."""
        self._require_open()
        self._posted_reward = read_reward(body.data)

    def note_unknown_path(self, method: str, path: str) -> None:
        """Count a request to a path that the gateway does not have; the first one is in the log."""
        self._session.counters.gateway[GatewayCount.UNKNOWN_PATHS] += 1
        if not self._has_warned_of_paths:
            self._has_warned_of_paths = True
            warn = partial(log.warning, "the program asks for an unknown path of the gateway", method=method, path=path)
            self._context.copy().run(warn)

    @property
    def max_model_len(self) -> int | None:
        """The limit for the tokens of a prompt and its answer; None if it is unknown."""
        return self._session.max_model_len

    async def close(self) -> None:
        """Cancel the requests in flight, and refuse those that come later."""
        self._is_closed = True
        with anyio.CancelScope(shield=True):
            await self._flights.close()
        self._session.counters.gateway[GatewayCount.UNRECEIVED] += len(self.unreceived_turns())
        self._session.counters.gateway[GatewayCount.IDLE_ENDPOINTS] += not self._turns

    def _require_open(self) -> None:
        """Raise RequestRefused if the endpoint was closed, for example while the body of the request arrived."""
        if self._is_closed:
            raise rollout_ended()

    # How a request is played

    async def _count_tokens(self, body: RequestBody) -> int:
        """Count the tokens in the context of the attempt, so that it ends the attempt if it blocks the event loop."""
        dialect = self._messages_dialect()
        request: TurnRequest | None = None
        try:
            request = dialect.read_count(body)
            resolved = self._tree.resolve(request.messages, self._tools_key(request))
            return await self._session.count_prompt_tokens(resolved.messages, request.tools)
        except ContextExhausted as error:
            raise RequestRefused(str(error)) from None
        except REFUSED_ERRORS as error:
            raise refusal_of(error, dialect, request) from None
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:  # noqa: BLE001 - such as an interruption, after which nothing can be trusted
            raise self._end(error) from None

    async def _play(self, flight: Flight, body: RequestBody) -> None:
        """Play a request, and set the answer or the refusal of its flight."""
        try:
            flight.request = flight.dialect.read(body)
            flight.answer = await self._answer(flight, flight.request)
        except RequestRefused as refusal:
            self._refuse(flight, refusal)
        except RolloutAlreadyFinished as error:
            self._refuse(flight, RequestRefused(str(error), reason=RefusalReason.ENDED))
        except EngineRefused as error:
            if error.infrastructure:
                flight.refuse(self._end(error))
            else:
                self._refuse(flight, RequestRefused(f"The engine refuses this request: {error}"))
        except REFUSED_ERRORS as error:
            self._refuse(flight, refusal_of(error, flight.dialect, flight.request))
        except asyncio.CancelledError:
            raise
        except (RolloutError, QueueError) as error:
            flight.refuse(self._end(error))
        except BaseException as error:  # noqa: BLE001 - an error of one rollout must not end the server
            flight.refuse(self._end(error))

    def _refuse(self, flight: Flight, refusal: RequestRefused) -> None:
        self._session.counters.gateway[GatewayCount.REFUSALS] += 1
        flight.refuse(refusal)

    def _end(self, error: BaseException) -> RequestRefused:
        """End the endpoint with an error: the environment is cancelled, and `async with` raises the error."""
        self.failure = self.failure or error
        self.cancel_scope.cancel()
        return RequestRefused(f"The rollout cannot continue: {type(error).__name__}.", reason=RefusalReason.FAILED)

    async def _answer(self, flight: Flight, request: TurnRequest) -> Answer:
        for tool_type in request.ignored_tools:
            add_ignored_tool(self._session.counters.gateway, tool_type)
        if request.ignored_tools and not self._has_warned_of_tools:
            self._has_warned_of_tools = True
            log.warning("tools of the program are left out, because they are no functions", types=request.ignored_tools)
        sampling = self._rules.sampling(request)
        resolved = self._tree.resolve(request.messages, self._tools_key(request))
        self.deliveries.mark_echoed(resolved.echoed_turns)
        limit = self._rules.used_up_limit(len(self._unplayed) + request.choices)
        if limit is RolloutLimit.NONE:
            observers = [_ChoiceObserver(flight, self._slots, self.deliveries) for _ in range(request.choices)]
            self._unplayed.update(observers)
            try:
                turns = await self._play_choices(request, resolved, sampling, observers)
            except ContextExhausted:
                limit = RolloutLimit.CONTEXT
            else:
                return self._finish(flight, request, resolved, turns)
            finally:
                self._unplayed.difference_update(observers)
        else:
            self._session.counters.record_limit(limit, ends_rollout=True)
        return self._final_answer(flight, request, resolved, limit)

    async def _play_choices(
        self,
        request: TurnRequest,
        resolved: Resolved,
        sampling: Mapping[str, Any],
        observers: Sequence["_ChoiceObserver"],
    ) -> list[SessionTurn]:
        """Play a turn for each choice; the turns run at the same time."""
        plays = [self._play_choice(request, resolved, sampling, observer) for observer in observers]
        if len(plays) == 1:
            return [await plays[0]]
        results = await asyncio.gather(*plays, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, SessionTurn)]

    async def _play_choice(
        self, request: TurnRequest, resolved: Resolved, sampling: Mapping[str, Any], observer: "_ChoiceObserver"
    ) -> SessionTurn:
        try:
            return await self._session.play_turn(
                resolved.messages,
                tools=request.tools,
                sampling=sampling,
                echo=resolved.echo,
                constrained=bool(request.constraints),
                observer=observer,
            )
        finally:
            observer.leave()
            self._unplayed.discard(observer)  # the session counts it from now on

    def _finish(self, flight: Flight, request: TurnRequest, resolved: Resolved, turns: Sequence[SessionTurn]) -> Answer:
        """Make the answer of played turns; the tree, the transcript and the counters learn of it."""
        answer = Answer(
            id=f"{next(self._answer_numbers):08d}",
            created=int(time.time()),
            choices=tuple(build_choice(turn, request, self._session) for turn in turns),
            prompt_tokens=turns[0].reply.prompt_tokens,
            cached_tokens=turns[0].cached_tokens,
        )
        for turn, sent in zip(turns, flight.dialect.sent_messages(request, answer), strict=True):
            number = turn.reply.turn
            self._tree.add_answer(resolved, sent, turn.reply.message, number)
            self._roots.add(turn, resolved.messages, request.tools)
            self._turns[number] = EndpointTurn(
                number,
                flight.dialect.name,
                resolved.messages,
                turn.reply.message,
                resolved.echo,
                turn.root,
                received=False,
            )
            self._count(flight.dialect.name, turn, resolved)
        return answer

    def _final_answer(self, flight: Flight, request: TurnRequest, resolved: Resolved, limit: RolloutLimit) -> Answer:
        """Return an answer of the gateway, which tells the program to stop. It is not recorded."""
        answer = Answer(
            id=f"{next(self._answer_numbers):08d}",
            created=int(time.time()),
            choices=(final_choice(limit),) * request.choices,
            prompt_tokens=0,
            limit=limit,
        )
        for sent in flight.dialect.sent_messages(request, answer):
            self._tree.add_answer(resolved, sent, {"role": "assistant", "content": final_choice(limit).text}, None)
        return answer

    def _tools_key(self, request: TurnRequest) -> bytes:
        """Return the digest of the tools, which most requests share."""
        if self._tools[0] is not request.tools:
            self._tools = (request.tools, digest_tools(request.tools))
        return self._tools[1] if request.tools else b""

    def _messages_dialect(self) -> MessagesDialect:
        dialect = self._dialect(MessagesDialect)
        assert isinstance(dialect, MessagesDialect)
        return dialect

    def _dialect(self, dialect_class: type[Dialect]) -> Dialect:
        if dialect_class not in self._dialects:
            self._dialects[dialect_class] = dialect_class()
        return self._dialects[dialect_class]

    def _count(self, dialect: str, turn: SessionTurn, resolved: Resolved) -> None:
        counts = self._session.counters.gateway
        counts[GatewayCount.TURNS] += 1
        if resolved.echo is None:
            counts[GatewayCount.FIRST] += 1
            return
        counts[GatewayCount(resolved.echo.value)] += 1
        self._metrics.record_gateway_echo(dialect, resolved.echo)
        if turn.prompt_source is PromptSource.BRIDGE:
            counts[GatewayCount.BRIDGED] += 1
        if resolved.foreign_reason is not None:
            counts[foreign_count(resolved.foreign_reason)] += 1


class _ChoiceObserver:
    """Follows the turn of one choice: it waits for a free slot before the engine, and notes the turn's number."""

    def __init__(self, flight: Flight, slots: asyncio.Semaphore, deliveries: Deliveries) -> None:
        self._flight = flight
        self._slots = slots
        self._deliveries = deliveries
        self._has_slot = False

    async def on_prompt_ready(self) -> None:
        """Tell the flight that only the engine is missing, and wait for a slot."""
        self._flight.ready.set()
        await self._slots.acquire()
        self._has_slot = True

    def on_commit(self, turn: int) -> None:
        """Note the turn."""
        self._flight.turns.append(turn)
        self._deliveries.add_turn(turn, self._flight.turns)

    def leave(self) -> None:
        """Free the slot."""
        if self._has_slot:
            self._slots.release()
