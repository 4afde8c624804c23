"""What a launch shows while it goes on."""

from io import StringIO
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from rollout.cli.launch_screen import LaunchScreen, launch_table
from rollout.launch.launch import LaunchState
from rollout.launch.local import LocalPlace
from rollout.rundir.claims import Outcome
from rollout.rundir.manifest import create_run

ROWS = [
    ("color_codeword", "4/4", "128", "1873/20000", "0.873", "31.4", "2641", "12", "123.4 MB", "1:02:33"),
    ("a_name_that_is_longer_than_others", "16/16", "2048", "905/2000", "–", "211.4", "120941", "0", "0.4 MB", "–"),
]


@pytest.mark.parametrize(("width", "lines"), [(80, 7), (200, 3)])
def test_no_number_is_cut_off(width: int, lines: int) -> None:
    console = Console(file=StringIO(), width=width)
    console.print(launch_table(ROWS, width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert len(shown.splitlines()) == lines
    for row in ROWS:
        (line,) = [line for line in shown.splitlines() if row[3] in line]
        assert line.split()[1:] == " ".join(row[1:]).split()
        assert line.startswith(row[0][:8])


@pytest.mark.parametrize("terminal", [True, False])
async def test_what_earlier_launches_and_other_machines_did_is_shown_too(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr("rollout.cli.launch_screen._LINE_INTERVAL_SECONDS", 0.0)
    files = [repository / "configs" / "color_codeword.yaml", repository / "configs" / "calculator.yaml"]
    directory, launch_configs = create_run(files, (f"run.directory={tmp_path}",))
    state = LaunchState(directory, launch_configs, 0, LocalPlace(), is_resumed=True)
    played, endless = state.environments
    played.total_rollouts = 8
    for rollout, status, reward in (("a", "ok", 1.0), ("b", "truncated", 0.0), ("c", "failed", None)):
        claim = played.claims.claim_next_attempt(rollout)
        played.claims.record_outcome(Outcome(rollout, rollout, claim.attempt_number, status, reward))
    console = Console(file=StringIO(), width=200, force_terminal=terminal)
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
    assert endless.name in shown
