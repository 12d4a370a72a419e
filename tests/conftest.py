"""Fixtures that all tests share: a real S3 server, real frames, and small frames made on the spot."""

import io
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # helpers; --import-mode=importlib puts no test folder on the path

pytest_plugins = ["budget", "failures_at_once"]

from forks import Forks, forks  # noqa: E402
from s3_server import INSTALL_HINT, S3Server, find_binary, start_s3_server  # noqa: E402

# A shell that starts the tests in the background has SIGINT ignored, and every process below inherits that: the tests
# that press Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline of 200 ms for an example measures the machine, and so does how long it takes to make one.
hypothesis.settings.register_profile("t4p", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("t4p")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what uses the S3 server `s3`; leaves out what is marked `soak`, unless -m speaks of it."""
    for item in items:
        if "s3_server" in getattr(item, "fixturenames", ()):
            item.add_marker("s3")
    if "soak" not in config.option.markexpr and (soak := [item for item in items if item.get_closest_marker("soak")]):
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """End forks of this process that a test has left: they hold open what it has open, and who reads that waits."""
    this = psutil.Process()
    for child in this.children():
        with suppress(psutil.Error):
            if child.cmdline() == this.cmdline():
                print(f"left by a test, and ended: {child.name()}, process {child.pid}", file=sys.stderr)
                child.kill()
                child.wait(5)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on 127.0.0.1 with credentials of its own. Attributes url, access_key, secret_key; environ()."""
    if find_binary() is None:
        pytest.skip(INSTALL_HINT)
    server = start_s3_server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def forked_python() -> Forks:
    """The process that tests/forks.py forks, started: for usefixtures, so that no file pays what all of them share."""
    return forks()


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """ "s3://BUCKET/prefix" in a fresh bucket, with the environment set so that boto3 finds the server."""
    return _make_bucket(s3_server, monkeypatch)


@pytest.fixture(scope="module")
def module_s3_bucket(s3_server: S3Server) -> Iterator[str]:
    """The same for all tests of a file that only read what was packed there once."""
    with pytest.MonkeyPatch.context() as patch:
        yield _make_bucket(s3_server, patch)


def _make_bucket(server: S3Server, patch: pytest.MonkeyPatch) -> str:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)
    for name, value in server.environ().items():
        patch.setenv(name, value)
    return f"s3://{server.make_bucket()}/prefix"


@pytest.fixture
def closed_endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a port that nobody listens at, in AWS_ENDPOINT_URL; bound meanwhile, so that nobody else takes it."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield url


@pytest.fixture(scope="session")
def tum_sample() -> Path:
    """Four real TUM RGB-D frames that are part of the repository."""
    return ROOT / "tests" / "data" / "tum_rgbd"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real frames beside the repository (licences forbid to copy most of them); skips where they are absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, real frames that may not be part of the repository")
    return folder


@pytest.fixture(scope="session")
def clean_environ() -> dict[str, str]:
    """An environment for subprocesses that run this repository's code, one thread each."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TERM": "dumb"}


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Path]:
    """make_scene(folder, num_frames, size=(64, 48), seed=0): small 7-Scenes-like frames, random content."""
    return _make_scene


def _make_scene(folder: Path, num_frames: int, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    width, height = size
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    f, cx, cy = 0.9 * width, width / 2, height / 2
    (folder / "camera-intrinsics.txt").write_text(f"{f} 0 {cx}\n0 {f} {cy}\n0 0 1\n")
    for i in range(num_frames):
        stem = folder / f"frame-{i:06d}"
        color = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        color.save(f"{stem}.color.jpg", quality=90)
        depth = rng.integers(0, 4000, (height, width)).astype(np.uint16)
        Path(f"{stem}.depth.png").write_bytes(png_bytes(depth))
        world_from_camera = np.eye(4)
        world_from_camera[:3, 3] = rng.normal(size=3)
        np.savetxt(f"{stem}.pose.txt", world_from_camera)
    return folder


def png_bytes(pixels: np.ndarray) -> bytes:
    """Any array that Pillow can hold, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
