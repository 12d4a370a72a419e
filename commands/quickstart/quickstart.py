"""`t4p quickstart`: the whole road, small, with a report at its end: on rooms made on the spot, or on your data."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from commands.pages.page import Gallery
from commands.pages.sample_view import legend_of, names_of, view_sample
from commands.quickstart.figures import QuickstartReport
from commands.quickstart.report import show_table, write_report
from commands.quickstart.rooms import EXPORTS, try_on_rooms
from commands.quickstart.stages import Stages, collect_pretraining, count_workers, override
from launch.training import launch_training
from shards.manifest import MANIFEST_NAME
from shards.packing.pack import pack
from shards.reader import DatasetReader, spread
from shards.sources.formats import FrameRef, find_format
from shards.sources.options import SourceOptions
from shards.sources.recognise import detect_frames
from shards.stores.place import open_store
from t4p.config.files import load_config
from t4p.config.tasks import PretrainConfig
from t4p.errors import ConfigError
from t4p.runs.checkpoint import checkpoints_in
from t4p.tasks.afterwards import next_commands

# Says that a folder belongs to this command, which replaces what is in it.
OWNER_MARK = ".quickstart"
OURS = ("run", "shards", "scratch", "finetuned", "asked", *EXPORTS.values(), "report.json", "report.html")
# One batch of configs/smoke.yaml, and one frame to validate with.
MIN_FRAMES = 3
NUM_SHOWN = 3  # frames in the report


@dataclass(frozen=True)
class QuickstartData:
    """The user's datasets.

    Attributes:
        shards: what is trained on, folder or s3:// prefix.
        validation_shards: frames held out; None where there are none.
    """

    shards: str
    validation_shards: str | None


@dataclass(frozen=True)
class RawFrames:
    """Frames that are not packed yet: a folder, and the name of the format that reads it."""

    source_format: str
    folder: Path

    def refs(self) -> Sequence[FrameRef]:
        """The frames, in packing order. Raises ShardError where there are none."""
        return find_format(self.source_format).scan(self.folder, SourceOptions())


def quickstart(data: str | None, out: Path) -> int:
    """Pack, pre-train, and on rooms also evaluate and fine-tune; report.

    Args:
        data: a packed dataset (folder or s3:// prefix), or a folder of raw frames in a layout that needs no options,
            which is packed first; what needs labels is left out then. None makes rooms.
        out: folder for `report.html`, `report.json`, `shards/` and the run folders; those of an earlier quickstart are
            replaced.

    Returns:
        The exit status: 0, or 1 where the outcome is not what it should be.

    Raises:
        ConfigError: there is no data to train on, or `out` holds something that is not ours.
        LaunchError, ShardError: training or packing failed.
    """
    console = Console()
    command = shlex.join(["t4p", "quickstart", *([] if data is None else ["--data", data]), "--out", str(out)])
    if data is None:
        take_over(out, replace_shards=True, console=console)
        report = try_on_rooms(out, command, console)
    else:
        report = try_on_own_data(data, out, command, console)
    write_report(report, out)
    show_table(report, console)
    console.print(f"report: {out / 'report.html'}, for programs {out / 'report.json'}", highlight=False, soft_wrap=True)
    if report.problem is None:
        if report.scores is not None:
            asked = out / report.links[0].href
            console.print(f"ask it in words: {asked}, or {report.next_commands[0]}", highlight=False, soft_wrap=True)
        return 0
    console.print(report.problem, style="bold red", soft_wrap=True)
    return 1


def try_on_own_data(data: str, out: Path, command: str, console: Console) -> QuickstartReport:
    """Pack the user's frames if they are not packed yet, and pre-train on them.

    Raises:
        ConfigError, LaunchError, ShardError: as `quickstart`.
    """
    stages = Stages(console)
    found = find_data(data)
    if isinstance(found, RawFrames):
        check_raw(found, out / "shards")
        take_over(out, replace_shards=True, console=console)
        with stages.stage("Packing", f"The frames of {found.folder} ({found.source_format}); some are held out."):
            dataset = pack_raw(found, out / "shards")
    else:
        take_over(out, replace_shards=False, console=console)
        dataset = QuickstartData(found, None)
    config = smoke_config(dataset, out / "run")
    num_workers = count_workers()
    with stages.stage(
        "Pre-training",
        f"{num_workers} DeepSpeed worker(s) on a private Ray, {config.train.num_steps} steps with configs/smoke.yaml: "
        "a small network against CLIP towers with random weights. It shows that your data goes through.",
    ):
        launch_training(config, num_workers, console)
    checkpoint = checkpoints_in(Path(config.run.dir) / "checkpoints")[-1]
    return QuickstartReport(
        command,
        dataset.shards,
        collect_pretraining(config),
        stages.sections,
        gallery=show_frames(dataset.shards),
        next_commands=(shlex.join(["t4p", "shards", "show", dataset.shards]), *next_commands(config, checkpoint)),
    )


def show_frames(url: str) -> Gallery:
    """A few frames of the user's, from all over the dataset."""
    dataset = DatasetReader(url)
    samples = [dataset.read_frame(*place) for place in spread(dataset.samples_per_shard, NUM_SHOWN)]
    names = names_of(samples, dataset.manifest.label_names)
    shown = [view_sample(sample, names, small=True) for sample in samples]
    return Gallery(
        "Your frames",
        f"{len(samples)} of {dataset.num_samples}, as they were packed.",
        tuple(picture for gallery in shown for picture in gallery.pictures),
        legend_of(samples, names),
        small=True,
    )


def find_data(data: str) -> str | RawFrames:
    """What lies at `data`: a packed dataset, returned as it is, or raw frames.

    Raises:
        ConfigError: neither.
    """
    if open_store(data).exists(MANIFEST_NAME):
        return data
    if data.startswith(("s3://", "gs://", "az://")):
        raise ConfigError(
            f"{data}: no {MANIFEST_NAME} there, so it is no packed dataset; make one with\n"
            f"  t4p shards pack FORMAT SRC {data}"
        )
    folder = Path(data)
    if not folder.is_dir():
        raise ConfigError(f"{data}: no such folder; give a packed dataset: a folder or s3://BUCKET/PREFIX")
    found = detect_frames(folder, SourceOptions())
    if found is None:
        raise ConfigError(
            f"{data}: neither a packed dataset (no {MANIFEST_NAME}) nor raw frames in a known layout; "
            "`t4p shards formats` lists the layouts, `t4p shards pack` packs them"
        )
    source_format, _ = found
    return RawFrames(source_format.name, folder)


def take_over(out: Path, replace_shards: bool, console: Console) -> None:
    """Make `out` ours and empty: an old run must not be resumed by a new quickstart.

    Args:
        replace_shards: False where the shards in there may be this quickstart's own input.

    Raises:
        ConfigError: what would be replaced was not made by a quickstart.
    """
    present = [out / name for name in OURS if (out / name).exists()]
    if present and not (out / OWNER_MARK).exists():
        raise ConfigError(
            f"{present[0]} exists and was not made by a quickstart, which would replace it; choose another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / OWNER_MARK).touch()
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    replaced = [path for path in present if replace_shards or path.name != "shards"]
    for path in replaced:  # the report too: a run that fails must not stand beside that of the one before
        console.print(f"replacing {path} of the quickstart before", highlight=False, soft_wrap=True)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def check_raw(raw: RawFrames, dst: Path) -> None:
    """Refuse raw frames that cannot be packed to `dst`, before anything there is replaced.

    Raises:
        ConfigError: there are too few, or they lie in `dst`.
        ShardError: the folder does not hold frames of that format.
    """
    if raw.folder.resolve().is_relative_to(dst.resolve()):
        raise ConfigError(f"{raw.folder} lies in {dst}, which a quickstart replaces; choose another --out")
    num_frames = len(raw.refs())
    if num_frames < MIN_FRAMES:
        raise ConfigError(
            f"{raw.folder}: {num_frames} frame(s) ({raw.source_format}); a quickstart needs at least {MIN_FRAMES}: "
            f"{MIN_FRAMES - 1} to train on and one to validate with"
        )


def pack_raw(raw: RawFrames, dst: Path) -> QuickstartData:
    """Pack raw frames; the last fifth, and at least one, is held out for validation.

    Raises:
        ShardError: a frame is broken.
    """
    num_frames = len(raw.refs())
    num_train = num_frames - max(1, num_frames // 5)
    train, validation = dst / "train", dst / "validation"
    pack(raw.source_format, raw.folder, str(train), frames=slice(0, num_train))
    pack(raw.source_format, raw.folder, str(validation), frames=slice(num_train, None))
    return QuickstartData(str(train), str(validation))


def smoke_config(dataset: QuickstartData, run_dir: Path) -> PretrainConfig:
    """configs/smoke.yaml on this data; the scores are taken before the first and after the last step."""
    overrides = [override("run.dir", str(run_dir)), override("data.shards", [dataset.shards])]
    if dataset.validation_shards is not None:
        overrides.append(override("data.validation_shards", [dataset.validation_shards]))
    return load_config(["configs/smoke.yaml"], overrides)
