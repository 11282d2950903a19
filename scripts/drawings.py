#!/usr/bin/env python3
"""Write the drawings of the notebooks and README, `nbs/images/NAME.svg`.

    python scripts/drawings.py           # write them all
    python scripts/drawings.py --check   # fail if one differs from what this script draws

Each drawing is a function that puts a few kinds of parts together: boxes, arrows, words, small
pictures. The numbers in them are computed here. A drawing follows the reader's light or dark scheme
and has a background of its own, so it can be read on any page. On the documentation site `inline`
puts it into the page, where it takes the page's colors: the names in `SCHEME` are those of
`scripts/site/site.css`.
Needs the standard library alone.
"""

import html
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

IMAGES = Path(__file__).resolve().parent.parent / "nbs" / "images"
WIDTH = 440  # of every drawing, in its own units; letters of 15 units can be read on a phone
SHOWN = 520  # pixels that this width takes where there is room
SCHEME = """
.drawing { --paper: #ffffff; --soft: #f2f4f7; --line: #c3cad3; --ink: #1d2430; --faint: #596273; }
@media (prefers-color-scheme: dark) { .drawing { --paper: #14181f; --soft: #222935; --line: #475264;
  --ink: #e4e8ee; --faint: #a4aebd; } }
"""
# the first colors of viz.SLOT_COLORS that stand out from light and from dark paper
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
LOOK = """
.drawing { fill: none; stroke: none; stroke-width: 1;
  font: 15px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.drawing text { fill: var(--ink); text-anchor: middle; }
.drawing .faint { fill: var(--faint); }
.drawing .strong { font-weight: 650; }
.drawing .start { text-anchor: start; }
.drawing .end { text-anchor: end; }
.drawing .paper { fill: var(--paper); }
.drawing .box { fill: var(--soft); stroke: var(--faint); }
.drawing .tile { fill: var(--soft); stroke: var(--line); }
.drawing .dashed { fill: none; stroke: var(--ink); stroke-width: 1.6; stroke-dasharray: 5 4; }
.drawing .arrow { fill: none; stroke: var(--ink); stroke-width: 1.6; }
.drawing .head { fill: var(--ink); }
.drawing .black { fill: #000; }
.drawing .white { fill: #fff; }
.drawing .edge { fill: none; stroke: var(--faint); }
.drawing .group { fill: none; stroke: var(--ink); stroke-width: 1.6; }
""" + "".join(f".drawing .c{i} {{ fill: {c}; }}\n" for i, c in enumerate(COLORS))

# four cells each, as (column, row); the fourth slot of the drawings takes the background
PIECES = [
    [(0, 0), (0, 1), (0, 2), (1, 2)],  # L
    [(0, 0), (1, 0), (2, 0), (1, 1)],  # T
    [(0, 1), (1, 1), (1, 0), (2, 0)],  # S
]
PLACES = [(0.1, 0.12), (0.56, 0.14), (0.34, 0.62)]  # where they lie in an image of side 1


class Drawing(NamedTuple):
    "A drawing before it is written."

    title: str
    about: str  # in words, for those who do not see it
    height: int  # in the units of WIDTH
    parts: list[str]  # SVG elements


# ---------------------------------------------------------------- parts


def rect(x: float, y: float, w: float, h: float, look: str, r: float = 0) -> str:
    "A rectangle, with corners rounded by `r`."
    return f'<rect class="{look}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r:g}"/>'


def words(x: float, y: float, text: str, look: str = "") -> str:
    "A line of text around `x`, standing on `y`; `*q*` is italic."
    text = re.sub(r"\*(.+?)\*", r'<tspan font-style="italic">\1</tspan>', html.escape(text))
    return f'<text class="{look}" x="{x:g}" y="{y:g}">{text}</text>'


def box(x: float, y: float, w: float, h: float, text: str, note: str = "") -> str:
    "A layer or a step: a box with its name, and a fainter line below."
    middle = y + h / 2
    lines = [words(x + w / 2, middle + (-3 if note else 5), text, "strong" if note else "")]
    if note:
        lines.append(words(x + w / 2, middle + 15, note, "faint"))
    return rect(x, y, w, h, "box", 6) + "".join(lines)


def arrow(*points: tuple[float, float], head: bool = True, joined: bool = False) -> str:
    """A line through some points, with rounded corners and a head at its end.

    One that is `joined` begins with a dot, on another line.
    """
    (x0, y0), (x1, y1) = points[-2:]
    length = math.hypot(x1 - x0, y1 - y0)
    u, v = (x1 - x0) / length, (y1 - y0) / length
    path, r = [f"M{points[0][0]:g} {points[0][1]:g}"], 8
    for before, corner, after in zip(points, points[1:], points[2:]):
        (ax, ay), (bx, by) = (toward(corner, end, r) for end in (before, after))
        path.append(f"L{ax:g} {ay:g}Q{corner[0]:g} {corner[1]:g} {bx:g} {by:g}")
    end = (x1 - 6 * u, y1 - 6 * v) if head else (x1, y1)
    line = f'<path class="arrow" d="{"".join(path)}L{end[0]:g} {end[1]:g}"/>'
    left, right = (f"{x1 - 9 * u + s * 5 * v:g} {y1 - 9 * v - s * 5 * u:g}" for s in (1, -1))
    tip = f'<path class="head" d="M{x1:g} {y1:g}L{left}L{right}Z"/>' if head else ""
    dot = f'<circle class="head" cx="{points[0][0]:g}" cy="{points[0][1]:g}" r="3"/>'
    return line + tip + (dot if joined else "")


def toward(a: tuple[float, float], b: tuple[float, float], distance: float) -> tuple[float, float]:
    "The point at some distance from `a` on the way to `b`, at most half way."
    part = min(0.5, distance / math.dist(a, b))
    return a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1])


def piece(number: int, x: float, y: float, cell: float, look: str = "") -> str:
    "A piece of four cells; in the color of its slot unless `look` says otherwise."
    return "".join(
        rect(x + column * cell, y + row * cell, cell, cell, look or f"c{number}")
        for column, row in PIECES[number]
    )


def scene(x: float, y: float, side: float) -> str:
    "An image of three pieces."
    pieces = [piece(i, x + side * a, y + side * b, side * 0.11) for i, (a, b) in enumerate(PLACES)]
    return rect(x, y, side, side, "tile") + "".join(pieces)


def layer_image(slot: int, x: float, y: float, side: float) -> str:
    "What one slot draws: its piece alone, or the background."
    drawn = ""
    if slot < len(PIECES):
        a, b = PLACES[slot]
        drawn = piece(slot, x + side * a, y + side * b, side * 0.11)
    return rect(x, y, side, side, "tile") + drawn


def layer_mask(slot: int, x: float, y: float, side: float) -> str:
    "The mask of one slot: white where its weight is one."
    background = slot == len(PIECES)
    holes = range(len(PIECES)) if background else [slot]
    parts = [rect(x, y, side, side, "white" if background else "black")]
    for i in holes:
        a, b = PLACES[i]
        look = "black" if background else "white"
        parts.append(piece(i, x + side * a, y + side * b, side * 0.11, look))
    return "".join(parts) + rect(x, y, side, side, "edge")


def vector(slot: int, x: float, y: float, w: float = 64, h: float = 18) -> str:
    "A slot: four cells of its color."
    cells = [
        f'<rect class="c{slot}" x="{x + i * w / 4:g}" y="{y:g}" width="{w / 4 - 2:g}" '
        f'height="{h:g}" rx="2" opacity="{opacity}"/>'
        for i, opacity in enumerate((1, 0.75, 0.9, 0.65))
    ]
    return "".join(cells)


def tokens(x: float, y: float, side: float, n: int = 6) -> str:
    "A feature map, one square for each token."
    step = side / n
    return "".join(
        rect(x + i * step + 1, y + j * step + 1, step - 2, step - 2, "box", 2)
        for j in range(n)
        for i in range(n)
    )


def from_image_to_slots(slots_at: list[float]) -> str:
    "The upper part of both models: image, encoder, tokens, Slot Attention, slots."
    parts = [
        words(58, 20, "image"),
        scene(14, 28, 88),
        arrow((106, 72), (146, 72)),
        box(148, 46, 134, 52, "encoder", "CNN + position"),
        arrow((286, 72), (332, 72)),
        words(382, 20, "*N* tokens"),
        tokens(338, 28, 88),
        arrow((382, 120), (382, 152)),
        box(14, 154, 412, 52, "Slot Attention", "*K* slots compete for the tokens, *T* iterations"),
    ]
    for slot, x in enumerate(slots_at):
        parts += [arrow((x, 208), (x, 232)), vector(slot, x - 31, 236)]
    return "".join(parts)


def upward(x: float, y: float, text: str, look: str = "faint") -> str:
    "A line of text that runs upward along `x`, its middle at `y`."
    return f'<g transform="translate({x:g} {y:g}) rotate(-90)">{words(0, 0, text, look)}</g>'


def around(x: float, start: float, end: float, text: str) -> str:
    "An arrow out of the right side of a box, `x`, and up into the same or a higher one."
    if start == end:
        start, end = start + 12, end - 12
    line = arrow((x, start), (x + 11, start), (x + 11, end), (x + 2, end))
    return line + upward(x + 25, (start + end) / 2, text)


def cross(x: float, y: float, r: float = 6) -> str:
    "A mark at a point."
    return f'<path class="arrow" d="M{x - r:g} {y:g}H{x + r:g}M{x:g} {y - r:g}V{y + r:g}"/>'


def card(slot: int, x: float, y: float, presence: str) -> str:
    "An object as the set predictor gives it, around `x`: what it is, and whether it is there."
    parts = [rect(x - 42, y, 84, 86, "box", 6), words(x, y + 61, "presence", "faint")]
    parts.append(words(x, y + 78, presence))
    if slot < len(PIECES):
        across = 1 + max(column for column, _ in PIECES[slot])
        down = 1 + max(row for _, row in PIECES[slot])
        parts.append(piece(slot, x - 6 * across, y + 27 - 6 * down, 12))
    else:
        parts.append(words(x, y + 32, "none"))
    return "".join(parts)


# ---------------------------------------------------------------- numbers


def softmax(scores: list[float]) -> list[float]:
    "Positive numbers that sum to one."
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def transpose(table: list[list[float]]) -> list[list[float]]:
    "Rows as columns."
    return [list(column) for column in zip(*table)]


def matrix(x: float, y: float, weights: list[list[float]], over_slots: bool) -> str:
    """Attention weights of tokens (rows) and slots (columns), with their sums.

    A gap stands between the parts that sum to one: between rows over slots, else between columns.
    """
    rows, columns = len(weights), len(weights[0])
    w, right, h, down = (46, 46, 34, 40) if over_slots else (42, 48, 38.8, 38.8)
    parts = []
    for j in range(columns):
        middle, total = x + right * j + w / 2, sum(row[j] for row in weights)
        parts.append(vector(j, middle - 17, y - 26, 36, 16))
        said, look = (f"{total:.2f}", "faint") if over_slots else ("Σ=1", "strong")
        parts.append(words(middle, y + 216, said, look))
    for i, row in enumerate(weights):
        middle = y + down * i + h / 2
        parts.append(rect(x - 24, middle - 8.5, 17, 17, "box", 3))
        said, look = ("Σ=1", "strong") if over_slots else (f"{sum(row):.2f}", "faint")
        parts.append(words(x + 144, middle + 5, said, f"{look} start"))
        for j, weight in enumerate(row):
            left, top = x + right * j, y + down * i
            parts += [
                rect(left, top, w, h, "tile"),
                f'<g opacity="{0.6 * weight:.2f}">{rect(left, top, w, h, f"c{j}")}</g>',
                words(left + w / 2, middle + 5, f"{weight:.2f}"),
            ]
    if over_slots:
        parts += [rect(x, y + down * i, 138, h, "group") for i in range(rows)]
    else:
        parts += [rect(x + right * j, y, w, 194, "group") for j in range(columns)]
    return "".join(parts)


def frame(cells: list[tuple[float, float]], side: float) -> tuple[list[float], list[float]]:
    "Mean and √3 standard deviations, along both axes, of a piece made of square cells."
    center = [sum(axis) / len(cells) for axis in zip(*cells)]
    spread = [
        sum((at - mean) ** 2 for at in axis) / len(cells) + side**2 / 12
        for axis, mean in zip(zip(*cells), center)
    ]
    return center, [math.sqrt(3 * variance) for variance in spread]


# ---------------------------------------------------------------- the drawings


def algorithm() -> Drawing:
    "Algorithm 1: what is computed once on the left, what is repeated on the right."
    parts = [
        words(82, 24, "inputs: *N* tokens"),
        *(rect(20 + i * 21, 34, 17, 17, "box", 3) for i in range(6)),
        words(280, 24, "slots: *K* vectors, random at first"),
        *(vector(i, 171 + i * 56, 34, 48) for i in range(4)),
        arrow((82, 54), (82, 84)),
        box(22, 86, 120, 34, "LayerNorm"),
        arrow((50, 122), (50, 152)),
        box(28, 154, 44, 34, "*v*"),
        arrow((50, 190), (50, 339), (84, 339)),
        words(56, 211, "values", "faint start"),
        arrow((114, 122), (114, 152)),
        box(92, 154, 44, 34, "*k*"),
        arrow((114, 190), (114, 222)),
        words(122, 211, "keys", "faint start"),
        arrow((280, 54), (280, 84)),
        box(220, 86, 120, 34, "LayerNorm"),
        arrow((280, 122), (280, 152)),
        box(258, 154, 44, 34, "*q*"),
        arrow((280, 190), (280, 222)),
        words(288, 211, "queries", "faint start"),
        box(86, 224, 266, 54, "softmax over the slots", "of the scores *k* · *q* / √*D*, Eq. (1)"),
        arrow((219, 280), (219, 310)),
        words(229, 299, "attention weights", "faint start"),
        box(86, 312, 266, 54, "weighted mean", "of the values, per slot, Eq. (2)"),
        arrow((219, 368), (219, 398)),
        words(229, 387, "updates", "faint start"),
        box(86, 400, 266, 54, "GRU", "state: slots before LayerNorm"),
        arrow((280, 68), (376, 68), (376, 427), (354, 427), joined=True),
        arrow((219, 456), (219, 486)),
        box(86, 488, 266, 54, "residual MLP", "slots + MLP(LayerNorm(slots))"),
        arrow((352, 515), (408, 515), (408, 43), (392, 43)),
        upward(427, 279, "repeated *T* times"),
        arrow((219, 544), (219, 576)),
        words(229, 564, "after *T* iterations", "faint start"),
        *(vector(i, 111 + i * 56, 580, 48) for i in range(4)),
    ]
    about = """The inputs go through a LayerNorm and give keys and values, once. In each of T
        iterations the slots go through a LayerNorm and give queries. A softmax over the slots turns
        the scores of keys and queries into attention weights. Each slot receives the mean of the
        values, weighted by its attention. A GRU, whose state is the slot, takes it in, and a
        residual MLP follows."""
    return Drawing("Slot Attention, Algorithm 1", about, 612, parts)


def autoencoder() -> Drawing:
    "The autoencoder of object discovery."
    at = [62, 167, 273, 378]
    parts = [from_image_to_slots(at)]
    parts += [arrow((x, 258), (x, 284)) for x in at]
    parts.append(box(14, 286, 412, 52, "decoder", "each slot on its own, with the same weights"))
    parts += [arrow((x, 340), (x, 366)) for x in at]
    for slot, x in enumerate(at):
        parts += [layer_image(slot, x - 37, 370, 74), layer_mask(slot, x - 37, 470, 74)]
    parts += [
        words(220, 462, "colors above, masks below: a pixel’s masks sum to 1", "faint"),
        *(arrow((x, 546), (x, 572)) for x in at),
        box(14, 574, 412, 40, "sum over the slots of mask × colors"),
        arrow((167, 616), (167, 642)),
        scene(123, 646, 88),
        words(224, 686, "reconstruction", "start"),
        words(224, 705, "loss: mean squared error", "faint start"),
    ]
    about = """An encoder turns the image into tokens, Slot Attention turns the tokens into slots.
        The same decoder turns each slot into an image and a mask: here three slots have a piece
        each, and one has the background. The masks of a pixel sum to one over the slots. The
        reconstruction is the sum of the images, weighted by the masks, and the loss is its squared
        error."""
    return Drawing("The autoencoder of object discovery", about, 748, parts)


def set_predictor() -> Drawing:
    "The set predictor, with an assignment that crosses."
    at = [62, 167, 273, 378]
    target_of = [1, 2, 0, 3]  # of each slot
    presence = ["0.97", "0.99", "0.94", "0.02"]
    parts = [from_image_to_slots(at)]
    parts += [arrow((x, 258), (x, 284)) for x in at]
    parts.append(box(14, 286, 412, 52, "MLP", "each slot on its own, with the same weights"))
    parts += [arrow((x, 340), (x, 366)) for x in at]
    for slot, x in enumerate(at):
        there = at[target_of[slot]]
        parts += [
            card(slot, x, 370, presence[slot]),
            arrow((x, 456), (there, 540), head=False),
            card(slot, there, 540, "0" if slot == 3 else "1"),
        ]
    parts += [
        words(308, 494, "matching", "strong"),
        words(308, 512, "at least cost", "faint"),
        words(220, 648, "targets: the objects in any order, and “none”", "faint"),
    ]
    about = """An encoder turns the image into tokens, Slot Attention turns the tokens into slots.
        The same MLP predicts an object from each slot: its properties, and whether it is there. The
        loss matches predictions and targets at the least total cost. The lines cross, since neither
        slots nor targets have an order. The fourth slot predicts that there is no object."""
    return Drawing("The set predictor", about, 664, parts)


def softmax_axis() -> Drawing:
    "The axis of the softmax: the same scores, normalized over the tokens and over the slots."
    scores = [[3.0, 0.5, 0.0], [2.5, 0.0, 0.5], [0.0, 3.0, 0.5], [0.5, 0.0, 3.0], [0.0, 0.2, -0.4]]
    over_slots = [softmax(row) for row in scores]
    over_tokens = transpose([softmax(column) for column in transpose(scores)])
    parts = [
        words(114, 22, "ordinary attention", "strong"),
        words(114, 42, "softmax over the tokens", "faint"),
        upward(16, 201, "tokens"),
        words(114, 68, "slots", "faint"),
        matrix(45, 104, over_tokens, over_slots=False),
        words(114, 352, "each slot chooses"),
        words(114, 371, "among all tokens"),
        words(323, 22, "Slot Attention", "strong"),
        words(323, 42, "softmax over the slots", "faint"),
        words(323, 68, "slots", "faint"),
        matrix(254, 104, over_slots, over_slots=True),
        words(323, 352, "the slots compete"),
        words(323, 371, "for each token"),
    ]
    about = """The same scores of five tokens and three slots, normalized in two ways. On the left,
        ordinary attention: the weights of each slot, a column, sum to one over the tokens, and the
        last token gets little from any slot. On the right, Slot Attention: the weights of each
        token, a row, sum to one over the slots, and the last token is shared."""
    return Drawing("The axis of the softmax", about, 386, parts)


def frame_of_a_slot() -> Drawing:
    "Two equal pieces of different place and size, and what each slot sees of its own."
    left, top, side, unit, middle = 14, 34, 216, 34, 356
    parts = [
        words(122, 22, "in the image", "strong"),
        words(356, 22, "seen from its slot", "strong"),
        rect(left, top, side, side, "tile"),
    ]
    # where in an image of side 1, and the side of a cell
    for slot, (column, row, cell) in enumerate(((0.07, 0.09, 0.1), (0.46, 0.5, 0.15))):
        cells = [(column + cell * (c + 0.5), row + cell * (r + 0.5)) for c, r in PIECES[0]]
        center, reach = frame(cells, cell)
        x, y, w, h = (side * at for at in (*center, *reach))
        x, y = x + left, y + top
        parts += [
            piece(0, left + side * column, top + side * row, side * cell, f"c{slot}"),
            rect(x - w, y - h, 2 * w, 2 * h, "dashed"),
            cross(x, y),
            arrow((x + w + 4, y), (302, y)),
            rect(306, y - 50, 100, 100, "tile"),
        ]
        for a, b in cells:  # the frame's own coordinates: its box reaches from -1 to 1
            u, v = (a - center[0]) / reach[0], (b - center[1]) / reach[1]
            across, down = unit * cell / reach[0], unit * cell / reach[1]
            u, v = middle + unit * u - across / 2, y + unit * v - down / 2
            parts.append(rect(u, v, across, down, f"c{slot}"))
        parts += [rect(middle - unit, y - unit, 2 * unit, 2 * unit, "dashed"), cross(middle, y)]
    parts += [
        *(
            words(middle + unit * at, 268, text, "faint")
            for at, text in ((-1, "−1"), (0, "0"), (1, "1"))
        ),
        words(122, 274, "cross: the position *p*"),
        words(122, 294, "half a side: √3 · scale *s*", "faint"),
        words(356, 294, "*u* = (*x* − *p*) / (√3 *s*)"),
    ]
    about = """Left, an image with the same piece twice, small and large. Each has a cross at its
        mean, the position of its slot, and a dashed box, whose size is the scale of the slot.
        Right, each piece in the coordinates of its own slot: the two look the same."""
    return Drawing("The frame of a slot", about, 310, parts)


def three_models() -> Drawing:
    "MONet, IODINE and Slot Attention: how each comes from an image to its slots and back."
    texts = (
        ("MONet", "attention net", "VAE encoder", "VAE decoder", "slots in turn,", "decoded once"),
        ("IODINE", "", "refinement", "decoder", "slots together,", "decoded *T* times"),
        (
            "Slot Attention",
            "encoder",
            "Slot Attention",
            "decoder",
            "slots together,",
            "decoded once",
        ),
    )
    parts = []
    for column, (name, first, second, third, *said) in enumerate(texts):
        x = 4 + 147 * column
        middle = x + 56
        parts += [
            words(middle, 22, name, "strong"),
            scene(middle - 26, 34, 52),
            arrow((middle, 88), (middle, 112 if first else 174)),
            box(x, 114, 112, 36, first) + arrow((middle, 152), (middle, 174)) if first else "",
            box(x, 176, 112, 36, second),
            arrow((middle, 214), (middle, 236)),
            *(rect(x + 4 + 27 * i, 240, 22, 16, f"c{i}", 2) for i in range(4)),
            arrow((middle, 258), (middle, 280)),
            box(x, 282, 112, 36, third),
            arrow((middle, 320), (middle, 342)),
            *(layer_image(i, x + 28.6 * i, 346, 26) for i in range(4)),
            arrow((middle, 374), (middle, 396)),
            box(x, 398, 112, 36, "mixture"),
            *(words(middle, 460 + 19 * i, line, "faint") for i, line in enumerate(said)),
        ]
    parts += [
        words(68, 168, "masks", "faint start"),
        around(116, 132, 132, "*K* steps"),
        around(263, 416, 194, "*T* times"),
        around(410, 194, 194, "*T* times"),
    ]
    about = """Three ways from an image to slots and back. MONet: an attention network finds one
        mask after another, and a VAE encodes and decodes each masked part. IODINE: all slots are
        decoded, and a network refines them by the error of the mixture, again and again. Slot
        Attention: an encoder once, then the slots compete for its features again and again, and
        are decoded once."""
    return Drawing("MONet, IODINE and Slot Attention", about, 494, parts)


DRAWINGS = {
    "algorithm": algorithm,
    "autoencoder": autoencoder,
    "set_predictor": set_predictor,
    "softmax_axis": softmax_axis,
    "frame_of_a_slot": frame_of_a_slot,
    "three_models": three_models,
}


# ---------------------------------------------------------------- files


def draw(name: str) -> str:
    "The text of a drawing's file."
    drawing = DRAWINGS[name]()
    about = html.escape(" ".join(drawing.about.split()))
    body = "".join(drawing.parts).replace("><", ">\n<").replace(">\n</text", "></text")
    return f"""<svg xmlns="http://www.w3.org/2000/svg" class="drawing" role="img" \
aria-labelledby="{name}-title" aria-describedby="{name}-about" \
viewBox="0 0 {WIDTH} {drawing.height}" \
width="{SHOWN}" height="{SHOWN * drawing.height / WIDTH:.0f}">
<title id="{name}-title">{html.escape(drawing.title)}</title>
<desc id="{name}-about">{about}</desc>
<style>{SCHEME}</style>
<style>{LOOK}</style>
{rect(0, 0, WIDTH, drawing.height, "paper", 8)}
{body}
</svg>
"""


def inline(name: str, alt: str) -> str:
    """A drawing to stand in an HTML page that gives `.drawing` the colors of `SCHEME`.

    Its text for those who do not see it is the one of the page.
    """
    text = draw(name).replace(f"<style>{SCHEME}</style>\n", "")
    text = re.sub(r"<title .*</title>\n<desc .*</desc>\n", "", text)
    labels = f'aria-labelledby="{name}-title" aria-describedby="{name}-about"'
    return text.replace(labels, f'aria-label="{html.escape(alt)}"')


def main() -> int | str:
    texts = {IMAGES / f"{name}.svg": draw(name) for name in DRAWINGS}
    if "--check" in sys.argv:
        stale = [
            path.name
            for path, text in texts.items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]
        stale += [path.name for path in IMAGES.glob("*.svg") if path not in texts]
        return f"not what scripts/drawings.py draws: {', '.join(stale)}" if stale else 0
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
