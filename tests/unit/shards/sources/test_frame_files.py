"""What every reader shares: which files belong to a frame, the gate for images, what follows from what is listed."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import ShardError
from shards.images import decode_depth, decode_labels, encode_depth, kind_of_color
from shards.schema import check_frame
from shards.sources import folder, seven_scenes
from shards.sources.cameras import pinhole
from shards.sources.depth_codings import units_of_metres
from shards.sources.frame_files import DepthFiles, FrameFiles, pixels_in_color, read_frame
from shards.sources.options import SourceOptions
from shards.sources.raw_files import Part, beside, list_names, read_bytes

MILLIMETRES = SourceOptions(depth_scale=1000.0)
COLOR = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(COLOR, kind, exif=exif.tobytes())


@pytest.fixture
def scene(tmp_path: Path, make_scene: Callable[..., Path]) -> Path:
    """Five frames as the format `folder` has them."""
    raw, scene = make_scene(tmp_path / "raw", 5), tmp_path / "mine"
    for kind, suffix in (("color", ".jpg"), ("depth", ".png"), ("pose", ".txt")):
        (scene / kind).mkdir(parents=True)
        for path in raw.glob(f"*.{kind}{suffix}"):
            path.rename(scene / kind / (path.name.split(".")[0].removeprefix("frame-") + suffix))
    (raw / "camera-intrinsics.txt").rename(scene / "intrinsic.txt")
    return scene


class TestGate:
    @pytest.mark.parametrize(
        "data",
        [
            encoded(COLOR, "JPEG"),
            encoded(COLOR, "JPEG", progressive=True),
            encoded(COLOR[..., 0], "JPEG"),
            encoded(COLOR, "PNG"),
            encoded(COLOR[..., 0], "PNG"),
            encoded(np.dstack([COLOR, COLOR[..., 0]]), "PNG"),
            turned(1),
            turned(1, "PNG"),
        ],
    )
    def test_what_a_decoder_leaves_as_it_is_passes(self, data: bytes) -> None:
        assert kind_of_color(data) == ("png" if data[:4] == b"\x89PNG" else "jpg")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (encoded(COLOR[..., 0].astype(np.uint16) * 257, "PNG"), "16-bit grayscale PNG.*is it the depth image"),
            *((turned(k), f"EXIF orientation {k}: .*exiftool -Orientation=") for k in range(2, 9)),
            *((turned(k, "PNG"), f"EXIF orientation {k}") for k in (3, 6)),
            (encoded(COLOR, "WEBP"), "color is a WebP image of"),
            (encoded(COLOR, "BMP"), "color is a BMP image of"),
            (encoded(COLOR, "TIFF"), "color is a TIFF image of"),
            (encoded(COLOR, "GIF"), "color is a GIF image of"),
            (b"\0\0\0\x18ftypheic" + bytes(80), "color is a HEIC or AVIF image of 92 bytes"),
            (b"\x93NUMPY" + bytes(80), "color is a NumPy file"),
            (b"", "color is an empty file, wanted a JPEG or PNG"),
        ],
    )
    def test_what_would_be_changed_without_a_word_is_refused(self, data: bytes, message: str) -> None:
        with pytest.raises(ShardError, match=message):
            kind_of_color(data)

    def test_an_image_is_what_its_bytes_are_not_what_its_name_says(self, scene: Path) -> None:
        (scene / "color" / "000002.jpg").write_bytes(encoded(COLOR, "PNG"))
        frame = read_frame(folder.scan(scene, MILLIMETRES)[2])
        assert frame.color_format == "png"
        check_frame(frame, "here")


class TestLister:
    def test_what_systems_leave_behind_is_none_of_the_data(self, scene: Path, tmp_path: Path) -> None:
        wanted = [one.frame_id for one in folder.scan(scene, MILLIMETRES)]
        for place in (scene / "color", scene / "depth", scene / "pose", tmp_path):
            for name in ("._000000.jpg", "._000000.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
                (place / name).write_bytes(b"\0\5\x16\7")
        (scene / "__MACOSX" / "color").mkdir(parents=True)
        (tmp_path / ".git" / "color").mkdir(parents=True)
        assert [one.frame_id for one in folder.scan(scene, MILLIMETRES)] == wanted
        assert list_names(scene) == ["color", "depth", "intrinsic.txt", "pose"]
        assert {one.scene_id for one in folder.scan(tmp_path, MILLIMETRES)} == {"mine"}

    def test_suffixes_count_in_any_case(self, scene: Path, tmp_path: Path, make_scene: Callable[..., Path]) -> None:
        for path in (scene / "color").iterdir():
            path.rename(path.with_suffix(".JPG"))
        assert len(folder.scan(scene, MILLIMETRES)) == 5
        raw = make_scene(tmp_path / "kitchen", 3)
        for path in list(raw.glob("*.color.jpg")):
            path.rename(path.with_name(path.name.replace(".color.jpg", ".color.JPG")))
        assert len(seven_scenes.scan(raw, SourceOptions())) == 3

    def test_a_file_of_another_kind_is_named_where_one_is_missing(self, scene: Path) -> None:
        (scene / "depth" / "000003.png").rename(scene / "depth" / "000003.exr")
        with pytest.raises(
            ShardError, match=r"no file 000003\.\* in .*depth that is read: found 000003.exr, wanted .png"
        ):
            folder.scan(scene, MILLIMETRES)

    def test_incomplete_frames_are_left_out_on_demand_and_counted(
        self, scene: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (scene / "depth" / "000001.png").unlink()
        (scene / "color" / "000004.jpg").unlink()
        with pytest.raises(ShardError, match=r"color/000001.jpg: no file .* \(1 of 4 lack theirs\).* --only-complete"):
            folder.scan(scene, MILLIMETRES)
        with caplog.at_level(logging.WARNING):
            found = folder.scan(scene, SourceOptions(1000.0, only_complete=True))
        assert [one.frame_id for one in found] == ["000000", "000002", "000003"]
        assert "color: 1 of 4 files have no partner and are left out, the first is 000001" in caplog.text
        assert "depth: 1 of 4 files have no partner and are left out, the first is 000004" in caplog.text

    def test_a_scene_keeps_the_name_that_the_user_gave_a_link(self, scene: Path, tmp_path: Path) -> None:
        (tmp_path / "kitchen").symlink_to(scene)
        assert {one.scene_id for one in folder.scan(tmp_path / "kitchen", MILLIMETRES)} == {"kitchen"}

    def test_label_names_in_a_scene_are_not_dropped(self, scene: Path, tmp_path: Path) -> None:
        (scene / "label_names.txt").write_bytes("\ufeffunlabelled\r\nwall\r\n".encode())
        assert folder.label_names(scene) == ("unlabelled", "wall")
        with pytest.raises(ShardError, match=r"mine/label_names.txt: lies in a scene, .*move it to"):
            folder.label_names(tmp_path)

    def test_back_slashes_part_folders(self) -> None:
        assert beside(Path("a"), "rgb\\1.png", "here") == Path("a/rgb/1.png")
        with pytest.raises(ShardError, match="not within a"):
            beside(Path("a"), "..\\..\\etc\\passwd", "here")

    def test_a_part_of_a_file_is_read_whole_or_not_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(bytes(range(100)))
        assert read_bytes(Part(tmp_path / "x", 10, 5)) == bytes(range(10, 15))
        with pytest.raises(ShardError, match=r"x \(20 bytes from 90\): the file ends 10 bytes before that"):
            read_bytes(Part(tmp_path / "x", 90, 20))


class TestPoses:
    @pytest.mark.parametrize("text", ["-inf " * 16, "nan " * 16, "0 " * 16])
    def test_how_often_tracking_was_lost_is_said(
        self, scene: Path, caplog: pytest.LogCaptureFixture, text: str
    ) -> None:
        for name in ("000001", "000003"):
            rows = text.split()
            (scene / "pose" / f"{name}.txt").write_text("\n".join(" ".join(rows[i : i + 4]) for i in range(0, 16, 4)))
        with caplog.at_level(logging.WARNING):
            found = folder.scan(scene, MILLIMETRES)
        assert [one.world_from_camera is None for one in found] == [False, True, False, True, False]
        assert (
            "pose: 2 of 5 poses say that tracking was lost (not finite, or all 0), the first is 000001" in caplog.text
        )


class TestDepth:
    def test_metres_become_units_and_what_cannot_be_none(self) -> None:
        metres = np.array([[1.2344, 0.0, np.nan, np.inf, -1.0, 65.535, 65.6, 1e-5]])
        assert units_of_metres(metres, 1000.0).tolist() == [[1234, 0, 0, 0, 0, 65535, 0, 0]]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.int32])
    def test_numpy_files_are_metres_or_units(self, scene: Path, dtype: type) -> None:
        depth = decode_depth((scene / "depth" / "000001.png").read_bytes())
        (scene / "depth" / "000001.png").unlink()
        np.save(scene / "depth" / "000001.npy", (depth / 1000 if np.dtype(dtype).kind == "f" else depth).astype(dtype))
        frame = read_frame(folder.scan(scene, MILLIMETRES)[1])
        assert np.array_equal(decode_depth(frame.depth), depth)

    def test_numpy_files_of_objects_are_not_unpickled(self, scene: Path) -> None:
        (scene / "depth" / "000001.png").unlink()
        np.save(scene / "depth" / "000001.npy", np.array([[{}]], object), allow_pickle=True)
        with pytest.raises(ShardError, match=r"000001.npy: depth cannot be decoded: not a NumPy file of numbers"):
            read_frame(folder.scan(scene, MILLIMETRES)[1])

    def test_doubtful_depth_is_no_reading(self, tmp_path: Path) -> None:
        depth = np.arange(1, 13, dtype=np.uint16).reshape(3, 4)
        levels = np.array([[0, 1, 2, 2], [2, 2, 1, 0], [2, 0, 0, 2]], np.uint8)
        (tmp_path / "c.jpg").write_bytes(encoded(COLOR, "JPEG"))
        (tmp_path / "d.png").write_bytes(encode_depth(depth))
        for steps in ((0, 1, 2), (0, 127, 255)):
            (tmp_path / "s.png").write_bytes(encoded(np.array(steps, np.uint8)[levels], "PNG"))
            for least in (0, 1, 2):
                files = DepthFiles(
                    tmp_path / "d.png",
                    1000,
                    confidence=tmp_path / "s.png",
                    confidence_levels=steps,
                    min_confidence=least,
                )
                found = decode_depth(read_frame(frame_of(tmp_path, files)).depth)
                assert np.array_equal(found, np.where(levels >= least, depth, 0))
        with pytest.raises(ShardError, match=r"s.png: holds 255, wanted levels up to 2; .* --min-confidence 0"):
            read_frame(
                frame_of(tmp_path, DepthFiles(tmp_path / "d.png", 1, confidence=tmp_path / "s.png", min_confidence=2))
            )


def frame_of(folder: Path, depth: DepthFiles) -> FrameFiles:
    camera = pinhole(50, 50, 32, 24, (64, 48))
    return FrameFiles("folder", "s", "0", folder / "c.jpg", depth, camera, camera)


class TestLabelsOfColour:
    def test_labels_of_colour_size_go_to_the_depth_grid(self, scene: Path) -> None:
        (scene / "label").mkdir()
        shown = np.zeros((96, 128), np.uint8)  # colour of twice the size, of the same view
        shown[:, 64:] = 7
        shown[:40] += 20
        for stem in ("000000", "000001", "000002", "000003", "000004"):
            Image.fromarray(shown).save(scene / "label" / f"{stem}.png")
            image = Image.open(scene / "color" / f"{stem}.jpg").resize((128, 96))
            image.save(scene / "color" / f"{stem}.jpg")
        (scene / "intrinsic_color.txt").write_text("115.2 115.2 63.5 47.5")
        with pytest.raises(ShardError, match=r"the semantic image is 128x96, the depth image 64x48"):
            check_frame(read_frame(folder.scan(scene, MILLIMETRES)[0]), "here")
        frame = read_frame(folder.scan(scene, SourceOptions(1000.0, labels_from="color"))[0])
        depth = check_frame(frame, "here")
        assert frame.semantic is not None
        labels = decode_labels(frame.semantic)
        assert labels.shape == depth.shape
        seen = depth > 0
        middle = np.abs(np.arange(64) - 31.5) > 2
        wanted = np.where(np.arange(64) > 31.5, 7, 0)[None] + np.where(np.arange(48) < 20, 20, 0)[:, None]
        assert (labels == wanted)[seen & middle].mean() > 0.97
        assert not labels[~seen].any()

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
    def test_a_picture_of_labels_is_no_label_image(self, scene: Path, mode: str) -> None:
        (scene / "label").mkdir()
        for stem in ("000000", "000001", "000002", "000003", "000004"):
            Image.new(mode, (64, 48)).save(scene / "label" / f"{stem}.png")
        with pytest.raises(ShardError, match=r"000001.png: labels are a 64x48 8-bit .* PNG .*, a picture of labels"):
            read_frame(folder.scan(scene, MILLIMETRES)[1])

    def test_a_camera_beside_sees_near_things_shifted(self) -> None:
        K = np.array([[50.0, 0, 31.5], [0, 50.0, 23.5], [0, 0, 1]])
        color_from_depth = np.eye(4)
        color_from_depth[0, 3] = -0.1  # the colour camera is 10 cm to the right
        for metres in (0.5, 1.0, 5.0):
            rows, columns, seen = pixels_in_color(np.full((48, 64), metres), K, K, color_from_depth, (48, 64))
            shift = round(50 * 0.1 / metres)
            assert (columns[:, shift:] == np.arange(64 - shift)).all()
            assert not seen[:, :shift].any() or shift == 0
            assert (rows[:, shift:] == np.arange(48)[:, None]).all()


def test_colour_can_be_made_smaller_with_its_intrinsics(scene: Path, tmp_path: Path) -> None:
    from shards.packing.pack import pack
    from shards.reader import DatasetReader

    shutil.copytree(scene, tmp_path / "again" / "mine")
    for path in (scene / "color").iterdir():
        Image.fromarray(np.full((192, 256, 3), 80, np.uint8)).save(path)
    (scene / "intrinsic_color.txt").write_text("230 230 127.5 95.5")
    pack("folder", scene, str(tmp_path / "small"), source_options=MILLIMETRES, color_size=(128, 128))
    frame = DatasetReader(str(tmp_path / "small")).read_frame(0, 0)
    check_frame(frame, "here")
    assert Image.open(io.BytesIO(frame.color)).size == (128, 96)
    np.testing.assert_allclose(frame.K_color, [[115, 0, 63.5], [0, 115, 47.5], [0, 0, 1]])
    pack("folder", tmp_path / "again" / "mine", str(tmp_path / "same"), source_options=MILLIMETRES, color_size=(64, 64))
    kept = DatasetReader(str(tmp_path / "same")).read_frame(0, 0)
    assert kept.color == (tmp_path / "again" / "mine" / "color" / "000000.jpg").read_bytes()
