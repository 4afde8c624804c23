"""The rows of the report about the plays with a fault."""

import orjson

from rollout.doctor.agent.faults import Fault
from rollout.doctor.agent.playing import AgentPlay
from rollout.doctor.agent.proxy import SeenRequest
from rollout.doctor.results import CheckResult, CheckStatus

SUBJECTS = {
    Fault.REFUSED: "agent at 400",
    Fault.OVERFLOW: "agent at overflow",
    Fault.DROPPED: "agent at a drop",
    Fault.CUT: "agent at a cut",
}
"""The subject of the row of each play."""
_LOOP_REQUESTS = 10
"""A program that sends fewer requests until it is ended waits between them, and does no harm."""
_NEVER_SENT = "harmless here: instead of this error, the gateway gives a last answer that asks the program to stop"
_ASK_AGAIN = (
    "in your program, send the same body again after a lost connection (the openai and anthropic SDKs do it with "
    "max_retries); without it, a lost connection costs this rollout, and nothing else"
)


def describe_fault_play(play: AgentPlay) -> CheckResult:
    """Return the row about a play with a fault."""
    assert play.fault is not None
    subject = SUBJECTS[play.fault]
    if play.struck is None:
        return CheckResult(subject, f"not seen: {_why_not_struck(play)}", CheckStatus.UNKNOWN)
    if play.fault is Fault.REFUSED:
        return _describe_refused(subject, play)
    if play.fault is Fault.OVERFLOW:
        return _describe_overflow(subject, play)
    return _describe_lost(subject, play)


def _why_not_struck(play: AgentPlay) -> str:
    if play.was_ended:
        return f"no request came that could get it within {play.seconds:.0f} s"
    return f"no request came that could get it; the rollout ended with {play.describe_end()}"


def _describe_refused(subject: str, play: AgentPlay) -> CheckResult:
    if not play.was_ended:
        return CheckResult(subject, f"{_describe_requests(play)}; {_describe_ending(play)}")
    if not play.after_fault:
        fix = "an option of the agent for one task without a screen"
        message = f"it neither asks again nor ends within {_seconds(play)}"
        return CheckResult(subject, message, CheckStatus.BAD, fix)
    fix = "an option of the agent that limits how often it asks again"
    if len(play.after_fault) < _LOOP_REQUESTS:
        message = f"it asks again with long pauses: {_count(play)} in {_seconds(play)}; then it was ended"
        return CheckResult(subject, message, CheckStatus.UNKNOWN, fix)
    message = f"it asks again without end: {_count(play)} in {_seconds(play)}"
    return CheckResult(subject, message, CheckStatus.BAD, fix)


def _describe_overflow(subject: str, play: AgentPlay) -> CheckResult:
    compacts = any(not _is_same(request, play) for request in play.after_fault)
    what = "compacts: " if compacts else ""
    if not play.was_ended:
        return CheckResult(subject, f"{what}{_describe_requests(play)}; {_describe_ending(play)}")
    how = "compacts without end" if compacts else "asks again without end" if play.after_fault else "hangs"
    return CheckResult(subject, f"it {how}: {_count(play)} in {_seconds(play)}; {_NEVER_SENT}", CheckStatus.UNKNOWN)


def _describe_lost(subject: str, play: AgentPlay) -> CheckResult:
    if not play.after_fault:
        if play.was_ended:
            return CheckResult(subject, f"it waits for ever: nothing within {_seconds(play)}", CheckStatus.UNKNOWN)
        return CheckResult(subject, f"asks no more; {_describe_ending(play)}", CheckStatus.UNKNOWN, _ASK_AGAIN)
    again, struck = play.after_fault[0], play.struck
    assert struck is not None
    wait = f"after {again.at - struck.at:.1f} s"
    if again.body == struck.body:
        text = f"asks again {wait} with the same body, so it gets the same turn"
    elif _is_same(again, play):
        text = f"asks again {wait} with the same content in other bytes, so it gets a new turn"
    else:
        text = f"asks again {wait} with another body, so it gets a new turn"
    if play.was_ended:
        return CheckResult(subject, f"{text}, but does not end", CheckStatus.UNKNOWN)
    return CheckResult(subject, f"{text}; {_describe_ending(play)}")


def _describe_requests(play: AgentPlay) -> str:
    return "asks no more" if not play.after_fault else f"asks {_count(play)} more in {_seconds(play)}"


def _describe_ending(play: AgentPlay) -> str:
    return f"it ends with {play.describe_end()}"


def _count(play: AgentPlay) -> str:
    count = len(play.after_fault)
    return "once" if count == 1 else f"{count} times"


def _seconds(play: AgentPlay) -> str:
    assert play.struck is not None
    last = play.end if play.was_ended or not play.after_fault else play.after_fault[-1].at
    return f"{last - play.struck.at:.0f} s"


def _is_same(request: SeenRequest, play: AgentPlay) -> bool:
    """Whether a request says the same as the one that got the fault."""
    assert play.struck is not None
    try:
        return bool(orjson.loads(request.body) == orjson.loads(play.struck.body))
    except ValueError:
        return request.body == play.struck.body
