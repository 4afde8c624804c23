"""The scripted policy: which tools it calls, with which arguments, and how it ends a task."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.pool import RendererPool
from renderers_adapter.tokens import as_logical_ids
from rollout.doctor.agent.answer_tokens import sample_tokens
from rollout.doctor.agent.script import AgentScript, ScriptedAnswer
from rollout.doctor.agent.tool_arguments import make_arguments
from rollout.doctor.agent.tool_choice import choose_tools
from rollout.records.messages import Message


def tool(name: str, **parameters: Any) -> Mapping[str, Any]:
    """Return a tool whose arguments are all required."""
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TEXT = {"type": "string"}
SHELL = tool("bash", command=TEXT)
WEIGH = tool("weigh", amount={"type": "number"}, thing=TEXT)
USER: Message = {"role": "user", "content": "Do it."}


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([tool("write_file", path=TEXT), tool("read_file", path=TEXT)], ("read_file", "read_file")),
        ([tool("deleteAll"), tool("readFile", path=TEXT), SHELL], ("readFile", "bash")),
        ([tool("submit"), tool("web_search", query=TEXT), WEIGH], ("weigh", "weigh")),
        ([tool("submit")], ("submit", "submit")),
    ],
)
def test_tools_that_change_something_are_called_only_without_others(
    offered: list[Mapping[str, Any]], chosen: tuple[str, str]
) -> None:
    first, second = choose_tools(offered)
    assert (first["function"]["name"], second["function"]["name"]) == chosen


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ({"amount": {"type": "number"}, "thing": TEXT}, {"thing": "café 1", "amount": 1.0}),
        ({"command": TEXT}, {"command": "echo café-1"}),
        ({"command": {"type": "array", "items": TEXT}}, {"command": ["sh", "-c", "echo café-1"]}),
        ({"unit": {"enum": ["kg", "g"]}, "file_path": TEXT}, {"unit": "kg", "file_path": "."}),
        ({"count": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 5}]}}, {"count": 5}),
        ({"deep": {"type": ["object", "null"], "properties": {"on": {"type": "boolean"}}, "required": ["on"]}},
         {"deep": {"on": False}}),
        ({"items": {"type": "array", "items": TEXT, "minItems": 2}}, {"items": ["café 1", "café 1"]}),
        ({"anything": True}, {"anything": "café 1"}),
    ],
)  # fmt: skip
def test_arguments_follow_the_schema(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    made = make_arguments(tool("weigh", **parameters), 1)
    assert made == arguments
    assert list(made) == sorted(made, reverse=True)
    assert [type(value) for value in made.values()] == [type(arguments[name]) for name in made]


def test_references_to_definitions_are_followed() -> None:
    schema = {
        "properties": {"unit": {"$ref": "#/$defs/Unit"}},
        "required": ["unit"],
        "$defs": {"Unit": {"enum": ["kg", "g"]}},
    }
    assert make_arguments({"function": {"name": "weigh", "parameters": schema}}, 1) == {"unit": "kg"}


def test_a_schema_that_refers_to_itself_ends() -> None:
    schema = {"properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]}
    assert make_arguments({"function": {"name": "weigh", "parameters": schema}}, 1) == {"a": "café 1"}


def test_the_task_has_two_calls_then_one_then_a_text() -> None:
    script, messages = AgentScript(), [USER]
    calls = []
    for turn in range(3):
        answer = script.answer(messages, [WEIGH])
        calls.append((bool(answer.text), len(answer.calls)))
        script.call_ids.add(f"call-{turn}-0")
        echoed = {"id": f"call-{turn}-0", "type": "function", "function": {"name": "weigh", "arguments": {}}}
        messages += [{"role": "assistant", "content": "", "tool_calls": [echoed]}, {**USER}]
    assert calls == [(True, 2), (False, 1), (True, 0)]
    assert script.answers_after_end == 0


def test_answers_that_the_program_invented_do_not_count() -> None:
    example: Message = {"role": "assistant", "content": "An example."}
    assert len(AgentScript().answer([USER, example, USER], [WEIGH]).calls) == 2


def test_a_program_that_does_not_stop_gets_the_command_that_its_prompt_names() -> None:
    system: Message = {"role": "system", "content": "When done, run: echo COMPLETE_TASK_NOW"}
    own: Message = {"role": "assistant", "content": "(doctor-step-0)"}
    answer = AgentScript().answer([system, own, own, own, USER], [SHELL])
    assert answer.calls == (("bash", {"command": "echo COMPLETE_TASK_NOW"}),)


def test_a_program_that_does_not_stop_gets_its_tool_for_the_end() -> None:
    own: Message = {"role": "assistant", "content": "(doctor-step-0)"}
    answer = AgentScript().answer([USER, own, own, own, USER], [WEIGH, tool("submit_answer", text=TEXT)])
    assert answer.calls == (("submit_answer", {"text": "café 4"}),)


def test_a_program_that_reads_commands_from_text_gets_blocks() -> None:
    prompt: Message = {"role": "user", "content": "Answer with\n```bash\nls\n```\nand end with `echo ALL_IS_DONE`."}
    own: Message = {"role": "assistant", "content": "(doctor-step-0)"}
    assert "```bash\necho café-0\n```" in AgentScript().answer([prompt], None).text
    assert "```bash\necho ALL_IS_DONE\n```" in AgentScript().answer([prompt, own, own], None).text


def test_a_program_that_forgets_its_history_gets_a_text_at_last() -> None:
    script = AgentScript()
    calls = [len(script.answer([USER], [WEIGH]).calls) for _ in range(13)]
    assert calls == [2] * 12 + [0]


async def test_the_tokens_of_calls_are_written_as_no_template_writes_them(adapter: RendererAdapter) -> None:
    pool = RendererPool(adapter)
    answer = ScriptedAnswer("I weigh.", "Two.", (("weigh", {"thing": "café", "amount": 1.0}),) * 2)
    ids = await sample_tokens(answer, [WEIGH], pool)
    text = pool.decode(ids)
    assert text.count('{"thing" :  "caf\\u00e9" ,  "amount" :  1.0}') == 2
    opened = await pool.render([USER], [WEIGH])
    parsed = pool.parse(opened.generation_prompt, as_logical_ids(ids), [WEIGH])
    assert (parsed.text, parsed.reasoning) == ("I weigh.", "Two.")
    assert [call.arguments for call in parsed.tool_calls] == [{"thing": "café", "amount": 1.0}] * 2


async def test_a_text_that_looks_like_a_call_is_still_an_answer(adapter: RendererAdapter) -> None:
    pool = RendererPool(adapter)
    ids = await sample_tokens(ScriptedAnswer("<tool_call>\n{}"), [WEIGH], pool)
    assert re.search("tool_call", pool.decode(ids))
    assert ids[-1] in pool.stop_token_ids
