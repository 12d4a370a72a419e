"""Colours that say nothing about classes: albedo and texture are drawn for a material without knowing what it is for.

Muted albedo, weak texture and a directional light over little ambient light: with saturated colours, strong texture and
soft light no image tower learned shape in minutes (the trial in PLATFORM.md). The light comes from any side, below
included: from above, brightness would tell floors from ceilings.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from shards.synthetic.draws import Purpose, generator
from shards.synthetic.raycast import Render
from shards.synthetic.room import Room

_PALETTE = np.array(
    [
        (0.80, 0.15, 0.15),
        (0.20, 0.65, 0.25),
        (0.20, 0.30, 0.80),
        (0.85, 0.80, 0.20),
        (0.90, 0.90, 0.88),
        (0.15, 0.15, 0.16),
        (0.50, 0.33, 0.20),
        (0.50, 0.50, 0.52),
        (0.90, 0.50, 0.15),
        (0.55, 0.25, 0.65),
    ]
)
_MEAN_ALBEDO = 0.66
_CONTRAST = 0.42  # of albedos around the mean: 1 would be the palette itself
_TEXTURED_SHARE = 0.5
_COLOR_NOISE = 0.015  # standard deviation, of a full scale of 1
_GAIN = (1.1, 1.5)


class Pattern(IntEnum):
    """What a texture looks like, in the frame of its surface."""

    PLAIN = 0
    SLANTED = 1
    CHECKED = 2
    STRIPED = 3


@dataclass(frozen=True, eq=False)
class Appearance:
    """Materials and light of a room.

    Attributes:
        albedo: (S, 3) of every surface, 0 to 1.
        pattern: (S,) values of Pattern.
        frequency: (S,) of the pattern, radians per metre.
        amplitude: (S,) of the pattern, as a share of the albedo.
        lights: (2, 3) world, towards the main light and a weaker one on the other side; lengths are their shares of
            the light.
        ambient: share of the light that reaches every surface.
    """

    albedo: NDArray[np.float64]
    pattern: NDArray[np.int64]
    frequency: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    lights: NDArray[np.float64]
    ambient: float


def draw_appearance(room: Room) -> Appearance:
    """The materials of all surfaces and the light; depends on the seed and index of the room alone."""
    rng = generator(room.seed, room.room_index, Purpose.MATERIALS)
    num_slots = int(room.slot_of_surface.max()) + 1
    hues = _PALETTE[rng.integers(len(_PALETTE), size=num_slots)]
    albedo = _MEAN_ALBEDO + _CONTRAST * (hues - 0.5) + rng.normal(0, 0.05, (num_slots, 3))
    pattern = np.where(rng.random(num_slots) < _TEXTURED_SHARE, rng.integers(len(Pattern), size=num_slots), 0)
    frequency = rng.uniform(4, 18, num_slots)
    amplitude = rng.uniform(0.02, 0.08, num_slots)
    rng = generator(room.seed, room.room_index, Purpose.LIGHT)
    main, fill = _direction(rng), _direction(rng)
    if (main * fill).sum() > 0:
        fill = -fill
    ambient, fill_share = rng.uniform(0.15, 0.25), rng.uniform(0.2, 0.35)
    slot = room.slot_of_surface
    return Appearance(
        albedo=np.clip(albedo, 0.05, 0.97)[slot],
        pattern=pattern[slot],
        frequency=frequency[slot],
        amplitude=amplitude[slot],
        lights=np.stack([main * (1 - ambient - fill_share), fill * fill_share]),
        ambient=ambient,
    )


def color_image(render: Render, appearance: Appearance, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Take a picture.

    Args:
        render: what is seen.
        appearance: look of the same room.
        rng: draws the gain of the picture and the noise of its pixels.

    Returns:
        (H, W, 3) uint8.
    """
    brightness = _shading(render, appearance) * (1 + _texture(render, appearance)) * rng.uniform(*_GAIN)
    color = appearance.albedo[render.surface] * brightness[..., None]
    color += _COLOR_NOISE * rng.standard_normal(color.shape, dtype=np.float32)
    return np.rint(np.clip(color, 0, 1) * 255).astype(np.uint8)


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """(3,) unit, uniform on the sphere."""
    up, around = rng.uniform(-1, 1), rng.uniform(0, 2 * math.pi)
    level = math.sqrt(1 - up * up)
    return np.array([level * math.cos(around), level * math.sin(around), up])


def _shading(render: Render, appearance: Appearance) -> NDArray[np.float64]:
    """(H, W) light that a surface sends back, as a share of its albedo."""
    shading = np.full(render.surface.shape, appearance.ambient)
    for light in appearance.lights:
        strength = math.sqrt((light**2).sum())
        x, y, z = light / strength
        facing = render.normals[..., 0] * x + render.normals[..., 1] * y + render.normals[..., 2] * z
        wrapped = np.clip(0.5 + 0.5 * facing, 0.0, 1.0)  # no side is quite dark, as between bright walls
        shading += strength * wrapped * np.sqrt(wrapped)
    return shading


def _texture(render: Render, appearance: Appearance) -> NDArray[np.float64]:
    """(H, W) relative change of the albedo."""
    texture = np.zeros(render.surface.shape)
    pattern = appearance.pattern[render.surface]
    patterned = pattern != Pattern.PLAIN
    surface, pattern = render.surface[patterned], pattern[patterned]
    x, y, z = (render.surface_points[patterned] * appearance.frequency[surface, None]).T
    wave = np.empty(len(surface))
    for kind, value in (
        (Pattern.SLANTED, lambda i: np.sin(x[i] + 0.3 * z[i] + 0.5 * y[i])),
        (Pattern.CHECKED, lambda i: np.sign(np.sin(x[i] + 0.3) * np.sin(y[i] + 0.5) * np.sin(z[i] + 0.7))),
        (Pattern.STRIPED, lambda i: np.sin(z[i] + 0.2 * (x[i] + y[i]))),
    ):
        chosen = pattern == kind
        wave[chosen] = value(chosen)
    texture[patterned] = wave * appearance.amplitude[surface]
    return texture
