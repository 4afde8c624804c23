"""Which limit cut a rollout off, and what is said if all were cut off."""

from pathlib import Path

import pytest

from rollout.config.load import Config, load_config
from rollout.rundir.cuts import CutReason, cut_reason, warn_if_all_cut


@pytest.fixture(scope="module")
def config(repository: Path) -> Config:
    return load_config(repository / "configs" / "color_codeword.yaml", ["engine.sampling.max_tokens=16"])


@pytest.mark.parametrize(
    ("status", "error_type", "reason"),
    [
        ("ok", None, None),
        ("truncated", None, CutReason.LENGTH),
        ("truncated", "ContextExhausted", CutReason.CONTEXT),
        ("truncated", "StragglerCut", CutReason.STRAGGLER),
        ("failed", "RolloutTimeout", CutReason.TIME),
        ("failed", "ValueError", None),
        ("abandoned", "RolloutAbandoned", None),
    ],
)
def test_the_limit_that_cut_a_rollout_off(status: str, error_type: str | None, reason: CutReason | None) -> None:
    assert cut_reason(status, None if error_type is None else {"type": error_type, "message": ""}) is reason


@pytest.mark.parametrize(
    ("cuts", "status_counts", "expected"),
    [
        ({}, {}, None),
        ({"length": 3}, {"truncated": 3, "ok": 1}, None),
        (
            {"length": 3},
            {"truncated": 3, "abandoned": 1},
            "length limit: raise engine.sampling.max_tokens (now 16), or",
        ),
        ({"time": 2}, {"failed": 2}, "a time limit: raise worker.turn_timeout (now 600 s) or worker.rollout_timeout"),
        ({"length": 2, "context": 1}, {"truncated": 3}, "was cut: 2 by the length limit: raise"),
    ],
)
def test_what_is_said_if_every_rollout_was_cut(
    config: Config, cuts: dict[str, int], status_counts: dict[str, int], expected: str | None
) -> None:
    warning = warn_if_all_cut(cuts, status_counts, config)
    assert (warning is None) == (expected is None)
    assert (expected or "") in (warning or "")
