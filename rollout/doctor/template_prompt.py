"""Checks that a chat template writes a prompt: the question, and then what begins the answer.

It imports only what renders a template, because `rollout launch` makes this check, too.
"""

import jinja2

from rollout.doctor.template_probe import ANSWER, QUESTION, TEXT_ANSWER, TemplateProbe, TemplateRefused
from rollout.errors import ConfigurationError

_REASONING_MARKS = ("<think>", "</think>")
_COPY_IT = "Copy it from the checkpoint again, or set model.template.file to a template that works."


def check_prompt(probe: TemplateProbe) -> str:
    """Render one question, and return the text that begins the answer.

    Raises:
        ConfigurationError: the template raises an error, leaves the question out, reads a variable that nobody gives,
            or does not begin an answer.
    """
    origin = probe.template.origin
    try:
        prompt = probe.open()
    except TemplateRefused as error:
        raise ConfigurationError(f"{origin} cannot render one question: {error}. {_fix(probe, error)}") from None
    _, question, begin = prompt.rpartition(QUESTION["content"])
    if not question:
        found = "nothing" if not prompt.strip() else f"{prompt[:60]!r}"
        raise ConfigurationError(f"{origin} leaves the user's question out: it writes {found}. {_COPY_IT}")
    if missing := _undefined_names(probe):
        raise ConfigurationError(
            f"{origin} writes the variable {missing[0]!r}, which nobody gives it, so there is no text in its place. "
            f"Set model.template.{missing[0]}, or correct the name in the template."
        )
    _require_generation_prompt(probe, prompt)
    return begin


def _fix(probe: TemplateProbe, error: TemplateRefused) -> str:
    if isinstance(error.__cause__, jinja2.UndefinedError):
        read = ", ".join(f"model.template.{name}" for name in probe.template.argument_names)
        return f"Set the variable that it needs ({read}), or correct the template." if read else _COPY_IT
    return _COPY_IT


def _undefined_names(probe: TemplateProbe) -> list[str]:
    """Return the arguments that the template writes into a prompt, but that are not set."""
    written: list[str] = []

    class Unset(jinja2.Undefined):
        def __str__(self) -> str:
            written.append(str(self._undefined_name))
            return ""

    unset = {name: Unset(name=name) for name in probe.template.argument_names if name not in probe.arguments}
    try:
        probe.text(probe.opening, more_arguments=unset)
    except TemplateRefused:  # an operation that only a real value of the sandbox has
        return []
    return written


def _require_generation_prompt(probe: TemplateProbe, prompt: str) -> None:
    """Refuse a template that does not begin the answer, unless it writes nothing between a question and an answer."""
    try:
        without = probe.text(probe.opening, add_generation_prompt=False)
        whole = probe.text([*probe.opening, TEXT_ANSWER], add_generation_prompt=False)
    except TemplateRefused:
        return
    if not without.startswith(prompt):
        return  # the prompt has a text of its own at its end
    between = ""
    if whole.startswith(prompt):
        written = left = whole[len(prompt) :].partition(ANSWER)[0]
        for mark in _REASONING_MARKS:
            left = left.replace(mark, "")
        if not left.strip():
            return
        between = f" Before an answer it writes {written!r}, but not at the end of a prompt."
    raise ConfigurationError(
        f"{probe.template.origin} does not begin the answer: with add_generation_prompt, it writes the same text as "
        f"without it.{between} Set model.template.file to a template that ends a prompt with the beginning of an "
        "answer, inside {% if add_generation_prompt %}."
    )
