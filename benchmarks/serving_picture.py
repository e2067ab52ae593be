"""``python -m benchmarks.serving_picture FIGURES``: draws how long a chat waits, by how many speak at once.

FIGURES is what ``python -m benchmarks.serving --only load --chats 1 4 16 64 128 256 512 1000`` has written;
the picture, an SVG, goes to standard output.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 60
STYLE: Final = 'font-family="sans-serif" font-size="12" role="img" aria-label="Latency by chats at once"'
CURVES: Final = (
    ("first_token_p99", "first token, p99", "#b3261e", "6 3"),
    ("first_token_p50", "first token, p50", "#b3261e", ""),
    ("per_token_p99", "each token, p99", "#1a5fb4", "6 3"),
    ("per_token_p50", "each token, p50", "#1a5fb4", ""),
)
"""Figure, what it is called, its colour, its dashes."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis: `low` and `high` are at the pixels `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def read(lines: Iterable[str]) -> dict[str, Points]:
    """Each figure that is drawn, by the number of chats. Raises ValueError for fewer than two of those."""
    found: dict[str, dict[float, float]] = {name: {} for name, *_ in CURVES}
    for line in lines:
        figure: Mapping[str, Any] = json.loads(line)
        name = str(figure["name"]).removeprefix(f"serving_{figure.get('chats')}_")
        if name in found:
            found[name][figure["chats"]] = figure["value"]
    missing = [name for name, points in found.items() if len(points) < 2]
    if missing:
        raise ValueError(f"fewer than two numbers of chats for {', '.join(missing)}")
    return {name: sorted(points.items()) for name, points in found.items()}


def draw(curves: Mapping[str, Points]) -> str:
    """The picture."""
    every = [point for points in curves.values() for point in points]
    across = Scale(min(x for x, _ in every), max(x for x, _ in every), LEFT, WIDTH - RIGHT)
    up = Scale(
        10 ** math.floor(math.log10(min(y for _, y in every))),
        10 ** math.ceil(math.log10(max(y for _, y in every))),
        HEIGHT - BOTTOM,
        TOP,
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {STYLE}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        *_axes(curves, across, up),
        *_curves(curves, across, up),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _axes(curves: Mapping[str, Points], across: Scale, up: Scale) -> Iterator[str]:
    yield _text(LEFT, TOP - 16, "milliseconds", "start")
    yield _text(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "chats that speak at once, without a pause", "middle"
    )
    value = up.low
    while value <= up.high * 1.001:
        y = up(value)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        yield _text(LEFT - 8, y + 4, f"{value:g}", "end")
        value *= 10
    for chats in sorted({x for points in curves.values() for x, _ in points}):
        x = across(chats)
        yield f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>'
        yield _text(x, HEIGHT - BOTTOM + 18, f"{chats:g}", "middle")


def _curves(curves: Mapping[str, Points], across: Scale, up: Scale) -> Iterator[str]:
    below = math.inf
    for name, label, colour, dashes in sorted(CURVES, key=lambda curve: curves[curve[0]][-1][1]):
        places = [(across(x), up(y)) for x, y in curves[name]]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)
        below = min(below - 16, places[-1][1] + 4)  # labels of close curves stand one above the other
        yield _text(places[-1][0] + 10, below, label, "start", colour)


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_picture",
        description="Draw how long a chat waits, by how many speak at once.",
    )
    parser.add_argument("figures", type=Path, metavar="FIGURES", help="what benchmarks.serving has written")
    args = parser.parse_args(arguments)
    print(draw(read(args.figures.read_text(encoding="utf-8").splitlines())), end="")


if __name__ == "__main__":
    main()
