"""`t4p quickstart`: the main job, small and whole: pack real frames, pre-train through Ray, report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from launch.errors import LaunchError
from launch.quickstart_report import QuickstartReport, draw_losses, read_lines, show_table, summarise, write_report
from launch.trainer import launch_training
from shards.manifest import MANIFEST_NAME
from shards.pack import pack
from shards.reader import DatasetReader
from shards.schema import ShardError
from shards.sources.formats import FORMATS, FrameRef, find_format
from shards.sources.raw_files import SourceOptions
from shards.store import open_store
from t4p.config import PretrainConfig
from t4p.config_files import load_config
from t4p.errors import ConfigError

NUM_WORKERS = 1
# Says that a folder belongs to this command, which replaces what is in it.
OWNER_MARK = ".quickstart"
# One batch of configs/smoke.yaml, and one frame to validate with.
MIN_FRAMES = 3


@dataclass(frozen=True)
class QuickstartData:
    """The datasets of one quickstart.

    Attributes:
        shards: what is trained on, folder or s3:// prefix.
        validation_shards: frames held out; None where there are none.
        pack_seconds: 0 where nothing had to be packed.
    """

    shards: str
    validation_shards: str | None
    pack_seconds: float


@dataclass(frozen=True)
class RawFrames:
    """Frames that are not packed yet: a folder, and the name of the format that reads it."""

    source_format: str
    folder: Path

    def refs(self) -> Sequence[FrameRef]:
        """The frames, in packing order. Raises ShardError where there are none."""
        return find_format(self.source_format).scan(self.folder, SourceOptions())


def quickstart(data: str | None, out: Path) -> int:
    """Pack, pre-train, report.

    Args:
        data: a packed dataset (folder or s3:// prefix), or a folder of raw frames in a layout that needs no options,
            which is packed first; None packs the real frames that come with the repository.
        out: folder for `report.json`, `loss.png`, `run/` and `shards/`; those of an earlier quickstart are replaced.

    Returns:
        The exit status: 0, or 1 where the loss did not fall.

    Raises:
        ConfigError: there is no data to train on, or `out` holds something that is not ours.
        LaunchError, ShardError: training or packing failed.
    """
    console = Console()
    found = RawFrames("tum", find_example_frames()) if data is None else find_data(data)
    if isinstance(found, RawFrames):
        check_raw(found, out / "shards")
        take_over(out, replace_shards=True, console=console)
        dataset = pack_raw(found, out / "shards", console)
    else:
        take_over(out, replace_shards=False, console=console)
        dataset = QuickstartData(found, None, 0.0)
    config = smoke_config(dataset, out / "run")

    started = time.monotonic()
    launch_training(config, NUM_WORKERS, console)
    train_seconds = time.monotonic() - started

    report = collect_report(config, dataset, train_seconds)
    write_report(report, out / "report.json")
    draw_losses(read_lines(out / "run" / "metrics.jsonl"), out / "loss.png")
    show_table(report, console)
    console.print(f"report: {out / 'report.json'}\nlosses: {out / 'loss.png'}\nrun:    {out / 'run'}", highlight=False)
    if report.last["loss"] < report.first["loss"]:
        return 0
    console.print("the loss did not fall; something is wrong with the data or the configuration", style="bold red")
    return 1


def find_data(data: str) -> str | RawFrames:
    """What lies at `data`: a packed dataset, returned as it is, or raw frames.

    Raises:
        ConfigError: neither.
    """
    if open_store(data).exists(MANIFEST_NAME):
        return data
    if data.startswith("s3://"):
        raise ConfigError(
            f"{data}: no {MANIFEST_NAME} there, so it is no packed dataset; make one with\n"
            f"  t4p shards pack FORMAT SRC {data}"
        )
    folder = Path(data)
    if not folder.is_dir():
        raise ConfigError(f"{data}: no such folder; give a packed dataset: a folder or s3://BUCKET/PREFIX")
    found = detect_format(folder)
    if found is None:
        raise ConfigError(
            f"{data}: neither a packed dataset (no {MANIFEST_NAME}) nor raw frames in a known layout; "
            "`t4p shards formats` lists the layouts, `t4p shards pack` packs them"
        )
    return RawFrames(found, folder)


def detect_format(folder: Path) -> str | None:
    """Name of the first format that finds frames in a folder without being told anything else."""
    for source_format in FORMATS:
        try:
            if source_format.scan(folder, SourceOptions()):
                return source_format.name
        except ShardError:
            continue
    return None


def take_over(out: Path, replace_shards: bool, console: Console) -> None:
    """Make `out` ours and empty: an old run must not be resumed by a new quickstart.

    Args:
        replace_shards: False where the shards in there may be this quickstart's own input.

    Raises:
        ConfigError: what would be replaced was not made by a quickstart.
    """
    names = ("run", "shards") if replace_shards else ("run",)
    present = [out / name for name in names if (out / name).exists()]
    if present and not (out / OWNER_MARK).exists():
        raise ConfigError(
            f"{present[0]} exists and was not made by a quickstart, which would replace it; choose another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / OWNER_MARK).touch()
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    for path in present:
        console.print(f"replacing {path} of the quickstart before", highlight=False, soft_wrap=True)
        shutil.rmtree(path)
    for name in ("report.json", "loss.png"):  # else a failed run would stand beside the report of the one before
        (out / name).unlink(missing_ok=True)


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


def pack_raw(raw: RawFrames, dst: Path, console: Console) -> QuickstartData:
    """Pack raw frames; the last fifth is held out for validation.

    Raises:
        ShardError: a frame is broken.
    """
    num_frames = len(raw.refs())
    num_train = num_frames - max(1, num_frames // 5)
    train, validation = dst / "train", dst / "validation"
    console.print(f"packing {num_frames} frames of {raw.folder} ({raw.source_format})", highlight=False, soft_wrap=True)
    reports = [
        pack(raw.source_format, raw.folder, str(train), frames=slice(0, num_train)),
        pack(raw.source_format, raw.folder, str(validation), frames=slice(num_train, None)),
    ]
    return QuickstartData(str(train), str(validation), sum(report.seconds for report in reports))


def find_example_frames() -> Path:
    """The TUM frames that come with the repository.

    Raises:
        ConfigError: this installation has none.
    """
    folder = Path(__file__).resolve().parent.parent / "tests" / "data"
    for table in sorted(folder.rglob("rgb.txt")):
        return table.parent
    raise ConfigError(
        f"no example frames in {folder}: they come with the repository, not with an installed package; "
        "give your own data instead: t4p quickstart --data FOLDER (or make quickstart DATA=FOLDER)"
    )


def smoke_config(dataset: QuickstartData, run_dir: Path) -> PretrainConfig:
    """configs/smoke.yaml on this data; the scores are taken before the first and after the last step."""
    overrides = [f"run.dir={json.dumps(str(run_dir))}", f"data.shards={json.dumps([dataset.shards])}"]
    if dataset.validation_shards is not None:
        overrides.append(f"data.validation_shards={json.dumps([dataset.validation_shards])}")
    return load_config(["configs/smoke.yaml"], overrides)


def collect_report(config: PretrainConfig, dataset: QuickstartData, train_seconds: float) -> QuickstartReport:
    """What the run wrote, in one record.

    Raises:
        LaunchError: the run folder does not hold the steps that were asked for.
    """
    run_dir = Path(config.run.dir)
    steps = read_lines(run_dir / "metrics.jsonl")
    if len(steps) != config.train.num_steps:
        raise LaunchError(
            f"{run_dir / 'metrics.jsonl'} holds {len(steps)} steps, {config.train.num_steps} were asked for"
        )
    return summarise(
        steps=steps,
        validation=read_lines(run_dir / "validation.jsonl"),
        shards=dataset.shards,
        num_samples=DatasetReader(dataset.shards).num_samples,
        pack_seconds=dataset.pack_seconds,
        train_seconds=train_seconds,
    )
