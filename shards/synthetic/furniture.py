"""What pieces of furniture are made of: boxes, upright cylinders and ellipsoids, drawn anew for every piece.

A piece has its own frame: x to the right, y to the back (the side that stands at a wall), z up, the origin on the floor
below the middle. All parts are parallel to its axes. Classes differ in shape alone: parts name a material slot, and
what colour a slot has is drawn elsewhere without knowing the class.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from shards.synthetic.draws import DECIMALS

Vector = tuple[float, float, float]


class Shape(IntEnum):
    """The solids that rays are cast at; each fills a box of twice its `half_size`."""

    BOX = 0
    CYLINDER = 1  # upright, elliptic where half_size differs in x and y
    ELLIPSOID = 2


@dataclass(frozen=True)
class Part:
    """One solid of a piece of furniture.

    Attributes:
        shape: which solid.
        center: metres, frame of the piece.
        half_size: half extents along the axes of the piece, metres.
        slot: parts of one slot share a material.
    """

    shape: Shape
    center: Vector
    half_size: Vector
    slot: int = 0


@dataclass(frozen=True)
class Piece:
    """A piece of furniture standing on the floor, its bounding box centred above the origin.

    Attributes:
        name: its class.
        parts: at least one.
        size: full extents of the box around all parts, metres.
    """

    name: str
    parts: tuple[Part, ...]
    size: Vector


def build_piece(name: str, rng: np.random.Generator, percent: int = 100) -> Piece:
    """Draw a piece of the class `name`, one of FURNITURE_NAMES, and give it so much of the size that was drawn."""
    parts = list(_BUILDERS[name](rng))
    if percent != 100:
        parts = [_resized(part, percent / 100) for part in parts]
    low = np.min([np.subtract(part.center, part.half_size) for part in parts], axis=0)
    high = np.max([np.add(part.center, part.half_size) for part in parts], axis=0)
    shift = np.array([*(-(low + high)[:2] / 2), -low[2]])
    centered = tuple(replace(part, center=_vector(np.add(part.center, shift).round(DECIMALS))) for part in parts)
    return Piece(name, centered, _vector(high - low))


def _resized(part: Part, factor: float) -> Part:
    center, half_size = np.multiply(part.center, factor), np.multiply(part.half_size, factor)
    return replace(part, center=_vector(center), half_size=_vector(half_size.round(DECIMALS)))


def _vector(array: np.ndarray) -> Vector:
    x, y, z = array.tolist()
    return x, y, z


def _box(x: float, y: float, z: float, half_x: float, half_y: float, half_z: float, slot: int = 0) -> Part:
    return Part(Shape.BOX, (x, y, z), (half_x, half_y, half_z), slot)


def _cylinder(x: float, y: float, z: float, radius: float, half_z: float, slot: int = 0) -> Part:
    return Part(Shape.CYLINDER, (x, y, z), (radius, radius, half_z), slot)


def _ellipsoid(x: float, y: float, z: float, half_x: float, half_y: float, half_z: float, slot: int = 0) -> Part:
    return Part(Shape.ELLIPSOID, (x, y, z), (half_x, half_y, half_z), slot)


def _legs(half_x: float, half_y: float, height: float, half_width: float, round_legs: bool) -> Iterator[Part]:
    """Four legs whose outer sides are at half_x and half_y."""
    for x in (half_width - half_x, half_x - half_width):
        for y in (half_width - half_y, half_y - half_width):
            if round_legs:
                yield _cylinder(x, y, height / 2, half_width, height / 2, slot=1)
            else:
                yield _box(x, y, height / 2, half_width, half_width, height / 2, slot=1)


def _chair(rng: np.random.Generator) -> Iterator[Part]:
    half_width = rng.uniform(0.2, 0.26)
    seat = rng.uniform(0.4, 0.48)
    back = rng.uniform(0.35, 0.55)
    back_y = half_width - 0.02
    yield from _legs(half_width, half_width, seat, 0.02, rng.random() < 0.5)
    yield _box(0, 0, seat + 0.025, half_width, half_width, 0.025)
    if rng.random() < 0.5:
        yield _box(0, back_y, seat + 0.05 + back / 2, half_width, 0.02, back / 2)
        return
    for x in (0.02 - half_width, half_width - 0.02):
        yield _box(x, back_y, seat + 0.05 + back / 2, 0.02, 0.02, back / 2, slot=1)
    for share in (0.45, 0.85):
        yield _box(0, back_y, seat + 0.05 + back * share, half_width - 0.04, 0.015, 0.06)


def _table(rng: np.random.Generator) -> Iterator[Part]:
    height = rng.uniform(0.68, 0.78)
    if rng.random() < 0.7:
        half_x, half_y = rng.uniform(0.5, 0.85), rng.uniform(0.35, 0.5)
        yield from _legs(half_x * 0.95, half_y * 0.95, height, rng.uniform(0.025, 0.045), rng.random() < 0.5)
        yield _box(0, 0, height + 0.02, half_x, half_y, 0.02)
    else:
        radius = rng.uniform(0.4, 0.55)
        yield _cylinder(0, 0, 0.02, radius * 0.55, 0.02, slot=1)
        yield _cylinder(0, 0, height / 2, 0.05, height / 2, slot=1)
        yield _cylinder(0, 0, height + 0.02, radius, 0.02)


def _bed(rng: np.random.Generator) -> Iterator[Part]:
    half_x, half_y = rng.uniform(0.45, 0.8), rng.uniform(0.95, 1.05)
    frame = rng.uniform(0.22, 0.32)
    head = rng.uniform(0.4, 0.5)
    yield _box(0, 0, frame / 2, half_x, half_y, frame / 2, slot=1)
    yield _box(0, 0, frame + 0.1, half_x * 0.97, half_y * 0.97, 0.1)
    yield _box(0, half_y + 0.03, head, half_x, 0.03, head, slot=1)
    for x in (-0.48 * half_x, 0.48 * half_x) if half_x > 0.6 else (0.0,):
        yield _ellipsoid(x, 0.72 * half_y, frame + 0.22, 0.38 * half_x if half_x > 0.6 else 0.3, 0.2, 0.08, slot=2)


def _sofa(rng: np.random.Generator) -> Iterator[Part]:
    half_x, half_y = rng.uniform(0.7, 1.05), rng.uniform(0.38, 0.46)
    seat = rng.uniform(0.3, 0.36)
    back = rng.uniform(0.38, 0.46)
    arm = rng.uniform(0.06, 0.09)
    num_cushions = 2 if half_x < 0.9 else 3
    yield _box(0, 0, seat / 2, half_x, half_y, seat / 2)
    yield _box(0, half_y - 0.1, back, half_x, 0.1, back)
    for x in (arm - half_x, half_x - arm):
        yield _box(x, 0, 0.29, arm, half_y, 0.29)
    cushion = (half_x - 2 * arm) / num_cushions
    for i in range(num_cushions):
        x = (2 * i + 1 - num_cushions) * cushion
        yield _box(x, -0.1, seat + 0.06, cushion * 0.97, half_y - 0.1, 0.06, slot=1)
    for x in (2 * arm - half_x + 0.18, half_x - 2 * arm - 0.18)[: int(rng.integers(0, 3))]:
        yield _ellipsoid(x, half_y - 0.28, seat + 0.28, 0.17, 0.08, 0.17, slot=2)


def _wardrobe(rng: np.random.Generator) -> Iterator[Part]:
    half_x, half_y = rng.uniform(0.45, 0.75), rng.uniform(0.27, 0.33)
    height = rng.uniform(1.7, 2.1)
    yield _box(0, 0, 0.04, half_x * 0.97, half_y * 0.94, 0.04, slot=1)
    yield _box(0, 0, height / 2 + 0.04, half_x, half_y, height / 2 - 0.04)
    for side in (-1, 1):  # doors stand proud of the body, with a gap between them
        yield _box(side * half_x / 2, -half_y - 0.008, height / 2 + 0.04, half_x / 2 - 0.012, 0.008, height / 2 - 0.08)
        yield _box(side * 0.06, -half_y - 0.03, height * 0.5, 0.012, 0.014, 0.1, slot=1)


def _bookshelf(rng: np.random.Generator) -> Iterator[Part]:
    half_x, half_y = rng.uniform(0.4, 0.6), rng.uniform(0.13, 0.18)
    height = rng.uniform(1.3, 2.0)
    num_shelves = int(rng.integers(4, 6))
    pitch = (height - 0.06) / num_shelves
    for x in (0.02 - half_x, half_x - 0.02):
        yield _box(x, 0, height / 2, 0.02, half_y, height / 2)
    yield _box(0, half_y - 0.01, height / 2, half_x - 0.04, 0.01, height / 2)
    for i in range(num_shelves + 1):
        board = 0.03 + i * pitch
        yield _box(0, -0.01, board, half_x - 0.04, half_y - 0.01, 0.018)
        if i < num_shelves:
            yield from _books(rng, half_x - 0.05, half_y, board + 0.018, pitch - 0.036)


def _books(rng: np.random.Generator, half_x: float, half_y: float, bottom: float, space: float) -> Iterator[Part]:
    """A row of blocks on a board, with gaps; each is a few books of one colour."""
    x = -half_x
    while (half_width := rng.uniform(0.03, 0.1)) and x + 2 * half_width < half_x:
        if rng.random() < 0.75:
            half_height = space * rng.uniform(0.5, 0.85) / 2
            depth = half_y * rng.uniform(0.6, 0.8)
            y = half_y - 0.03 - depth
            yield _box(x + half_width, y, bottom + half_height, half_width * 0.95, depth, half_height, 2 + _slot(rng))
        x += 2 * half_width


def _slot(rng: np.random.Generator) -> int:
    return int(rng.integers(0, 6))


def _lamp(rng: np.random.Generator) -> Iterator[Part]:
    height = rng.uniform(1.2, 1.6)
    yield _cylinder(0, 0, 0.02, rng.uniform(0.13, 0.18), 0.02, slot=1)
    yield _cylinder(0, 0, height / 2, 0.018, height / 2, slot=1)
    half_height = rng.uniform(0.1, 0.17)
    radius = rng.uniform(0.15, 0.24)
    for i in range(4):  # a shade that narrows to the top, in steps
        step = half_height / 4
        yield _cylinder(0, 0, height - 0.05 + (2 * i + 1) * step, radius * (1 - 0.13 * i), step)


def _bin(rng: np.random.Generator) -> Iterator[Part]:
    radius = rng.uniform(0.15, 0.23)
    height = rng.uniform(0.35, 0.6)
    yield _cylinder(0, 0, height / 2, radius, height / 2)
    yield _cylinder(0, 0, height + 0.02, radius * 1.1, 0.025, slot=1)
    if rng.random() < 0.5:
        yield _ellipsoid(0, 0, height + 0.045, radius * 0.95, radius * 0.95, 0.07, slot=1)


def _bathtub(rng: np.random.Generator) -> Iterator[Part]:
    half_x, half_y = rng.uniform(0.35, 0.42), rng.uniform(0.7, 0.85)
    height = rng.uniform(0.5, 0.6)
    for x in (0.05 - half_x, half_x - 0.05):
        yield _box(x, 0, height / 2, 0.05, half_y, height / 2)
    for y in (0.05 - half_y, half_y - 0.05):
        yield _box(0, y, height / 2, half_x - 0.1, 0.05, height / 2)
    yield _box(0, 0, 0.09, half_x - 0.1, half_y - 0.1, 0.09)
    yield _cylinder(0, half_y - 0.05, height + 0.1, 0.02, 0.1, slot=1)
    yield _box(0, half_y - 0.13, height + 0.19, 0.018, 0.1, 0.018, slot=1)


def _plant(rng: np.random.Generator) -> Iterator[Part]:
    radius = rng.uniform(0.13, 0.2)
    height = rng.uniform(0.22, 0.35)
    yield _cylinder(0, 0, height / 2, radius, height / 2, slot=1)
    yield _cylinder(0, 0, height + 0.15, 0.02, 0.2, slot=2)
    for _ in range(int(rng.integers(6, 11))):
        x, y = rng.uniform(-0.2, 0.2, 2).tolist()
        leaf_x, leaf_y, leaf_z = rng.uniform(0.07, 0.19, 3).tolist()
        yield _ellipsoid(x, y, height + rng.uniform(0.2, 0.7), leaf_x, leaf_y, leaf_z)


def _stool(rng: np.random.Generator) -> Iterator[Part]:
    radius = rng.uniform(0.16, 0.21)
    height = rng.uniform(0.42, 0.65)
    num_legs = int(rng.integers(3, 5))
    yield _cylinder(0, 0, height, radius, 0.025)
    for i in range(num_legs):
        angle = 2 * math.pi * i / num_legs
        x, y = radius * 0.75 * math.cos(angle), radius * 0.75 * math.sin(angle)
        yield _cylinder(x, y, height / 2, 0.018, height / 2, slot=1)
    yield _cylinder(0, 0, height * 0.4, radius * 0.75, 0.012, slot=1)


def _television(rng: np.random.Generator) -> Iterator[Part]:
    half_x, half_z = rng.uniform(0.4, 0.6), rng.uniform(0.25, 0.36)
    bottom = rng.uniform(0.5, 0.65)
    yield _box(0, 0, bottom + half_z, half_x, 0.03, half_z)
    yield _box(0, -0.034, bottom + half_z, half_x * 0.93, 0.004, half_z * 0.9, slot=1)
    yield _box(0, 0, bottom / 2, 0.04, 0.025, bottom / 2, slot=2)
    yield _box(0, 0, 0.02, half_x * 0.5, 0.16, 0.02, slot=2)


_BUILDERS: dict[str, Callable[[np.random.Generator], Iterator[Part]]] = {
    "chair": _chair,
    "table": _table,
    "bed": _bed,
    "sofa": _sofa,
    "wardrobe": _wardrobe,
    "bookshelf": _bookshelf,
    "lamp": _lamp,
    "bin": _bin,
    "bathtub": _bathtub,
    "plant": _plant,
    "stool": _stool,
    "television": _television,
}
FURNITURE_NAMES = tuple(_BUILDERS)
# Class ids in label images are positions in this list. The order is part of packed datasets: append only.
STRUCTURE_NAMES = ("wall", "floor", "ceiling")
LABEL_NAMES = ("unlabelled", *STRUCTURE_NAMES, *FURNITURE_NAMES)
NUM_SLOTS = 8  # material slots that a part may name
