"""What the example prints about unusual steps while it trains."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from examples.grpo_color_codeword.grpo import UpdateStats
from examples.grpo_color_codeword.train import parse_arguments, train_with_display
from examples.grpo_color_codeword.training import TrainingStep, thresholds_for
from rollout.trainer import LogprobComparison


def step_report(number: int, *, published: int, clipped: int) -> TrainingStep:
    """Return the report of a step with 64 trained tokens."""
    version = number - 1
    names = {str(version): published, "older-0": 64 - published}
    compared = LogprobComparison(version, names, 64, published, published, 0, clipped, 0.2, 0.0, 0.0)
    warnings = tuple(compared.findings(thresholds_for(0, is_first_step=False)))
    return TrainingStep(number, 0.3, UpdateStats(0.1, compared, warnings), 0, 20.0, 0, 0, float(number))


def test_each_kind_of_warning_is_printed_once_with_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    reports = iter(
        [
            step_report(1, published=64, clipped=0),
            step_report(2, published=16, clipped=0),
            step_report(3, published=16, clipped=32),
            step_report(4, published=48, clipped=64),
        ]
    )
    training: Any = SimpleNamespace(step=lambda: next(reports))
    train_with_display(training, parse_arguments(["--steps", "4"]))
    printed = capsys.readouterr().err
    assert len(re.findall(r"^step +\d+ ", printed, re.MULTILINE)) == 4
    assert re.findall(r"^warning: .{40}", printed, re.MULTILINE) == [
        "warning: step 2: only 25.0% of the trained tokens",
        "warning: step 3: for 32 of 64 trained tokens, the",
    ]
