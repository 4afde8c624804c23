"""The run's log: every event is a line of JSON, and no value makes logging fail."""

from pathlib import Path

import orjson
import pytest
import structlog

from rollout.log import log_to_json_file, log_warnings_to_stderr


class Unprintable:
    def __str__(self) -> str:
        raise ValueError


def graph() -> list[object]:
    found: list[object] = ["a leaf"]
    for _ in range(14):
        found = [found] * 12
    return found


@pytest.mark.parametrize(
    "odd",
    ["half a pair: \udcff", 2**80, 10**5000, {1: "no text for a key"}, Unprintable(), graph()],
    ids=["surrogate", "integer", "long integer", "key", "unprintable", "graph"],
)
def test_a_value_that_json_does_not_have_is_logged(tmp_path: Path, odd: object) -> None:
    with log_to_json_file(tmp_path / "log", run="r"):
        log = structlog.get_logger()
        try:
            raise ValueError
        except ValueError as error:
            log.warning("rollout failed", detail=odd, exc_info=error)
        log.info("next")
    structlog.reset_defaults()
    failed, after = map(orjson.loads, (tmp_path / "log").read_bytes().splitlines())
    assert failed["event"] == "rollout failed"
    assert "ValueError" in failed["exception"]
    assert (after["event"], after["run"]) == ("next", "r")


def test_only_warnings_are_logged_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log_warnings_to_stderr()
    structlog.get_logger().info("images are sent as references")
    structlog.get_logger().warning("engine ejected")
    structlog.reset_defaults()
    out, err = capsys.readouterr()
    assert out == ""
    assert "engine ejected" in err
    assert "images" not in err
