"""A plot of ratios against sizes as SVG, in which each line names itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 50, 270, 40, 45
COLOURS = ("#1b6ca8", "#c0392b", "#2e7d32", "#8e44ad", "#d35400", "#00838f", "#6d4c41", "#ad1457", "#5d6d7e", "#9e9d24")


def plot(title: str, sizes: Sequence[int], ratios: Mapping[str, Sequence[float]], limit: Sequence[float]) -> str:
    """Each line from its ratio at the smallest size, which is 1, to that at the largest; sizes on a logarithmic scale."""
    top = max(1.5, *limit, *(value for line in ratios.values() for value in line)) * 1.05
    first, span = log10(sizes[0]), log10(sizes[-1]) - log10(sizes[0])

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (log10(size) - first) / span

    def y(ratio: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ratio / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}, as a multiple of the smallest</text>',
    ]
    step = 0.5 if top < 4 else 1
    for n in range(int(top / step) + 1):
        at = y(n * step)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{n * step:g}</text>')
    for size in sizes:
        parts.append(f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{size:,}</text>')

    def line(values: Sequence[float], style: str) -> str:
        points = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in zip(sizes, values, strict=True))
        return f'<polyline points="{points}" fill="none" {style}/>'

    parts.append(line(limit, 'stroke="#000" stroke-dasharray="6 4"'))
    labels = sorted([("may grow so", limit[-1], "#000"), *_labelled(ratios)], key=lambda each: -each[1])
    for place, (name, value, colour) in enumerate(labels):
        if name in ratios:
            parts.append(line(ratios[name], f'stroke="{colour}" stroke-width="1.8"'))
        at = TOP + 4 + place * 20
        parts.append(f'<path d="M{WIDTH - RIGHT} {y(value):.1f}l22 {at - y(value):.1f}" stroke="{colour}" stroke-width="0.7"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 26}" y="{at + 4}" fill="{colour}">{value:.2f} {escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _labelled(ratios: Mapping[str, Sequence[float]]) -> list[tuple[str, float, str]]:
    return [(name, line[-1], COLOURS[place % len(COLOURS)]) for place, (name, line) in enumerate(ratios.items())]
