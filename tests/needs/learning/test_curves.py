"""The curves of a run, in a terminal and as a picture."""

import io
import math
from dataclasses import replace
from xml.etree import ElementTree

from rich.console import Console

from examples.grpo_color_codeword.curves import CURVES, svg, table
from examples.grpo_color_codeword.grpo import UpdateStats
from examples.grpo_color_codeword.training import TrainingStep
from rollout.trainer import LogprobComparison

SVG = "{http://www.w3.org/2000/svg}"


def compared(number: int) -> LogprobComparison:
    difference = 10.0**-number
    return LogprobComparison(number, {str(number): 64}, 64, 64, 64, 0, 0, 0.2, difference, 64 * difference)


def steps(count: int) -> list[TrainingStep]:
    return [
        TrainingStep(number, number / 8, UpdateStats(0.1, compared(number)), 0, 20.0, 0, 0, float(number))
        for number in range(1, count + 1)
    ]


def test_the_terminal_shows_every_curve_and_its_last_value() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(steps(8), "step 8"))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(curve.title in printed for curve in CURVES)
    assert "1.000" in printed
    assert "▁▂▃▄▅▆▇█" in printed


def test_a_long_run_fits_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(steps(500), "step 500"))
    assert max(map(len, console.file.getvalue().splitlines())) <= 120  # type: ignore[attr-defined]


def test_a_step_that_compared_nothing_leaves_a_gap() -> None:
    first, *others = steps(4)
    nothing = replace(first.update_stats.comparison, compared_tokens=0, max_difference=math.nan)
    drawn = [replace(first, update_stats=replace(first.update_stats, comparison=nothing)), *others]
    picture = ElementTree.fromstring(svg(drawn, "four steps", CURVES))
    lines = [line.get("points", "").split() for line in picture.iter(f"{SVG}polyline")]
    assert sorted(map(len, lines)) == [3, 4, 4, 4]
    console = Console(file=io.StringIO(), width=120)
    console.print(table(drawn, "step 4"))
    assert " █▅▁" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_picture_has_a_line_for_every_curve_within_its_frame() -> None:
    picture = ElementTree.fromstring(svg(steps(9), "nine steps", CURVES))
    lines = [line.get("points", "").split() for line in picture.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [9] * len(CURVES)
    for points in lines:
        for point in points:
            x, y = map(float, point.split(","))
            assert 0 <= x <= 420
            assert 0 <= y <= 180
