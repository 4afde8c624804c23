"""The agent program of the learning example plays exactly what the environment plays."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from examples.grpo_color_codeword.environment import (
    COLORS,
    CodewordSettings,
    CodewordTasks,
    LearnedCodeword,
    color_ids,
)
from examples.grpo_color_codeword.program import CodewordProgram
from rollout import Environment
from rollout.config.load import load_config
from rollout.testing import Played, play
from rollout.trainer import check

CONFIG = Path("examples", "grpo_color_codeword", "codeword_agent.yaml")
TASKS = CodewordTasks(count=2, seed=5)


@pytest.fixture
def program(repository: Path) -> CodewordProgram:
    return CodewordProgram(load_config(repository / CONFIG, []).environment_settings)


def answers(environment: Environment) -> Sequence[str]:
    """Return answers to the second task, of which the second one is wrong."""
    first, second, third = list(environment.tasks(TASKS))[1].data["codeword"]
    wrong = next(color for color in COLORS if color != second)
    return [first, wrong, third, f"{first}{second}{third}"]


async def play_second_task(environment: Environment) -> Played:
    return await play(environment, list(environment.tasks(TASKS))[1], answers=answers(environment))


async def play_both(program: CodewordProgram) -> tuple[Played, Played]:
    """Play the same task with the same answers through the program and through the environment."""
    return await play_second_task(program), await play_second_task(LearnedCodeword(CodewordSettings()))


async def test_the_program_plays_the_same_tokens_and_images_as_the_environment(program: CodewordProgram) -> None:
    ours, theirs = (played.trajectory for played in await play_both(program))
    assert check(ours) == check(theirs) == []
    assert [node.run.ids.tolist() for node in ours.nodes] == [node.run.ids.tolist() for node in theirs.nodes]
    assert [node.run.images for node in ours.nodes] == [node.run.images for node in theirs.nodes]
    assert len(ours.images) == 3
    assert [step.prompt_source for step in ours.steps] == [step.prompt_source for step in theirs.steps]
    assert [step.echo for step in ours.steps] == [None, "exact", "exact", "exact"]


async def test_the_program_gets_the_same_score_as_the_environment(program: CodewordProgram) -> None:
    of_program, of_environment = await play_both(program)
    assert of_program.reward == of_environment.reward == 5 / 6
    assert of_environment.score.metrics.items() <= of_program.score.metrics.items()


def test_the_policy_may_sample_only_colours_in_both(repository: Path) -> None:
    sampling = load_config(repository / CONFIG, []).engine.sampling
    assert sampling.allowed_token_ids == list(color_ids())
