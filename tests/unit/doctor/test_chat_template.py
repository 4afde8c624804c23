"""The parsers of a configuration must read what its chat template writes, and doctor says which turns are bridged."""

from pathlib import Path

import pytest

from rollout.doctor.checks import run_checks
from rollout.doctor.results import CheckStatus, exit_code
from tests.unit.doctor.template_setups import (
    CONFIGS,
    ONE_QUESTION,
    of_family,
    result_of,
    with_template,
    write_environment,
)

CALCULATOR = CONFIGS / "calculator.yaml"
PARSED = [("Llama 3.x", "llama-3"), ("Qwen3", "qwen3"), ("SmolLM3", "qwen3")]
REASONING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}BEGIN{{ message.reasoning_content }}END{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(("family", "parser"), PARSED)
def test_a_parser_that_reads_the_calls_of_the_template_is_ok(tmp_path: Path, family: str, parser: str) -> None:
    found = result_of("calls", of_family(family, CALCULATOR, tmp_path))
    assert found.status is CheckStatus.OK
    assert found.message == f"the parser {parser} reads the call that the template writes"


def test_a_parser_that_does_not_read_the_calls_is_bad_and_the_fix_works(tmp_path: Path) -> None:
    config = of_family("Qwen3", CALCULATOR, tmp_path, ["model.tool_parser=llama-3"])
    assert exit_code(run_checks(config, live=False)) == 1
    bad = result_of("calls", config)
    assert bad.message.startswith("the parser llama-3 reads no call in the template's call '<think>")
    assert (bad.status, bad.fix) == (CheckStatus.BAD, "set model.tool_parser to qwen3")
    followed = of_family("Qwen3", CALCULATOR, tmp_path, ["model.tool_parser=qwen3"])
    assert exit_code(run_checks(followed, live=False)) == 0


def test_a_parser_is_bad_if_none_reads_the_calls(tmp_path: Path) -> None:
    bad = result_of("calls", of_family("Mistral", CALCULATOR, tmp_path, ["model.tool_parser=llama-3"]))
    assert bad.status is CheckStatus.BAD
    assert (bad.fix or "").startswith("set model.template.file to a template whose calls a parser reads")


def test_changed_arguments_are_not_the_same_call(tmp_path: Path) -> None:
    source = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "{% for call in message.tool_calls %}<tool_call>\n"
        '{"name": "{{ call.function.name }}", "arguments": {"pigment": "{{ call.function.arguments.pigment }}"}}'
        "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (tmp_path / "short.jinja").write_text(source, "utf-8")
    settings = [f"model.template.file={tmp_path}/short.jinja", "model.tool_parser=qwen3"]
    bad = result_of("calls", of_family("Qwen3", CALCULATOR, tmp_path, settings))
    assert bad.status is CheckStatus.BAD
    assert "the parser qwen3 reads find_quagga({'pigment': 'ultramarine'}) in" in bad.message


@pytest.mark.parametrize(("family", "parser"), PARSED)
def test_a_missing_parser_of_calls_is_bad_if_the_class_declares_tools(tmp_path: Path, family: str, parser: str) -> None:
    bad = result_of("calls", of_family(family, CALCULATOR, tmp_path, parsers=False))
    assert (bad.status, bad.fix) == (CheckStatus.BAD, f"set model.tool_parser to {parser}")
    assert bad.message.endswith("stay text, so no tool is run")
    fixed = of_family(family, CALCULATOR, tmp_path, [f"model.tool_parser={parser}"], parsers=False)
    assert result_of("calls", fixed).status is CheckStatus.OK


def test_another_template_is_the_fix_if_no_parser_reads_the_calls(tmp_path: Path) -> None:
    bad = result_of("calls", of_family("Mistral", CALCULATOR, tmp_path))
    assert bad.status is CheckStatus.BAD
    assert "such as '[TOOL_CALLS]" in bad.message
    assert (bad.fix or "").startswith("set model.template.file")


@pytest.mark.parametrize(
    ("family", "advice"), [("Qwen3", "the parser qwen3 reads them"), ("Mistral", "no parser reads them")]
)
def test_an_environment_that_gives_tools_itself_may_read_calls_from_the_text(
    tmp_path: Path, family: str, advice: str
) -> None:
    tool = "{'type': 'function', 'function': {'name': 'look', 'parameters': {}}}"
    body = f"await model.chat([{{'role': 'user', 'content': 'Hello?'}}], tools=[{tool}])"
    found = result_of("calls", of_family(family, write_environment(tmp_path, body), tmp_path, parsers=False))
    assert found.status is CheckStatus.NOTHING
    assert found.message.endswith(f"stay text; {advice}")


def test_without_tools_no_parser_of_calls_is_needed(tmp_path: Path) -> None:
    found = result_of("calls", of_family("Qwen3", write_environment(tmp_path, ONE_QUESTION), tmp_path))
    assert (found.status, found.message) == (
        CheckStatus.NOTHING,
        "the first request has no tools, so no parser of calls is needed",
    )


def test_a_parser_that_reads_the_reasoning_of_the_template_is_ok(tmp_path: Path) -> None:
    found = result_of("reasoning", of_family("Qwen3", CALCULATOR, tmp_path))
    assert found.status is CheckStatus.OK
    assert found.message == "the parser think reads the reasoning that the template writes"


def test_the_parser_of_reasoning_is_proposed(tmp_path: Path) -> None:
    found = result_of("reasoning", of_family("Qwen3", CALCULATOR, tmp_path, parsers=False))
    assert found.status is CheckStatus.NOTHING
    assert "set model.reasoning_parser to think, which reads what the template writes" in found.message


def test_a_parser_that_does_not_read_the_reasoning_is_bad_and_the_fix_works(tmp_path: Path) -> None:
    source = REASONING.replace("BEGIN", "<thought>").replace("END", "</thought>")
    config = with_template(tmp_path, source, ["model.reasoning_parser=think"])
    bad = result_of("reasoning", config)
    assert bad.status is CheckStatus.BAD
    assert "does not read the reasoning of '<thought>" in bad.message
    assert (bad.fix or "").startswith("remove model.reasoning_parser")
    assert exit_code(run_checks(with_template(tmp_path, source), live=False)) == 0


def test_reasoning_that_the_prompt_begins_is_read(tmp_path: Path) -> None:
    source = REASONING.replace("BEGIN", "<think>\n").replace("END", "\n</think>\n\n")
    source = source.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    found = result_of("reasoning", with_template(tmp_path, source, ["model.reasoning_parser=think"]))
    assert found.status is CheckStatus.OK


@pytest.mark.parametrize("family", ["Llama 3.x", "SmolLM3"])
def test_a_template_without_reasoning_has_nothing_to_compare(tmp_path: Path, family: str) -> None:
    found = result_of("reasoning", of_family(family, CALCULATOR, tmp_path))
    assert found.status is CheckStatus.NOTHING
    assert found.message.startswith("the template writes no reasoning of an answer")


@pytest.mark.parametrize(
    ("family", "turns"),
    [
        ("Llama 3.x", "a question after an answer, a tool's result: bridged"),
        ("Gemma 3", "a question after an answer: bridged"),
        ("Mistral", "a question after an answer: rendered whole, because a new message changes earlier text"),
        (
            "Qwen3",
            "a question after an answer, a tool's result: bridged; "
            "a question after reasoning: rendered whole, because the template drops earlier reasoning",
        ),
    ],
)
def test_doctor_says_which_turns_are_bridged(tmp_path: Path, family: str, turns: str) -> None:
    found = result_of("turns", of_family(family, CALCULATOR, tmp_path))
    assert (found.status, found.message) == (CheckStatus.OK, turns)


def test_the_first_request_of_the_environment_decides_what_is_bridged(tmp_path: Path) -> None:
    found = result_of("turns", of_family("Mistral", write_environment(tmp_path, ONE_QUESTION), tmp_path))
    assert found.message == "a question after an answer: bridged"
