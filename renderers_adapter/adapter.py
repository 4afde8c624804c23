"""One model family's renderer behind one small interface: render, bridge, parse.

The `renderers` package is imported here and only here, and only when an adapter is opened, because importing it takes
more than a second. Images are rendered as one pad token each; nothing is processed, so neither torch nor transformers
is ever needed.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from renderers_adapter.errors import AdapterError
from renderers_adapter.families import RendererFamily, get_family
from renderers_adapter.geometry import Geometry, geometry_for
from renderers_adapter.rendered import (
    ParsedCompletion,
    ParsedToolCall,
    RenderedMessages,
    UnsupportedConversation,
    count_images,
    read_tool_call,
    split_by_message,
)
from renderers_adapter.special_text import MaskingTokenizer, SpecialText
from renderers_adapter.tokenizer import FastTokenizer, TokenizerError, load_tokenizer
from renderers_adapter.tokens import LogicalIds

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_IMAGE_NUMBERING_ARGUMENTS = frozenset(("add_vision_id",))


class RendererMismatch(AdapterError):
    """A renderer and a tokenizer, or a renderer and its template options, do not go together."""


class BridgeRefusalReason(StrEnum):
    """Why a turn cannot be bridged and is rendered whole.

    Attributes:
        ASSISTANT_MESSAGE: the new messages hold an answer that the policy did not give here.
        THINKING_DROPPED: the template drops earlier reasoning once a new question is asked.
        RENDERER_REFUSED: the renderer cannot prove that a bridge would be right, as when reasoning was never closed.
    """

    ASSISTANT_MESSAGE = "assistant"
    THINKING_DROPPED = "thinking"
    RENDERER_REFUSED = "refused"


class BridgeRefused(AdapterError):
    """A bridge that would not be right; render the whole conversation instead."""

    def __init__(self, reason: BridgeRefusalReason) -> None:
        self.reason = reason
        super().__init__(f"this turn cannot be bridged: {reason}")


class RendererAdapter:
    """Messages to tokens and back, for one model. Messages are in canonical form (`{"type": "image"}` parts).

    Text-only and multimodal models have the same interface: for a text-only model `geometry` and `pad_id` are None, and
    a message with an image is refused. `media_ids` are the pad token and others that stand for media: no policy may
    sample them. A lock serialises encoding: a fast tokenizer may keep state while it encodes.
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
        # The renderers of text-only families do not know the argument.
        takes_images = getattr(renderer, "supports_process_multimodal", False)
        self._render_options = {"process_multimodal": False} if takes_images else {}
        self._lock = threading.Lock()
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.pad_id = tokenizer.token_id(family.image_pad_token) if family.image_pad_token is not None else None
        media_tokens = () if family.image_pad_token is None else (family.image_pad_token, *family.other_media_tokens)
        found_ids = (tokenizer.convert_tokens_to_ids(token) for token in media_tokens)
        self.media_ids = tuple(found for found in found_ids if found not in (None, tokenizer.unk_token_id))
        self.stop_token_ids: tuple[int, ...] = tuple(renderer.get_stop_token_ids())

    @classmethod
    def open(
        cls,
        directory: Path,
        renderer: str,
        template: Mapping[str, Any] | None = None,
        special_text: SpecialText = SpecialText.TEXT,
    ) -> "RendererAdapter":
        """Load tokenizer and processor configuration from a model's directory and create its renderer.

        `template` holds arguments of the chat template, such as `enable_thinking`, by the names that the model's own
        template gives them. `special_text` says what becomes of text in messages that spells control tokens.

        Raises:
            UnknownRenderer: no such renderer; the message lists them.
            TokenizerError: the directory holds no usable tokenizer.
            GeometryError: the processor configuration lacks what placeholder counts are computed from.
            RendererMismatch: the tokenizer lacks a token of this chat format, or the template an argument.
        """
        family = get_family(renderer)
        tokenizer = load_tokenizer(directory)
        geometry = None if family.geometry is None else geometry_for(family.geometry, load_processor_config(directory))
        return cls(
            lambda masking_tokenizer: _create_renderer(family, masking_tokenizer, template or {}),
            family,
            tokenizer,
            geometry,
            special_text,
        )

    def clone(self) -> "RendererAdapter":
        """A second renderer for the same model, which shares everything that is only read."""
        return RendererAdapter(self._create_renderer, self._family, self.tokenizer, self.geometry, self._special_text)

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> RenderedMessages:
        """Tokens for a whole conversation.

        Raises:
            UnsupportedConversation: the family's template cannot say this, or not say it the same way twice.
            SpecialTextRefused: a message spells a control token, and such text is refused.
        """
        self._refuse_unsupported(messages, tools, starts_conversation=True)
        with self._lock:
            try:
                masked_messages, masked_tools = self._masked(messages, tools)
                rendered = self._renderer.render(
                    masked_messages, tools=masked_tools, add_generation_prompt=True, **self._render_options
                )
            except (TokenizerError, UnsupportedConversation):
                raise
            except Exception as error:  # noqa: BLE001 - a renderer raises what its template would, of any type
                reason = self._masking_tokenizer.restore(str(error))
                raise UnsupportedConversation(
                    f"the renderer {self._family.name} refuses this conversation: {type(error).__name__}: {reason}"
                ) from (error if reason == str(error) else None)  # whoever logs the cause could not write its marks
        return split_by_message(rendered, messages, 0, self.pad_id)

    def bridge(
        self,
        parse_prefix: LogicalIds,
        completion: LogicalIds,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> RenderedMessages:
        """Only the tokens that `messages` add after a completion.

        `parse_prefix` is the generation prompt of the assistant's turn: a renderer looks no further back than that.

        Raises:
            BridgeRefused: a full render is needed, and why.
            UnsupportedConversation: a full render would not be right either.
        """
        if not messages or any(message["role"] == "assistant" for message in messages):
            raise BridgeRefused(BridgeRefusalReason.ASSISTANT_MESSAGE)
        self._refuse_unsupported(messages, tools, starts_conversation=False)
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
            raise BridgeRefused(self._refusal_reason(messages))
        if bridged.token_ids[: len(known_ids)] != known_ids or max(bridged.token_ids) >= self.tokenizer.vocab_size:
            raise BridgeRefused(BridgeRefusalReason.RENDERER_REFUSED)
        return split_by_message(bridged, messages, len(known_ids), self.pad_id)

    def parse(
        self, parse_prefix: LogicalIds, completion: LogicalIds, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ParsedCompletion:
        """Read a completion as text. `tools` give the types of arguments, if a format does not quote its arguments.

        A completion that the renderer cannot read becomes one malformed tool call, as it was sampled: nothing that a
        policy says is a reason to lose its rollout.
        """
        ids = completion.tolist()
        with self._lock:
            try:
                parsed = self._renderer.parse_response(
                    ids, tools=list(tools) if tools else None, prompt_ids=parse_prefix.tolist()
                )
            except Exception:  # noqa: BLE001 - the parsers of JSON and XML raise what they like, RecursionError included
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
        """Messages and tools as the renderer is given them: it writes no control token for the text in them."""
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
                f"the template of {self._family.name} would put a system message of its own first; "
                "begin the conversation with one of yours."
            )
        if not self._family.supports_tools and (tools or any(_uses_tools(message) for message in messages)):
            raise UnsupportedConversation(
                f"the template of {self._family.name} knows no tools; describe them in the system message, and give "
                "their results in user messages."
            )
        if self._family.requires_tool_names:
            for index, message in enumerate(messages):
                if message["role"] == "tool" and not message.get("name"):
                    raise UnsupportedConversation(
                        f"message {index} is a tool's result without `name`, and the template of {self._family.name} "
                        "says of each result which tool it is of; give it the name that was called."
                    )
        _check_roles(messages, starts_conversation=starts_conversation)

    def _refusal_reason(self, messages: Sequence[Mapping[str, Any]]) -> BridgeRefusalReason:
        retention = getattr(self._renderer, "effective_thinking_retention", "all")
        has_user_message = any(message["role"] == "user" for message in messages)
        thinking_dropped = retention == "template" or (retention == "tool_cycle" and has_user_message)
        return BridgeRefusalReason.THINKING_DROPPED if thinking_dropped else BridgeRefusalReason.RENDERER_REFUSED


def load_processor_config(directory: Path) -> dict[str, Any]:
    """The image processor's configuration of a checkpoint, as its files say."""
    for name in _PROCESSOR_FILES:
        path = directory / name
        if path.is_file():
            try:
                config = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise AdapterError(f"{path} is not JSON: {error}.") from None
            return dict(config.get("image_processor", config))
    raise AdapterError(
        f"{directory} holds neither {' nor '.join(_PROCESSOR_FILES)}; copy it from the checkpoint: "
        "the number of tokens of an image is computed from it."
    )


def _check_roles(messages: Sequence[Mapping[str, Any]], *, starts_conversation: bool) -> None:
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "system" and not (starts_conversation and index == 0):
            raise UnsupportedConversation(
                f"message {index} is a system message that is not the first message; a full render would drop it. "
                "Say it in a user message."
            )
        if role in ("system", "assistant") and count_images(message):
            raise UnsupportedConversation(
                f"message {index} is a {role} message with an image, which a full render would drop. "
                "Put the image into a user or tool message."
            )


def _uses_tools(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))


def _create_renderer(family: RendererFamily, tokenizer: MaskingTokenizer, template: Mapping[str, Any]) -> Any:
    from renderers import config_from_name, create_renderer

    if numbering_arguments := sorted(_IMAGE_NUMBERING_ARGUMENTS & template.keys()):
        raise RendererMismatch(
            f"the template argument {numbering_arguments[0]!r} numbers the images of a whole conversation, and a "
            "bridge sees only its end; leave it out (model.template)."
        )
    try:
        renderer_tokenizer = (
            _TokenizerWithMissingTokens(tokenizer, family.missing_tokens) if family.missing_tokens else tokenizer
        )
        return create_renderer(
            renderer_tokenizer, config_from_name(family.renderer), chat_template_kwargs=dict(template) or None
        )
    except Exception as error:  # each renderer asserts, in words of its own, that its tokens exist
        if type(error).__module__ == "openai_harmony":
            raise RendererMismatch(
                f"the renderer {family.name} cannot be made: its vocabulary, {family.vocabulary_file}, was neither "
                f"found nor downloaded ({error}). Put that file into a directory, and name this in "
                "TIKTOKEN_ENCODINGS_BASE."
            ) from error
        template_fix = f", or correct model.template ({', '.join(template)})" if template else ""
        raise RendererMismatch(
            f"the renderer {family.name} cannot be made for {tokenizer.name_or_path}: {error}. "
            f"Choose the renderer that belongs to the model (model.renderer){template_fix}."
        ) from error


class _TokenizerWithMissingTokens:
    """A tokenizer that seems to have tokens which it lacks: their ids lie beyond its vocabulary."""

    def __init__(self, tokenizer: MaskingTokenizer, possibly_missing: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        missing = [
            token for token in possibly_missing if tokenizer.convert_tokens_to_ids(token) == tokenizer.unk_token_id
        ]
        self._made_up_ids = {token: tokenizer.vocab_size + at for at, token in enumerate(missing)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._tokenizer(*arguments, **options)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        found_id: int | None = self._made_up_ids.get(token, self._tokenizer.convert_tokens_to_ids(token))
        return found_id
