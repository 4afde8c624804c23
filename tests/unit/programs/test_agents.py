"""How known agents are started, and how they are found by their names."""

import json
import re
import tomllib
from dataclasses import astuple, replace
from pathlib import Path, PurePosixPath

import pytest

from rollout.programs.agents.base import Agent, AgentCall
from rollout.programs.agents.registry import AGENTS, find_agent

CALL = AgentCall(
    prompt="Mend the bug.",
    base_url="http://127.0.0.1:8000/v1",
    anthropic_base_url="http://127.0.0.1:8000",
    model="tiny",
    work=Path("/space/work"),
    home=Path("/space/home"),
    context_tokens=50_000,
)
AWKWARD = [
    "-x",
    "--help",
    "-",
    'a "quoted" word',
    "it's\ntwo lines\n",
    "back\\slash $HOME {model} `id`",
    "\x7f\u2028é😀",
]

every_agent = pytest.mark.parametrize("agent", AGENTS.values(), ids=AGENTS)
awkward_texts = pytest.mark.parametrize("text", AWKWARD)


@every_agent
def test_files_are_written_below_the_home(agent: Agent) -> None:
    for name in agent.prepare(CALL).files:
        path = PurePosixPath(name)
        assert not path.is_absolute()
        assert ".." not in path.parts


@every_agent
def test_variables_name_no_directory_outside_of_the_home(agent: Agent) -> None:
    paths = [value for value in agent.prepare(CALL).environ.values() if value.startswith("/")]
    assert paths
    assert all(Path(path).is_relative_to(CALL.home) for path in paths)


@every_agent
def test_the_key_of_the_worker_is_in_no_file_and_no_argument(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-secret")
    assert "sk-secret" not in repr(astuple(agent.prepare(CALL)))


@every_agent
@awkward_texts
def test_a_prompt_arrives_unchanged_and_is_no_option(agent: Agent, text: str) -> None:
    command = agent.prepare(replace(CALL, prompt=text))
    arguments = (*command.arguments, *command.last_arguments)
    if command.stdin:
        assert command.stdin == text
        assert arguments == (*agent.prepare(CALL).arguments, *agent.prepare(CALL).last_arguments)
    else:
        assert arguments[-1] == f"--task={text}"


@every_agent
@awkward_texts
def test_the_name_of_a_model_is_no_option(agent: Agent, text: str) -> None:
    usual = agent.prepare(CALL).arguments
    named = agent.prepare(replace(CALL, model=text)).arguments
    assert len(named) == len(usual)
    changed = [word for word in named if word not in usual]
    assert all(re.match(r"--[a-z]+=", word) and word.endswith(text) for word in changed)


@awkward_texts
def test_codex_reads_the_model_and_the_address_from_its_settings(text: str) -> None:
    [config] = find_agent("codex").prepare(replace(CALL, model=text, base_url=text)).files.values()
    settings = tomllib.loads(config)
    assert settings["model"] == text
    assert settings["model_context_window"] == CALL.context_tokens
    provider = settings["model_providers"][settings["model_provider"]]
    assert (provider["base_url"], provider["env_key"]) == (text, "OPENAI_API_KEY")


@awkward_texts
def test_opencode_reads_the_model_and_the_address_from_its_settings(text: str) -> None:
    files = find_agent("opencode").prepare(replace(CALL, model=text, base_url=text)).files
    settings = json.loads(files[".config/opencode/opencode.json"])
    assert settings["model"] == settings["small_model"] == f"rollout/{text}"
    provider = settings["provider"]["rollout"]
    assert provider["models"][text]["limit"]["context"] == CALL.context_tokens
    assert provider["options"]["baseURL"] == text
    assert provider["options"]["apiKey"] == "{env:OPENAI_API_KEY}"


@every_agent
def test_the_tried_versions_and_the_installation_are_named(agent: Agent) -> None:
    assert agent.tried_versions
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in agent.tried_versions)
    assert re.match(r"(npm|pip) install ", agent.install)


@pytest.mark.parametrize(("name", "closest"), [("opencoed", "opencode"), ("claude", "claude-code"), ("mini", "mini")])
def test_an_unknown_name_gets_the_known_ones_with_the_closest_first(name: str, closest: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}'; the known ones are {closest}") as caught:
        find_agent(name)
    assert all(known in str(caught.value) for known in AGENTS)


@every_agent
def test_an_agent_is_found_by_its_name(agent: Agent) -> None:
    assert find_agent(agent.name) is agent
