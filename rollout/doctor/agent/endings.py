"""The rows of the report about a play that failed before its first request, and about the end of the normal play."""

import json

from rollout.config.load import Config
from rollout.doctor.agent.playing import AgentPlay
from rollout.doctor.agent.refused_requests import MIN_ERROR_STATUS, error_text, refusal_fix
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.environments.program_errors import ALL_LINES, LAST_LINES, ProgramFailed
from rollout.environments.program_settings import ProgramSettings
from rollout.records.endings import RolloutLimit

OUTPUT_FOLLOWS = "; the end of its output:"
"""What a finding has before the end of what the program printed."""
_MAX_LAST_CHARS = 300
_READ_VARIABLES = "it must read OPENAI_BASE_URL and OPENAI_API_KEY, or take {base_url} in environment.command"
_GIVE_VARIABLES = (
    "the program must use the variables of endpoint.environ, such as OPENAI_BASE_URL and OPENAI_API_KEY; if it has its "
    "own configuration, write endpoint.base_url there"
)


def describe_no_turn(config: Config, play: AgentPlay) -> CheckResult | None:
    """Return the row that says why there is no turn; None if there is one."""
    if play.turns and play.asking:
        return None
    requests = [*play.asking, *play.requests]
    refused = next((request for request in requests if (request.status or 0) >= MIN_ERROR_STATUS), None)
    if refused is not None:
        message = f"a request is refused: {refused.method} {refused.path} gets {refused.status}: {error_text(refused)}"
        return _bad_start(f"{message.rstrip('.')}{_output(play)}", refusal_fix(refused))
    if not play.turns and (error := _describe_error(play)) is not None:
        return _bad_start(f"the program failed before its first {_missing(play)}: {error}", _repair_fix(config))
    if not play.endpoints:
        fix = "run the program inside `async with model.endpoint()`, or use rollout.environments.program:Program"
        return _bad_start("the environment opens no endpoint, so it plays no program", fix)
    message = f"the program asks for no answer; its rollout ends with {play.describe_end().rstrip('.')}"
    fix = _GIVE_VARIABLES if _program_settings(config) is None else _READ_VARIABLES
    return _bad_start(f"{message}{_output(play)}", fix)


def describe_end(config: Config, play: AgentPlay) -> CheckResult:
    """Return the row about the end of the normal play."""
    if play.was_ended:
        message = f"it does not end by itself: it was ended after {play.seconds:.0f} s"
        if play.is_shown_end:
            message += ", though the policy had said that all is done"
        fix = "an option of the agent for one task without a screen, and gateway.limits.turns"
        return CheckResult("agent end", message, CheckStatus.BAD, fix)
    if (error := play.error_message) is not None:
        message = f"its own play failed, so it would not train: {_in_one_line(error)}"
        return CheckResult("agent end", message, CheckStatus.BAD, _failure_fix(config, error))
    assert play.finished is not None
    limit = play.finished.limit
    reached = "" if limit is RolloutLimit.NONE else f"; the limit {limit.value} was reached"
    return CheckResult("agent end", f"by itself, with {play.describe_end()}{reached}")


def _bad_start(message: str, fix: str | None) -> CheckResult:
    return CheckResult("agent start", message, CheckStatus.BAD, fix)


def _missing(play: AgentPlay) -> str:
    return "answer" if play.asking else "request"


def _describe_error(play: AgentPlay) -> str | None:
    """Return why a play without requests failed, and what the program printed; None if it did not fail."""
    if play.was_ended:
        return f"it was ended after {play.seconds:.0f} s{_output(play)}"
    if (error := play.error_message) is None:
        return None
    text = _in_one_line(error)
    return text if LAST_LINES in text else f"{text}{_output(play)}"


def _output(play: AgentPlay) -> str:
    return f"{OUTPUT_FOLLOWS} {_shortened(play.output)}" if play.output else ""


def _in_one_line(error: str) -> str:
    """Return an error with its last lines shortened."""
    what, shows_lines, lines = error.partition(LAST_LINES)
    return " ".join([*what.split(), *([LAST_LINES, _shortened(lines.removesuffix(ALL_LINES))] if shows_lines else [])])


def _shortened(lines: str) -> str:
    """Return the end of lines as one line, without the marks below the code in a traceback."""
    text = " ".join(word for word in lines.split() if word.strip("^~"))
    return text if len(text) <= _MAX_LAST_CHARS else f"… {text[-_MAX_LAST_CHARS:].partition(' ')[2]}"


def _repair_fix(config: Config) -> str:
    settings = _program_settings(config)
    if settings is None:
        return "repair this first"
    if settings.agent is not None:
        return f"repair this first; the command is that of environment.agent: {settings.agent}"
    return f"repair this first; the command is {json.dumps(settings.command, ensure_ascii=False)}"


def _failure_fix(config: Config, error: str) -> str:
    if _program_settings(config) is None:
        return f"repair run() of {config.environment_class_path}, or the program that it runs"
    if error.startswith(f"{ProgramFailed.__name__}:"):
        return (
            "repair the program: after its last turn, it must end with a code that environment.failures does not name"
        )
    return "repair environment.score: it must score the work of every program that ended, also work without a result"


def _program_settings(config: Config) -> ProgramSettings | None:
    """Return the settings of `Program`; None if the environment is another class."""
    settings = config.environment_settings
    return settings if isinstance(settings, ProgramSettings) else None
