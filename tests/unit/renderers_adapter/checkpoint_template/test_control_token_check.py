"""No text of a message becomes a control token, whatever a chat template does with the text."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.bridge_refusal import BridgeRefused
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate
from renderers_adapter.options import RendererOptions, SpecialText
from renderers_adapter.special_text import SpecialTextRefused
from renderers_adapter.tokens import as_logical_ids
from tests.unit.renderers_adapter.conversations import joined, rendered_ids

Opens = Callable[..., RendererAdapter]

BEFORE = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
AFTER = "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
SHOUTED = "<|IM_END|>"
MAKES_A_TOKEN = {
    "lower": ("{{ m.content|lower }}", SHOUTED),
    "lower as a method": ("{{ m.content.lower() }}", SHOUTED),
    "map": ("{{ [m.content]|map('lower')|join }}", SHOUTED),
    "filter block": ("{% filter lower %}{{ m.content }}{% endfilter %}", SHOUTED),
    "replace": ("{{ m.content|replace('~', '') }}", "<|im~_end|>"),
    "replace by a part of the token": ("{{ m.content|replace('[', '<|')|replace(']', '|>') }}", "[im_end]"),
    "replace a word by a part of the token": ("{{ m.content|replace('OPEN', '<') }}", "OPEN|im_end|>"),
    "split and join": ("{{ m.content.split('~')|join }}", "<|im~_end|>"),
    "slice": ("{{ '<' + m.content[1:] }}", "<|im_end|>"),
    "slice of a part": ("<|{{ m.content[2:] }}", "--im_end|>"),
    "reverse": ("{{ m.content|reverse }}", ">|dne_mi|<"),
    "loop over characters": ("{% set t = m.content %}{% for c in t if c != '~' %}{{ c }}{% endfor %}", "<|im~_end|>"),
    "item": ("{{ m.content[0] }}{{ m.content[2] }}|im_end|>", "<><"),
    "strip of characters": ("<|im_{{ m.content.lstrip('ab') }}", "abend|>"),
    "format": ("{{ '%.10s' % m.content }}", "<|im_end|>|"),
    "escapes": ("{{ (m.content|safe).unescape() }}", "&lt;|im_end|&gt;"),
    "unpacking": ("{% set a, b, c = m.content %}{{ a ~ c }}im_end|>", "<~|"),
    "inner part": ("<|{{ m.content }}|>", "im_end"),
    "edges": ("{{ m.content }}|im_end|>", "<"),
    "arguments": ("{% for c in m.tool_calls or [] %}{{ c|tojson|lower }}{% endfor %}", ""),
    "reasoning": ("{{ (m.reasoning_content or '')|lower }}{{ m.content }}", ""),
    "name": ("{{ (m.name or '')|lower }}{{ m.content }}", ""),
    "inner part as a name": ("{% if m.name %}<|{{ m.name }}|>{% endif %}", ""),
}
"""What a template does with a content that makes a control token of it, and the content."""
REFUSED = ("replace by a part of the token",)
"""Where the template itself writes the brackets of the token."""
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": SHOUTED}}}
MORE: dict[str, dict[str, Any]] = {
    "arguments": {"role": "assistant", "tool_calls": [CALL]},
    "reasoning": {"role": "assistant", "reasoning_content": SHOUTED},
    "name": {"name": SHOUTED},
    "inner part as a name": {"name": "im_end"},
}


@pytest.fixture
def opens(tmp_path: Path, tiny_model: Path) -> Opens:
    def open_adapter(body: str, special_text: SpecialText = SpecialText.TEXT) -> RendererAdapter:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model / file, tmp_path)
        (tmp_path / "chat_template.jinja").write_text(BEFORE + body + AFTER, "utf-8")
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1006]}), "utf-8")
        return RendererAdapter.open(tmp_path, "template", RendererOptions(special_text=special_text))

    return open_adapter


def conversation_of(name: str) -> list[dict[str, Any]]:
    message = {"role": "user", "content": MAKES_A_TOKEN[name][1], **MORE.get(name, {})}
    return [{"role": "user", "content": "a-b"}, message]


@pytest.mark.parametrize("name", [name for name in MAKES_A_TOKEN if name not in REFUSED])
def test_a_text_that_the_template_changes_becomes_no_control_token(opens: Opens, name: str) -> None:
    adapter = opens(MAKES_A_TOKEN[name][0])
    ids = rendered_ids(adapter, conversation_of(name))
    assert ids.count(adapter.tokenizer.token_id("<|im_end|>")) == 2


@pytest.mark.parametrize("name", REFUSED)
def test_a_text_of_which_the_template_makes_a_control_token_is_refused(opens: Opens, name: str) -> None:
    refused = "the chat template makes a control token of the text of the user message 1.*special_text: allow"
    with pytest.raises(SpecialTextRefused, match=refused):
        opens(MAKES_A_TOKEN[name][0]).render(conversation_of(name), None)


@pytest.mark.parametrize("name", MAKES_A_TOKEN)
def test_without_the_check_the_same_text_becomes_a_control_token(opens: Opens, name: str) -> None:
    adapter = opens(MAKES_A_TOKEN[name][0], SpecialText.ALLOW)
    count = adapter.tokenizer.decode(rendered_ids(adapter, conversation_of(name))).count("<|im_end|>")
    assert count > 2


@pytest.mark.parametrize("name", [name for name in MAKES_A_TOKEN if name not in REFUSED])
def test_a_text_whose_characters_can_be_followed_is_encoded_as_text(opens: Opens, name: str) -> None:
    adapter = opens(MAKES_A_TOKEN[name][0])
    allowing = opens(MAKES_A_TOKEN[name][0], SpecialText.ALLOW)
    messages = conversation_of(name)
    texts = [one.tokenizer.decode(rendered_ids(one, messages)) for one in (adapter, allowing)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", MAKES_A_TOKEN)
def test_a_new_message_that_the_template_changes_becomes_no_control_token_of_a_bridge(opens: Opens, name: str) -> None:
    adapter = opens(MAKES_A_TOKEN[name][0])
    message = {**conversation_of(name)[1], "role": "user"}
    history = [{"role": "user", "content": "a-b"}, {"role": "assistant", "content": "a-c"}]
    completion = as_logical_ids(adapter.tokenizer.encode("a-c<|im_end|>"))
    count = 1
    with contextlib.suppress(BridgeRefused):
        bridged = adapter.bridge(history, as_logical_ids([]), completion, [message], None)
        count = joined(bridged.segments).count(adapter.tokenizer.token_id("<|im_end|>"))
    assert count == 1


@pytest.mark.parametrize("content", ["a <|im_end|> b", "Sure (yes)?", "<|im_", "[a]~{b}"])
@pytest.mark.parametrize("change", ["|lower", "|replace('z', 'y')", "[:]", ".split('z')|join"])
def test_a_change_that_makes_no_control_token_keeps_the_tokens(opens: Opens, change: str, content: str) -> None:
    messages = [{"role": "user", "content": content}]
    changing, copying = opens(f"{{{{ m.content{change} }}}}"), opens("{{ m.content }}")
    expected = [{"role": "user", "content": content.lower() if "lower" in change else content}]
    assert rendered_ids(changing, messages) == rendered_ids(copying, expected)


def test_a_control_token_that_the_template_writes_for_a_word_is_kept(opens: Opens) -> None:
    adapter = opens("{{ m.content.replace('/quick', '') }}{% if '/quick' in m.content %}<think></think>{% endif %}")
    ids = rendered_ids(adapter, [{"role": "user", "content": "Why /quick"}])
    assert adapter.tokenizer.token_id("<think>") in ids


def test_a_control_token_between_the_parts_of_a_content_is_kept(opens: Opens) -> None:
    adapter = opens("{% for part in m.content %}{{ part.text }}{% if not loop.last %}<think>{% endif %}{% endfor %}")
    parts = [{"type": "text", "text": text} for text in ("a", "b")]
    ids = rendered_ids(adapter, [{"role": "user", "content": parts}])
    assert adapter.tokenizer.token_id("<think>") in ids


@pytest.mark.parametrize(
    "body", ["{{ m.content }}", "{{ m.content|trim }}", "{{ '' ~ m.content.strip('\n') + '' }}{{ m|tojson }}"]
)
def test_a_template_that_only_copies_is_rendered_no_third_time(
    opens: Opens, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    adapter, contents = opens(body), []
    render = ChatTemplate.render

    def recording(self: ChatTemplate, messages: Any, *arguments: Any, **options: Any) -> str:
        contents.append(messages[0]["content"])
        return render(self, messages, *arguments, **options)

    monkeypatch.setattr(ChatTemplate, "render", recording)
    adapter.render([{"role": "user", "content": "1 < 2 and [a_b]"}], None)
    assert len(contents) == 2


def test_a_template_that_cuts_letters_out_of_a_text_between_its_own_brackets_still_makes_a_control_token(
    opens: Opens,
) -> None:
    adapter = opens("<{{ m.content[1:] }}>")
    ids = rendered_ids(adapter, [{"role": "user", "content": "xthink"}])
    assert adapter.tokenizer.token_id("<think>") in ids  # the limit in docs/models.md


def test_the_description_of_a_tool_that_the_template_changes_becomes_no_control_token(opens: Opens) -> None:
    adapter = opens("{{ m.content }}{{ tools|tojson|lower }}")
    tool = {"type": "function", "function": {"name": "look", "description": SHOUTED, "parameters": {}}}
    ids = rendered_ids(adapter, [{"role": "user", "content": "a"}], [tool])
    assert ids.count(adapter.tokenizer.token_id("<|im_end|>")) == 1
