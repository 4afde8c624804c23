"""The screen of a launch."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from rollout.cli.launch_screen import LaunchScreen, launch_table
from rollout.launch.state import Notice, Wait, WaitedFor
from rollout.rundir.claims import Outcome
from tests.unit.launch.states import prepare_launch

COLUMNS = ("environment", "workers", "in flight", "done", "reward", "turns/s", "tokens/s", "failed", "backlog", "left")
ROWS = [
    ("color_codeword", "4/4", "128", "1873/20000", "0.873", "31.4", "2641", "12", "123.4 MB", "1:02:33"),
    ("a_name_that_is_longer_than_others", "16/16", "2048", "905/2000", "–", "211.4", "120941", "0", "0.4 MB", "–"),
]


def shown_table(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    console = Console(file=StringIO(), width=width)
    console.print(launch_table(rows, width))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(200, ()), (100, ()), (80, ("tokens/s", "turns/s")), (60, ("tokens/s", "turns/s", "backlog", "workers"))],
)
def test_a_narrow_table_has_fewer_columns_and_cuts_no_heading_and_no_number(
    width: int, left_out: Sequence[str]
) -> None:
    heading, *lines = shown_table(ROWS, width)
    expected = [name for name in COLUMNS if name not in left_out]
    assert heading.replace("in flight", "in_flight").split() == [name.replace(" ", "_") for name in expected]
    assert max(map(len, [heading, *lines])) <= width
    for row in ROWS:
        cells = [cell for name, cell in zip(COLUMNS, row, strict=True) if name in expected]
        (line,) = [line for line in lines if row[3] in line]
        assert line.split()[1:] == " ".join(cells[1:]).split()
        assert line.startswith(row[0][:8])


def test_a_table_with_usual_numbers_lacks_only_the_tokens_at_eighty_columns() -> None:
    rows = [
        ("color_codeword", "2/2", "64", "64/160", "0.877", "17.7", "46", "0", "0.9 MB", "0:00:27"),
        ("calculator", "2/2", "57", "117/160", "0.880", "27.3", "951", "0", "0.9 MB", "0:00:06"),
    ]
    lines = shown_table(rows, 80)
    assert len(lines) == 3
    assert lines[0].split() == ["environment", "workers", "in", "flight", *COLUMNS[3:6], *COLUMNS[7:]]


class _Screen(StringIO):
    def isatty(self) -> bool:
        return True


def console_of(*, width: int, terminal: bool) -> Console:
    return Console(file=_Screen() if terminal else StringIO(), width=width, force_terminal=True)


@pytest.mark.parametrize("terminal", [True, False])
async def test_the_screen_shows_what_a_launch_waits_for(repository: Path, tmp_path: Path, *, terminal: bool) -> None:
    state = prepare_launch(repository, tmp_path)
    state.environments[0].wait = Wait(WaitedFor.ORDERS, "waiting for orders")
    state.notices += [Notice("color_codeword: waiting for orders", is_wait=True), Notice("stopping: [too] many failed")]
    console = console_of(width=80, terminal=terminal)
    with anyio.move_on_after(1.2):
        await LaunchScreen(state, console).show(state)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "color_codeword: waiting for orders" in shown
    assert shown.count("stopping: [too] many failed") == 1


@pytest.mark.parametrize("terminal", [True, False])
async def test_the_screen_includes_earlier_launches_and_other_machines(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr("rollout.cli.launch_screen._LINE_INTERVAL_SECONDS", 0.0)
    state = prepare_launch(repository, tmp_path, names=("color_codeword", "calculator"), is_resumed=True)
    played, other = state.environments
    played.total_rollouts = 8
    for rollout, status, reward in (("a", "ok", 1.0), ("b", "ok", 0.0), ("c", "failed", None)):
        claim = played.claims.claim_next_attempt(rollout)
        played.claims.record_outcome(Outcome(rollout, rollout, claim.attempt_number, status, reward=reward))
    console = console_of(width=200, terminal=terminal)
    screen = LaunchScreen(state, console)
    with anyio.move_on_after(1.2):
        await screen.show(state)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    (line, *_) = [line for line in shown.splitlines() if line.lstrip("\x1b[?25l").startswith("color_codeword")]
    wanted = ("0/0", "0", "3/8", "0.500", "0.0", "0", "1", "0.0 MB", "–")
    if not terminal:
        names = ("workers", "in flight", "done", "reward", "turns/s", "tokens/s", "failed", "backlog", "left")
        assert line == "color_codeword: " + "  ".join(
            f"{name} {cell}" for name, cell in zip(names, wanted, strict=True)
        )
    else:
        assert line.split()[1:] == " ".join(wanted).split()
    assert other.name in shown
