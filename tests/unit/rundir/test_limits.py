"""The warning for a run in which a limit stopped every rollout."""

from pathlib import Path

import pytest

from rollout.config.load import Config, load_config
from rollout.rundir.limits import warn_if_all_limited


@pytest.fixture(scope="module")
def config(repository: Path) -> Config:
    return load_config(repository / "configs" / "color_codeword.yaml", ["engine.sampling.max_tokens=16"])


@pytest.mark.parametrize(
    ("limit_counts", "status_counts", "expected"),
    [
        ({}, {}, None),
        ({"tokens": 3}, {"ok": 4}, None),
        ({"tokens": 3}, {"ok": 3, "abandoned": 1}, "length limit of an answer: raise engine.sampling.max_tokens (now"),
        ({"turns": 1}, {"ok": 1}, "stopped by the environment's limit of turns"),
        (
            {"time": 2},
            {"failed": 2},
            "environment.timeout of a program, worker.turn_timeout (now 600 s), worker.rollout_timeout",
        ),
        ({"tokens": 2, "context": 1}, {"ok": 2, "unscored": 1}, "stopped by a limit: 2 by the length limit"),
    ],
)
def test_a_warning_names_the_limits_that_stopped_every_rollout(
    config: Config, limit_counts: dict[str, int], status_counts: dict[str, int], expected: str | None
) -> None:
    warning = warn_if_all_limited(limit_counts, status_counts, config)
    assert (warning is None) == (expected is None)
    assert (expected or "") in (warning or "")


@pytest.mark.parametrize(("limit", "name"), [("turns", "turns"), ("tokens", "tokens"), ("time", "seconds")])
def test_a_warning_names_the_limit_of_the_gateway_if_it_is_set(
    repository: Path, config: Config, limit: str, name: str
) -> None:
    limited = load_config(repository / "configs" / "color_codeword.yaml", [f"gateway.limits.{name}=1000000"])
    warnings = [warn_if_all_limited({limit: 1}, {"ok": 1}, one) or "" for one in (limited, config)]
    assert [f", or gateway.limits.{name} (now 1,000,000)" in warning for warning in warnings] == [True, False]
