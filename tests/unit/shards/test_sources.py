"""What the readers of raw datasets make of files on disk."""

import dataclasses
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import CallError, ShardError
from shards.images import decode_depth, encode_depth
from shards.schema import check_frame, decode_frame_depth
from shards.sources import folder, seven_scenes, tum
from shards.sources.cameras import pinhole, read_camera
from shards.sources.formats import FORMATS, find_format
from shards.sources.frame_files import read_frame
from shards.sources.options import SourceOptions
from shards.sources.raw_files import natural_order

DEFAULT = SourceOptions()
MILLIMETRES = SourceOptions(depth_scale=1000.0)


class TestFormats:
    def test_a_name_close_to_a_format_is_suggested(self) -> None:
        assert find_format("tum").name == "tum"
        with pytest.raises(
            CallError, match=r"unknown format '7-scenes', wanted one of seven-scenes, tum, .*, folder; did"
        ):
            find_format("7-scenes")

    @pytest.mark.parametrize("source_format", FORMATS, ids=lambda one: one.name)
    def test_missing_and_empty_folders_are_named(self, source_format, tmp_path: Path) -> None:
        with pytest.raises(CallError, match="nowhere: no such file or folder"):
            source_format.scan(tmp_path / "nowhere", MILLIMETRES)
        (tmp_path / "file").write_text("")
        with pytest.raises((CallError, ShardError), match=r"file: (not a folder|ends after 0 bytes)"):
            source_format.scan(tmp_path / "file", MILLIMETRES)
        with pytest.raises(CallError, match=r"no .*; wanted"):
            source_format.scan(tmp_path, MILLIMETRES)


class TestRawFiles:
    def test_numbers_in_names_count_as_numbers(self) -> None:
        assert sorted(["10", "9", "1", "frame-2", "frame-10", "01"], key=natural_order)[-2:] == ["frame-2", "frame-10"]
        assert sorted(["10", "9", "1"], key=natural_order) == ["1", "9", "10"]
        assert sorted(["m²", "m³", "m2"], key=natural_order) == ["m2", "m²", "m³"]  # digits, but not numbers

    @pytest.mark.parametrize("text", ["2 0 3\n0 4 5\n0 0 1\n", "2,0,3,0\n0,4,5,0\n0,0,1,0\n0,0,0,1", "2 4 3 5"])
    def test_intrinsics_come_in_three_shapes(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "K").write_text(text)
        assert read_camera(tmp_path / "K").K == (2, 0, 3, 0, 4, 5, 0, 0, 1)

    @pytest.mark.parametrize(
        ("text", "message"),
        [("1 2\n3 4 5", "not a matrix"), ("", "empty"), ("1 2 3", "found 1x3"), ("a b c d", "not a matrix")],
    )
    def test_malformed_intrinsics_are_named(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "K").write_text(text)
        with pytest.raises(ShardError, match=f"K: {message}"):
            read_camera(tmp_path / "K")


class TestSevenScenes:
    def test_frames_are_read_as_they_lie(self, tmp_path: Path, make_scene: Callable[..., Path]) -> None:
        root = make_scene(tmp_path / "kitchen", 3)
        refs = seven_scenes.scan(root, DEFAULT)
        assert [(ref.scene_id, ref.frame_id) for ref in refs] == [("kitchen", f"frame-00000{i}") for i in range(3)]
        frame = read_frame(refs[1])
        check_frame(frame, "here")
        assert frame.color == (root / "frame-000001.color.jpg").read_bytes()
        assert frame.color_format == "jpg"
        assert frame.depth == (root / "frame-000001.depth.png").read_bytes()
        assert frame.depth_scale == 1000.0
        assert frame.K_depth[0, 0] == pytest.approx(0.9 * 64)
        np.testing.assert_allclose(frame.world_from_camera, np.loadtxt(root / "frame-000001.pose.txt"))

    def test_65535_becomes_no_reading_and_nothing_else_changes(
        self, tmp_path: Path, make_scene: Callable[..., Path]
    ) -> None:
        path = make_scene(tmp_path / "kitchen", 1) / "frame-000000.depth.png"
        before = decode_depth(path.read_bytes()).copy()
        before[10:20, 5:9] = 65535
        before[0, 0] = 65534
        path.write_bytes(encode_depth(before))
        (ref,) = seven_scenes.scan(path.parent, DEFAULT)
        frame = read_frame(ref)
        assert frame.depth == path.read_bytes()
        after = decode_frame_depth(frame, "here")
        assert not after[10:20, 5:9].any()
        assert np.array_equal(after[before != 65535], before[before != 65535])

    def test_sequences_of_all_scenes_keep_apart(self, tmp_path: Path, make_scene: Callable[..., Path]) -> None:
        for scene in ("chess", "office"):
            for sequence in ("seq-01", "seq-02", "seq-10"):
                make_scene(tmp_path / scene / sequence, 1)
        found = [ref.scene_id for ref in seven_scenes.scan(tmp_path, DEFAULT)]
        assert found == [f"{scene}/seq-{i}" for scene in ("chess", "office") for i in ("01", "02", "10")]
        assert [ref.scene_id for ref in seven_scenes.scan(tmp_path / "chess", DEFAULT)] == found[:3]
        assert [ref.scene_id for ref in seven_scenes.scan(tmp_path / "chess" / "seq-02", DEFAULT)] == found[1:2]

    def test_original_layout_without_intrinsics_uses_the_published_ones(
        self, tmp_path: Path, make_scene: Callable[..., Path]
    ) -> None:
        root = make_scene(tmp_path / "chess" / "seq-01", 1)
        (root / "camera-intrinsics.txt").rename(tmp_path / "chess" / "camera-intrinsics.txt")
        (ref,) = seven_scenes.scan(tmp_path, DEFAULT)
        assert read_frame(ref).K_depth[0, 2] == 32  # found one folder up
        (tmp_path / "chess" / "camera-intrinsics.txt").unlink()
        (ref,) = seven_scenes.scan(tmp_path, DEFAULT)
        assert read_frame(ref).K_depth.tolist() == [[585, 0, 320], [0, 585, 240], [0, 0, 1]]

    @pytest.mark.parametrize("text", ["nan " * 16, "-inf " * 16, "0 " * 16])
    def test_a_lost_pose_is_no_pose(self, tmp_path: Path, make_scene: Callable[..., Path], text: str) -> None:
        root = make_scene(tmp_path / "kitchen", 1)
        rows = text.split()
        (root / "frame-000000.pose.txt").write_text("\n".join(" ".join(rows[i : i + 4]) for i in range(0, 16, 4)))
        (ref,) = seven_scenes.scan(root, DEFAULT)
        assert read_frame(ref).world_from_camera is None
        (root / "frame-000000.pose.txt").unlink()
        (ref,) = seven_scenes.scan(root, DEFAULT)
        assert read_frame(ref).world_from_camera is None

    def test_a_frame_without_colour_is_named(self, tmp_path: Path, make_scene: Callable[..., Path]) -> None:
        root = make_scene(tmp_path / "kitchen", 2)
        (root / "frame-000001.color.jpg").unlink()
        with pytest.raises(
            ShardError, match=r"frame-000001.depth.png: no file frame-000001\.color\.\* in .* \(1 of 2 lack"
        ):
            seven_scenes.scan(root, DEFAULT)

    def test_a_colour_image_without_depth_is_named(self, tmp_path: Path, make_scene: Callable[..., Path]) -> None:
        root = make_scene(tmp_path / "kitchen", 2)
        (root / "frame-000001.depth.png").unlink()
        with pytest.raises(
            ShardError, match=r"frame-000001.color.jpg: no file frame-000001\.depth\.\* in .* \(1 of 2 lack"
        ):
            seven_scenes.scan(root, DEFAULT)

    def test_frames_without_a_pose_are_counted(
        self, tmp_path: Path, make_scene: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        root = make_scene(tmp_path / "kitchen", 3)
        with caplog.at_level(logging.WARNING):
            seven_scenes.scan(root, DEFAULT)
        assert caplog.text == ""
        (root / "frame-000001.pose.txt").unlink()
        (root / "frame-000002.pose.txt").unlink()
        with caplog.at_level(logging.WARNING):
            assert len(seven_scenes.scan(root, DEFAULT)) == 3
        assert "kitchen: 2 of 3 frames have no pose file, the first is frame-000001" in caplog.text

    def test_png_colour_is_kept_too(self, tmp_path: Path, make_scene: Callable[..., Path]) -> None:
        root = make_scene(tmp_path / "kitchen", 1)
        with Image.open(root / "frame-000000.color.jpg") as image:
            image.save(root / "frame-000000.color.png")
        with pytest.raises(ShardError, match=r"frame-000000.color.png: frame-000000.color.jpg is of the same frame"):
            seven_scenes.scan(root, DEFAULT)
        (root / "frame-000000.color.jpg").unlink()
        (ref,) = seven_scenes.scan(root, DEFAULT)
        frame = read_frame(ref)
        check_frame(frame, "here")
        assert (frame.color_format, frame.color) == ("png", (root / "frame-000000.color.png").read_bytes())


class TestTum:
    def test_the_sample_in_this_repository(self, tum_sample: Path) -> None:
        refs = tum.scan(tum_sample, DEFAULT)
        assert len(refs) == 4
        assert refs == tum.scan(tum_sample / "rgbd_dataset_freiburg1_rpy", DEFAULT)
        frame = read_frame(refs[0])
        check_frame(frame, "here")
        assert frame.depth_scale == 5000.0
        assert frame.K_depth.tolist() == [[517.3, 0, 318.6], [0, 516.5, 255.3], [0, 0, 1]]
        assert frame.frame_id == refs[0].color.stem
        assert frame.timestamp == float(refs[0].depth.where.stem)
        assert frame.color == refs[0].color.read_bytes()
        assert frame.depth == refs[0].depth.where.read_bytes()
        assert all(ref.world_from_camera is not None for ref in refs)

    @pytest.mark.parametrize("seed", range(200))
    def test_association_is_that_of_the_benchmark(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        first, second = (sorted(rng.uniform(0, 0.5, rng.integers(0, 30)).tolist()) for _ in range(2))
        every = sorted(
            (abs(a - b), i, j) for i, a in enumerate(first) for j, b in enumerate(second) if abs(a - b) < 0.02
        )
        wanted: list[tuple[int, int]] = []
        for _, i, j in every:
            if i not in {pair[0] for pair in wanted} and j not in {pair[1] for pair in wanted}:
                wanted.append((i, j))
        assert tum.associate(first, second, 0.02) == sorted(wanted)

    @pytest.mark.parametrize("seed", range(50))
    def test_interpolation_follows_a_turn_at_constant_speed(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        stamps = np.array([0.0, 0.01, 0.03])

        def quaternion(stamp: float) -> np.ndarray:
            half = 20 * stamp / 2
            return np.array([*(np.sin(half) * axis), np.cos(half)]) * rng.choice([-1, 1])  # q and -q: one rotation

        trajectory = tum.Trajectory(stamps, stamps[:, None] * [1, 2, 3], np.array([quaternion(s) for s in stamps]))
        for stamp in (0.0, 0.004, 0.01, 0.02, 0.029, 0.03):
            found = trajectory.world_from_camera(stamp)
            assert found is not None
            cross = np.cross(np.eye(3), axis)
            angle = 20 * stamp
            wanted = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues
            np.testing.assert_allclose(found[:3, :3], wanted, atol=1e-12)
            np.testing.assert_allclose(found[:3, 3], [stamp, 2 * stamp, 3 * stamp], atol=1e-12)

    def test_gaps_of_the_ground_truth_give_no_pose(self) -> None:
        stamps = np.array([0.0, 0.01, 0.2, 0.26])
        trajectory = tum.Trajectory(stamps, np.zeros((4, 3)), np.tile([0, 0, 0, 1.0], (4, 1)))
        for stamp, known in ((-0.001, False), (0.005, True), (0.02, False), (0.2, True), (0.21, True), (0.23, False)):
            assert (trajectory.world_from_camera(stamp) is not None) == known, stamp
        assert trajectory.world_from_camera(0.27) is None

    def test_a_sequence_without_ground_truth_has_no_poses(self, tmp_path: Path, tum_sample: Path) -> None:
        root = shutil.copytree(tum_sample / "rgbd_dataset_freiburg1_rpy", tmp_path / "freiburg3_mine")
        (root / "groundtruth.txt").unlink()
        refs = tum.scan(root, DEFAULT)
        assert [ref.world_from_camera for ref in refs] == [None] * 4
        assert refs[0].depth_camera == pinhole(535.4, 539.2, 320.1, 247.6)

    def test_what_is_left_out_is_counted(
        self, tmp_path: Path, tum_sample: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = shutil.copytree(tum_sample / "rgbd_dataset_freiburg1_rpy", tmp_path / "freiburg1")
        with caplog.at_level(logging.WARNING):
            tum.scan(root, DEFAULT)
        assert caplog.text == ""
        lines = (root / "depth.txt").read_text().splitlines()
        (root / "depth.txt").write_text("\n".join(lines[:-1]) + "\n99.0 depth/a.png\n98.0 depth/b.png\n")
        poses = (root / "groundtruth.txt").read_text().splitlines()
        (root / "groundtruth.txt").write_text("\n".join(poses[-2:]))
        with caplog.at_level(logging.WARNING):
            assert len(tum.scan(root, DEFAULT)) == 3
        assert "rgb.txt: 1 of 4 images have no partner, the first is rgb/" in caplog.text
        assert "depth.txt: 2 of 5 images have no partner, the first is depth/b.png" in caplog.text
        assert "groundtruth.txt: 3 of 3 frames have no pose" in caplog.text

    def test_poses_do_not_depend_on_the_processor(self, tmp_path: Path, clean_environ: dict[str, str]) -> None:
        """Scanned as on an old and on a new processor: BLAS and the C library choose other code for each."""
        rng = np.random.default_rng(0)
        folder = tmp_path / "freiburg1_random"
        folder.mkdir()
        quaternions = rng.normal(size=(600, 4))
        quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
        rows = np.column_stack([np.arange(600) * 0.03, rng.normal(size=(600, 3)), quaternions])
        np.savetxt(folder / "groundtruth.txt", rows, fmt="%.9f")
        for name in ("rgb", "depth"):
            (folder / f"{name}.txt").write_text("".join(f"{i * 0.03 + 0.013:.6f} {name}/{i}.png\n" for i in range(599)))
        program = (
            "import hashlib, sys; from pathlib import Path; from shards.sources import tum;"
            "from shards.sources.options import SourceOptions; refs = tum.scan(Path(sys.argv[1]), SourceOptions());"
            "assert len(refs) == 599 and all(ref.world_from_camera for ref in refs);"
            "print(hashlib.sha256(repr([ref.world_from_camera for ref in refs]).encode()).hexdigest())"
        )
        old = {
            "OPENBLAS_CORETYPE": "Prescott",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX2_Usable,-FMA_Usable,-FMA4_Usable",
        }
        digests = [
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", program, str(folder)],
                env={**clean_environ, **environment},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for environment in ({"OPENBLAS_CORETYPE": "Haswell"}, old)
        ]
        assert digests[0] == digests[1]

    def test_an_unknown_camera_is_refused_until_somebody_says_its_intrinsics(
        self, tmp_path: Path, tum_sample: Path
    ) -> None:
        root = shutil.copytree(tum_sample / "rgbd_dataset_freiburg1_rpy", tmp_path / "my_office")
        with pytest.raises(ShardError, match=r"my_office: its name does not say which camera .* --intrinsics FILE"):
            tum.scan(root, DEFAULT)
        (tmp_path / "K.txt").write_text("542.8 542.6 315.6 237.8\n")
        (ref, *_) = tum.scan(root, SourceOptions(intrinsics=tmp_path / "K.txt"))
        assert read_frame(ref).K_depth[0].tolist() == [542.8, 0, 315.6]
        (root / "intrinsic.txt").write_text("# Bonn\n542.8 0 315.6\n0 542.6 237.8\n0 0 1\n")
        assert tum.scan(root, DEFAULT)[0].color_camera == ref.color_camera

    def test_unrelated_or_malformed_lists_are_named(self, tmp_path: Path, tum_sample: Path) -> None:
        root = shutil.copytree(tum_sample / "rgbd_dataset_freiburg1_rpy", tmp_path / "fr1")
        (root / "depth.txt").write_text("5.0 depth/5.png\n")
        with pytest.raises(
            ShardError, match=r"none of the 4 colour stamps .* within 0.02 s of one of the 1 of depth.txt"
        ):
            tum.scan(root, DEFAULT)
        (root / "depth.txt").write_text("# comment\n\nfive depth/5.png\n")
        with pytest.raises(ShardError, match=r"depth.txt, line 3: found 'five depth/5.png', wanted a stamp and 1 more"):
            tum.scan(root, DEFAULT)

    def test_a_ground_truth_of_another_kind_is_named(self, tmp_path: Path, tum_sample: Path) -> None:
        root = shutil.copytree(tum_sample / "rgbd_dataset_freiburg1_rpy", tmp_path / "fr1")
        (root / "groundtruth.txt").write_text("1 0 0 0 1 1 1 1\n")
        with pytest.raises(ShardError, match=r"groundtruth.txt: a quaternion has length 2, wanted 1"):
            tum.scan(root, DEFAULT)
        (root / "groundtruth.txt").write_text("1 0 0 0 one 0 0 0\n")
        with pytest.raises(ShardError, match=r"groundtruth.txt: not a number"):
            tum.scan(root, DEFAULT)

    def test_a_missing_image_is_named(self, tmp_path: Path, tum_sample: Path) -> None:
        root = shutil.copytree(tum_sample / "rgbd_dataset_freiburg1_rpy", tmp_path / "fr1")
        refs = tum.scan(root, DEFAULT)
        refs[0].depth.where.unlink()
        with pytest.raises(ShardError, match=r"depth/.*\.png: cannot be read \(No such file or directory\)"):
            read_frame(refs[0])


class TestFolder:
    @pytest.fixture
    def scene(self, tmp_path: Path, make_scene: Callable[..., Path]) -> Path:
        raw = make_scene(tmp_path / "raw", 11)
        scene = tmp_path / "mine"
        for name in ("color", "depth", "pose", "label", "instance"):
            (scene / name).mkdir(parents=True)
        for i in range(11):
            (raw / f"frame-{i:06d}.color.jpg").rename(scene / "color" / f"{i}.jpg")
            (raw / f"frame-{i:06d}.depth.png").rename(scene / "depth" / f"{i}.png")
            (raw / f"frame-{i:06d}.pose.txt").rename(scene / "pose" / f"{i}.txt")
            for name in ("label", "instance"):
                Image.fromarray(np.full((48, 64), i, np.uint8)).save(scene / name / f"{i}.png")
        (raw / "camera-intrinsics.txt").rename(scene / "intrinsic.txt")
        return scene

    def test_frames_come_in_natural_order_with_all_they_have(self, scene: Path) -> None:
        refs = folder.scan(scene, MILLIMETRES)
        assert [ref.frame_id for ref in refs] == [str(i) for i in range(11)]
        assert {ref.scene_id for ref in refs} == {"mine"}
        frame = read_frame(refs[10])
        check_frame(frame, "here")
        assert frame.semantic == (scene / "label" / "10.png").read_bytes()
        assert frame.instance == (scene / "instance" / "10.png").read_bytes()
        assert frame.world_from_camera is not None
        assert frame.depth_scale == 1000.0

    def test_a_folder_of_scenes_is_read_scene_by_scene(self, scene: Path) -> None:
        shutil.copytree(scene, scene.parent / "other")
        (scene.parent / "notes").mkdir()
        refs = folder.scan(scene.parent, MILLIMETRES)
        assert [ref.scene_id for ref in refs] == ["mine"] * 11 + ["other"] * 11

    @pytest.mark.parametrize(("gone", "kept"), [("depth", "color"), ("color", "depth")])
    def test_a_scene_that_lacks_one_of_its_two_folders_is_named(self, scene: Path, gone: str, kept: str) -> None:
        other = shutil.copytree(scene, scene.parent / "other")
        shutil.rmtree(other / gone)
        for root in (scene.parent, other):
            with pytest.raises(ShardError, match=rf"other: has a folder {kept}/ and no {gone}/; a scene needs both"):
                folder.scan(root, MILLIMETRES)

    def test_two_grids_have_two_intrinsics(self, scene: Path) -> None:
        (scene / "intrinsic").mkdir()
        (scene / "intrinsic" / "intrinsic_color.txt").write_text("90 90 31 23")
        (ref, *_) = folder.scan(scene, MILLIMETRES)
        frame = read_frame(ref)
        assert frame.K_color[0, 0] == 90
        assert frame.K_depth[0, 0] == pytest.approx(57.6)

    @pytest.mark.parametrize("name", ["extrinsic_color.txt", "intrinsic/extrinsic_depth.txt"])
    def test_cameras_that_do_not_coincide_are_refused(self, scene: Path, name: str) -> None:
        (scene / "intrinsic").mkdir()
        np.savetxt(scene / name, np.eye(4))
        assert len(folder.scan(scene, MILLIMETRES)) == 11
        moved = np.eye(4)
        moved[0, 3] = 0.04
        np.savetxt(scene / name, moved)
        with pytest.raises(ShardError, match=rf"{name}: not the 4x4 identity.*; register the depth images"):
            folder.scan(scene, MILLIMETRES)

    def test_saturated_depth_is_said(self, scene: Path, caplog: pytest.LogCaptureFixture) -> None:
        depth = np.ones((48, 64), np.uint16)
        depth[:2, :3] = 65535
        (scene / "depth" / "0.png").write_bytes(encode_depth(depth))
        with caplog.at_level(logging.WARNING):
            folder.scan(scene, MILLIMETRES)
        assert "0.png: 6 pixels are 65535, often a mark for no reading" in caplog.text

    def test_depth_scale_must_be_given(self, scene: Path) -> None:
        with pytest.raises(CallError, match="--depth-scale 1000 for millimetres"):
            folder.scan(scene, DEFAULT)

    def test_what_is_missing_is_named(self, scene: Path) -> None:
        (scene / "depth" / "4.png").rename(scene / "depth" / "four.png")
        with pytest.raises(ShardError, match=r"color/4.jpg: no file 4\.\* in .*depth \(1 of 11 lack theirs\)"):
            folder.scan(scene, MILLIMETRES)
        (scene / "color" / "4.jpg").unlink()
        with pytest.raises(ShardError, match=r"depth/four.png: no file four\.\* in .*color"):
            folder.scan(scene, MILLIMETRES)
        (scene / "depth" / "four.png").unlink()
        (scene / "intrinsic.txt").unlink()
        with pytest.raises(ShardError, match=r"mine: no intrinsics; wanted a 3x3 or 4x4 matrix in pixels in one of"):
            folder.scan(scene, MILLIMETRES)

    def test_two_files_of_one_frame_are_named(self, scene: Path) -> None:
        shutil.copy(scene / "color" / "3.jpg", scene / "color" / "3.png")
        with pytest.raises(ShardError, match=r"color/3.png: 3.jpg is of the same frame; keep one"):
            folder.scan(scene, MILLIMETRES)

    def test_poses_that_fit_no_frame_are_an_error_and_some_missing_a_warning(
        self, scene: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (scene / "pose" / "7.txt").unlink()
        with caplog.at_level(logging.WARNING):
            refs = folder.scan(scene, MILLIMETRES)
        assert "pose: 1 of 11 frames have no file here, the first is 7" in caplog.text
        assert refs[7].world_from_camera is None
        for path in list((scene / "pose").iterdir()):
            path.rename(path.with_name(f"pose-{path.name}"))
        with pytest.raises(ShardError, match=r"pose: none of its 10 files is named like a frame; wanted 0.txt"):
            folder.scan(scene, MILLIMETRES)

    def test_depth_in_another_container_is_packed_as_png(self, scene: Path) -> None:
        pixels = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
        (scene / "depth" / "0.png").unlink()
        Image.fromarray(pixels).save(scene / "depth" / "0.pgm")
        (ref, *_) = folder.scan(scene, MILLIMETRES)
        assert np.array_equal(decode_depth(read_frame(ref).depth), pixels)

    def test_label_names_are_the_lines_of_a_file(self, scene: Path) -> None:
        assert folder.label_names(scene) == ()
        (scene / "label_names.txt").write_text("nothing\nchair\n")
        assert folder.label_names(scene) == ("nothing", "chair")

    def test_references_are_light(self, scene: Path) -> None:
        (ref, *_) = folder.scan(scene, MILLIMETRES)
        assert all(not isinstance(value, bytes | np.ndarray) for value in dataclasses.asdict(ref).values())


class TestOptions:
    @pytest.mark.parametrize("scale", [-1.0, 0.0, float("nan")])
    def test_a_depth_scale_that_cannot_be_meant_is_refused(self, scale: float) -> None:
        with pytest.raises(CallError, match=f"depth scale is {scale}, wanted units per metre, above 0"):
            SourceOptions(depth_scale=scale)

    def test_scenes_are_chosen_by_pattern_and_by_list(self, tmp_path: Path) -> None:
        (tmp_path / "train.txt").write_text("\ufeffscene0001_00\r\n\r\n# later\r\nscene0002_00\r\nroom\r\n")
        both = SourceOptions(scenes="scene*", split=tmp_path / "train.txt").chosen_scenes()
        assert [name for name in ("scene0001_00", "scene0002_00", "scene0003_00", "room") if name in both] == [
            "scene0001_00",
            "scene0002_00",
        ]
        assert "anything" in DEFAULT.chosen_scenes()
