"""The reward rises, and at every step sampler and trainer agree on the tokens and on the weights."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from examples.grpo_color_codeword.train import parse_arguments, smoothed_reward, train
from examples.grpo_color_codeword.training import TrainingStep
from rollout.trainer import Trajectory, open_archive
from tests.needs.learning.conftest import FULL

VLLM = Path(__file__).parents[3] / ".venv-vllm" / "bin" / "vllm"

RUNS = [("transformers", "along", 1)]  # the seed that needs the fewest steps
if FULL:
    RUNS += [("transformers", "along", seed) for seed in (0, 2)]
    RUNS += [("transformers", "at_end", seed) for seed in (0, 1, 2)]
    RUNS += [("vllm", "along", seed) for seed in (0, 1, 2)]


# A program takes a process for each rollout, so a run to its end takes minutes. The shorter one takes five steps.
AGENT_SEEDS, AGENT_TARGET = ((0, 1, 2), 0.95) if FULL else ((1,), 0.35)


def require_exact(steps: Sequence[TrainingStep]) -> None:
    """Require that sampler and trainer agree at every step, and that nothing failed."""
    for step in steps:
        comparison = step.update_stats.comparison
        assert comparison.max_difference < 1e-3
        assert dict(comparison.tokens_by_version) == {str(step.number - 1): 64 * 6}
        assert (comparison.compared_tokens, comparison.clipped_tokens) == (64 * 6, 0)
        assert step.update_stats.warnings == ()
        assert (step.violations, step.failed, step.staleness) == (0, 0, 0)


@pytest.mark.parametrize(("sampler", "ask", "seed"), RUNS)
def test_a_random_policy_learns_through_the_whole_pipeline(
    sampler: str, ask: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--sampler", sampler, "--vllm", str(VLLM), "--seed", str(seed), "--runs", str(tmp_path)]
    steps = train(parse_arguments([*options, "--set", f"environment.ask={ask}"]))
    printed = capsys.readouterr().out.strip()
    with capsys.disabled():
        print(f"\n{ask}: {printed}")
    assert steps[0].reward <= 0.45
    assert smoothed_reward(steps) >= 0.95
    require_exact(steps)
    [picture] = tmp_path.glob("codeword-*/learning.svg")
    assert ElementTree.fromstring(picture.read_text()).tag == "{http://www.w3.org/2000/svg}svg"


async def first_batch(run: Path) -> Mapping[str, Trajectory]:
    """Return the rollouts of a run that the first version of the weights played."""
    async with open_archive(run) as reader:
        trajectories = [trajectory async for trajectory in reader]
    return {
        trajectory.rollout: trajectory
        for trajectory in trajectories
        if {span.version for step in trajectory.steps for span in step.versions} == {"0"}
    }


@pytest.mark.parametrize("seed", AGENT_SEEDS)
def test_an_agent_program_learns_like_the_environment(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--seed", str(seed), "--target", str(AGENT_TARGET), "--runs"]
    of_environment = train(parse_arguments([*options, str(tmp_path / "environment")]))
    of_agent = train(parse_arguments([*options, str(tmp_path / "agent"), "--agent"]))
    printed = capsys.readouterr().out.strip()
    with capsys.disabled():
        print(f"\n{printed}")
    require_exact(of_agent)
    assert smoothed_reward(of_agent) >= AGENT_TARGET
    assert len(of_agent) <= 1.5 * len(of_environment)

    # The same tasks, pictures and seeds give the same prompts and answers, until rounding changes an answer.
    for ours, theirs in zip(of_agent[:5], of_environment[:5], strict=True):
        assert ours.reward == pytest.approx(theirs.reward, abs=0.05)
    runs = [run for name in ("agent", "environment") for run in (tmp_path / name).glob("codeword-*")]
    agent, environment = (asyncio.run(first_batch(run)) for run in runs)
    assert len(agent) == 64
    assert agent.keys() == environment.keys()
    for name, trajectory in agent.items():
        of_nodes = zip(trajectory.nodes, environment[name].nodes, strict=True)
        assert all(one.run.ids.tolist() == other.run.ids.tolist() for one, other in of_nodes)
        assert trajectory.images.keys() == environment[name].images.keys()
