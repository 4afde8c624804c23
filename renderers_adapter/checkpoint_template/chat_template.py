"""Renders a checkpoint's own chat template to text, as transformers and vLLM do it, without transformers.

    template = ChatTemplate.load(Path("models/Llama-3.2-1B-Instruct"))
    template.render(messages, tools=None, arguments={"enable_thinking": False})

A template is a Jinja program from the checkpoint, so it runs in Jinja's sandbox.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
from jinja2.parser import Parser

from renderers_adapter.checkpoint_template.content_loops import loops_over_content
from renderers_adapter.checkpoint_template.sandbox import TemplateSandbox, TextWatch
from renderers_adapter.errors import AdapterError, TooManyTokens

TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER_FILES = ("tokenizer_config.json", "chat_template.json")
_DEFAULT_NAME, _TOOLS_NAME = "default", "tool_use"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GIVEN_ARGUMENTS = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception")
_RESERVED_ARGUMENTS = frozenset((*_GIVEN_ARGUMENTS, *_SPECIAL_TOKENS, "self"))

_MAX_CHARACTERS = 8_000_000
"""The maximum length of a rendered text: about twice as much as fits into a context of a million tokens."""

_CHANGED_KEYS = frozenset(("reasoning_content", "tool_calls"))
"""The keys that `for_template` reads, beside the content."""


def format_now(text_format: str) -> str:
    """Return the present time as text."""
    return datetime.now().astimezone().strftime(text_format)


class ChatTemplateError(AdapterError):
    """A checkpoint has no chat template, or its template or its special tokens cannot be read."""


class ChatTemplate:
    """The chat template of a checkpoint, and the special tokens that it may write.

    Attributes:
        origin: where the template was found, for messages.
    """

    def __init__(
        self,
        source: str,
        *,
        tools_source: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        origin: str = "the chat template",
        tools_origin: str | None = None,
    ) -> None:
        self.origin = origin
        self._source = source
        self._tools_source = tools_source
        self._special_tokens = dict(special_tokens or {})
        self._watch = TextWatch()
        self._compiled = self._compiled_with_tools = _compile(source, origin, self._watch)
        if tools_source is not None:
            self._compiled_with_tools = _compile(tools_source, tools_origin or origin, self._watch)

    @classmethod
    def load(cls, directory: Path, file: Path | None = None) -> "ChatTemplate":
        """Load the chat template of a checkpoint, or the template of `file` with the checkpoint's special tokens.

        Raises:
            ChatTemplateError: there is no template, or a file cannot be read.
        """
        tokenizer_config = _read_json(directory / _TOKENIZER_FILES[0])
        special_tokens = _special_tokens(tokenizer_config, _read_json(directory / "special_tokens_map.json"))
        if file is not None:
            if not file.is_file():
                raise ChatTemplateError(f"model.template.file: {file} is not a file. Name the file of a chat template.")
            return cls(_read_text(file), special_tokens=special_tokens, origin=str(file))
        path = directory / TEMPLATE_FILE
        if path.is_file():
            tools_path = directory / "additional_chat_templates" / f"{_TOOLS_NAME}.jinja"
            return cls(
                _read_text(path),
                tools_source=_read_text(tools_path) if tools_path.is_file() else None,
                special_tokens=special_tokens,
                origin=str(path),
                tools_origin=str(tools_path),
            )
        for name in _TOKENIZER_FILES:
            if (found := _read_json(directory / name).get("chat_template")) is not None:
                return cls._from_config(found, special_tokens, directory / name)
        raise ChatTemplateError(
            f"{directory} has no chat template: neither {TEMPLATE_FILE} nor `chat_template` in "
            f"{' or '.join(_TOKENIZER_FILES)}. Copy it from the checkpoint, or set model.template.file."
        )

    @classmethod
    def _from_config(cls, found: Any, special_tokens: Mapping[str, str], path: Path) -> "ChatTemplate":
        if isinstance(found, str):
            return cls(found, special_tokens=special_tokens, origin=str(path))
        try:
            by_name = {str(entry["name"]): str(entry["template"]) for entry in found}
        except (TypeError, KeyError):
            by_name = {}
        if _DEFAULT_NAME not in by_name:
            raise ChatTemplateError(
                f"`chat_template` in {path} is neither a template nor a list of named templates with one of the name "
                f"{_DEFAULT_NAME!r}. Set model.template.file to the file of a template."
            )
        source, tools_source = by_name[_DEFAULT_NAME], by_name.get(_TOOLS_NAME)
        return cls(source, tools_source=tools_source, special_tokens=special_tokens, origin=str(path))

    @cached_property
    def _takes_parts(self) -> bool:
        return loops_over_content(self._compiled.environment.parse(self._source))

    @cached_property
    def _takes_parts_with_tools(self) -> bool:
        if self._tools_source is None:
            return self._takes_parts
        return loops_over_content(self._compiled.environment.parse(self._tools_source))

    @property
    def sources(self) -> Sequence[str]:
        """The texts of the template: the one for every conversation, and the one for conversations with tools."""
        return [source for source in (self._source, self._tools_source) if source is not None]

    @property
    def changed_a_text(self) -> bool:
        """Whether the last `render` in this thread did more than copy, join and trim texts."""
        return self._watch.has_changed

    def takes_content_parts(self, tools: Sequence[Mapping[str, Any]] | None) -> bool:
        """Whether the template loops over the parts of a content, so that it gets lists instead of texts."""
        return self._takes_parts_with_tools if tools else self._takes_parts

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        arguments: Mapping[str, Any],
        *,
        add_generation_prompt: bool = True,
        strftime_now: Callable[[str], str] = format_now,
    ) -> str:
        """Return the text of a conversation. Messages are given as they are; see `for_template`.

        Raises:
            jinja2.TemplateError: the template refuses the conversation.
            TooManyTokens: the text is too long for every model.
        """
        compiled = self._compiled_with_tools if tools else self._compiled
        self._watch.has_changed = False
        pieces = compiled.generate(
            messages=messages,
            tools=list(tools) if tools else None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{"strftime_now": strftime_now, **self._special_tokens, **arguments},
        )
        written: list[str] = []
        left = _MAX_CHARACTERS
        for piece in pieces:
            written.append(piece)
            if (left := left - len(piece)) < 0:
                raise TooManyTokens(
                    f"{self.origin} writes more than {_MAX_CHARACTERS:,} characters for this conversation."
                )
        return "".join(written)

    def for_template(self, message: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] | None) -> Mapping[str, Any]:
        """Return a message in canonical form as the template reads it in a conversation with these tools."""
        content = message.get("content")
        takes_parts = self.takes_content_parts(tools) and message["role"] != "tool"
        if isinstance(content, str) and not takes_parts and not message.keys() & _CHANGED_KEYS:
            return message
        converted = dict(message)
        converted["content"] = _content_for_template(content, takes_parts=takes_parts)
        if (reasoning := message.get("reasoning_content")) is not None:
            converted["reasoning"] = reasoning
        if not message.get("tool_calls"):
            converted.pop("tool_calls", None)
        return converted

    @property
    def argument_names(self) -> Sequence[str]:
        """The arguments that the template reads, such as `enable_thinking`, without those that it always gets."""
        return sorted(self._names_read() - _RESERVED_ARGUMENTS - self._compiled.environment.globals.keys())

    def _names_read(self) -> set[str]:
        environment = self._compiled.environment
        return {
            name for source in self.sources for name in jinja2.meta.find_undeclared_variables(environment.parse(source))
        }

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Raise ChatTemplateError if an argument would replace what the template gets from us, or is never read."""
        if reserved := sorted(_RESERVED_ARGUMENTS & arguments.keys()):
            raise ChatTemplateError(
                f"model.template.{reserved[0]} cannot be set, because rollout itself gives it to the template. "
                "Remove it."
            )
        if not arguments:
            return
        read = self._names_read()
        if unread := sorted(arguments.keys() - read):
            known = ", ".join(self.argument_names)
            raise ChatTemplateError(
                f"model.template.{unread[0]} is never read by {self.origin}. Remove it, or correct its name. "
                + (f"The template reads {known}." if known else "The template reads no arguments.")
            )


def _compile(source: str, origin: str, watch: TextWatch) -> jinja2.Template:
    try:
        return _environment(watch).from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"{origin} is not a chat template: {error.message} (line {error.lineno} of the template). "
            "Copy it from the checkpoint again, or correct it."
        ) from error
    except (SyntaxError, RecursionError) as error:  # Python itself refuses the program that Jinja makes
        raise ChatTemplateError(
            f"{origin} is not a chat template: Python cannot compile it ({error}). Copy it from the "
            "checkpoint again, or correct its loops, such as a break outside a loop."
        ) from None


def _content_for_template(content: Any, *, takes_parts: bool) -> Any:
    # vLLM joins the parts of a tool's result in every template, and those of other messages if the template does not
    # loop over them.
    if isinstance(content, list):
        parts = [{"type": "text", "text": part["text"]} for part in content]
    else:
        parts = [] if not content else [{"type": "text", "text": content}]
    return parts if takes_parts else "\n".join(part["text"] for part in parts)


class _GenerationBlocks(jinja2.ext.Extension):
    """Reads `{% generation %}` blocks, with which templates mark answers, and renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own type

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        """Return the block's content as a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return str(caller())


def _environment(watch: TextWatch) -> jinja2.Environment:
    environment = TemplateSandbox(
        watch, trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes characters of HTML as escapes.
    return _encoder(ensure_ascii, indent, separators and tuple(separators), sort_keys).encode(value)


@lru_cache(maxsize=64)
def _encoder(
    ensure_ascii: bool, indent: int | None, separators: tuple[str, str] | None, sort_keys: bool
) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _special_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens by the names that templates use; the first configuration with a name wins."""
    found: dict[str, str] = {}
    for config in configs:
        for name in _SPECIAL_TOKENS:
            token = config.get(name)
            text = token.get("content") if isinstance(token, Mapping) else token
            if isinstance(text, str):
                found.setdefault(name, text)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(_read_text(path))
    except ValueError as error:
        raise ChatTemplateError(f"{path} is not JSON ({error}). Copy it from the checkpoint again.") from None
    return values if isinstance(values, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatTemplateError(f"{path} cannot be read ({error}). Check the checkpoint and model.template.") from None
