"""Draws the curves of a run: in the terminal during the training, and as an SVG picture."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.table import Table

from examples.grpo_color_codeword.training import TrainingStep

Step = TypeVar("Step")

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 60
_WIDTH, _HEIGHT, _MARGIN = 420, 180, 44


@dataclass(frozen=True)
class Curve(Generic[Step]):
    """One quantity over the steps, whatever object describes a step.

    Attributes:
        title: the title of the curve.
        value: returns the quantity of one step; NaN if the step does not have it, which leaves a gap.
        format: the format string for a value.
        color: the colour of the line in the picture.
        least: the smallest value on a logarithmic axis; smaller values are drawn there. None for a linear axis.
    """

    title: str
    value: Callable[[Step], float]
    format: str
    color: str
    least: float | None = None

    def height(self, value: float) -> float:
        """Return the position of a value on the axis."""
        return value if self.least is None else math.log10(max(value, self.least))


CURVES: tuple[Curve[TrainingStep], ...] = (
    Curve("reward, mean of the batch", lambda step: step.reward, "{:.3f}", "#2563eb"),
    Curve(
        "largest |sampler − trainer| log-prob",
        lambda step: step.update_stats.comparison.max_difference,
        "{:.1e}",
        "#dc2626",
        1e-8,
    ),
    Curve("staleness, versions", lambda step: step.staleness, "{:.0f}", "#9333ea"),
    Curve("rollouts per second", lambda step: step.rollouts_per_second, "{:.1f}", "#059669"),
)


def table(steps: Sequence[TrainingStep], title: str) -> Table:
    """Draw the curves of the steps so far, for a terminal."""
    drawn = Table(title=title, title_justify="left")
    for column in ("", "now", "from the first step to the last"):
        drawn.add_column(column)
    for curve in CURVES:
        values = [curve.value(step) for step in steps]
        drawn.add_row(curve.title, curve.format.format(values[-1]) if values else "", _bars(curve, values))
    return drawn


def _bars(curve: Curve[TrainingStep], values: Sequence[float]) -> str:
    every = max(1, math.ceil(len(values) / _COLUMNS))
    heights = [curve.height(value) for value in values[::every]]
    least, most = _bounds(heights)
    scale = (len(_BARS) - 1) / (most - least) if most > least else 0.0
    return "".join(" " if math.isnan(height) else _BARS[round((height - least) * scale)] for height in heights)


def _bounds(heights: Sequence[float]) -> tuple[float, float]:
    known = [height for height in heights if not math.isnan(height)]
    return min(known, default=0.0), max(known, default=0.0)


def svg(steps: Sequence[Step], title: str, curves: Sequence[Curve[Step]]) -> str:
    """Draw the curves of a run as an SVG picture, two in a row."""
    width, height = 2 * (_WIDTH + _MARGIN) + _MARGIN, 2 * (_HEIGHT + 2 * _MARGIN) + _MARGIN
    panels = "".join(_placed(number, _panel(curve, steps)) for number, curve in enumerate(curves))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{_MARGIN}" y="28" font-size="15">{title}</text>{panels}</svg>\n'
    )


def _placed(number: int, panel: str) -> str:
    row, column = divmod(number, 2)
    left, top = _MARGIN + column * (_WIDTH + _MARGIN), 2 * _MARGIN + row * (_HEIGHT + 2 * _MARGIN)
    return f'<g transform="translate({left},{top})">{panel}</g>'


def _panel(curve: Curve[Step], steps: Sequence[Step]) -> str:
    heights = [curve.height(curve.value(step)) for step in steps]
    least, most = _bounds(heights)
    span = (most - least) or 1.0
    points = " ".join(
        f"{at / max(1, len(heights) - 1) * _WIDTH:.1f},{_HEIGHT - (height - least) / span * _HEIGHT:.1f}"
        for at, height in enumerate(heights)
        if not math.isnan(height)
    )
    bounds_text = [curve.format.format(10**bound if curve.least is not None else bound) for bound in (least, most)]
    return (
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#d4d4d8"/>'
        f'<text y="-8">{curve.title}</text>'
        f'<text x="{_WIDTH}" y="-8" text-anchor="end">{bounds_text[0]} … {bounds_text[1]}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 16}" text-anchor="end">step {len(steps)}</text>'
        f'<polyline points="{points}" fill="none" stroke="{curve.color}" stroke-width="1.5"/>'
    )
