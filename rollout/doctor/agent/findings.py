"""The rows of the report about the normal play."""

from collections import Counter
from collections.abc import Iterator, Sequence

import orjson

from rollout.config.load import Config
from rollout.doctor.agent.echo_fields import FieldFinding, compare_echoes, sorted_findings
from rollout.doctor.agent.endings import describe_end, describe_no_turn
from rollout.doctor.agent.faults import DIALECTS
from rollout.doctor.agent.observed import ObservedTurn
from rollout.doctor.agent.playing import AgentPlay
from rollout.doctor.agent.prompts import dated_place, history_change
from rollout.doctor.agent.proxy import SeenRequest
from rollout.doctor.agent.raw_answers import read_raw_answers
from rollout.doctor.agent.refused_requests import MIN_ERROR_STATUS, address_fix, error_text, refusal_fix
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.environments.program_settings import ProgramSettings
from rollout.gateway.dialects.base import RequestRefused, TurnRequest
from rollout.gateway.foreign import ForeignReason
from rollout.records.conversations import Echo, RootKind
from rollout.records.gateway_counts import FOREIGN_PREFIX, IGNORED_TOOL_PREFIX
from rollout.records.kinds import PromptSource

_SHOWN_TOOLS = 8
_SHORT_ANSWER_TOKENS = 2048
"""Known agents write files, so a smaller limit cuts many of their answers."""
_FOREIGN_FIXES = {
    ForeignReason.ARGUMENTS: "an option of the agent that keeps the arguments of calls as they came",
    ForeignReason.TEXT: "an option of the agent that sends the text as it came, and edits only a copy for people",
    ForeignReason.CALLS: "an option of the agent that keeps all calls, and answers one that it does not run",
    ForeignReason.HISTORY: "an option of the agent that keeps earlier messages, without dates and times in them",
    ForeignReason.TOOLS: "an option of the agent that sends the same tools at every turn",
    ForeignReason.NOT_EXACT: "gateway.echo: tolerant",
}
_SOURCE_TEXTS = {
    PromptSource.NEW_CONVERSATION: "another first message or other tools",
    PromptSource.RETRY: "asked again",
    PromptSource.COMPACTION: "an edited history",
    PromptSource.ASSISTANT: "an answer that the policy did not give",
    PromptSource.THINKING: "the template drops earlier reasoning",
    PromptSource.END_TOKEN: "the template closes the answer with another token",
    PromptSource.EARLIER_TEXT: "the template writes earlier text in another way",
    PromptSource.REFUSED: "the renderer is not sure",
}

_TEMPLATE_SOURCES = {PromptSource.THINKING, PromptSource.END_TOKEN, PromptSource.EARLIER_TEXT, PromptSource.REFUSED}


def describe_play(config: Config, play: AgentPlay) -> Iterator[CheckResult]:
    """Yield the rows about a normal play. If nothing was played, the first row says why, and is the only one."""
    problem = describe_no_turn(config, play)
    if problem is not None:
        yield problem
        return
    requests = [request for request in map(_read, play.asking) if request is not None]
    yield _describe_dialect(play)
    yield _describe_turns(play)
    yield _describe_tools(play)
    yield _describe_echo(play)
    yield _describe_bridging(play)
    yield _describe_prompts(play)
    yield _describe_conversations(play)
    yield _describe_other_requests(play)
    yield _describe_settings(config, play, requests)
    yield describe_end(config, play)


def _describe_dialect(play: AgentPlay) -> CheckResult:
    counts = Counter((request.dialect, _is_streamed(request)) for request in play.asking)
    texts = [
        f"{dialect}{', streamed' if streamed else ''}: {number} request{'' if number == 1 else 's'}"
        for (dialect, streamed), number in counts.items()
    ]
    return CheckResult("agent dialect", "; ".join(texts))


def _describe_turns(play: AgentPlay) -> CheckResult:
    first, last = play.turns[0], play.turns[-1]
    longest = max(turn.prompt_tokens for turn in play.turns)
    prompts = f"the first prompt has {first.prompt_tokens:,} tokens, the longest {longest:,}"
    count = last.number + 1
    return CheckResult("agent turns", f"{count} turn{'' if count == 1 else 's'} in {play.seconds:.1f} s; {prompts}")


def _describe_tools(play: AgentPlay) -> CheckResult:
    names = list(dict.fromkeys(name for turn in play.turns for name in turn.tool_names))
    left_out = {
        name.removeprefix(IGNORED_TOOL_PREFIX): count
        for name, count in play.counts.items()
        if name.startswith(IGNORED_TOOL_PREFIX)
    }
    ignored = f"; left out, because they are no functions: {', '.join(left_out)}" if left_out else ""
    if not names:
        return CheckResult("agent tools", f"none, so the script answered with text alone{ignored}")
    shown = ", ".join(names[:_SHOWN_TOOLS]) + (
        f" and {len(names) - _SHOWN_TOOLS} more" if len(names) > _SHOWN_TOOLS else ""
    )
    called = ", ".join(dict.fromkeys(play.called_tools)) or "none"
    return CheckResult("agent tools", f"{len(names)}: {shown}; the script called {called}{ignored}")


def _describe_echo(play: AgentPlay) -> CheckResult:
    counts = {echo: play.counts.get(echo.value, 0) for echo in Echo}
    if not any(counts.values()):
        return CheckResult("agent echo", "no request repeats an answer", CheckStatus.UNKNOWN)
    worst = next(echo for echo in (Echo.FOREIGN, Echo.NORMALISED, Echo.EXACT) if counts[echo])
    fields = "; ".join(f"{finding.name}: {finding.finding}" for finding in field_findings(play))
    reasons = [ForeignReason(n.removeprefix(FOREIGN_PREFIX)) for n in play.counts if n.startswith(FOREIGN_PREFIX)]
    if worst is not Echo.FOREIGN:
        return CheckResult("agent echo", f"{worst.value}; {fields}" if fields else worst.value)
    text = f"foreign ({', '.join(reason.value for reason in reasons)})"
    fixes = [_FOREIGN_FIXES[reason] for reason in reasons if reason in _FOREIGN_FIXES]
    status = CheckStatus.BAD if fixes else CheckStatus.UNKNOWN
    return CheckResult("agent echo", f"{text}; {fields}" if fields else text, status, "; ".join(fixes) or None)


def field_findings(play: AgentPlay) -> list[FieldFinding]:
    """Return what the program did with each field of the answers, over all requests of a play."""
    findings: set[FieldFinding] = set()
    for request in play.asking:
        if request.dialect is not None:
            findings.update(compare_echoes(play.turns, read_raw_answers(request.dialect, request.body)))
    return sorted_findings(findings)


def _describe_bridging(play: AgentPlay) -> CheckResult:
    followers = [turn for turn in play.turns if _follows_turn(play.turns, turn)]
    if not followers:
        return CheckResult("agent bridging", "no turn follows another", CheckStatus.UNKNOWN)
    others = Counter(turn.source for turn in followers if turn.source is not PromptSource.BRIDGE)
    bridged = len(followers) - others.total()
    if not others:
        return CheckResult("agent bridging", f"{bridged} of {len(followers)} later turns: sampled tokens are kept")
    reasons = "; ".join(f"{_SOURCE_TEXTS.get(source, source.value)} {count}" for source, count in others.items())
    refused = not _TEMPLATE_SOURCES.isdisjoint(others)
    fix = "model.template or another model.renderer" if refused else "keep the answers and the messages before them"
    message = f"only {bridged} of {len(followers)} later turns are bridged; not bridged: {reasons}"
    return CheckResult("agent bridging", message, CheckStatus.BAD, fix)


def _describe_prompts(play: AgentPlay) -> CheckResult:
    dated = dated_place(play.turns[0].messages)
    date = f"; {dated} has the date, so a rollout over midnight branches" if dated else ""
    for turn in play.turns:
        earlier = _turn_before(play.turns, turn)
        if earlier is not None and (change := history_change(earlier, turn)) is not None:
            message = f"an earlier message changed at turn {turn.number}: {change}{date}"
            fix = "an option of the agent that keeps earlier messages, without times in them"
            return CheckResult("agent prompts", message, CheckStatus.BAD, fix)
    return CheckResult("agent prompts", f"earlier messages stay as they were{date}")


def _follows_turn(turns: Sequence[ObservedTurn], turn: ObservedTurn) -> bool:
    """Whether a request repeats an answer of the policy. Answers that the program made up do not count."""
    return turn.echo in (Echo.EXACT, Echo.NORMALISED) or _turn_before(turns, turn) is not None


def _turn_before(turns: Sequence[ObservedTurn], turn: ObservedTurn) -> ObservedTurn | None:
    """Return the last turn whose answer the request of another turn repeats; None if there is none."""
    ids = {call.get("id") for message in turn.messages for call in message.get("tool_calls") or ()}
    texts = {
        message.get("content") for message in turn.messages if message["role"] == "assistant" and message.get("content")
    }
    for earlier in reversed([one for one in turns if one.number < turn.number]):
        if {call.id for call in earlier.calls} & ids or (not earlier.calls and earlier.text in texts):
            return earlier
    return None


def _describe_conversations(play: AgentPlay) -> CheckResult:
    kinds = Counter(play.roots.values())
    others = [
        f"{kinds[kind]} {name}"
        for kind, name in ((RootKind.AUXILIARY, "auxiliary"), (RootKind.SUBAGENT, "of sub-agents"))
        if kinds[kind]
    ]
    text = f"{kinds[RootKind.MAIN]} main" + (f", {', '.join(others)}" if others else "")
    return CheckResult(
        "agent conversations", f"{text}" + ("; auxiliary turns do not train" if kinds[RootKind.AUXILIARY] else "")
    )


def _describe_other_requests(play: AgentPlay) -> CheckResult:
    counts = Counter(f"{request.method} {request.path}" for request in play.requests if not request.asks)
    text = ", ".join(f"{name} ({number})" for name, number in counts.items())
    refused = [request for request in play.requests if not request.asks and (request.status or 0) >= MIN_ERROR_STATUS]
    ending = f"; refused: {len(refused)}" if refused else ""
    message = f"beside turns: {text}{ending}" if text else "none beside turns"
    fix = next(filter(None, map(address_fix, refused)), None)
    return CheckResult("agent requests", message, CheckStatus.UNKNOWN if fix else CheckStatus.OK, fix)


def _describe_settings(config: Config, play: AgentPlay, requests: Sequence[TurnRequest]) -> CheckResult:
    refused = [request for request in play.asking if request.status == MIN_ERROR_STATUS]
    constraints = sorted({one.parameter for request in requests for one in request.constraints.values()})
    if refused:
        text = error_text(refused[0])
        message = f"{len(refused)} request{' is' if len(refused) == 1 else 's are'} refused: {text}"
        return CheckResult("agent settings", message, CheckStatus.BAD, refusal_fix(refused[0]))
    texts = [f"{name}: played, and its steps are marked" for name in constraints]
    sampling = {key: value for request in requests for key, value in request.sampling.items()}
    if limit := sampling.pop("max_tokens", None):
        texts.append(
            f"max_tokens {limit:,}; engine.sampling has {config.engine.sampling.max_tokens:,}, the smaller counts"
        )
    if sampling.pop("stop", None):
        texts.append("stop counts, too")
    if sampling:
        counts = "counted" if config.gateway.sampling == "theirs" else "ignored"
        names = ", ".join(sorted(sampling))
        texts.append(f"{names}: {counts} (gateway.sampling: {config.gateway.sampling})")
    own, limit = config.environment_settings, config.engine.sampling.max_tokens or _SHORT_ANSWER_TOKENS
    if isinstance(own, ProgramSettings) and own.agent is not None and limit < _SHORT_ANSWER_TOKENS:
        texts.append(f"engine.sampling.max_tokens is {limit:,}, and an answer that is cut there ends some agents")
        fix = f"engine.sampling.max_tokens: {2 * _SHORT_ANSWER_TOKENS}"
        return CheckResult("agent settings", "; ".join(texts), CheckStatus.UNKNOWN, fix)
    return CheckResult("agent settings", "; ".join(texts) or "the program sets no sampling")


def _read(request: SeenRequest) -> TurnRequest | None:
    """Return a request as its dialect reads it; None if it cannot be read alone."""
    try:
        return DIALECTS[request.path]().read(request.body)
    except RequestRefused:
        return None


def _is_streamed(request: SeenRequest) -> bool:
    try:
        return bool(orjson.loads(request.body).get("stream"))
    except (ValueError, AttributeError):
        return False
