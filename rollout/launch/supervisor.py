"""Keeps worker processes at their posts: starts them, hears from them, and when one dies ends its leases and starts it
anew, as often as the budget allows.

A worker whose event loop is blocked is not dead: it is heard from a thread of its own, and only one that is not heard
at all for minutes is killed. Where workers run, here or on other machines, is for `launch.places.Place` to know.
"""

import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup

from rollout.errors import RolloutError
from rollout.launch.places import NotStarted, Place, WorkerProcess
from rollout.metrics.totals import Tally
from rollout.worker.link import Beat, Halted, Orders, decode_report, encode_orders
from transports import Queue, QueueError

log = structlog.get_logger()

_SILENCE = 120.0
"""Seconds without a beat after which a worker is killed: not even its threads run any more."""
_LEFT_TO_DRAIN = 15.0
"""Seconds on top of `worker.grace` before a worker that should drain is killed."""
_BUDGET_SECONDS = 3600.0
_LAST_REPORTS = 1.0
_RELEASE = 5.0
"""Seconds for the queue to release what a dead worker had leased; after that, its leases are left to lapse."""
_PAUSES = (0.2, 30.0)
_SUMMED = ("turns", "tokens", "retries")


class WorkersDie(RolloutError):
    """The workers of an environment died more often than the restart budget allows."""


class RestartBudget:
    """How many more of an environment's workers may be restarted: so many within an hour."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._spent: deque[float] = deque()

    def spend(self) -> bool:
        """Take one; False where none is left."""
        now = time.monotonic()
        while self._spent and self._spent[0] < now - _BUDGET_SECONDS:
            self._spent.popleft()
        if len(self._spent) >= self._allowed:
            return False
        self._spent.append(now)
        return True


@dataclass(slots=True)
class Death:
    """One worker that ended without being told to."""

    worker: str
    environment: str
    code: int
    reason: str

    @property
    def how(self) -> str:
        return f"signal {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"


@dataclass(slots=True)
class Post:
    """A place for one worker, and what the workers that held it did."""

    name: str
    environment: str
    command: tuple[str, ...]
    output: Path
    tasks: Queue
    grace: float
    budget: RestartBudget
    process: WorkerProcess | None = None
    beat: Beat = field(default_factory=Beat)
    heard: float = 0.0
    before: Counter[str] = field(default_factory=Counter)
    metrics: Tally = field(default_factory=Tally)

    @property
    def totals(self) -> Counter[str]:
        """What all workers at this post have done together, by the names of `Beat`."""
        mine = Counter(self.before)
        mine.update({name: getattr(self.beat, name) for name in _SUMMED})
        return mine


class Fleet:
    """All workers of a launch. `orders` says what each is told when it starts, and again by `tell`."""

    def __init__(self, posts: list[Post], orders: Callable[[str], Orders], place: Place) -> None:
        self.posts = posts
        self._place = place
        self.deaths: list[Death] = []
        self._orders = orders
        self._ending: signal.Signals | None = None
        self._told_to_end = anyio.Event()

    async def run(self) -> None:
        """Keep a worker at every post until `drain` or `kill`.

        Raises:
            WorkersDie: the restart budget of an environment is spent.
        """
        async with self._place:
            try:
                async with anyio.create_task_group() as group:
                    for post in self.posts:
                        group.start_soon(self._hold, post, group)
                    await self._told_to_end.wait()
            finally:
                self.kill()

    def drain(self) -> None:
        """Let every worker finish what it began, within its grace, and start none anew."""
        self._ending = self._ending or signal.SIGTERM
        self._told_to_end.set()
        for post in self.posts:
            if post.process is not None:
                post.process.signal(self._ending)

    def kill(self) -> None:
        """End every worker now. What they had not finished is given back."""
        self._ending = signal.SIGKILL
        self._told_to_end.set()
        for post in self.posts:
            if post.process is not None:
                post.process.kill()

    def tell(self) -> None:
        """Tell every worker its orders again."""
        for post in self.posts:
            if post.process is not None:
                post.process.tell(encode_orders(self._orders(post.environment)))

    async def _hold(self, post: Post, group: TaskGroup) -> None:
        pause, longest = _PAUSES
        while self._ending is None:
            code, reason = await self._one_life(post, group)
            if self._ending is not None:
                return
            useful = post.beat.turns > 0
            self._bury(post, code, reason)
            pause = _PAUSES[0] if useful else min(2 * pause, longest)
            with anyio.move_on_after(pause):
                await self._told_to_end.wait()

    async def _one_life(self, post: Post, fleet: TaskGroup) -> tuple[int, str]:
        """Start a worker and stay with it to its end; its exit code, and what it said of it."""
        try:
            process = await self._place.start(post.name, post.command, post.output)
        except NotStarted as error:
            return 1, str(error)
        post.process, post.beat, post.heard = process, Beat(), time.monotonic()
        log.info("worker started", worker=post.name, pid=process.pid)
        if self._ending is not None:  # that came while the process was being made
            process.signal(self._ending)
        said: list[str] = []
        heard_out = anyio.Event()
        try:
            process.tell(encode_orders(self._orders(post.environment)))
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen, post, process, said, heard_out)
                group.start_soon(self._mind_silence, post, process)
                code = await process.wait()
                log.info("worker ended", worker=post.name, pid=process.pid, code=code)
                process.kill()  # what it had started ends with it
                if post.beat.holder:
                    fleet.start_soon(self._release, post, post.beat.holder)
                with anyio.move_on_after(_LAST_REPORTS):
                    await heard_out.wait()
                group.cancel_scope.cancel()
        finally:
            post.process = None
            await process.aclose()
        return code, "; ".join(said)

    async def _listen(self, post: Post, process: WorkerProcess, said: list[str], heard_out: anyio.Event) -> None:
        async for line in process.hear():
            match report := decode_report(line):
                case Beat():
                    if report.ready and not post.beat.ready:
                        log.info("worker ready", worker=post.name, pid=process.pid)
                    post.beat, post.heard = report, time.monotonic()
                    post.metrics.hear(report.metrics)
                case Halted():
                    said.append(report.reason)
        heard_out.set()

    async def _release(self, post: Post, holder: str) -> None:
        """End the leases of a worker that is gone. Nobody waits for it: a queue may be slow, or away."""
        try:
            with anyio.fail_after(_RELEASE, shield=True):
                await post.tasks.disown(holder)
        except (QueueError, TimeoutError) as error:
            log.warning("the leases of a dead worker will lapse", worker=post.name, error=str(error))

    async def _mind_silence(self, post: Post, process: WorkerProcess) -> None:
        stopping_since: float | None = None
        while True:
            await anyio.sleep(1.0)
            now = time.monotonic()
            stopping_since = now if self._ending is not None and stopping_since is None else stopping_since
            overdue = stopping_since is not None and now - stopping_since > post.grace + _LEFT_TO_DRAIN
            if overdue or now - post.heard > _SILENCE:
                log.warning("worker does not answer", worker=post.name, pid=process.pid, silent=now - post.heard)
                process.kill()

    def _bury(self, post: Post, code: int, reason: str) -> None:
        post.before = post.totals
        post.metrics.bury()
        post.beat = Beat()
        death = Death(post.name, post.environment, code, reason)
        self.deaths.append(death)
        log.warning("worker died", worker=post.name, code=code, reason=reason)
        if not post.budget.spend():
            told = reason or f"the last one, {post.name}, ended with {death.how}; see {post.output}"
            raise WorkersDie(f"the workers of {post.environment} keep dying (worker.restarts is spent): {told}")
