import numpy as np
import pytest

from t4p.geometry import check_rigid, invert_rigid, project_points, resize_intrinsics, unproject_depth


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else q[:, ::-1]


def random_transform(rng: np.random.Generator) -> np.ndarray:
    transform = np.eye(4)
    transform[:3, :3] = random_rotation(rng)
    transform[:3, 3] = rng.normal(size=3) * 5
    return transform


def random_camera(rng: np.random.Generator) -> tuple[np.ndarray, int, int]:
    height, width = (int(n) for n in rng.integers(1, 24, size=2))
    fx, fy = rng.uniform(0.5, 2, size=2) * 20
    skew = rng.choice([0.0, rng.normal()])
    K = np.array([[fx, skew, rng.uniform(-2, width + 2)], [0, fy, rng.uniform(-2, height + 2)], [0, 0, 1]])
    return K, height, width


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(12)


def test_project_after_unproject_is_the_identity_for_random_cameras(rng):
    for _ in range(400):
        K, height, width = random_camera(rng)
        world_from_camera = random_transform(rng)
        depth = rng.uniform(0.1, 10, size=(height, width)) * (rng.random((height, width)) > 0.3)
        points, pixel_of_point = unproject_depth(depth, K, world_from_camera)
        assert len(points) == (depth > 0).sum()
        camera_from_world = invert_rigid(world_from_camera)
        camera_points = points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
        pixels, projected_depth = project_points(camera_points, K)
        np.testing.assert_allclose(pixels[:, ::-1], pixel_of_point, atol=1e-9)
        np.testing.assert_allclose(projected_depth, depth[tuple(pixel_of_point.T)], atol=1e-11)
        in_camera_frame, _ = unproject_depth(depth, K)
        np.testing.assert_allclose(in_camera_frame, camera_points, atol=1e-10)


def test_unproject_known_points():
    K = np.array([[2.0, 0, 1], [0, 4.0, 0], [0, 0, 1]])
    depth = np.array([[0, 2, 4], [8, 0, 0]], dtype=np.float32)
    points, pixel_of_point = unproject_depth(depth, K)
    assert pixel_of_point.tolist() == [[0, 1], [0, 2], [1, 0]]  # row-major (row, col)
    assert points.tolist() == [[0, 0, 2], [2, 0, 4], [-4, 2, 8]]  # x right, y down, z ahead
    world_from_camera = np.eye(4)
    world_from_camera[:3, 3] = [10, 20, 30]
    assert unproject_depth(depth, K, world_from_camera)[0][0].tolist() == [10, 20, 32]


def test_an_image_without_a_reading_gives_no_points():
    points, pixel_of_point = unproject_depth(np.zeros((3, 4)), np.eye(3), np.eye(4))
    assert points.shape == (0, 3)
    assert pixel_of_point.shape == (0, 2)


def test_points_at_or_behind_the_camera_have_no_pixel():
    pixels, depth = project_points(np.array([[1.0, 1, 2], [1, 1, 0], [1, 1, -2]]), np.eye(3))
    np.testing.assert_array_equal(pixels, [[0.5, 0.5], [np.nan, np.nan], [np.nan, np.nan]])
    assert depth.tolist() == [2, 0, -2]


def test_invert_rigid_is_the_inverse_also_of_a_pose_with_few_digits(rng):
    for _ in range(200):
        transform = random_transform(rng)
        np.testing.assert_allclose(invert_rigid(transform) @ transform, np.eye(4), atol=1e-12)
        rounded = np.round(transform, 4)
        np.testing.assert_allclose(rounded @ invert_rigid(rounded), np.eye(4), atol=1e-12)
        assert not np.shares_memory(invert_rigid(transform), transform)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[:3], r"must be a \(4, 4\) rigid transform, got shape \(3, 4\)"),
        (lambda t: t * np.nan, "nan or infinite"),
        (lambda t: t.T, "last row"),
        (lambda t: np.diag([1.01, 1.01, 1.01, 1]) @ t, "off the identity by 0.0201"),
        (lambda t: np.diag([1, -1, 1, 1]) @ t, "mirrors"),
    ],
)
def test_transforms_that_are_not_rigid_are_refused_by_name(rng, spoil, message):
    transform = spoil(random_transform(rng))
    with pytest.raises(ValueError, match="world_from_camera.*" + message):
        check_rigid(transform, "world_from_camera")
    with pytest.raises(ValueError, match="world_from_camera.*" + message):
        unproject_depth(np.ones((2, 2)), np.eye(3), transform)
    with pytest.raises(ValueError, match=message):
        invert_rigid(transform)


def test_resized_intrinsics_keep_every_ray_through_the_pixel_centres_of_the_resized_image(rng):
    for _ in range(300):
        K, height, width = random_camera(rng)
        to_size = tuple(int(n) for n in rng.integers(1, 50, size=2))
        resized = resize_intrinsics(K, (height, width), to_size)
        points = rng.normal(size=(20, 3)) + [0, 0, 5]
        (x, y), (x_resized, y_resized) = (project_points(points, matrix)[0].T for matrix in (K, resized))
        # The distance from the left (top) edge, at -0.5, is the same share of the width (height).
        np.testing.assert_allclose((x_resized + 0.5) / to_size[1], (x + 0.5) / width, atol=1e-9)
        np.testing.assert_allclose((y_resized + 0.5) / to_size[0], (y + 0.5) / height, atol=1e-9)
        np.testing.assert_allclose(resize_intrinsics(resized, to_size, (height, width)), K, atol=1e-9)


def test_halving_an_image_puts_the_centre_pixel_pair_on_one_centre():
    K = np.array([[100.0, 0, 0.5], [0, 100, 0.5], [0, 0, 1]])  # optical axis between pixels 0 and 1
    halved = resize_intrinsics(K, (480, 640), (240, 320))
    assert halved.tolist() == [[50, 0, 0], [0, 50, 0], [0, 0, 1]]
    assert K[0, 2] == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unproject_depth(np.ones((2, 2, 1)), np.eye(3)), r"depth must be an image \(H, W\), got shape"),
        (lambda: unproject_depth(np.array([[1.0, -1.0]]), np.eye(3)), "found values from -1.0 to 1.0"),
        (lambda: unproject_depth(np.array([[1.0, np.nan]]), np.eye(3)), "set pixels without a reading to 0"),
        (lambda: unproject_depth(np.array([[1.0, np.inf]]), np.eye(3)), "to inf"),
        (lambda: unproject_depth(np.ones((2, 2)), np.eye(4)), r"K must be \(3, 3\), got shape \(4, 4\)"),
        (lambda: project_points(np.ones((4, 2)), np.eye(3)), r"points must be \(N, 3\), got shape \(4, 2\)"),
        (lambda: project_points(np.ones((4, 3)), np.eye(3).T * -1), "positive focal lengths"),
        (lambda: resize_intrinsics(np.eye(3)[::-1], (2, 2), (2, 2)), "K must be"),
        (lambda: resize_intrinsics(np.eye(3), (0, 2), (2, 2)), "sizes must be positive"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
