"""The reward rises, and at every step sampler and trainer agree on the tokens and on the weights."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from examples.grpo_color_codeword.train import parse_arguments, smoothed_reward, train
from tests.needs.learning.conftest import FULL

VLLM = Path(__file__).parents[3] / ".venv-vllm" / "bin" / "vllm"

RUNS = [("transformers", "along", 1)]  # the seed that needs the fewest steps
if FULL:
    RUNS += [("transformers", "along", seed) for seed in (0, 2)]
    RUNS += [("transformers", "at_end", seed) for seed in (0, 1, 2)]
    RUNS += [("vllm", "along", seed) for seed in (0, 1, 2)]


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
    for step in steps:
        comparison = step.update_stats.comparison
        assert comparison.max_difference < 1e-3
        assert dict(comparison.tokens_by_version) == {str(step.number - 1): 64 * 6}
        assert (comparison.compared_tokens, comparison.clipped_tokens) == (64 * 6, 0)
        assert step.update_stats.warnings == ()
        assert (step.violations, step.failed, step.staleness) == (0, 0, 0)
    [picture] = tmp_path.glob("codeword-*/learning.svg")
    assert ElementTree.fromstring(picture.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
