"""`t4p shards check`: whether depth, cameras, poses and labels can be right, of raw data or a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.completion import complete_format
from commands.doubts import facts_of
from commands.pack import AUTO
from commands.stops import user_errors
from shards.doors.text import shown
from shards.errors import CallError
from shards.sources.options import SourceOptions

if TYPE_CHECKING:
    from shards.plausible.look import Proof

CHECK_EXAMPLE = "Example: t4p shards check RAW --format tum; t4p shards check s3://bucket/mine"


def check_command(
    place: Annotated[str, typer.Argument(metavar="SRC_OR_DST", help="raw data, or a dataset: a folder or s3://...")],
    format: Annotated[
        str,
        typer.Option(help="of raw data: one of `t4p shards formats`", autocompletion=complete_format),
    ] = AUTO,
    depth_scale: Annotated[
        float | None, typer.Option(help="of raw data: depth units per metre; by default the format's own")
    ] = None,
    intrinsics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="of raw data: K of every image, as of `pack`")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Hold a few frames of each scene against each other; exit status 1 if something cannot be right."""
    with user_errors():
        proof = _look(place, format, SourceOptions(depth_scale, intrinsics))
        if as_json:
            typer.echo(json.dumps(facts_of(proof), indent=1))
        else:
            typer.echo(f"{shown(place)}: {proof.num_samples} samples of {proof.num_scenes} scenes were looked at")
            typer.echo(proof.text(proof.rows))
            if proof.unread:
                typer.echo(f"some could not be read: {proof.unread}", err=True)
        if proof.verdict == "cannot be right":
            raise typer.Exit(1)


def _look(place: str, format: str, told: SourceOptions) -> Proof:
    from shards.manifest import MANIFEST_NAME
    from shards.packing.selection import Selection, find_tasks
    from shards.plausible.look import look_at_dataset, look_at_source
    from shards.reader import DatasetReader
    from shards.sources.formats import find_format
    from shards.sources.recognise import recognise
    from shards.stores.place import open_store

    if format == AUTO and ("://" in place or (Path(place).is_dir() and open_store(place).exists(MANIFEST_NAME))):
        if told.said():
            raise CallError(f"{place} is a dataset: options of raw data have no meaning for it")
        return look_at_dataset(DatasetReader(place))
    root = Path(place)
    chosen = recognise(root) if format == AUTO else find_format(format)
    return look_at_source(chosen, find_tasks(chosen, root, told, Selection()), chosen.label_names(root))
