"""`t4p shards pack`: raw frames into a dataset."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from commands.bars import progress_bar
from commands.completion import complete_format
from commands.doubts import tell_doubts
from commands.stops import user_errors
from shards.doors.text import shown
from shards.errors import CallError
from shards.packing.options import Check, DepthCodec
from shards.packing.selection import Selection
from shards.sources.options import LEAST_CONFIDENCE, LabelsFrom, SourceOptions

AUTO = "auto"  # takes the layout that the source looks like
PACK_EXAMPLE = "Example: t4p shards pack folder RAW s3://bucket/mine --depth-scale 1000 --every 5"
_MAX_DEFAULT_WORKERS = 8
Source = Annotated[Path, typer.Argument(metavar="SRC", help="folder of the raw dataset, or the text of a generator")]
Dataset = Annotated[str, typer.Argument(metavar="DST", help="a folder or s3://bucket/prefix")]
Workers = Annotated[int | None, typer.Option(min=1, help="processes; by default one per core, at most 8")]


def pack_command(
    format: Annotated[
        str,
        typer.Argument(metavar="FORMAT", help="one of `t4p shards formats`, or auto", autocompletion=complete_format),
    ],
    src: Source,
    dst: Dataset,
    workers: Workers = None,
    shard_size_mb: Annotated[float, typer.Option(help="cap on a tar, in MiB")] = 256,
    frames: Annotated[
        str | None,
        typer.Option(metavar="START:STOP", help="which frames, by position in the source, as a Python slice"),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="keep one of so many frames")] = 1,
    max_frames: Annotated[int | None, typer.Option(min=1, help="at most so many of a scene, spread over it")] = None,
    scenes: Annotated[
        str | None, typer.Option(metavar="GLOB", help="take these scenes, such as 'scene00*'; by default all")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(metavar="FILE", help="take the scenes that this file names, one a line")
    ] = None,
    depth_scale: Annotated[
        float | None, typer.Option(help="depth units per metre (1000 for millimetres); by default the format's own")
    ] = None,
    intrinsics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="K of every image: 3x3, or fx fy cx cy [width height]"),
    ] = None,
    pose_scale: Annotated[
        float | None, typer.Option(help="metres of a unit of poses that have no metric scale (COLMAP's)")
    ] = None,
    only_complete: Annotated[
        bool, typer.Option("--only-complete", help="leave out, and count, frames without colour or depth")
    ] = False,
    labels_from: Annotated[
        LabelsFrom, typer.Option(help="image whose pixels the label images count; colour's are looked up for depth's")
    ] = "depth",
    min_confidence: Annotated[
        int, typer.Option(help="of phones, 0 to 2: depth that is less sure counts as no reading")
    ] = LEAST_CONFIDENCE,
    check: Annotated[
        Check,
        typer.Option(help="full: decode every image, and count voxels; headers: sizes and checksums alone"),
    ] = "headers",
    depth_codec: Annotated[
        DepthCodec, typer.Option(help="depth as PNG, the bytes as found, or as zstd, which decodes six times faster")
    ] = "png",
    color_size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="make larger colour images fit into this"),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="terms of the data, in a line; by default what is known of the format"),
    ] = None,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="pack also what cannot be right, as `t4p shards check` shows it")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say how many samples, shards, bytes and seconds it would be")
    ] = False,
) -> None:
    """Pack raw frames into a dataset. Stopped in the middle, the same call again resumes."""
    with user_errors("stopped; what is finished is kept, and the same call again resumes") as stops:
        from shards.packing.estimate import estimate
        from shards.packing.pack import pack
        from shards.sources.recognise import recognise

        if not math.isfinite(shard_size_mb):
            raise CallError(f"--shard-size-mb is {shard_size_mb}, wanted a number of MiB, such as 256")

        if format == AUTO:
            format = recognise(src).name
            typer.echo(f"{shown(src)}: layout {format}", err=True)
        told = SourceOptions(
            depth_scale=depth_scale,
            intrinsics=intrinsics,
            scenes=scenes,
            split=split,
            pose_scale=pose_scale,
            only_complete=only_complete,
            labels_from=labels_from,
            min_confidence=min_confidence,
        )
        size = None if color_size is None else _parse_size(color_size)
        if dry_run:
            selection = Selection(_parse_frames(frames), every, max_frames)
            found = estimate(format, src, told, selection, int(shard_size_mb * (1 << 20)), check, depth_codec, size)
            typer.echo(found.text(src, workers or default_workers()))
            return
        with progress_bar("packing") as on_progress:
            report = pack(
                format,
                src,
                dst,
                num_workers=workers or default_workers(),
                shard_size_bytes=int(shard_size_mb * (1 << 20)),
                frames=_parse_frames(frames),
                every=every,
                max_frames=max_frames,
                source_options=told,
                check=check,
                depth_codec=depth_codec,
                color_size=size,
                licence=license,
                as_is=as_is,
                on_look=tell_doubts,
                on_progress=stops.heard_at(on_progress),
            )
        kept = f" ({report.num_kept_shards} kept from before)" if report.num_kept_shards else ""
        typer.echo(
            f"{report.url}: {report.num_samples} samples in {report.num_shards} shards{kept}, "
            f"{report.size_bytes / 1e6:.1f} MB, {report.seconds:.1f} s\n"
            f"terms of the data: {report.licence}\n"
            f"next: t4p shards info {report.url}; t4p shards verify {report.url}"
        )
        tell_faults(report.storage_faults)


def _parse_frames(text: str | None) -> slice | None:
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError("no colon")
        return slice(int(start) if start else None, int(stop) if stop else None)
    except ValueError as error:
        raise CallError(f"--frames is {text!r}, wanted START:STOP, such as 0:80 or :80 or -20:") from error


def _parse_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None or "0" in (found[1], found[2]):
        raise CallError(f"--color-size is {text!r}, wanted WIDTHxHEIGHT, such as 640x480")
    return int(found[1]), int(found[2])


def default_workers() -> int:
    return min(len(os.sched_getaffinity(0)), _MAX_DEFAULT_WORKERS)


def tell_faults(faults: Mapping[str, int]) -> None:
    """What the storage did wrong, where a person looks; nothing where it did nothing."""
    if faults:
        causes = ", ".join(f"{count} x {cause}" for cause, count in sorted(faults.items()))
        typer.echo(f"storage: {sum(faults.values())} answers failed and were asked for again ({causes})", err=True)
