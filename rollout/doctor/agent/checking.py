"""Plays all plays, and returns the rows of the report; the last row says whether the agent can be trained."""

import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import anyio.to_thread

from renderers_adapter.pool import shared_pool
from rollout.config.load import Config
from rollout.config.renderer_options import renderer_options
from rollout.doctor.agent.endings import OUTPUT_FOLLOWS
from rollout.doctor.agent.fault_findings import describe_fault_play
from rollout.doctor.agent.faults import Fault
from rollout.doctor.agent.findings import describe_play
from rollout.doctor.agent.observed import ObservedTurn
from rollout.doctor.agent.playing import AgentPlay, AgentPlayer, PlayLimits
from rollout.doctor.agent.prompts import prompt_difference
from rollout.doctor.agent.proxy import SeenRequest
from rollout.doctor.agent.script import MARK
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.environments.base import QUEUE_SOURCE
from rollout.environments.program_errors import LAST_LINES
from rollout.errors import ConfigurationError, RolloutError
from rollout.log import log_to_json_file
from rollout.records.conversations import RootKind
from rollout.tasks.orders import RolloutOrder, iter_orders
from rollout.worker.leaving import run_leaving_behind
from rollout.worker.resources import open_shared_resources

_PLAY_NAMES = {
    None: "a normal rollout",
    Fault.REFUSED: "status 400 instead of an answer",
    Fault.OVERFLOW: "the error of a full context",
    Fault.DROPPED: "a connection that is cut before an answer",
    Fault.CUT: "a connection that is cut in an answer",
}
_DEFAULT_LIMITS = PlayLimits()


def check_agent(
    config: Config,
    on_progress: Callable[[str], object],
    limits: PlayLimits = _DEFAULT_LIMITS,
    faults: Sequence[Fault] = tuple(Fault),
) -> tuple[list[CheckResult], int]:
    """Play the agent of a configuration, and return the rows of the report.

    Args:
        config: a configuration that `run_checks` finds good.
        on_progress: called with one line before each play, and with one after it.
        limits: when a play is ended.
        faults: the faults; each has a play of its own after the normal one.

    Returns:
        The rows, and the exit code: 0 if the agent can be trained, 1 if not, 2 if the configuration has no task.
    """
    try:
        order = _first_order(config)
    except ConfigurationError as error:
        return [CheckResult("agent", str(error), CheckStatus.BAD)], 2
    results = run_leaving_behind(_check(config, order, on_progress, limits, faults))
    problems = [result for result in results if result.status is CheckStatus.BAD]
    return [*results, _verdict(problems)], 1 if problems else 0


def _first_order(config: Config) -> RolloutOrder:
    if config.tasks.source == QUEUE_SOURCE:
        raise ConfigurationError(
            "the tasks come from another program, so there is no first task to play. Give a file with --set "
            "tasks.source=FILE."
        )
    return next(iter(islice(iter_orders(config.new_environment, config.tasks), 1)))


async def _check(
    config: Config,
    order: RolloutOrder,
    on_progress: Callable[[str], object],
    limits: PlayLimits,
    faults: Sequence[Fault],
) -> list[CheckResult]:
    model = config.model
    with (
        tempfile.TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True) as name,
        log_to_json_file(Path(name) / "log.jsonl"),
    ):
        try:
            renderers = await anyio.to_thread.run_sync(
                partial(shared_pool, model.path, model.renderer, renderer_options(model))
            )
            async with open_shared_resources(config.environment_class, config.environment_settings) as shared:
                player = AgentPlayer(config, order, renderers, shared, Path(name))
                return await _play_all(config, player, on_progress, limits, faults)
        except RolloutError as error:
            return [CheckResult("agent start", f"the program cannot be played: {error}", CheckStatus.BAD)]


async def _play_all(
    config: Config,
    player: AgentPlayer,
    on_progress: Callable[[str], object],
    limits: PlayLimits,
    faults: Sequence[Fault],
) -> list[CheckResult]:
    async def play(
        number: int, fault: Fault | None, is_struck: Callable[[SeenRequest], bool] = lambda _: False
    ) -> AgentPlay:
        name = f"play {number} of {len(faults) + 1}"
        on_progress(f"{name}: {_PLAY_NAMES[fault]}")
        play = await player.play(fault, limits, is_struck)
        on_progress(f"{name} ended after {play.seconds:.1f} s")
        return play

    normal = await play(1, None)
    results = list(describe_play(config, normal))
    if not normal.turns or not normal.asking:
        return results
    repeats = any(turn.echo is not None for turn in normal.turns)
    is_struck = _repeats_answer if repeats else lambda _: True
    plays = [await play(number, fault, is_struck) for number, fault in enumerate(faults, start=2)]
    results.append(_compare_first_prompts([normal, *plays]))
    return results + [describe_fault_play(play) for play in plays]


def _repeats_answer(request: SeenRequest) -> bool:
    """Whether a request repeats an answer of the script."""
    body = request.body
    return MARK.encode() in body or b'"call-0-0"' in body or b'"previous_response_id":"resp' in body.replace(b" ", b"")


def _compare_first_prompts(plays: list[AgentPlay]) -> CheckResult:
    """Return the row that says whether two rollouts of a task begin with the same prompt."""
    first, *others = [_first_main_turns(play) for play in plays]
    compared = [(first[tools].messages, turns[tools].messages) for turns in others for tools in first.keys() & turns]
    if not compared:
        return CheckResult("agent group", "not seen: no two rollouts asked with the same tools", CheckStatus.UNKNOWN)
    for one, other in compared:
        if (difference := prompt_difference(one, other)) is not None:
            return CheckResult("agent group", f"rollouts of one task begin with different prompts: {difference}")
    return CheckResult("agent group", "rollouts of one task begin with the same prompt")


def _first_main_turns(play: AgentPlay) -> dict[frozenset[str], ObservedTurn]:
    """Return the first turn of the main conversations for each set of tools.

    A play that a fault ended early may have nothing but a request for a title, which then counts as its main one.
    """
    turns: dict[frozenset[str], ObservedTurn] = {}
    for turn in play.turns:
        if play.roots.get(turn.root) is RootKind.MAIN:
            turns.setdefault(frozenset(turn.tool_names), turn)
    return turns


def _verdict(problems: list[CheckResult]) -> CheckResult:
    if not problems:
        return CheckResult("agent", "yes: this agent can be trained")
    reasons = "; ".join(f"{problem.subject.removeprefix('agent ')}: {_reason(problem)}" for problem in problems)
    return CheckResult("agent", f"no: {reasons}", CheckStatus.BAD)


def _reason(problem: CheckResult) -> str:
    """Return what is wrong, without details. An error is whole, but without the lines that a program printed."""
    if problem.subject in ("agent start", "agent end"):
        return re.split(f" {LAST_LINES}|{OUTPUT_FOLLOWS}", problem.message)[0].rstrip(".")
    return re.split(r"; |\. ", problem.message)[0]
