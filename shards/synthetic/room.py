"""A furnished room from (seed, index): a box of walls, pieces on its floor that do not touch, and one spot kept free.

World frame: metres, z up, the floor at z = 0, the origin in the middle of the floor.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.schema import Matrix
from shards.synthetic.draws import DECIMALS, Purpose, generator
from shards.synthetic.furniture import FURNITURE_NAMES, LABEL_NAMES, NUM_SLOTS, Piece, Vector, build_piece

# The six inner faces of the room are the first surfaces; face 2 * axis + 1 is the one at the positive end of the axis.
NUM_FACES = 6
_FACE_LABELS = ("wall", "wall", "wall", "wall", "floor", "ceiling")
_NUM_PIECES = (8, 14)  # low, high (exclusive)
_GAP = 0.06  # metres between the outlines of two pieces, parallel to the walls
_WALL_GAP = 0.02
_PLACING_TRIES = 25
FREE_RADIUS = 0.55  # of the spot where no piece stands: a camera always finds room there
_AT_WALLS = {"wardrobe", "bookshelf", "bed", "sofa", "bathtub", "television"}
_AT_WALL_SHARE = {True: 0.75, False: 0.25}  # of the pieces that belong to a wall, and of the others


@dataclass(frozen=True, eq=False)
class Solids:
    """All parts of all pieces of a room, in world coordinates.

    Attributes:
        shape: (P,) uint8, values of `furniture.Shape`.
        center: (P, 3) metres.
        half_size: (P, 3) metres, along the part's own axes.
        cos_yaw: (P,) of the turn about z that takes the part's axes to the world's.
        sin_yaw: (P,).
    """

    shape: NDArray[np.uint8]
    center: NDArray[np.float64]
    half_size: NDArray[np.float64]
    cos_yaw: NDArray[np.float64]
    sin_yaw: NDArray[np.float64]


@dataclass(frozen=True)
class RoomObject:
    """One piece of furniture in its place.

    Attributes:
        instance_id: 1, 2, ... in a room.
        label_id: position of its class in LABEL_NAMES.
        position: (x, y) of the middle of its box, metres, world.
        yaw: turn of its own axes in the world, radians.
        size: full extents of the box around its parts along its own axes, metres; the box stands on the floor.
    """

    instance_id: int
    label_id: int
    position: tuple[float, float]
    yaw: float
    size: Vector

    @property
    def label(self) -> str:
        """Its class name."""
        return LABEL_NAMES[self.label_id]

    @property
    def turn(self) -> tuple[float, float]:
        """Cosine and sine of its yaw."""
        cos, sin = round(math.cos(self.yaw), DECIMALS), round(math.sin(self.yaw), DECIMALS)
        length = math.sqrt(cos * cos + sin * sin)
        return cos / length, sin / length

    @property
    def world_from_box(self) -> Matrix:
        """(4, 4) rigid, metres: from the box, centred on its own origin, to the world."""
        matrix = np.eye(4)
        cos, sin = self.turn
        matrix[:2, :2] = [[cos, -sin], [sin, cos]]
        matrix[:3, 3] = [*self.position, self.size[2] / 2]
        return matrix


@dataclass(frozen=True, eq=False)
class Room:
    """The geometry of a room. Surfaces are its six inner faces and then its solids: surface NUM_FACES + p is solid p.

    Attributes:
        seed: seed of the series of rooms.
        room_index: in the series.
        low: (3,) corner of the inside, metres, world.
        high: (3,) opposite corner.
        solids: all parts of the furniture.
        objects: the furniture, by instance id.
        free_spot: (x, y) around which FREE_RADIUS is free of furniture.
        label_of_surface: (NUM_FACES + P,) uint8, positions in LABEL_NAMES.
        instance_of_surface: (NUM_FACES + P,) uint16, 0 for the room itself.
        slot_of_surface: (NUM_FACES + P,) int64; surfaces of one slot share a material.
    """

    seed: int
    room_index: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    solids: Solids
    objects: tuple[RoomObject, ...]
    free_spot: tuple[float, float]
    label_of_surface: NDArray[np.uint8]
    instance_of_surface: NDArray[np.uint16]
    slot_of_surface: NDArray[np.int64]


def build_room(seed: int, room_index: int, furniture: int = 100) -> Room:
    """The room that (seed, room_index) stands for: always the same one.

    Args:
        furniture: size of the pieces, per cent of what is usual; another size is another room.
    """
    rng = generator(seed, room_index, Purpose.LAYOUT)
    half_x, half_y = rng.uniform(1.6, 2.5), rng.uniform(1.6, 2.3)
    height = rng.uniform(2.4, 2.8)
    margin = FREE_RADIUS + 0.05
    free_spot = (rng.uniform(margin - half_x, half_x - margin), rng.uniform(margin - half_y, half_y - margin))
    # Every class is as likely as any other to be tried, and none is tried a third time.
    names = [FURNITURE_NAMES[i] for _ in range(2) for i in rng.permutation(len(FURNITURE_NAMES))]
    pieces = [build_piece(name, rng, furniture) for name in names]
    num_pieces = int(rng.integers(*_NUM_PIECES))
    # Large ones tend to go first: in any order two of three beds find no room, strictly by size they fill the views.
    pieces[:num_pieces] = sorted(
        pieces[:num_pieces], key=lambda piece: -piece.size[0] * piece.size[1] * rng.uniform(0.05, 1)
    )
    outlines = [_Outline(*free_spot, FREE_RADIUS - _GAP, FREE_RADIUS - _GAP)]
    placed: list[tuple[Piece, RoomObject]] = []
    for piece in pieces:
        if len(placed) == num_pieces:
            break
        at_wall_share = _AT_WALL_SHARE[piece.name in _AT_WALLS]
        place = _place(piece, half_x, half_y, outlines, at_wall_share, rng)
        if place is None:
            continue
        outlines.append(place.outline)
        label_id = LABEL_NAMES.index(piece.name)
        position = (round(place.outline.x, DECIMALS), round(place.outline.y, DECIMALS))
        placed.append((piece, RoomObject(len(placed) + 1, label_id, position, place.yaw, piece.size)))
    return Room(
        seed=seed,
        room_index=room_index,
        low=np.array([-half_x, -half_y, 0.0]),
        high=np.array([half_x, half_y, height]),
        solids=_solids(placed),
        objects=tuple(one for _, one in placed),
        free_spot=free_spot,
        label_of_surface=np.array(
            [LABEL_NAMES.index(name) for name in _FACE_LABELS] + [one.label_id for p, one in placed for _ in p.parts],
            dtype=np.uint8,
        ),
        instance_of_surface=np.array(
            [0] * NUM_FACES + [one.instance_id for piece, one in placed for _ in piece.parts], dtype=np.uint16
        ),
        slot_of_surface=np.array(
            [*range(NUM_FACES)]
            + [NUM_SLOTS * one.instance_id + part.slot for piece, one in placed for part in piece.parts]
        ),
    )


@dataclass(frozen=True)
class _Outline:
    """The rectangle, parallel to the walls, that a piece takes of the floor: middle and half extents, metres."""

    x: float
    y: float
    half_x: float
    half_y: float

    def is_clear_of(self, other: "_Outline") -> bool:
        return (
            abs(self.x - other.x) > self.half_x + other.half_x + _GAP
            or abs(self.y - other.y) > self.half_y + other.half_y + _GAP
        )


@dataclass(frozen=True)
class _Place:
    outline: _Outline
    yaw: float


def _place(
    piece: Piece,
    half_x: float,
    half_y: float,
    taken: list[_Outline],
    at_wall_share: float,
    rng: np.random.Generator,
) -> _Place | None:
    """A place on the floor (of half extents half_x, half_y) clear of the others; None where none was found."""
    for _ in range(_PLACING_TRIES):
        wall = int(rng.integers(4)) if rng.random() < at_wall_share else None
        yaw = rng.uniform(0, 2 * math.pi) if wall is None else wall * math.pi / 2
        cos, sin = abs(math.cos(yaw)), abs(math.sin(yaw))
        piece_x = (cos * piece.size[0] + sin * piece.size[1]) / 2
        piece_y = (sin * piece.size[0] + cos * piece.size[1]) / 2
        room_x, room_y = half_x - piece_x - _WALL_GAP, half_y - piece_y - _WALL_GAP
        if room_x <= 0 or room_y <= 0:
            continue
        x, y = rng.uniform(-room_x, room_x), rng.uniform(-room_y, room_y)
        if wall is not None:  # its back, +y of the piece, stands at that wall
            x = {1: -room_x, 3: room_x}.get(wall, x)
            y = {0: room_y, 2: -room_y}.get(wall, y)
        outline = _Outline(x, y, piece_x, piece_y)
        if all(outline.is_clear_of(other) for other in taken):
            return _Place(outline, yaw)
    return None


def _solids(placed: list[tuple[Piece, RoomObject]]) -> Solids:
    parts = [(part, one) for piece, one in placed for part in piece.parts]
    cos, sin = np.array([one.turn for _, one in parts]).reshape(-1, 2).T
    local = np.array([part.center for part, _ in parts]).reshape(-1, 3)
    origin = np.array([one.position for _, one in parts]).reshape(-1, 2)
    center = np.stack(
        [
            origin[:, 0] + cos * local[:, 0] - sin * local[:, 1],
            origin[:, 1] + sin * local[:, 0] + cos * local[:, 1],
            local[:, 2],
        ],
        axis=1,
    )
    return Solids(
        shape=np.array([part.shape for part, _ in parts], dtype=np.uint8),
        center=center,
        half_size=np.array([part.half_size for part, _ in parts]).reshape(-1, 3),
        cos_yaw=cos,
        sin_yaw=sin,
    )
