"""The voxels and pairs of a micro-batch: as plain numpy finds them, on every device and wherever a scene lies."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from own_process import in_a_fork
from PIL import Image

from t4p.config.data import AugmentConfig, DropFeaturesConfig
from t4p.data.batch import Batch, PreparedRecipe, build_batch
from t4p.data.decode import DecodedFrame, with_color_of
from t4p.data.lifting import UPRIGHT_FROM_CAMERA
from t4p.data.sample import SampleSettings, prepare_frame
from t4p.devices.pretended import pretended_device
from t4p.geometry import project_points, unproject_depth

REAL = Path(__file__).resolve().parents[3] / "data" / "tum_rgbd"
SETTINGS = SampleSettings(
    image_size=(48, 64),
    cell_grid=(3, 4),
    decoder_grid=(12, 16),
    pixel_stride=1,
    max_depth=4.0,
    in_world=True,
    voxel_size=0.05,
    num_strides=2,
    point_features=("color", "position"),
    num_pairs_e=None,
    num_pairs_d=None,
    augment=None,
    seed=5,
)
K = np.array([[60.0, 0, 31.2], [0, 61.0, 23.9], [0, 0, 1]])


def make_frame(seed: int, two_cameras: bool = False, away: float = 0.0) -> DecodedFrame:
    """A bumpy wall, in whole millimetres, seen from somewhere."""
    rng = np.random.default_rng(seed)
    depth = (1500 + np.add.outer(np.arange(48) * 7, np.arange(64) * 11) + rng.integers(0, 200, (48, 64))).astype(
        np.uint16
    )
    depth[rng.random(depth.shape) < 0.2] = 0
    world_from_camera = np.eye(4)
    world_from_camera[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    world_from_camera[:3, 3] = rng.uniform(-3, 3, 3) + (away, -away, 0)
    color_from_depth = np.eye(4)
    K_color = K
    if two_cameras:
        color_from_depth[:3, 3] = (0.05, -0.01, 0.002)
        K_color = np.array([[70.0, 0, 33.0], [0, 70.0, 25.0], [0, 0, 1]])
    color = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    return DecodedFrame(color, depth, 1000.0, K_color, K, color_from_depth, world_from_camera)


def real_frames() -> list[DecodedFrame]:
    found = []
    for color, depth in zip(sorted(REAL.rglob("rgb/*.png")), sorted(REAL.rglob("depth/*.png")), strict=True):
        pixels = [np.array(Image.open(path)) for path in (color, depth)]
        K_fr1 = np.array([[517.3, 0, 318.6], [0, 516.5, 255.3], [0, 0, 1]])
        found.append(DecodedFrame(pixels[0], pixels[1].astype(np.uint16), 5000.0, K_fr1, K_fr1, np.eye(4), None))
    return found


def plainly(frame: DecodedFrame, settings: SampleSettings) -> dict[str, np.ndarray]:
    """One frame, not augmented, as 0.1.0 had it: doubles, np.unique, every point for itself."""
    frame = with_color_of(frame, settings.image_size)
    stride = settings.pixel_stride
    depth = np.zeros(frame.depth.shape, np.float32)
    depth[::stride, ::stride] = frame.depth[::stride, ::stride] / np.float32(frame.depth_scale)
    depth[depth > settings.max_depth] = 0
    camera, _ = unproject_depth(depth, frame.K_depth)
    xy, _ = project_points(camera @ frame.color_from_depth[:3, :3].T + frame.color_from_depth[:3, 3], frame.K_color)
    col, row = np.rint(xy).astype(int).T
    height, width = settings.image_size
    seen = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    row, col = row[seen], col[seen]
    out = frame.world_from_camera if settings.in_world and frame.world_from_camera is not None else UPRIGHT_FROM_CAMERA
    points = (camera[seen] @ out[:3, :3].T + out[:3, 3]).astype(np.float32)
    cells = np.floor(points / settings.voxel_size).astype(int)
    coords, voxel = np.unique(cells - cells.min(axis=0), axis=0, return_inverse=True)
    _, coarse = np.unique(coords >> settings.num_strides, axis=0, return_inverse=True)
    found = {"voxel_coords": coords}
    for name, of_point, grid in (("e", coarse[voxel], settings.cell_grid), ("d", voxel, settings.decoder_grid)):
        place = row * grid[0] // height * grid[1] + col * grid[1] // width
        pairs, num_points = np.unique(np.stack([of_point.ravel(), place], 1), axis=0, return_counts=True)
        found[f"pairs_{name}"] = np.column_stack([pairs, num_points])
    colors = frame.color[row, col] / 255
    count = np.bincount(voxel.ravel())[:, None]
    for name, values in (("colors", colors), ("positions", points)):
        found[name] = np.stack([np.bincount(voxel.ravel(), column) for column in values.T], 1) / count
    return found


def build(frames: list[DecodedFrame], settings: SampleSettings = SETTINGS, epoch: int = 0) -> Batch:
    return build_batch([prepare_frame(each, f"room/{i}", epoch, settings) for i, each in enumerate(frames)], settings)


def pairs_of(batch: Batch, name: str) -> np.ndarray:
    place = "cell" if name == "e" else "pixel"
    parts = (f"voxel_of_pair_{name}", f"{place}_of_pair_{name}", f"points_of_pair_{name}")
    return torch.stack([getattr(batch, part) for part in parts], dim=1).numpy()


def assert_as_plain(batch: Batch, plain: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(batch.voxel_coords[:, 1:], plain["voxel_coords"])
    for name in ("e", "d"):
        np.testing.assert_array_equal(pairs_of(batch, name), plain[f"pairs_{name}"])
    wanted = np.column_stack([plain["colors"] * 2 - 1, plain["positions"]])
    np.testing.assert_allclose(batch.voxel_features, wanted, atol=1e-6)


@pytest.mark.parametrize("two_cameras", [False, True])
@pytest.mark.parametrize("changes", [{}, {"in_world": False, "pixel_stride": 2}, {"image_size": (24, 32)}])
def test_voxels_and_pairs_are_those_that_plain_numpy_finds(changes, two_cameras):
    settings = replace(SETTINGS, **changes)
    for seed in range(4):
        frame = make_frame(seed, two_cameras)
        assert_as_plain(build([frame], settings), plainly(frame, settings))


@pytest.mark.parametrize(("voxel_size", "stride"), [(0.04, 2), (0.025, 1)])
def test_real_frames_that_are_not_augmented_are_as_they_were_in_0_1_0(voxel_size, stride):
    grids = {"image_size": (480, 640), "cell_grid": (15, 20), "decoder_grid": (60, 80)}
    settings = replace(SETTINGS, voxel_size=voxel_size, pixel_stride=stride, **grids)
    for frame in real_frames()[:3]:
        assert_as_plain(build([frame], settings), plainly(frame, settings))


def test_a_batch_is_its_frames_side_by_side_whatever_their_cameras():
    frames = [
        make_frame(0),
        make_frame(1, two_cameras=True),
        replace(make_frame(2), depth=np.zeros((48, 64), np.uint16)),
    ]
    frames.append(make_frame(3))
    settings = replace(SETTINGS, num_pairs_d=50, augment=AugmentConfig())
    whole = build(frames, settings)
    voxels = bottleneck = 0
    for index, frame in enumerate(frames):
        alone = build_batch([prepare_frame(frame, f"room/{index}", 0, settings)], settings)
        own = whole.voxel_coords[:, 0] == index
        assert torch.equal(whole.voxel_coords[own, 1:], alone.voxel_coords[:, 1:])
        assert torch.equal(whole.voxel_features[own], alone.voxel_features)
        of_pair = whole.cell_of_pair_e // 12 == index
        assert torch.equal(whole.voxel_of_pair_e[of_pair], alone.voxel_of_pair_e + bottleneck)
        assert torch.equal(whole.uniform_of_pair_e[of_pair], alone.uniform_of_pair_e)
        assert torch.equal(whole.points_of_pair_e[of_pair], alone.points_of_pair_e)
        of_pair = whole.pixel_of_pair_d // 192 == index
        assert torch.equal(whole.voxel_of_pair_d[of_pair], alone.voxel_of_pair_d + voxels)
        assert torch.equal(whole.pixel_of_pair_d[of_pair], alone.pixel_of_pair_d + 192 * index)
        voxels += len(alone.voxel_coords)
        bottleneck += len(torch.unique(alone.voxel_coords >> 2, dim=0))
    assert len(whole.voxel_coords) == voxels


def test_pairs_are_drawn_by_what_they_are():
    """A reading that differs changes the pairs of its own voxels; a draw of positions would change nearly all."""
    settings = replace(SETTINGS, num_pairs_d=100)
    frame = make_frame(0)
    depth = frame.depth.copy()
    depth[0, 0] = 3900  # farther than all others: a voxel before every other one along an axis, perhaps
    drawn = []
    for each in (frame, replace(frame, depth=depth)):
        batch = build([each], settings)
        features = [tuple(row) for row in batch.voxel_features[batch.voxel_of_pair_d].tolist()]
        drawn.append(set(zip(features, batch.pixel_of_pair_d.tolist(), strict=True)))
    assert len(drawn[0]) == len(drawn[1]) == 100
    assert len(drawn[0] & drawn[1]) >= 98


def test_draws_reach_every_pair_about_equally():
    settings = replace(SETTINGS, num_pairs_d=None, image_size=(12, 16), pixel_stride=4)
    num_pairs = len(build([make_frame(0)], settings).pixel_of_pair_d)
    settings, epochs = replace(settings, num_pairs_d=num_pairs // 4), 200
    counts = np.zeros(num_pairs)
    whole = pairs_of(build([make_frame(0)], replace(settings, num_pairs_d=None)), "d")
    for epoch in range(epochs):
        drawn = pairs_of(build([make_frame(0)], settings, epoch), "d")
        counts += (whole[:, None] == drawn).all(-1).any(-1)
    share = counts / epochs
    assert abs(share.mean() - 1 / 4) < 0.01
    assert share.min() > 0.1
    assert share.max() < 0.4


def test_uniforms_are_uniform():
    values = torch.cat([build([make_frame(0)], SETTINGS, epoch).uniform_of_pair_e for epoch in range(30)]).numpy()
    assert values.min() > 0
    assert values.max() <= 1
    counts, _ = np.histogram(values, bins=5, range=(0, 1))
    assert abs(counts / len(values) - 0.2).max() < 0.03


def test_a_scene_far_from_the_origin_has_the_voxels_it_has_there():
    """5,000 km away, where doubles have steps of a nanometre, and float32 ones of half a metre."""
    settings = replace(SETTINGS, point_features=("color", "height"))
    away = 100_000_000 * settings.voxel_size
    near, far = (build([make_frame(seed, away=each) for seed in range(4)], settings) for each in (0.0, away))
    for field in fields(Batch):
        one, other = getattr(near, field.name), getattr(far, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name


def test_noise_on_the_colour_of_a_voxel_is_that_of_the_mean_of_its_points():
    settings = replace(
        SETTINGS, point_features=("color",), augment=AugmentConfig(rotation=False, mirror=False, scale=0)
    )
    frame = replace(make_frame(0), color=np.full((48, 64, 3), 128, np.uint8))
    deviations = []
    for epoch in range(20):
        batch = build([frame], settings, epoch)
        num_points = torch.zeros(len(batch.voxel_coords)).index_add_(
            0, batch.voxel_of_pair_d, batch.points_of_pair_d.float()
        )
        colors = (batch.voxel_features + 1) / 2
        tint = (colors * num_points[:, None]).sum(0) / num_points.sum()
        deviations.append((colors - tint) * num_points[:, None].sqrt())
    found = torch.cat(deviations)
    assert found.std() == pytest.approx(settings.augment.color_jitter, rel=0.03)
    assert found.mean(0).abs().max() < 0.002
    assert np.abs(np.corrcoef(found.T.numpy()) - np.eye(3)).max() < 0.05


def test_a_frame_whose_features_are_dropped_has_zeros_and_the_pairs_that_it_had():
    settings = replace(SETTINGS, num_pairs_d=50, augment=AugmentConfig(), point_features=("height", "color"))
    dropping = replace(settings, drop_features=DropFeaturesConfig(color=0.5, height=0.5))
    frames = [make_frame(seed) for seed in range(8)]
    plain, found = (build(frames, each) for each in (settings, dropping))
    dropped = [prepare_frame(each, f"room/{i}", 0, dropping).placement.dropped for i, each in enumerate(frames)]
    assert set(dropped) == {(), ("height",), ("color", "height")}
    zeros = torch.tensor([["height" in each, *["color" in each] * 3] for each in dropped])[plain.voxel_coords[:, 0]]
    wanted = replace(plain, voxel_features=torch.where(zeros, 0, plain.voxel_features))
    for field in fields(Batch):
        one, other = getattr(wanted, field.name), getattr(found, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name


@in_a_fork
def test_an_accelerator_finds_the_same_and_waits_twice():
    """One that rounds a product and a sum at once, and divides by numbers with their reciprocals."""
    grids = {"image_size": (480, 640), "cell_grid": (15, 20), "decoder_grid": (60, 80)}
    settings = replace(SETTINGS, voxel_size=0.025, num_pairs_d=4096, num_pairs_e=700, augment=AugmentConfig(), **grids)
    settings = replace(settings, drop_features=DropFeaturesConfig(color=0.5))
    frames = [prepare_frame(frame, f"tum/{i}", 0, settings) for i, frame in enumerate(real_frames()[:2])]
    assert sorted(frame.placement.dropped for frame in frames) == [(), ("color",)]
    wanted = build_batch(frames, settings)
    with pretended_device() as (device, counts):
        found = PreparedRecipe(settings).join(frames).to(device)
        assert counts.waits.total() <= 2, counts.waits
        assert not counts.mixed
        assert counts.kernels.total() < 600, counts.kernels
        found = found.to(torch.device("cpu"))
    for field in fields(Batch):
        one, other = getattr(wanted, field.name), getattr(found, field.name)
        if field.name == "voxel_features":
            torch.testing.assert_close(one, other, atol=2e-6, rtol=0)
        else:
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"voxel_size": 1e-6}, r"more than 2\^40 voxels of 1e-06 m; raise model.voxel_size or lower data.max_depth"),
        ({"cell_grid": (1, 1), "decoder_grid": (1, 1)}, "readings fall into one pixel of the decoder"),
    ],
)
def test_what_does_not_fit_into_a_key_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build([make_frame(0)], replace(SETTINGS, **changes))
