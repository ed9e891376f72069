"""Plots as SVG from the server: they need no script, and each mark says its value on hover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Final

WIDTH: Final = 706
HEIGHT: Final = 140
LEFT: Final = 60
TOP: Final = 8
BOTTOM: Final = 118
TICKS: Final = 3
LABELS: Final = 6


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Label:
    x: float
    y: float
    text: str


@dataclass(slots=True)
class Plot:
    """What a template draws; `words` say the same to those who cannot see it."""

    words: str
    bars: list[Bar] = field(default_factory=list)
    paths: list[tuple[str, str]] = field(default_factory=list)
    lines: list[Label] = field(default_factory=list)
    days: list[Label] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Series:
    """Values by day, None where there is none; `kind` is the mark's class in the style sheet."""

    kind: str
    values: Sequence[float | None]
    titles: Sequence[str]


def bars(words: str, days: Sequence[date], series: Sequence[Series]) -> Plot:
    """Draw bars, those of later series in front of the earlier."""
    plot, top = _frame(words, days, series)
    step = (WIDTH - LEFT) / max(1, len(days))
    for each in series:
        for index, value in enumerate(each.values):
            if value:
                height = (BOTTOM - TOP) * value / top
                plot.bars.append(
                    Bar(
                        round(LEFT + index * step + step * 0.15, 1),
                        round(BOTTOM - height, 1),
                        round(step * 0.7, 1),
                        round(height, 1),
                        each.kind,
                        each.titles[index],
                    )
                )
    return plot


def lines(words: str, days: Sequence[date], series: Sequence[Series]) -> Plot:
    """Draw lines, with a gap at each day without a value."""
    plot, top = _frame(words, days, series)
    step = (WIDTH - LEFT) / max(1, len(days))
    for each in series:
        path, is_down = [], False
        for index, value in enumerate(each.values):
            if value is not None:
                x = round(LEFT + (index + 0.5) * step, 1)
                y = round(BOTTOM - (BOTTOM - TOP) * value / top, 1)
                # A day alone is a point: a line of no length with round ends.
                path.append(f"L{x} {y}" if is_down else f"M{x} {y}L{x} {y}")
            is_down = value is not None
        if path:
            plot.paths.append((each.kind, "".join(path)))
    return plot


def _frame(words: str, days: Sequence[date], series: Sequence[Series]) -> tuple[Plot, float]:
    highest = max((value or 0 for each in series for value in each.values), default=0)
    top = nice(highest)
    plot = Plot(words)
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        y = round(BOTTOM - (BOTTOM - TOP) * tick / TICKS, 1)
        plot.lines.append(Label(LEFT, y, f"{value:,.2f}".rstrip("0").rstrip(".")))
    step = (WIDTH - LEFT) / max(1, len(days))
    every = max(1, math.ceil(len(days) / LABELS))
    for index in range(0, len(days), every):
        plot.days.append(Label(round(LEFT + index * step, 1), HEIGHT - 6, f"{days[index]:%d %b}"))
    return plot, top


def nice(highest: float) -> float:
    """Return the end of an axis: the next of 3, 6, 15, 30… above, so that a third is round."""
    if highest <= 0:
        return 3
    unit = 10.0 ** math.floor(math.log10(highest))
    return next(factor * unit for factor in (1.5, 3, 6, 15) if factor * unit >= highest)
