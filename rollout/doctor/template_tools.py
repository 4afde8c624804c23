"""Checks that a chat template writes the tools of an environment, the calls of the policy, and their results.

It imports only what renders a template, because `rollout launch` makes this check, too.
"""

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

_FIX = "set model.template.file to a template that writes them, or choose another model"


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
    missing = _missing(probe)
    written = "the template writes tools, their calls and their results" if not missing else "; ".join(missing)
    if not declared and requested is False:
        return CheckResult("tools", f"the first request has no tools; {written}", CheckStatus.NOTHING)
    if not missing:
        return CheckResult("tools", written)
    if declared or requested:
        message = f"the environment gives tools, but {written}"
        return CheckResult("tools", message, CheckStatus.BAD, _FIX, is_configuration_error=declared)
    unknown = "whether the environment gives tools is not known"
    return CheckResult("tools", f"{written}; {unknown}", CheckStatus.NOTHING)


def _missing(probe: TemplateProbe) -> list[str]:
    """Return what the template does not write, each as a clause."""
    missing = []
    for subject, word, messages in (
        ("tools, so the model never sees them", TOOL_NAME, ()),
        ("calls of tools", ARGUMENT, (CALL,)),
        ("results of tools", RESULT, (CALL, CALL_RESULT)),
    ):
        try:
            text = probe.text([*probe.opening, *messages], TOOLS, add_generation_prompt=not messages)
        except TemplateRefused as error:
            missing.append(f"the template refuses {subject.partition(',')[0]} ({error})")
            break
        if word not in text:
            missing.append(f"the template leaves out {subject}")
    return missing
