"""A chat template must write the tools that an environment gives, the calls of the policy, and their results."""

from pathlib import Path

import pytest

from rollout.config.load import load_config
from rollout.doctor.before_launch import check_before_launch
from rollout.doctor.results import CheckStatus
from rollout.errors import ConfigurationError
from rollout.rundir.manifest import load_launch_configs
from tests.chat_families.families import FAMILIES, write_checkpoint
from tests.unit.doctor.problems import only_problem
from tests.unit.doctor.template_setups import CONFIGS, ONE_QUESTION, of_family, result_of, write_environment

CALCULATOR = CONFIGS / "calculator.yaml"
GIVEN = (
    "await model.chat([{'role': 'user', 'content': 'Hello?'}], "
    "tools=[{'type': 'function', 'function': {'name': 'look'}}])"
)
WITHOUT_TOOLS = [name for name, family in FAMILIES.items() if not family.takes_tools]
WITH_TOOLS = [name for name, family in FAMILIES.items() if family.takes_tools]


@pytest.mark.parametrize("family", WITHOUT_TOOLS)
def test_a_template_that_leaves_out_the_tools_of_an_environment_is_bad(tmp_path: Path, family: str) -> None:
    bad = only_problem(of_family(family, CALCULATOR, tmp_path))
    assert bad.subject == "tools"
    assert bad.message.startswith("the environment gives tools, but the model does not see everything: ")
    assert "the template leaves out tools" in bad.message
    assert (bad.fix or "").startswith("set model.template.file to a template that writes them")


def test_the_fix_of_ignored_tools_works(tmp_path: Path) -> None:
    assert only_problem(of_family("SmolLM2", CALCULATOR, tmp_path)).subject == "tools"
    template = f"model.template.file={FAMILIES['Qwen3'].template}"
    assert result_of("tools", of_family("SmolLM2", CALCULATOR, tmp_path, [template])).status is CheckStatus.OK


@pytest.mark.parametrize("family", WITH_TOOLS)
def test_a_template_that_writes_tools_calls_and_results_is_ok(tmp_path: Path, family: str) -> None:
    found = result_of("tools", of_family(family, CALCULATOR, tmp_path))
    assert (found.status, found.message) == (CheckStatus.OK, "the template writes tools, calls and results")


def test_results_that_a_template_refuses_are_named_with_its_error(tmp_path: Path) -> None:
    message = only_problem(of_family("Gemma 3", CALCULATOR, tmp_path)).message
    assert "and refuses results (TemplateError: Questions and answers must alternate.)" in message


def test_tools_that_only_the_first_request_shows_are_found(tmp_path: Path) -> None:
    found = result_of("tools", of_family("Phi-3", write_environment(tmp_path, GIVEN), tmp_path))
    assert (found.status, found.is_configuration_error) == (CheckStatus.BAD, False)


def test_without_tools_in_the_first_request_a_template_without_tools_is_no_problem(tmp_path: Path) -> None:
    found = result_of("tools", of_family("Phi-3", write_environment(tmp_path, ONE_QUESTION), tmp_path))
    assert found.status is CheckStatus.NOTHING
    assert found.message == "the first request has no tools; the template leaves out tools, calls and results"


def test_an_environment_of_which_nothing_is_known_gets_information(tmp_path: Path) -> None:
    config = of_family("Phi-3", write_environment(tmp_path, ONE_QUESTION), tmp_path, ["tasks.source=queue"])
    found = result_of("tools", config)
    assert found.status is CheckStatus.NOTHING
    assert found.message.endswith("; whether the environment gives tools is not known")


def test_a_launch_whose_template_leaves_out_the_tools_does_not_begin(tmp_path: Path) -> None:
    model = write_checkpoint(FAMILIES["Phi-3"], tmp_path / "model")
    launch_configs = load_launch_configs([CALCULATOR], ["model.renderer=template", f"model.path={model}"])
    with pytest.raises(ConfigurationError, match=r"leaves out tools, .* To correct it, set model\.template\.file"):
        check_before_launch(launch_configs, None, has_own_workers=True)


def test_a_built_in_renderer_has_no_line_about_templates() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        result_of("tools", load_config(CALCULATOR))
