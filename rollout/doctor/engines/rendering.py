"""Checks that our prompts of conversations are those of the server's own chat template."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from renderers_adapter.checkpoint_template.renderer import load_template
from renderers_adapter.errors import AdapterError
from renderers_adapter.families import get_family
from rollout.config.renderer_options import renderer_options
from rollout.config.sections import ModelConfig
from rollout.doctor.engines.comparison import Comparison, Difference, ServerPrompt, compare_prompts
from rollout.doctor.engines.conversations import MODE_CONVERSATIONS, Conversation, prepare_conversations
from rollout.doctor.engines.known_differences import KnownDifference, join_tokens
from rollout.doctor.engines.own_engine import is_own_engine
from rollout.doctor.engines.own_prompts import OwnRenderer
from rollout.doctor.engines.probe_requests import probe_directory
from rollout.doctor.engines.renderer_advice import THINKING_SWITCH, advise, advise_template
from rollout.doctor.engines.server_prompts import ServerPrompts
from rollout.doctor.engines.text_difference import describe_difference
from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade, EngineUnderTest, NothingToCheck
from rollout.engine.errors import EngineError, EngineMisconfigured, EngineRefused
from rollout.images import ImagePolicy
from rollout.records.messages import MessageError

_LAST_RESORT = (
    "the server uses another chat template than the renderer {renderer}: serve the checkpoint with its own template, "
    "or start the server with --chat-template and the template that this renderer writes"
)
_LAST_RESORT_OF_TEMPLATES = (
    "the server uses another chat template than {origin}: set model.template.file to the file of the server's "
    "template, or start the server with --chat-template {origin}"
)

_REFUSAL_FIX = (
    "Set engine.urls to the root of vLLM itself, without a proxy that changes requests. If vLLM refuses them, too, its "
    "chat template cannot write such messages: start it with --chat-template and the template of {renderer}, or play "
    "no conversations of this kind"
)
_ANSWER_FIX = (
    "is engine.urls the root of vLLM itself, without a proxy that changes answers? If it is, the server's log has the "
    "reason"
)

_SHOWN_NAMES = 4


async def check_rendering(engine: EngineUnderTest) -> str:
    """Check that our prompts are those of the server's template, rendered and bridged; return the finding."""
    if await is_own_engine(engine):
        raise NothingToCheck("this engine takes tokens only, and has no chat template")
    end_token = engine.adapter.tokenizer.decode([engine.adapter.stop_token_ids[0]])
    with probe_directory(engine.config.run.directory) as directory:
        conversations = await prepare_conversations(
            ImagePolicy(engine.config.images.mode, directory.images_path),
            with_images=engine.adapter.geometry is not None,
            end_token=end_token,
        )
        server = await ServerPrompts.find_route(engine, conversations[0])
        server_prompts, refused = await _fetch_prompts(server, conversations)
    renderer = OwnRenderer(engine.config.model, engine.adapter.tokenizer, expands_images=server.expands_images)
    comparison = await compare_prompts(renderer, server_prompts)
    if comparison.differences:
        advice = await advise(renderer, server_prompts) or await advise_template(renderer, server_prompts)
        fix = advice.fix if advice else _last_resort(renderer.model)
        raise CheckFailed(_describe_differences(renderer, comparison), fix)
    only_by_us = await _find_written(renderer, [one for one in conversations if one.name in refused])
    fix_refusal = _REFUSAL_FIX.format(renderer=renderer.model.renderer)
    if not comparison.equal:
        reasons = _list_reasons(comparison, refused)
        fix = f". {fix_refusal}" if only_by_us else ""
        raise CheckNotMade(f"no conversation was rendered by both sides: {reasons}{fix}")
    if comparison.unsupported or KnownDifference.UNWRITTEN_REASONING in comparison.known:
        await _refuse_better_renderer(renderer, comparison, server_prompts)
    if only_by_us:
        reason = refused[only_by_us[0]].rstrip(".")
        refused_by_both = {name: refused[name] for name in refused if name not in only_by_us}
        equal = _describe_success(comparison, _list_not_compared(comparison, refused_by_both, server))
        raise CheckNotMade(
            f"the server refuses {len(only_by_us)} of {len(conversations)} conversations, but our renderer writes "
            f"them: {_join_first(only_by_us)} ({reason}). {fix_refusal}\n{equal}"
        )
    other_modes = await _compare_other_modes(renderer, server, conversations)
    return _describe_success(comparison, [*_list_not_compared(comparison, refused, server), *other_modes])


def rendering_fix(engine: EngineUnderTest, error: Exception) -> str | None:
    """Return what corrects an error of `check_rendering`."""
    return _ANSWER_FIX if isinstance(error, EngineError) else None


def _last_resort(model: ModelConfig) -> str:
    if not get_family(model.renderer).uses_checkpoint_template:
        return _LAST_RESORT.format(renderer=model.renderer)
    return _LAST_RESORT_OF_TEMPLATES.format(origin=load_template(model.path, renderer_options(model)).origin)


async def _fetch_prompts(
    server: ServerPrompts, conversations: Sequence[Conversation], **template: bool
) -> tuple[list[ServerPrompt], dict[str, str]]:
    """Return the server's prompts, and for each conversation that it refuses its name and the reason."""
    prompts, refused = [], {}
    for conversation in conversations:
        try:
            prompts.append(ServerPrompt(conversation, await server.render(conversation, **template)))
        except EngineMisconfigured:
            raise
        except EngineRefused as error:
            refused[conversation.name] = str(error)
    return prompts, refused


async def _find_written(renderer: OwnRenderer, conversations: Sequence[Conversation]) -> list[str]:
    """Return the names of the conversations that our renderer writes."""
    names = []
    for conversation in conversations:
        with suppress(AdapterError, MessageError):
            await renderer.make_prompts(conversation)
            names.append(conversation.name)
    return names


async def _refuse_better_renderer(
    renderer: OwnRenderer, comparison: Comparison, server_prompts: Sequence[ServerPrompt]
) -> None:
    """Raise CheckFailed if another renderer fits better: it writes more of the server's prompts, or their reasoning."""
    advice = await advise(renderer, server_prompts)
    unwritten = comparison.known.get(KnownDifference.UNWRITTEN_REASONING, [])
    if advice is None or advice.renderer == renderer.model.renderer:
        return
    if advice.equal <= comparison.equal and not unwritten:
        return
    misfits = []
    if comparison.unsupported:
        misfits.append(f"does not support: {_join_first(list(comparison.unsupported))}")
    if unwritten:
        misfits.append(f"writes reasoning that the server leaves out, in: {_join_first(unwritten)}")
    shown = ""
    for server_prompt in server_prompts:
        if server_prompt.conversation.name in unwritten[:1]:
            own_ids = join_tokens(await renderer.render(server_prompt.conversation))
            shown = "\n" + describe_difference(own_ids, server_prompt.ids, renderer.tokenizer, renderer.pad_id)
    raise CheckFailed(
        f"the server renders all {advice.equal} conversations as the renderer {advice.renderer} does, but "
        f"{renderer.model.renderer} {'; it '.join(misfits)}{shown}",
        advice.fix,
    )


async def _compare_other_modes(
    renderer: OwnRenderer, server: ServerPrompts, conversations: Sequence[Conversation]
) -> list[str]:
    """Compare with reasoning on and off, and return the findings. The run has another mode, so nothing is an error."""
    findings = []
    if not _has_thinking_switch(renderer.model):
        return []
    for is_on in (True, False):
        template = {**renderer.model.template, THINKING_SWITCH: is_on}
        if template == renderer.model.template:
            continue
        try:
            other = renderer.with_settings(template=template)
        except AdapterError:  # the renderer does not have this argument
            return []
        prompts, refused = await _fetch_prompts(
            server, [one for one in conversations if one.name in MODE_CONVERSATIONS], **{THINKING_SWITCH: is_on}
        )
        fits = not refused and not (await compare_prompts(other, prompts)).differences
        mode = f"{THINKING_SWITCH}: {str(is_on).lower()}"
        findings.append(f"also with {mode}" if fits else f"but not with {mode}, which this configuration does not set")
    return findings


def _has_thinking_switch(model: ModelConfig) -> bool:
    """Whether the renderer may have the switch. A template accepts any argument, so its text must name the switch."""
    if not get_family(model.renderer).uses_checkpoint_template:
        return True
    return any(THINKING_SWITCH in source for source in load_template(model.path, renderer_options(model)).sources)


def _describe_differences(renderer: OwnRenderer, comparison: Comparison) -> str:
    first: Difference = comparison.differences[0]
    conversation = first.server_prompt.conversation
    kind = "our bridged prompt" if first.is_bridged else "our prompt"
    count = len(comparison.differences)
    others = [difference.server_prompt.conversation.name for difference in comparison.differences[1:]]
    lines = describe_difference(first.own_ids, first.server_prompt.ids, renderer.tokenizer, renderer.pad_id)
    return (
        f"{count} of {count + comparison.equal} conversations are rendered differently. "
        f"In {conversation.name!r}, {kind} differs from the server's:\n{lines}"
        + (f"\nalso in: {_join_first(others)}" if others else "")
    )


def _describe_success(comparison: Comparison, remarks: Sequence[str]) -> str:
    compared = (
        f"the server renders {comparison.equal} conversations as we do; {comparison.bridged} of them also if the last "
        "turn is bridged"
    )
    known = [
        f"known difference in {_join_first(names)}: {difference}" for difference, names in comparison.known.items()
    ]
    return "\n".join(["; ".join([compared, *remarks]), *known])


def _list_not_compared(comparison: Comparison, refused: Mapping[str, str], server: ServerPrompts) -> list[str]:
    remarks = []
    if comparison.unsupported or refused:
        remarks.append(f"not compared: {_list_reasons(comparison, refused)}")
    if not server.expands_images:
        remarks.append("compared by /tokenize, with one token for each image, because there is no render route")
    return remarks


def _join_first(names: Sequence[str]) -> str:
    """Return the first few names, and the number of the others."""
    others = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {others} more" if others > 0 else "")


def _list_reasons(comparison: Comparison, refused: Mapping[str, str]) -> str:
    """Return the names of the conversations that were not compared, once for each reason."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in comparison.unsupported.items():
        names_by_reason.setdefault(reason, []).append(name)
    for name, reason in refused.items():
        names_by_reason.setdefault(f"the server refuses: {reason}", []).append(name)
    return "; ".join(f"{_join_first(names)} ({reason.rstrip('.')})" for reason, names in names_by_reason.items())
