"""A room as a picture: what is in sight, what hides what, and that every colouring shows the same points."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from commands.pages.palette import color_labels
from commands.pages.scene_view import CUT_HEIGHT, ColoredBox, RoomView

WIDTH, HEIGHT = 120, 90


@pytest.fixture
def room() -> NDArray[np.float32]:
    """A floor of 4 m x 3 m, four walls of 2.6 m and a ceiling, points 5 cm apart."""
    x, y, z = np.arange(0, 4.01, 0.05), np.arange(0, 3.01, 0.05), np.arange(0, 2.61, 0.05)
    sides = [np.meshgrid(x, y, [0.0, 2.6]), np.meshgrid([0.0, 4.0], y, z), np.meshgrid(x, [0.0, 3.0], z)]
    return np.concatenate([np.stack(side, axis=-1).reshape(-1, 3) for side in sides]).astype(np.float32)


def shown(view: RoomView) -> NDArray[np.int64]:
    """Indexes of the points in sight."""
    points = np.unique(view.point_of_pixel)
    return points[points < view.num_points]


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def grey(count: int) -> NDArray[np.uint8]:
    return np.full((count, 3), 90, np.uint8)


def test_a_picture_has_the_size_asked_for_and_a_white_background(room: NDArray[np.float32]) -> None:
    image = pixels(RoomView.of(room, WIDTH, HEIGHT).draw(grey(len(room))))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert 0.3 < (image < 255).any(axis=2).mean() < 0.95


def test_what_is_high_does_not_appear(room: NDArray[np.float32]) -> None:
    high = room[:, 2] > CUT_HEIGHT + 0.01
    seen = shown(RoomView.of(room, WIDTH, HEIGHT))
    assert high.any()
    assert not high[seen].any()


def test_two_walls_are_left_out_and_the_other_two_and_the_floor_show(room: NDArray[np.float32]) -> None:
    seen = room[shown(RoomView.of(room, WIDTH, HEIGHT))]
    standing = seen[seen[:, 2] > 0.2]
    assert len(np.unique(standing[np.isin(standing[:, 0], [0.0, 4.0]), 0])) == 1
    assert len(np.unique(standing[np.isin(standing[:, 1], [0.0, 3.0]), 1])) == 1
    floor = seen[seen[:, 2] == 0]
    assert floor.min(axis=0) == pytest.approx([0, 0, 0], abs=0.11)
    assert floor.max(axis=0) == pytest.approx([4, 3, 0], abs=0.11)


@pytest.mark.parametrize("turns", range(4))
def test_what_stands_at_a_wall_shows_from_whichever_corner_it_can_be_seen(
    room: NDArray[np.float32], turns: int
) -> None:
    """A closed screen round one corner of the room hides its inside from all corners but the opposite one."""
    along, up = (grid.ravel() for grid in np.meshgrid(np.arange(0.3, 2.0, 0.03), np.arange(0, 1.9, 0.03)))
    near = np.full_like(along, 0.3)
    screen = np.concatenate([np.stack([along, near, up], axis=1), np.stack([near, along, up], axis=1)])
    scene = np.concatenate([room, screen]) - [2.0, 1.5, 0.0]
    for _ in range(turns):
        scene = np.stack([scene[:, 1], -scene[:, 0], scene[:, 2]], axis=1)
    seen = shown(RoomView.of(scene, WIDTH, HEIGHT))
    assert np.count_nonzero(seen >= len(room)) > 0.3 * len(screen)


def test_a_nearer_surface_hides_a_farther_one() -> None:
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(0, 3, 0.02), np.arange(0, 3, 0.02)))
    floor = np.stack([x, y, np.zeros_like(x)], axis=1)
    lid = floor + [0.0, 0.0, 0.5]
    view = RoomView.of(np.concatenate([floor, lid]), WIDTH, HEIGHT)
    rows, columns = np.nonzero(view.point_of_pixel < view.num_points)
    above, beside = int(np.median(rows)), int(np.median(columns))
    middle = np.s_[above - 5 : above + 5, beside - 5 : beside + 5]
    assert (view.point_of_pixel[middle] >= len(floor)).all()
    order = np.random.default_rng(0).permutation(2 * len(floor))
    shuffled = RoomView.of(np.concatenate([floor, lid])[order], WIDTH, HEIGHT)
    assert (order[shuffled.point_of_pixel[middle]] >= len(floor)).all()  # whatever the order of the points


def test_all_colourings_of_a_view_show_the_same_points(room: NDArray[np.float32]) -> None:
    view = RoomView.of(room, WIDTH, HEIGHT)
    red, blue = grey(len(room)), grey(len(room))
    red[:] = (200, 0, 0)
    blue[:] = (0, 0, 200)
    assert (pixels(view.draw(red))[..., 0] == pixels(view.draw(blue))[..., 2]).all()


def test_the_same_room_gives_the_same_bytes(room: NDArray[np.float32]) -> None:
    colors = color_labels(np.arange(len(room)) % 7, "abcdefg")
    assert RoomView.of(room, WIDTH, HEIGHT).draw(colors) == RoomView.of(room, WIDTH, HEIGHT).draw(colors)


def test_where_the_room_lies_does_not_matter(room: NDArray[np.float32]) -> None:
    here = RoomView.of(room, WIDTH, HEIGHT)
    there = RoomView.of(room + np.float32([64, -32, 16]), WIDTH, HEIGHT)
    assert ((here.point_of_pixel < len(room)) == (there.point_of_pixel < len(room))).mean() > 0.99


def test_surfaces_that_face_different_ways_differ_in_light(room: NDArray[np.float32]) -> None:
    view = RoomView.of(room, WIDTH, HEIGHT)
    whole = np.append(room, [[np.nan] * 3], axis=0)[view.point_of_pixel]
    floor = np.median(view.light[whole[..., 2] == 0])
    assert floor > 0.95
    standing = view.light[(whole[..., 2] > 0.5) & (whole[..., 2] < 1.5)]
    assert np.median(standing) < 0.95


def test_one_point_is_a_picture() -> None:
    view = RoomView.of(np.zeros((1, 3)), WIDTH, HEIGHT)
    assert shown(view).tolist() == [0]
    assert (pixels(view.draw(grey(1))) < 255).any()


def test_points_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="the room has no points, so there is nothing to draw"):
        RoomView.of(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="2 of 3 points have a coordinate that is not finite"):
        RoomView.of(np.array([[0, 0, 0], [0, np.nan, 0], [np.inf, 0, 0]]))
    with pytest.raises(ValueError, match=r"points have shape \(4, 2\); wanted \(N, 3\)"):
        RoomView.of(np.zeros((4, 2)))


def test_colours_of_another_cloud_are_refused(room: NDArray[np.float32]) -> None:
    view = RoomView.of(room, WIDTH, HEIGHT)
    with pytest.raises(ValueError, match=rf"colors are uint8 \(5, 3\); wanted uint8 \({len(room)}, 3\)"):
        view.draw(grey(5))
    with pytest.raises(ValueError, match="colors are float64"):
        view.draw(np.zeros((len(room), 3)))  # type: ignore[arg-type]


def cube(color: tuple[int, int, int], at: tuple[float, float, float], side: float = 1.0) -> ColoredBox:
    world_from_box = np.eye(4)
    world_from_box[:3, 3] = at
    return ColoredBox(world_from_box, (side, side, side), color)


def test_a_box_has_twelve_edges_between_its_corners() -> None:
    turned = np.array([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
    edges = ColoredBox(turned, (4.0, 2.0, 1.0), (0, 0, 0)).edges
    lengths = np.linalg.norm(edges[:, 0] - edges[:, 1], axis=1)
    assert sorted(lengths) == pytest.approx([1.0] * 4 + [2.0] * 4 + [4.0] * 4)
    assert edges.reshape(-1, 3).min(axis=0) == pytest.approx([4, 4, 6.5])
    assert edges.reshape(-1, 3).max(axis=0) == pytest.approx([6, 8, 7.5])


def test_edges_are_drawn_in_the_colour_of_their_box_and_faint_behind_what_is_before_them(
    room: NDArray[np.float32],
) -> None:
    red = (200, 0, 0)
    free, buried = cube(red, (2.0, 1.5, 1.0)), cube(red, (2.0, 1.5, -0.3), 0.2)
    view = RoomView.of(room, WIDTH, HEIGHT, [free])
    plain = pixels(view.draw(grey(len(room)))).astype(int)

    def reddened(box: ColoredBox) -> NDArray[np.int64]:
        drawn = pixels(view.draw(grey(len(room)), [box])).astype(int)
        return (drawn - plain)[..., 0] - (drawn - plain)[..., 1]

    assert (reddened(free) > 90).sum() > 100
    assert 10 < reddened(buried).max() < 90


def test_a_picture_has_room_for_its_boxes(room: NDArray[np.float32]) -> None:
    high = cube((0, 0, 200), (2.0, 1.5, 4.0))
    for boxes, has_room in (([high], True), ([], False)):
        drawn = pixels(RoomView.of(room, WIDTH, HEIGHT, boxes).draw(grey(len(room)), [high])).astype(int)
        blue = drawn[..., 2] - drawn[..., 0] > 90
        assert blue.any() == has_room
        assert not blue[0].any(), "nothing is cut off at the rim"


@pytest.mark.parametrize("num_points", [1, 2, 3, 8])
@pytest.mark.parametrize("extent", [(1, 1, 1), (0.1, 100, 1000), (1e4, 1e-3, 50)])
def test_a_few_points_that_are_no_room_are_drawn(num_points: int, extent: tuple[float, float, float]) -> None:
    for seed in range(3):
        points = np.random.default_rng(seed).normal(size=(num_points, 3)) * extent
        view = RoomView.of(points, 64, 48)
        assert (pixels(view.draw(np.zeros((num_points, 3), np.uint8))) < 255).any()
