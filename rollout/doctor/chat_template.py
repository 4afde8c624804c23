"""Checks how the parsers of a configuration fit its chat template, and says which turns are bridged.

A sampled answer is simulated: it is the text that the template writes for an answer in a conversation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.checkpoint_template.answer_parser import REASONING_PARSERS, TOOL_PARSERS
from renderers_adapter.checkpoint_template.parser_advice import advise_parsers
from renderers_adapter.errors import AdapterError
from renderers_adapter.families import TEMPLATE_FAMILY
from renderers_adapter.rendered import ParsedCompletion, UnsupportedConversation
from renderers_adapter.tokens import LogicalIds, as_logical_ids
from rollout.config.renderer_options import renderer_options
from rollout.config.sections import ModelConfig
from rollout.doctor.first_request import FirstRequest
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.doctor.template_probe import (
    ANSWER,
    ARGUMENTS,
    CALL,
    CALL_RESULT,
    NEXT_QUESTION,
    REASONED_ANSWER,
    REASONED_CALL,
    REASONING,
    TEXT_ANSWER,
    TOOL_NAME,
    TOOLS,
    Message,
    TemplateProbe,
    TemplateRefused,
)
from rollout.records.messages import canonicalise
from rollout.session.replies import build_assistant_message

_MAX_SHOWN = 80
_REASONS = {
    BridgeRefusalReason.THINKING_DROPPED: "the template drops earlier reasoning",
    BridgeRefusalReason.EARLIER_TEXT_CHANGED: "a new message changes earlier text",
    BridgeRefusalReason.END_TOKEN: "the template closes an answer with another token",
    BridgeRefusalReason.RENDERER_REFUSED: "nothing proves that a bridge is right",
}


@dataclass(frozen=True, slots=True)
class _Sampled:
    """An answer as if a policy had sampled it.

    Attributes:
        prompt: the tokens of the prompt.
        completion: the tokens of the answer.
        text: the text of the answer.
    """

    prompt: LogicalIds
    completion: LogicalIds
    text: str

    def describe(self) -> str:
        """Return the text for a message, cut if it is long."""
        text = self.text if len(self.text) <= _MAX_SHOWN else f"{self.text[:_MAX_SHOWN]}…"
        return repr(text)


class TemplateChecks:
    """The checks of one model with the renderer `template`.

    Args:
        model: the section `model` of the configuration.
        adapter: the adapter of the model.
        probe: its template; its opening was found.
        request: the first request of the environment; None if it is not known.
        gives_tools: whether the environment gives tools; None if this is not known.
        runs_calls: whether the environment's class declares tools, so that calls in the text would not be run.
    """

    def __init__(
        self,
        model: ModelConfig,
        adapter: RendererAdapter,
        probe: TemplateProbe,
        request: FirstRequest | None,
        *,
        gives_tools: bool | None,
        runs_calls: bool,
    ) -> None:
        self._model = model
        self._adapter = adapter
        self._probe = probe
        self._request = request
        self._gives_tools = gives_tools
        self._runs_calls = runs_calls

    def check_calls(self) -> CheckResult:
        """Parse the call that the template writes: the same call must come back."""
        parser = self._model.tool_parser
        if self._gives_tools is False:
            return _nothing("calls", "the first request has no tools, so no parser of calls is needed")
        try:
            sampled = self._sample(CALL, TOOLS) or self._sample(REASONED_CALL, TOOLS)
        except TemplateRefused as error:
            return _nothing("calls", f"nothing to compare, because the template refuses calls ({error})")
        if sampled is None or TOOL_NAME not in sampled.text:
            return _nothing("calls", "nothing to compare, because the template writes no call after a prompt")
        parsed = self._parse(self._adapter, sampled)
        if parser is not None and _is_the_call(parsed):
            return CheckResult("calls", f"the parser {parser} reads the call that the template writes")
        proposed = self._find_tool_parser(sampled)
        if parser is None:
            return self._without_tool_parser(sampled, proposed)
        message = f"the parser {parser} reads {_describe_calls(parsed)} in the template's call {sampled.describe()}"
        if not self._gives_tools:
            return _nothing("calls", f"{message}; whether the environment gives tools is not known")
        return CheckResult("calls", message, CheckStatus.BAD, _fix_of_calls(proposed))

    def _without_tool_parser(self, sampled: _Sampled, proposed: str | None) -> CheckResult:
        message = f"without model.tool_parser, calls such as {sampled.describe()} stay text"
        if self._runs_calls:
            return CheckResult("calls", f"{message}, so no tool is run", CheckStatus.BAD, _fix_of_calls(proposed))
        advice = "no parser reads them" if proposed is None else f"the parser {proposed} reads them"
        return _nothing("calls", f"{message}; {advice}")

    def check_reasoning(self) -> CheckResult:
        """Parse the reasoning that the template writes: the same reasoning and the same text must come back."""
        parser = self._model.reasoning_parser
        try:
            sampled = self._sample(REASONED_ANSWER, None)
        except TemplateRefused as error:
            return _nothing("reasoning", f"nothing to compare, because the template refuses answers ({error})")
        if sampled is None or not self._writes_reasoning():
            was = "" if parser is None else f", so the parser {parser} was not compared"
            return _nothing("reasoning", f"the template writes no reasoning of an answer{was}")
        if parser is not None:
            if _is_reasoned(self._parse(self._adapter, sampled)):
                return CheckResult("reasoning", f"the parser {parser} reads the reasoning that the template writes")
            message = f"the parser {parser} does not read the reasoning of {sampled.describe()}"
            fix = "remove model.reasoning_parser, or set model.template.file to a template that writes <think>"
            return CheckResult("reasoning", message, CheckStatus.BAD, fix)
        for name in REASONING_PARSERS:
            if _is_reasoned(self._parse(self._with_parsers(None, name), sampled)):
                advice = f"set model.reasoning_parser to {name}, which reads what the template writes"
                return _nothing("reasoning", f"reasoning stays text: {advice}")
        return _nothing("reasoning", f"reasoning stays text, because no parser reads {sampled.describe()}")

    def describe_turns(self) -> CheckResult:
        """Play second turns, and say which are bridged, and why the others are rendered whole.

        They begin with the first request of the environment, if it is known.
        """
        request = self._request or FirstRequest(self._probe.opening, None)
        found: dict[str, list[str]] = {}
        for name, answer, message in self._turns():
            tools = TOOLS if message is CALL_RESULT and not request.tools else request.tools
            found.setdefault(self._play(request.messages, answer, message, tools), []).append(name)
        outcomes = "; ".join(f"{', '.join(names)}: {outcome}" for outcome, names in found.items())
        return CheckResult("turns", outcomes)

    def _turns(self) -> Iterator[tuple[str, Message, Message]]:
        reasons = self._model.reasoning_parser is not None and self._writes_reasoning()
        yield "a question after an answer", TEXT_ANSWER, NEXT_QUESTION
        if reasons:
            yield "a question after reasoning", REASONED_ANSWER, NEXT_QUESTION
        if self._gives_tools is not False and self._model.tool_parser is not None:
            yield "a tool's result", REASONED_CALL if reasons else CALL, CALL_RESULT

    def _play(
        self, opening: Sequence[Message], answer: Message, message: Message, tools: Sequence[Message] | None
    ) -> str:
        """Return how the prompt after an answer is made."""
        try:
            sampled = self._sample(answer, tools, opening)
        except TemplateRefused as error:
            return f"refused ({error})"
        if sampled is None:
            return f"rendered whole, because {_REASONS[BridgeRefusalReason.EARLIER_TEXT_CHANGED]}"
        replied, calls = build_assistant_message(self._parse(self._adapter, sampled), 0)
        if message["role"] == "tool":
            if not calls or calls[0].error is not None:
                return "not tried, because the call is not read"
            message = {**message, "tool_call_id": calls[0].id}
        whole = [each.message for each in canonicalise([*opening, replied, message], ())]
        try:
            self._adapter.bridge(whole[:-1], sampled.prompt, sampled.completion, whole[-1:], tools)
        except BridgeRefused as refusal:
            try:
                self._adapter.render(whole, tools)
            except UnsupportedConversation as error:
                return f"refused ({error})"
            return f"rendered whole, because {_REASONS.get(refusal.reason, refusal.reason)}"
        except UnsupportedConversation as error:
            return f"refused ({error})"
        return "bridged"

    def _sample(
        self, answer: Message, tools: Sequence[Message] | None, opening: Sequence[Message] | None = None
    ) -> _Sampled | None:
        """Return an answer as if it was sampled; None if the template writes its prompt in another way then."""
        found = self._probe.answer(answer, tools, opening)
        if found is None:
            return None
        prompt, written = found
        encode = self._adapter.tokenizer.encode
        prompt_ids, whole_ids = encode(prompt), encode(prompt + written)
        is_prefix = whole_ids[: len(prompt_ids)] == prompt_ids
        completion = whole_ids[len(prompt_ids) :] if is_prefix else encode(written)
        ends = (at for at, token_id in enumerate(completion, 1) if token_id in self._adapter.stop_token_ids)
        completion = completion[: next(ends, len(completion))]
        text = self._adapter.tokenizer.decode(completion)
        return _Sampled(as_logical_ids(prompt_ids), as_logical_ids(completion), text)

    def _parse(self, adapter: RendererAdapter, sampled: _Sampled) -> ParsedCompletion:
        return adapter.parse(sampled.prompt, sampled.completion, TOOLS)

    def _writes_reasoning(self) -> bool:
        """Whether the template writes the reasoning of the last answer."""
        try:
            return REASONING in self._probe.text([*self._probe.opening, REASONED_ANSWER], add_generation_prompt=False)
        except TemplateRefused:
            return False

    def _find_tool_parser(self, sampled: _Sampled) -> str | None:
        """Return the parser that reads the template's call, the most probable one first."""
        advised = advise_parsers(self._probe.template, self._adapter.tokenizer).tool_parser
        for name in dict.fromkeys(([advised] if advised else []) + list(TOOL_PARSERS)):
            try:
                adapter = self._with_parsers(name, self._model.reasoning_parser)
            except AdapterError:  # the tokenizer does not have its tokens
                continue
            if _is_the_call(self._parse(adapter, sampled)):
                return name
        return None

    def _with_parsers(self, tool_parser: str | None, reasoning_parser: str | None) -> RendererAdapter:
        options = replace(renderer_options(self._model), tool_parser=tool_parser, reasoning_parser=reasoning_parser)
        return RendererAdapter.open(self._model.path, TEMPLATE_FAMILY, options, tokenizer=self._adapter.tokenizer)


def _fix_of_calls(proposed: str | None) -> str:
    if proposed is not None:
        return f"set model.tool_parser to {proposed}"
    return "set model.template.file to a template whose calls a parser reads, or choose another model"


def _nothing(subject: str, message: str) -> CheckResult:
    return CheckResult(subject, message, CheckStatus.NOTHING)


def _is_the_call(parsed: ParsedCompletion) -> bool:
    found: list[tuple[str, dict[str, Any], str | None]] = [
        (call.name, dict(call.arguments), call.error) for call in parsed.tool_calls
    ]
    return found == [(TOOL_NAME, dict(ARGUMENTS), None)]


def _is_reasoned(parsed: ParsedCompletion) -> bool:
    return (parsed.reasoning or "").strip() == REASONING and parsed.text.strip() == ANSWER


def _describe_calls(parsed: ParsedCompletion) -> str:
    if not parsed.tool_calls:
        return "no call"
    return " and ".join(
        f"{call.name}({dict(call.arguments)})" if call.error is None else f"a call that it cannot read ({call.error})"
        for call in parsed.tool_calls
    )
