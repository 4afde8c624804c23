"""A chat template must write a prompt: the question, and then what begins the answer."""

import re
from pathlib import Path

import pytest

from rollout.doctor.before_launch import check_before_launch
from rollout.doctor.checks import run_checks
from rollout.doctor.results import CheckStatus, exit_code
from rollout.errors import ConfigurationError
from rollout.rundir.manifest import load_launch_configs
from tests.chat_families.families import FAMILIES
from tests.unit.doctor.problems import only_problem
from tests.unit.doctor.template_setups import CONFIGS, of_family, result_of, with_template, write_environment

LOOP = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

BROKEN = [
    ("{{ raise_exception('Nothing is good enough.') }}", "cannot render one question: TemplateError: Nothing is good"),
    (LOOP + "{{ settings.tone }}" + BEGIN, "cannot render one question: UndefinedError: 'settings' is undefined"),
    ("", "leaves the user's question out: it writes nothing"),
    (
        LOOP.replace("message.content", "message.text") + BEGIN,
        "leaves the user's question out: it writes '<|im_start|>",
    ),
    (LOOP.replace("{{ message.content", "{{ tone }}{{ message.content") + BEGIN, "writes the variable 'tone', which"),
    (LOOP, "does not begin the answer: .* Before an answer it writes '<|im_start|>assistant\\n', but not at"),
    (LOOP + "{% if not add_generation_prompt %}<|im_end|>{% endif %}", "does not begin the answer"),
    (LOOP + "<|im_end|>", "does not begin the answer: with add_generation_prompt, it writes the same text as without"),
]
"""Each entry: a template, and the problem as doctor names it."""


@pytest.mark.parametrize(("source", "problem"), BROKEN)
def test_a_template_that_writes_no_prompt_is_bad(tmp_path: Path, source: str, problem: str) -> None:
    bad = only_problem(with_template(tmp_path, source))
    assert bad.subject == "model"
    assert all(part in bad.message for part in problem.split(".*")), bad.message
    assert re.search(r"\. (Copy|Set) [^.]*model\.template\.", bad.message)


@pytest.mark.parametrize("source", [source for source, _ in BROKEN])
def test_a_launch_with_a_template_that_writes_no_prompt_does_not_begin(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat.jinja").write_text(source, "utf-8")
    settings = ["model.renderer=template", f"model.template.file={tmp_path}/chat.jinja"]
    launch_configs = load_launch_configs([write_environment(tmp_path, "pass")], settings)
    with pytest.raises(ConfigurationError, match=r"chat\.jinja"):
        check_before_launch(launch_configs, None, has_own_workers=True)


def test_a_variable_that_is_missing_can_be_set_as_the_fix_says(tmp_path: Path) -> None:
    source = LOOP.replace("{{ message.content", "{{ tone }}{{ message.content") + BEGIN
    bad = only_problem(with_template(tmp_path, source))
    assert "Set model.template.tone, or correct the name in the template." in bad.message
    assert result_of("model", with_template(tmp_path, source, ["model.template.tone=calm"])).status is CheckStatus.OK


@pytest.mark.parametrize(
    "optional",
    [
        "{% if tone is defined %}{{ tone }}{% endif %}",
        "{{ tone | default('') }}",
        "{% if not tone %}{% set tone = 'calm' %}{% endif %}{{ tone }}",
        "{{ bos_token }}",
    ],
)
def test_a_variable_that_a_template_may_lack_is_no_problem(tmp_path: Path, optional: str) -> None:
    assert result_of("model", with_template(tmp_path, optional + LOOP + BEGIN)).status is CheckStatus.OK


def test_a_template_that_requires_a_system_message_is_no_problem(tmp_path: Path) -> None:
    requires = "{% if messages[0].role != 'system' %}{{ raise_exception('system') }}{% endif %}"
    assert result_of("model", with_template(tmp_path, requires + LOOP + BEGIN)).status is CheckStatus.OK


@pytest.mark.parametrize("family", FAMILIES)
def test_the_templates_of_the_families_write_a_prompt(tmp_path: Path, family: str) -> None:
    results = run_checks(of_family(family, write_environment(tmp_path, "pass"), tmp_path), live=False)
    (found,) = [result for result in results if result.subject == "model"]
    assert found.status is CheckStatus.OK
    assert f"; template {tmp_path}/model/chat_template.jinja; after a question, it writes '" in found.message


def test_the_line_of_the_model_says_what_begins_and_ends_an_answer(tmp_path: Path) -> None:
    line = result_of("model", with_template(tmp_path, LOOP + BEGIN)).message
    assert "renderer template, text only; no config.json" in line
    assert r"after a question, it writes '<|im_end|>\n<|im_start|>assistant\n'; an answer ends with <|im_end|>" in line


def test_a_family_plays_a_sound_set_up_without_a_problem(tmp_path: Path) -> None:
    results = run_checks(of_family("Qwen3", CONFIGS / "calculator.yaml", tmp_path), live=False)
    assert exit_code(results) == 0
    assert {result.subject for result in results if result.status is not CheckStatus.OK} == set()
