"""The run's log: whatever happens is a line of JSON, and telling it harms nobody."""

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
def test_what_is_no_json_by_itself_is_a_line_all_the_same(tmp_path: Path, odd: object) -> None:
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


def test_what_a_command_prints_is_not_mixed_with_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    log_warnings_to_stderr()
    structlog.get_logger().info("images are sent as references")
    structlog.get_logger().warning("engine ejected")
    structlog.reset_defaults()
    out, err = capsys.readouterr()
    assert out == ""
    assert "engine ejected" in err
    assert "images" not in err
