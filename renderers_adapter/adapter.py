"""Wraps the renderer of a model family in a small interface: render, bridge, parse.

Each image is rendered as one pad token and is not processed, so torch and transformers are not needed.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from renderers_adapter.bridge_refusal import BridgeRefusalReason, BridgeRefused
from renderers_adapter.creation import load_processor_config, renderer_factory
from renderers_adapter.errors import TooManyTokens
from renderers_adapter.families import ALL_MEDIA_TOKENS, RendererFamily, get_family
from renderers_adapter.geometry import Geometry, geometry_for
from renderers_adapter.options import RendererOptions, SpecialText
from renderers_adapter.rendered import (
    ParsedCompletion,
    ParsedToolCall,
    RenderedMessages,
    UnsupportedConversation,
    count_images,
    read_tool_call,
    split_by_message,
)
from renderers_adapter.short_conversation import ANSWER_INDEX, conversation_until
from renderers_adapter.special_text import MaskingTokenizer
from renderers_adapter.tokenizer import FastTokenizer, TokenizerError, load_tokenizer
from renderers_adapter.tokens import LogicalIds


class RendererAdapter:
    """Converts messages in canonical form to tokens, and completions to text, for one model.

    An adapter is thread-safe, but encodes only one text at a time, because the masking tokenizer has state.

    Attributes:
        tokenizer: the model's tokenizer.
        geometry: the geometry of the model's images; None for a text-only model, which refuses messages with images.
        pad_id: the id of the image pad token; None for a text-only model.
        media_ids: the ids of the tokens for images and other media; a policy must not sample them.
        stop_token_ids: the ids of the tokens that end an answer.
    """

    def __init__(
        self,
        create_renderer: Callable[[MaskingTokenizer], Any],
        family: RendererFamily,
        tokenizer: FastTokenizer,
        geometry: Geometry | None,
        special_text: SpecialText,
    ) -> None:
        self._create_renderer = create_renderer
        self._masking_tokenizer = MaskingTokenizer(tokenizer)
        self._renderer = renderer = create_renderer(self._masking_tokenizer)
        self._family = family
        self._special_text = special_text
        # The renderers of text-only families do not take the argument `process_multimodal`.
        takes_images = getattr(renderer, "supports_process_multimodal", False)
        self._render_options = {"process_multimodal": False} if takes_images else {}
        self._lock = threading.Lock()
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.pad_id = tokenizer.token_id(family.image_pad_token) if family.image_pad_token is not None else None
        found_ids = (tokenizer.convert_tokens_to_ids(token) for token in _media_tokens(family))
        self.media_ids = tuple(found for found in found_ids if found not in (None, tokenizer.unk_token_id))
        self.stop_token_ids: tuple[int, ...] = tuple(renderer.get_stop_token_ids())
        self._closing_tokens: dict[str, int] = {}

    @classmethod
    def open(
        cls,
        directory: Path,
        renderer: str,
        options: RendererOptions | None = None,
        *,
        tokenizer: FastTokenizer | None = None,
    ) -> "RendererAdapter":
        """Load the tokenizer and the processor configuration of a model, and create its renderer.

        Args:
            directory: the model's directory.
            renderer: the name of the model's family.
            options: the arguments of the template, and what else can be configured.
            tokenizer: the tokenizer of the directory, if it is loaded already.

        Raises:
            UnknownRenderer: no family has this name. The message lists all names.
            TokenizerError: the directory has no tokenizer that can be loaded.
            GeometryError: the processor configuration has no settings for the layout of images.
            RendererMismatch: the tokenizer does not have a token of this chat format, or the template does not have an
                argument.
        """
        family, options = get_family(renderer), options or RendererOptions()
        tokenizer = tokenizer or load_tokenizer(directory)
        geometry = None if family.geometry is None else geometry_for(family.geometry, load_processor_config(directory))
        create_renderer = renderer_factory(family, directory, options)
        return cls(create_renderer, family, tokenizer, geometry, options.special_text)

    @property
    def bridges_with_whole_conversation(self) -> bool:
        """Whether `bridge` reads the messages before the new ones."""
        return self._family.uses_checkpoint_template

    def clone(self) -> "RendererAdapter":
        """Return a new adapter for the same model, with its own renderer and the same tokenizer."""
        return RendererAdapter(self._create_renderer, self._family, self.tokenizer, self.geometry, self._special_text)

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> RenderedMessages:
        """Return the tokens of a whole conversation.

        Raises:
            UnsupportedConversation: the family's template cannot write this conversation, or a bridge would give other
                tokens.
            SpecialTextRefused: a message or a tool contains a control token, and the configuration does not allow this;
                or the checkpoint's template makes one of its text.
            TooManyTokens: the checkpoint's template writes a text that is too long for every model.
        """
        self._refuse_unsupported(messages, tools, starts_conversation=True)
        with self._lock:
            try:
                masked_messages, masked_tools = self._masked(messages, tools)
                rendered = self._renderer.render(
                    masked_messages, tools=masked_tools, add_generation_prompt=True, **self._render_options
                )
            except (TokenizerError, UnsupportedConversation, TooManyTokens):
                raise
            except Exception as error:  # noqa: BLE001 - a renderer may raise any error
                reason = self._masking_tokenizer.restore(str(error))
                raise UnsupportedConversation(
                    f"the renderer {self._family.name} refuses this conversation: {type(error).__name__}: {reason}"
                ) from (
                    error if reason == str(error) else None
                )  # the cause's message contains marks, which logs cannot write
        return split_by_message(rendered, messages, 0, self.pad_id)

    def bridge(
        self,
        conversation: Sequence[Mapping[str, Any]],
        parse_prefix: LogicalIds,
        completion: LogicalIds,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> RenderedMessages:
        """Return only the tokens that new messages add after a completion.

        Args:
            conversation: the messages before the new ones; the last one is the answer with these tokens. Only the
                renderer `template` needs it.
            parse_prefix: the generation prompt before the completion; the renderer does not need earlier tokens.
            completion: the tokens that the policy sampled.
            messages: the new messages.
            tools: the tools of the conversation.

        Raises:
            BridgeRefused: the whole conversation must be rendered; `reason` says why.
            UnsupportedConversation: a full render would also be wrong.
        """
        if not messages or any(message["role"] == "assistant" for message in messages):
            raise BridgeRefused(BridgeRefusalReason.ASSISTANT_MESSAGE)
        self._refuse_unsupported(messages, tools, starts_conversation=False)
        if self._family.uses_checkpoint_template:
            return self._bridge_with_template(conversation, completion.tolist(), messages, tools)
        prompt_ids, completion_ids = parse_prefix.tolist(), completion.tolist()
        with self._lock:
            try:
                masked_messages, masked_tools = self._masked(messages, tools)
                bridged = self._renderer.bridge_to_next_turn(
                    prompt_ids, completion_ids, masked_messages, tools=masked_tools, **self._render_options
                )
            except TokenizerError:
                raise
            except Exception as error:
                raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED) from error
        known_ids = prompt_ids + completion_ids
        if bridged is None:
            raise BridgeRefused(self._refusal_reason(completion_ids, messages))
        if bridged.token_ids[: len(known_ids)] != known_ids or max(bridged.token_ids) >= self.tokenizer.vocab_size:
            raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
        if self._has_other_end_token(completion_ids, messages):
            raise BridgeRefused(BridgeRefusalReason.END_TOKEN)
        return split_by_message(bridged, messages, len(known_ids), self.pad_id)

    def _bridge_with_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        completion: Sequence[int],
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> RenderedMessages:
        size = len(conversation)
        whole: Sequence[Any] = [*conversation, *messages]
        with self._lock:
            prompt = self._renderer.find_prompt(whole[: size - 1], tools)
            if prompt is None or self._masking_tokenizer.needs_marks(whole[size - 1 :]):
                prompt = None
                whole, tools = self._masked(whole, tools)
            bridged = self._renderer.bridge(whole[:size], completion, whole[size:], tools, prompt)
        return split_by_message(bridged, messages, 0, self.pad_id)

    def parse(
        self, parse_prefix: LogicalIds, completion: LogicalIds, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ParsedCompletion:
        """Parse a completion, and return its text, reasoning and tool calls.

        Some formats do not quote strings; for them, `tools` give the types of arguments. If the renderer cannot parse a
        completion, the result is one malformed tool call with its text, so that no answer can make a rollout fail.
        """
        ids = completion.tolist()
        with self._lock:
            try:
                parsed = self._renderer.parse_response(
                    ids, tools=list(tools) if tools else None, prompt_ids=parse_prefix.tolist()
                )
            except Exception:  # noqa: BLE001 - parsers of JSON and XML may raise any error, including RecursionError
                ends_with_stop_token = ids[-1:] and ids[-1] in self.stop_token_ids
                text = self.tokenizer.decode(ids[:-1] if ends_with_stop_token else ids)
                return ParsedCompletion("", None, (ParsedToolCall(None, "", {}, text, "unreadable", text),))
        calls = (
            read_tool_call(call, lambda span: self.tokenizer.decode(ids[slice(*span)])) for call in parsed.tool_calls
        )
        return ParsedCompletion(parsed.content, parsed.reasoning_content, tuple(calls))

    def _masked(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[Any], list[Any] | None]:
        """Return messages and tools for the renderer, with marks if `special_text` requires them."""
        given = list(messages), list(tools) if tools else None
        if self._special_text is SpecialText.REFUSE:
            self._masking_tokenizer.refuse(*given)
        if self._special_text is SpecialText.ALLOW or self._family.encodes_messages_as_text:
            return given
        return self._masking_tokenizer.mask(given)

    def _refuse_unsupported(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        starts_conversation: bool,
    ) -> None:
        if starts_conversation and self._family.requires_system_message and messages[0]["role"] != "system":
            raise UnsupportedConversation(
                f"the template of {self._family.name} would add its own system message; "
                "begin the conversation with a system message."
            )
        if not self._family.supports_tools and (tools or any(_uses_tools(message) for message in messages)):
            raise UnsupportedConversation(
                f"the template of {self._family.name} does not support tools; describe tools in the system message, "
                "and write their results in user messages."
            )
        if self._family.requires_tool_names:
            for index, message in enumerate(messages):
                if message["role"] == "tool" and not message.get("name"):
                    raise UnsupportedConversation(
                        f"message {index} is a tool's result without a `name`, but the template of {self._family.name} "
                        "needs it; set `name` to the name of the tool that was called."
                    )
        if self._family.uses_checkpoint_template:
            _refuse_images(messages)
        _check_roles(messages, starts_conversation=starts_conversation)

    def _refusal_reason(
        self, completion_ids: Sequence[int], messages: Sequence[Mapping[str, Any]]
    ) -> BridgeRefusalReason:
        retention = getattr(self._renderer, "effective_thinking_retention", "all")
        has_user_message = any(message["role"] == "user" for message in messages)
        if retention == "template" or (retention == "tool_cycle" and has_user_message):
            return BridgeRefusalReason.THINKING_DROPPED
        if self._has_other_end_token(completion_ids, messages):
            return BridgeRefusalReason.END_TOKEN
        return BridgeRefusalReason.RENDERER_REFUSED

    def _has_other_end_token(self, completion_ids: Sequence[int], messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a completion ends on a stop token, and the template closes an answer before `messages` with another.

        A completion without a stop token was cut, and the renderer closes it.
        """
        if not completion_ids or completion_ids[-1] not in self.stop_token_ids:
            return False
        next_role = messages[0]["role"]
        if next_role not in self._closing_tokens:
            answer = self.render(conversation_until(next_role), None).segments[ANSWER_INDEX]
            self._closing_tokens[next_role] = int(answer.ids[-1])
        return completion_ids[-1] != self._closing_tokens[next_role]


def _media_tokens(family: RendererFamily) -> tuple[str, ...]:
    if family.uses_checkpoint_template:  # the checkpoint may be of any family
        return ALL_MEDIA_TOKENS
    return () if family.image_pad_token is None else (family.image_pad_token, *family.other_media_tokens)


def _check_roles(messages: Sequence[Mapping[str, Any]], *, starts_conversation: bool) -> None:
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "system" and not (starts_conversation and index == 0):
            raise UnsupportedConversation(
                f"message {index} is a system message, but not the first message; a full render would drop it. "
                "Send it as a user message."
            )
        if role in ("system", "assistant") and count_images(message):
            raise UnsupportedConversation(
                f"message {index} is a {role} message with an image, which a full render would drop. "
                "Put the image into a user or tool message."
            )


def _refuse_images(messages: Sequence[Mapping[str, Any]]) -> None:
    for index, message in enumerate(messages):
        if count_images(message):
            raise UnsupportedConversation(
                f"message {index} contains an image, but the renderer template accepts only text. Set model.renderer "
                "to a built-in renderer with images (docs/models.md), or leave the image out."
            )


def _uses_tools(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))
