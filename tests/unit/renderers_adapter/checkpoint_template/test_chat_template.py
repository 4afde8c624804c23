"""Where the chat template of a checkpoint is found, and what a template can use."""

import json
import shutil
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.checkpoint_template.chat_template import ChatTemplate, ChatTemplateError
from renderers_adapter.errors import TooManyTokens
from renderers_adapter.options import RendererOptions
from renderers_adapter.rendered import UnsupportedConversation
from tests.unit.renderers_adapter.conversations import rendered_ids

QUESTION = {"role": "user", "content": "Colour?"}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
WITHOUT_DEFAULT: Sequence[Any] = ([], [{"name": "tool_use", "template": "{{ 1 }}"}], [{"name": "default"}], ["default"])
PART = {"type": "text", "text": "a"}
OTHER_PART = {"type": "text", "text": "b"}


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), "utf-8")


def named(**templates: str) -> list[dict[str, str]]:
    """Return named templates as a tokenizer_config.json has them."""
    return [{"name": name, "template": template} for name, template in templates.items()]


def render(
    template: ChatTemplate,
    tools: Sequence[Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    messages: Sequence[Mapping[str, Any]] = (QUESTION,),
) -> str:
    """Return the text of messages in canonical form."""
    return template.render([template.for_template(message, tools) for message in messages], tools, arguments or {})


def written(source: str, **values: Any) -> str:
    """Return what a template writes that gets values as its arguments."""
    return render(ChatTemplate(source), arguments=values)


def open_adapter(
    directory: Path, tiny_model: Path, source: str, options: RendererOptions | None = None
) -> RendererAdapter:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, directory)
    (directory / "chat_template.jinja").write_text(source, "utf-8")
    write_json(directory / "generation_config.json", {"eos_token_id": [1006]})
    return RendererAdapter.open(directory, "template", options)


# Where a template is found


def test_a_template_is_read_from_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("é {{ messages[0].content }}", "utf-8")
    template = ChatTemplate.load(tmp_path)
    assert render(template) == "é Colour?"
    assert template.origin == str(tmp_path / "chat_template.jinja")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.json"])
def test_a_template_is_read_from_a_configuration(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, {"chat_template": "{{ messages[0].content }}"})
    template = ChatTemplate.load(tmp_path)
    assert render(template) == "Colour?"
    assert template.origin == str(tmp_path / name)


def test_the_templates_file_comes_before_the_configurations(tmp_path: Path) -> None:
    write_json(tmp_path / "chat_template.json", {"chat_template": "processor"})
    assert render(ChatTemplate.load(tmp_path)) == "processor"
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "tokenizer"})
    assert render(ChatTemplate.load(tmp_path)) == "tokenizer"
    (tmp_path / "chat_template.jinja").write_text("file", "utf-8")
    assert render(ChatTemplate.load(tmp_path)) == "file"


def test_an_empty_setting_of_the_tokenizer_is_no_template(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": None})
    write_json(tmp_path / "chat_template.json", {"chat_template": "processor"})
    assert render(ChatTemplate.load(tmp_path)) == "processor"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.json"])
def test_the_template_for_tools_is_used_only_with_tools(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, {"chat_template": named(default="plain", tool_use="with tools", rag="other")})
    template = ChatTemplate.load(tmp_path)
    assert render(template) == "plain"
    assert render(template, []) == "plain"
    assert render(template, TOOLS) == "with tools"


def test_the_default_template_gets_tools_if_there_is_no_template_for_them(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": named(default="{{ tools|length }}")})
    assert render(ChatTemplate.load(tmp_path), TOOLS) == "1"


def test_a_file_for_tools_is_used_only_with_tools(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("plain", "utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools", "utf-8")
    template = ChatTemplate.load(tmp_path)
    assert (render(template), render(template, TOOLS)) == ("plain", "with tools")
    assert list(template.sources) == ["plain", "with tools"]


def test_the_configured_file_replaces_the_checkpoints_template_for_all_conversations(tmp_path: Path) -> None:
    tokenizer_config = {"chat_template": named(default="plain", tool_use="with tools"), "bos_token": "<s>"}
    write_json(tmp_path / "tokenizer_config.json", tokenizer_config)
    file = tmp_path / "own.jinja"
    file.write_text("{{ bos_token }}own", "utf-8")
    template = ChatTemplate.load(tmp_path, file)
    assert (render(template), render(template, TOOLS)) == ("<s>own", "<s>own")
    assert template.origin == str(file)


def test_the_setting_of_a_file_reaches_the_renderer(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("own {{ messages[0].content }}{{ file is defined }}", "utf-8")
    adapter = open_adapter(tmp_path, tiny_model, "the checkpoint's", RendererOptions({"file": str(file)}))
    assert adapter.tokenizer.decode(rendered_ids(adapter, [QUESTION])) == "own Colour?False"


# Errors


def test_a_checkpoint_without_a_template_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<s>"})
    with pytest.raises(ChatTemplateError, match=r"has no chat template: .*set model\.template\.file") as caught:
        ChatTemplate.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_configured_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match=r"model\.template\.file: .*missing\.jinja is not a file"):
        ChatTemplate.load(tmp_path, tmp_path / "missing.jinja")


def test_a_syntax_error_names_the_file_and_the_line(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("a\n{% for m in messages %}\n{{ m.", "utf-8")
    with pytest.raises(ChatTemplateError, match=r"chat_template\.jinja is not a chat template: .*\(line 3 of"):
        ChatTemplate.load(tmp_path)


def test_a_syntax_error_in_the_file_for_tools_names_this_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("plain", "utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{% if %}", "utf-8")
    with pytest.raises(ChatTemplateError, match=r"tool_use\.jinja is not a chat template: .*\(line 1 of"):
        ChatTemplate.load(tmp_path)


def test_a_syntax_error_in_the_named_template_for_tools_names_the_configuration(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": named(default="plain", tool_use="\n{% if %}")})
    with pytest.raises(ChatTemplateError, match=r"tokenizer_config\.json is not a chat template: .*\(line 2 of"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("found", [7, {"default": "plain"}, *WITHOUT_DEFAULT])
def test_named_templates_without_a_default_are_refused(tmp_path: Path, found: Any) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": found})
    with pytest.raises(ChatTemplateError, match=r"tokenizer_config\.json is neither a template nor a list .*'default'"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.json"])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{", "utf-8")
    with pytest.raises(ChatTemplateError, match=f"{name} is not JSON .*Copy it from the checkpoint again"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff")
    with pytest.raises(ChatTemplateError, match=f"{name} cannot be read"):
        ChatTemplate.load(tmp_path)


def test_a_refusal_of_the_template_keeps_its_text(tmp_path: Path, tiny_model: Path) -> None:
    adapter = open_adapter(tmp_path, tiny_model, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UnsupportedConversation, match="refuses this conversation: roles must alternate") as caught:
        adapter.render([QUESTION], None)
    assert str(tmp_path / "chat_template.jinja") in str(caught.value)


@pytest.mark.parametrize("error", ["{{ raise_exception('one\\n two') }}", "{{ 1 + 'a' }}", "{{ missing.name }}"])
def test_an_error_of_the_template_is_one_line_without_a_traceback_of_jinja(
    tmp_path: Path, tiny_model: Path, error: str
) -> None:
    adapter = open_adapter(tmp_path, tiny_model, error)
    with pytest.raises(UnsupportedConversation) as caught:
        adapter.render([QUESTION], None)
    printed = "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    assert "jinja2" not in printed
    assert "<template>" not in printed


def test_an_error_of_the_template_has_no_marks(tmp_path: Path, tiny_model: Path) -> None:
    adapter = open_adapter(tmp_path, tiny_model, "{{ raise_exception('bad: ' + messages[0].content) }}")
    with pytest.raises(UnsupportedConversation, match=r"bad: a <\|im_end\|> b\. Change the messages"):
        adapter.render([{"role": "user", "content": "a <|im_end|> b"}], None)


def test_a_text_that_is_too_long_for_every_model_is_refused_while_it_is_written(
    tmp_path: Path, tiny_model: Path
) -> None:
    loops = "{% for a in range(100000) %}{% for b in range(100000) %}{{ messages[0].content }}{% endfor %}{% endfor %}"
    adapter = open_adapter(tmp_path, tiny_model, loops)
    with pytest.raises(TooManyTokens, match=r"chat_template\.jinja writes more than 8,000,000 characters"):
        adapter.render([{"role": "user", "content": "a question" * 10}], None)


@pytest.mark.parametrize("is_first", [True, False])
def test_an_image_is_refused_with_the_renderers_that_take_one(tmp_path: Path, tiny_model: Path, is_first: bool) -> None:
    adapter = open_adapter(tmp_path, tiny_model, "{% for m in messages %}{{ m.content }}{% endfor %}")
    pictured = {"role": "user", "content": [{"type": "image", "hash": "0"}]}
    messages: list[Any] = [pictured] if is_first else [QUESTION, pictured]
    refused = f"message {len(messages) - 1} contains an image, .* accepts only text.*built-in renderer with images"
    with pytest.raises(UnsupportedConversation, match=refused):
        adapter.render(messages, None)


# What a template can use


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("value|tojson", '{"b": "é<&>\'", "a": [1, 2.5, null, true]}'),
        ("value|tojson(ensure_ascii=true)", '{"b": "\\u00e9<&>\'", "a": [1, 2.5, null, true]}'),
        ("value|tojson(indent=1)", '{\n "b": "é<&>\'",\n "a": [\n  1,\n  2.5,\n  null,\n  true\n ]\n}'),
        ("value|tojson(separators=(',', ':'))", '{"b":"é<&>\'","a":[1,2.5,null,true]}'),
        ("value|tojson(separators=[',', ':'])", '{"b":"é<&>\'","a":[1,2.5,null,true]}'),
        ("value|tojson(sort_keys=true)", '{"a": [1, 2.5, null, true], "b": "é<&>\'"}'),
        ("value|tojson(true, none, (',', ':'), true)", '{"a":[1,2.5,null,true],"b":"\\u00e9<&>\'"}'),
        ("value.b|tojson ~ '<'", '"é<&>\'"<'),
    ],
)
def test_tojson_writes_as_transformers_does(expression: str, text: str) -> None:
    assert written(f"{{{{ {expression} }}}}", value={"b": "é<&>'", "a": [1, 2.5, None, True]}) == text


def test_a_value_that_is_not_json_is_an_error() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        written("{{ value|tojson }}", value={1, 2})


def test_raise_exception_raises_its_text() -> None:
    with pytest.raises(jinja2.TemplateError, match=r"^no system message$"):
        written("{{ raise_exception('no system message') }}")


def test_the_present_time_is_written_in_the_templates_format() -> None:
    before = datetime.now().astimezone()
    text = written("{{ strftime_now('%d %b %Y') }}")
    assert text in {time.strftime("%d %b %Y") for time in (before, datetime.now().astimezone())}


def test_another_clock_can_be_given() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}")
    assert template.render([QUESTION], None, {}, strftime_now=lambda text_format: f"<{text_format}>") == "<%Y>"


def test_a_generation_block_writes_what_is_inside() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{{ loop.index }}{% endgeneration %}\n{% endfor %}."
    assert render(ChatTemplate(source), messages=[QUESTION, QUESTION]) == "Colour?1Colour?2."


def test_a_variable_that_a_generation_block_sets_stays_inside() -> None:
    assert written("{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}") == "21"


def test_loops_can_be_left_and_continued() -> None:
    source = (
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}"
    )
    assert written(f"{source}{{% endfor %}}") == "023"


def test_lines_of_statements_leave_no_white_space() -> None:
    assert written("a\n  {% if true %}\n  b\n  {% endif %}\nc\n") == "a\n  b\nc"


def test_a_special_token_is_a_variable_as_text_and_as_object(tmp_path: Path) -> None:
    write_json(
        tmp_path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": True}}
    )
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}")
    assert render(ChatTemplate.load(tmp_path)) == "<s></s>False"


def test_the_map_of_special_tokens_names_those_that_the_tokenizer_does_not(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": None})
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": "<other>", "eos_token": {"content": "</s>"}})
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}")
    assert render(ChatTemplate.load(tmp_path)) == "<s></s>"


def test_a_special_token_that_is_not_set_writes_nothing() -> None:
    assert written("{{ bos_token }}.") == "."


def test_the_generation_prompt_is_written_only_on_request() -> None:
    template = ChatTemplate("a{% if add_generation_prompt %}b{% endif %}")
    assert template.render([QUESTION], None, {}) == "ab"
    assert template.render([QUESTION], None, {}, add_generation_prompt=False) == "a"


def test_conversations_without_tools_or_documents_have_none() -> None:
    template = ChatTemplate("{{ tools }}{{ documents }}")
    assert [render(template), render(template, [])] == ["NoneNone", "NoneNone"]


@pytest.mark.parametrize("value", [False, 7, "brief", ["a"], {"a": 1}, None])
def test_an_argument_reaches_the_template_with_its_type(value: Any) -> None:
    assert written("{{ style is defined }} {{ style|tojson }}", style=value) == f"True {json.dumps(value)}"


def test_arguments_of_the_configuration_reach_the_renderer(tmp_path: Path, tiny_model: Path) -> None:
    source = "{{ 'thinks' if enable_thinking else 'does not' }}"
    adapter = open_adapter(tmp_path, tiny_model, source, RendererOptions({"enable_thinking": False}))
    assert adapter.tokenizer.decode(rendered_ids(adapter, [QUESTION])) == "does not"


# Messages as a template gets them

LOOPS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


def test_a_reasoning_has_both_names() -> None:
    message = {"role": "assistant", "content": "red", "reasoning_content": "hm"}
    assert ChatTemplate("").for_template(message, None) == {**message, "reasoning": "hm"}


def test_an_answer_without_calls_has_no_key_for_them() -> None:
    message = {"role": "assistant", "content": "red", "tool_calls": []}
    assert ChatTemplate("").for_template(message, None) == {"role": "assistant", "content": "red"}


@pytest.mark.parametrize(
    ("content", "text", "parts"),
    [
        ("", "", []),
        ("a", "a", [PART]),
        ([], "", []),
        ([PART], "a", [PART]),
        ([PART, OTHER_PART], "a\nb", [PART, OTHER_PART]),
        (None, "", []),
    ],
)
def test_a_content_is_a_text_or_a_list_of_parts_as_the_template_reads_it(content: Any, text: str, parts: Any) -> None:
    for role in ("user", "assistant", "system"):
        message = {"role": role, "content": content}
        assert ChatTemplate("").for_template(message, None)["content"] == text
        assert ChatTemplate(LOOPS).for_template(message, None)["content"] == parts


@pytest.mark.parametrize("source", ["", LOOPS])
def test_the_result_of_a_tool_is_always_a_text(source: str) -> None:
    template = ChatTemplate(source)
    contents: tuple[Any, ...] = ("a", [PART, OTHER_PART], "", [])
    given = [template.for_template({"role": "tool", "content": content}, None)["content"] for content in contents]
    assert given == ["a", "a\nb", "", ""]


@pytest.mark.parametrize(
    ("source", "tools_source", "takes_parts"),
    [
        ("plain", LOOPS, (False, True)),
        (LOOPS, "plain", (True, False)),
        (LOOPS, None, (True, True)),
        ("plain", None, (False, False)),
    ],
)
def test_the_template_for_tools_decides_for_itself_what_a_content_is(
    source: str, tools_source: str | None, takes_parts: tuple[bool, bool]
) -> None:
    template = ChatTemplate(source, tools_source=tools_source)
    assert (template.takes_content_parts(None), template.takes_content_parts(TOOLS)) == takes_parts


def test_a_text_is_written_as_a_text_beside_a_template_for_tools_that_takes_parts() -> None:
    template = ChatTemplate("{{ messages[0].content }}", tools_source=f"tools {LOOPS}")
    assert [render(template), render(template, TOOLS)] == ["Colour?", "tools Colour?"]


def test_the_message_itself_is_not_changed() -> None:
    message = {"role": "assistant", "content": [PART], "reasoning_content": "hm", "tool_calls": []}
    before = json.dumps(message)
    ChatTemplate(LOOPS).for_template(message, None)
    assert json.dumps(message) == before
