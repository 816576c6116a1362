"""Drawing of a tensor product: which blocks its paths couple."""

from __future__ import annotations

from math import cos, pi, sin

WIDTH = 1.5  # of a line, in points
MARGIN = 3  # between a block and its name, in points


def draw_product(operands, paths, strengths, aspect_ratio=1, ax=None):
    """Draws a hexagon with the blocks of x1, x2 and the output on its upper left, upper right and lower side, and for
    each path three lines that meet. Returns (figure, axes) of matplotlib.

    operands: irreps of x1, x2 and the output. paths: (i1, i2, io, has_weight) each. strengths: in [0, 1] for each path,
    the darkness of those with a weight, or None. aspect_ratio: width over height of the hexagon, or "auto" for one that
    grows with the numbers of blocks. ax: axes to draw on, by default the current ones.

    Raises ImportError without matplotlib, ValueError for another aspect_ratio.
    """
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("visualize draws with matplotlib, which is not installed: pip install matplotlib") from error
    width, height = _size([len(irreps) for irreps in operands], aspect_ratio)
    corners = [(width * cos(pi * n / 3), height * sin(pi * n / 3)) for n in range(6)]
    sides = [(corners[3], corners[2]), (corners[1], corners[0]), (corners[4], corners[5])]  # of x1, x2, the output
    ax = pyplot.gca() if ax is None else ax
    for begin, end in sides:
        ax.plot(*zip(begin, end, strict=True), color="black", lw=1, zorder=2)
    places = [_along(side, len(irreps)) for side, irreps in zip(sides, operands, strict=True)]
    blues = matplotlib.colormaps["Blues"]
    for n, (*blocks, has_weight) in enumerate(paths):
        ends = [at[i] for at, i in zip(places, blocks, strict=True)]
        middle = [sum(c) / 3 for c in zip(*ends, strict=True)]
        color = "black" if not has_weight else "green" if strengths is None else blues(0.5 + 0.5 * strengths[n])
        x, y = ([c for end in ends for c in (end[axis], middle[axis])] for axis in (0, 1))
        ax.plot(x, y, color=color, alpha=0.5, lw=WIDTH)
    _name_blocks(ax, operands, places)
    ax.axis("equal")
    ax.axis("off")
    return ax.get_figure(), ax


def _size(counts: list[int], aspect_ratio) -> tuple[float, float]:
    """Half the width and the height of the hexagon for these numbers of blocks of x1, x2 and the output."""
    if aspect_ratio == "auto":
        return 0.1 * counts[2], 0.1 * max(*counts[:2], counts[2] / 2)
    if isinstance(aspect_ratio, bool) or not isinstance(aspect_ratio, (int, float)):
        raise ValueError(f"visualize: aspect_ratio must be a number or 'auto', got {aspect_ratio!r}")
    return 0.1 * aspect_ratio * max(counts), 0.1 * max(counts)


def _along(side, count: int) -> list[tuple[float, float]]:
    """Equidistant points inside a side, without its ends."""
    (x, y), (to_x, to_y) = side
    steps = [(n + 1) / (count + 1) for n in range(count)]
    return [(x + t * (to_x - x), y + t * (to_y - y)) for t in steps]


def _name_blocks(ax, operands, places) -> None:
    styles = [
        {"ha": "right", "xytext": (-MARGIN, 0)},
        {"ha": "left", "xytext": (MARGIN, 0)},
        {"ha": "center", "va": "top", "rotation": 90, "xytext": (0, -MARGIN)},
    ]
    for irreps, points, style in zip(operands, places, styles, strict=True):
        for (mul, ir), point in zip(irreps, points, strict=True):
            name = f"${ir}$" if mul == 1 else f"${mul} \\times {ir}$"
            ax.annotate(name, point, textcoords="offset points", fontsize=10, **style)
