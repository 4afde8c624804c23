"""Checks that a chat template writes the tools of an environment, the calls of the policy, and their results.

It imports only what renders a template, because `rollout launch` makes this check, too.
"""

from collections.abc import Sequence

from rollout.config.load import Config
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.doctor.template_probe import (
    ARGUMENT,
    CALL,
    CALL_RESULT,
    RESULT,
    TOOL_NAME,
    TOOLS,
    TemplateProbe,
    TemplateRefused,
)
from rollout.environments.multi_turn import MultiTurnEnvironment

_FIX = "set model.template.file to a template that writes them, or choose a model whose template does"


def declares_tools(config: Config) -> bool:
    """Whether the class of the environment declares tools. A class without tools can still give some in `chat`."""
    environment_class = config.environment_class
    return issubclass(environment_class, MultiTurnEnvironment) and bool(environment_class.tools)


def check_tools(probe: TemplateProbe, *, declared: bool, requested: bool | None) -> CheckResult:
    """Compare conversations with tools and without them.

    Args:
        probe: the template; its opening was found.
        declared: whether the environment's class declares tools.
        requested: whether the environment's first request has tools; None if this is not known.
    """
    problems = _problems(probe)
    written = f"the template {' and '.join(problems)}" if problems else "the template writes tools, calls and results"
    if not declared and requested is False:
        return CheckResult("tools", f"the first request has no tools; {written}", CheckStatus.NOTHING)
    if not problems:
        return CheckResult("tools", written)
    if declared or requested:
        message = f"the environment gives tools, but the model does not see everything: {written}"
        return CheckResult("tools", message, CheckStatus.BAD, _FIX, is_configuration_error=declared)
    return CheckResult("tools", f"{written}; whether the environment gives tools is not known", CheckStatus.NOTHING)


def _problems(probe: TemplateProbe) -> list[str]:
    """Return what the template does not write, as the end of a sentence about it."""
    left_out, refused = [], []
    for subject, word, messages in (
        ("tools", TOOL_NAME, ()),
        ("calls", ARGUMENT, (CALL,)),
        ("results", RESULT, (CALL, CALL_RESULT)),
    ):
        try:
            text = probe.text([*probe.opening, *messages], TOOLS, add_generation_prompt=not messages)
        except TemplateRefused as error:
            refused.append(f"refuses {subject} ({error})")
            break
        if word not in text:
            left_out.append(subject)
    return ([f"leaves out {_join(left_out)}"] if left_out else []) + refused


def _join(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
