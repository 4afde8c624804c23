"""Chat templates write what transformers writes with them, and get contents in the form that vLLM gives them."""

import importlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate
from renderers_adapter.options import RendererOptions
from tests.chat_families.conversations import SYSTEM, TOOLS
from tests.chat_families.families import FAMILIES, write_checkpoint
from tests.unit.renderers_adapter.checkpoint_template.loops import TAKES_PARTS, TAKES_TEXT
from tests.unit.renderers_adapter.conversations import rendered_ids

transformers: Any = importlib.import_module("transformers")

_CALL = {"id": "call00001", "type": "function", "function": {"name": "look_up", "arguments": {"word": "é <b> 'c'"}}}
_QUESTION = {"role": "user", "content": "What is red? "}
_ANSWER = {"role": "assistant", "content": "A colour.\n\nOr  two."}
_NEXT = {"role": "user", "content": "\nAnd café, 2041?"}
CONVERSATIONS: Mapping[str, Sequence[dict[str, Any]]] = {
    "question": [_QUESTION],
    "several questions": [_QUESTION, _ANSWER, _NEXT],
    "system message": [SYSTEM, _QUESTION, _ANSWER, _NEXT],
    "reasoning": [_QUESTION, {**_ANSWER, "reasoning_content": "Warm."}, _NEXT],
    "call": [
        *(SYSTEM, _QUESTION, {"role": "assistant", "content": "", "tool_calls": [_CALL]}),
        {"role": "tool", "tool_call_id": "call00001", "name": "look_up", "content": '{"is": "warm & <bright>"}'},
    ],
}
WITH_TOOLS = ("system message", "call")

LOOP = "{%- for m in messages -%}"
HEADER = "{{- '<|im_start|>' + m.role + '\\n' -}}"
END = "{{- '<|im_end|>\\n' -}}"
PROMPT = "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
PLAIN = f"{LOOP}{HEADER}{{{{- m.content -}}}}{END}{PROMPT}"


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint's template.

    Attributes:
        template: the setting `chat_template` of tokenizer_config.json: a template, or named templates.
        arguments: the arguments of the template.
        special_tokens: special tokens of tokenizer_config.json.
    """

    template: str | list[dict[str, str]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: Mapping[str, Any] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "plain": Case(PLAIN),
    "macro": Case(
        "{%- macro say(role, text='') -%}<|im_start|>{{ role }}\n{{ text|trim }}<|im_end|>\n{% endmacro -%}"
        + LOOP
        + "{{- say(m.role, text=m.content) -}}"
        + PROMPT
    ),
    "namespace": Case(
        "{%- set seen = namespace(users=0, last=none) -%}"
        + LOOP
        + "{%- if m.role == 'user' -%}{%- set seen.users = seen.users + 1 -%}{%- set seen.last = loop.index0 -%}"
        + "{%- endif -%}{%- endfor -%}{{- seen.users ~ '/' ~ seen.last ~ '\\n' -}}"
        + PLAIN
    ),
    "generation block": Case(
        LOOP
        + HEADER
        + "{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
        + "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
        + PROMPT
    ),
    "tools": Case(
        "{%- if tools -%}{{- '<tools>' -}}{%- for tool in tools -%}{{- '\\n' ~ (tool|tojson) -}}{%- endfor -%}"
        + "{{- '\\n' ~ (tools|tojson(indent=2)) ~ (tools|tojson(separators=(',', ':'), sort_keys=true)) -}}"
        + "{{- tools|tojson(ensure_ascii=true) -}}{{- '</tools>\\n' -}}{%- endif -%}"
        + LOOP
        + HEADER
        + "{{- m.content -}}{%- for call in m.tool_calls or [] -%}{{- call.function|tojson -}}"
        + "{{- call.function.arguments|tojson(ensure_ascii=true) -}}{%- endfor -%}"
        + END
        + PROMPT
    ),
    "named template for tools": Case(
        [
            {"name": "default", "template": PLAIN},
            {"name": "tool_use", "template": "{{- 'Tools: ' ~ (tools|tojson) ~ '\\n' -}}" + PLAIN},
        ]
    ),
    "named template for tools that takes parts": Case(
        [
            {"name": "default", "template": PLAIN},
            {
                "name": "tool_use",
                "template": f"{LOOP}{HEADER}"
                + "{%- if m.content is string -%}{{- m.content -}}{%- else -%}"
                + "{%- for part in m.content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}"
                + END
                + PROMPT,
            },
        ]
    ),
    "strftime_now": Case("{{- 'It is ' ~ strftime_now('%Y') ~ '.\\n' -}}" + PLAIN),
    "loop controls": Case(
        LOOP
        + "{%- if m.role == 'tool' -%}{%- continue -%}{%- endif -%}{%- if loop.index > 3 -%}{%- break -%}{%- endif -%}"
        + HEADER
        + "{{- m.content -}}"
        + END
        + PROMPT
    ),
    "special tokens": Case(
        "{{- bos_token -}}{{- pad_token is defined -}}" + PLAIN.replace("'<|im_end|>\\n'", "eos_token + '\\n'"),
        special_tokens={
            "bos_token": {"__type": "AddedToken", "content": "<|endoftext|>", "special": True},
            "eos_token": "<|im_end|>",
        },
    ),
    "arguments": Case(
        "{{- style|default('none') -}}{{- limits.words if limits is defined -}}{{- missing -}}{{- documents -}}"
        + PLAIN,
        {"style": "brief & <exact>", "limits": {"words": 7}},
    ),
    "reasoning": Case(
        LOOP
        + HEADER
        + "{%- if m.reasoning_content -%}{{- '<think>' + m.reasoning + '</think>' -}}{%- endif -%}{{- m.content -}}"
        + END
        + PROMPT
    ),
    "white space": Case(
        "  {% for m in messages %}\n    {# said #}\n  {% if m.content %}\n<|im_start|>{{ m.role }}\n"
        "  {{ m.content }}\n  {% endif %}\n<|im_end|>\n  {% endfor %}\n\n"
    ),
    "parts": Case(
        LOOP + HEADER + "{%- if m.content is string -%}{{- m.content -}}{%- else -%}"
        "{%- for part in m.content|selectattr('type', 'equalto', 'text') -%}{{- part['text'] -}}{%- endfor -%}"
        "{%- endif -%}" + END + PROMPT
    ),
    "other filters": Case(
        "{{- messages|map(attribute='role')|join(', ') -}}{{- (messages|first).content|upper|replace('A', 'b') -}}"
        "{{- messages|length -}}{{- (messages|last).content.split(' ')[0] -}}{{- ['a', 'b']|reverse|list -}}"
    ),
}


@pytest.fixture(scope="module")
def directory_of(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the directory with the files of a case's or a family's checkpoint."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = directory = tmp_path_factory.mktemp("checkpoint")
            if name in FAMILIES:
                write_checkpoint(FAMILIES[name], directory)
            else:
                case = CASES[name]
                shutil.copy(tiny_model / "tokenizer.json", directory)
                config = {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "eos_token": "<|im_end|>",
                    **case.special_tokens,
                }
                config["chat_template"] = case.template
                (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        return made[name]

    return make


@pytest.fixture(scope="module")
def vllm() -> Any:
    """The module of vLLM that renders conversations."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and vLLM use what they deprecate
            return importlib.import_module("vllm.renderers.hf")
    except (ImportError, RuntimeError) as error:  # not installed, or built for another torch
        pytest.skip(f"vLLM cannot be imported: {error}")


def arguments_of(name: str) -> Mapping[str, Any]:
    return FAMILIES[name].options.template if name in FAMILIES else CASES[name].arguments


def conversations_of(name: str) -> Sequence[str]:
    """Return the names of the conversations that a template can write."""
    takes_tools = name in CASES or FAMILIES[name].takes_tools
    return [conversation for conversation in CONVERSATIONS if takes_tools or conversation != "call"]


PAIRS = [(name, conversation) for name in (*CASES, *FAMILIES) for conversation in conversations_of(name)]


def tools_of(name: str, conversation: str) -> list[dict[str, Any]] | None:
    takes_tools = name in CASES or FAMILIES[name].takes_tools
    return TOOLS if takes_tools and conversation in WITH_TOOLS else None


@pytest.mark.parametrize("prompts", [True, False], ids=["prompt", "no prompt"])
@pytest.mark.parametrize(("name", "conversation"), PAIRS)
def test_a_template_writes_what_transformers_writes(
    directory_of: Callable[[str], Path], name: str, conversation: str, prompts: bool
) -> None:
    directory, arguments, tools = directory_of(name), arguments_of(name), tools_of(name, conversation)
    template = ChatTemplate.load(directory)
    messages = [template.for_template(message, tools) for message in CONVERSATIONS[conversation]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    expected = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=prompts, **arguments
    )
    assert template.render(messages, tools, arguments, add_generation_prompt=prompts) == expected


@pytest.mark.parametrize(("name", "conversation"), PAIRS)
def test_a_template_gives_the_tokens_of_transformers(
    directory_of: Callable[[str], Path], name: str, conversation: str
) -> None:
    directory, arguments, tools = directory_of(name), arguments_of(name), tools_of(name, conversation)
    template = ChatTemplate.load(directory)
    messages = [template.for_template(message, tools) for message in CONVERSATIONS[conversation]]
    # The class of Phi-3's tokenizer replaces the normaliser of tokenizer.json; this class takes the file as it is.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    expected = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=False, **arguments
    )
    adapter = RendererAdapter.open(directory, "template", RendererOptions(arguments))
    assert rendered_ids(adapter, CONVERSATIONS[conversation], tools) == list(expected)


def sources() -> dict[str, str]:
    """Return all templates by what they are."""
    found = {**TAKES_PARTS, **TAKES_TEXT}
    for name, case in CASES.items():
        named = [("", case.template)] if isinstance(case.template, str) else map(dict.values, case.template)
        found |= {f"{name} {at}".strip(): source for at, source in named}
    return found | {name: family.template.read_text("utf-8") for name, family in FAMILIES.items()}


@pytest.mark.parametrize("source", sources().values(), ids=sources())
def test_a_content_has_the_form_that_vllm_gives_it(vllm: Any, source: str) -> None:
    takes_parts = vllm._detect_content_format(source, default="string") == "openai"
    assert ChatTemplate(source).takes_content_parts(None) == takes_parts
