"""The `t4p shards` commands. Exit status 0, 1 (the job failed) or 2 (the call was wrong); one message, no traceback."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.arguments import Force
from commands.bars import progress_bar
from commands.check import CHECK_EXAMPLE, check_command
from commands.doubts import facts_of, tell_doubts
from commands.pack import PACK_EXAMPLE, Dataset, Workers, default_workers, pack_command, tell_faults
from commands.stops import user_errors
from shards.errors import CallError

if TYPE_CHECKING:
    from shards.reader import DatasetReader

app = typer.Typer(
    name="shards",
    help="Raw RGB-D to tar shards to a verified dataset.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]


@app.command("formats")
def formats_command() -> None:
    """List the raw formats that `pack` reads."""
    from shards.sources.formats import FORMATS, GENERATORS

    for source_format in (*FORMATS, *GENERATORS):
        typer.echo(
            f"{source_format.name}\n    {source_format.summary}\n    licence: {source_format.licence}\n"
            f"    tried {source_format.tried}"
        )


app.command("pack", epilog=PACK_EXAMPLE)(pack_command)
app.command("check", epilog=CHECK_EXAMPLE)(check_command)


@app.command("verify", epilog="Example: t4p shards verify s3://bucket/mine")
def verify_command(
    url: Dataset,
    fill: Annotated[
        bool,
        typer.Option("--fill", help="where all is whole, write the checksums and voxel counts that are missing"),
    ] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Re-read everything and name every broken sample; exit status 1 if there is one."""
    with user_errors() as stops:
        from shards.packing import filling
        from shards.plausible.look import look_at_dataset
        from shards.reader import DatasetReader
        from shards.verify import verify

        written = None
        with progress_bar("verifying") as on_progress:
            num_workers, progress = workers or default_workers(), stops.heard_at(on_progress)
            if fill:
                report, written = filling.fill(url, num_workers=num_workers, on_progress=progress)
            else:
                report = verify(url, num_workers=num_workers, on_progress=progress)
        proof = None if report.problems else look_at_dataset(DatasetReader(url))
        if as_json:
            _echo_json(
                {
                    "url": report.url,
                    "plausible": None if proof is None else facts_of(proof),
                    "ok": not report.problems,
                    "num_samples": report.num_samples,
                    "num_shards": report.num_shards,
                    "bytes": report.size_bytes,
                    "num_without_checksum": report.num_without_checksum,
                    "filled": written is not None,
                    "broken_keys": list(report.broken_keys),
                    "problems": [problem.__dict__ for problem in report.problems],
                    "storage_faults": dict(report.storage_faults),
                }
            )
        elif not report.problems:
            typer.echo(
                f"{report.url}: all {report.num_samples} samples in {report.num_shards} shards are whole "
                f"({report.size_bytes / 1e6:.1f} MB)"
            )
        if report.num_without_checksum and not written:
            typer.echo(
                f"{report.url}: {report.num_without_checksum} of {report.num_samples} samples have no checksum, since "
                "only headers were indexed: that their bytes are those of then, size and ETag alone say; "
                f"`t4p shards verify {report.url} --fill` writes checksums",
                err=True,
            )
        if fill and not report.problems:
            text = "nothing is missing, so nothing was written"
            if written is not None:
                counted = "" if written.voxels_sha256 is None else " and voxel counts"
                text = f"now has checksums{counted}: generation {written.generation} of the manifest"
            typer.echo(f"{report.url}: {text}", err=as_json)
        tell_faults(report.storage_faults)
        if proof is not None and not as_json:
            tell_doubts(proof)
        if report.problems:
            for problem in report.problems if not as_json else ():
                typer.echo(f"{problem.object_name}: {problem.key or 'the object'}: {problem.message}", err=True)
            move = "each line above says what mends it"
            if report.broken_keys:
                move = "pack the dataset again to another place, or restore these objects"
            typer.echo(
                f"error: {report.url}: {len(report.broken_keys)} of {report.num_samples} samples are broken, "
                f"{len(report.problems)} problem{'' if len(report.problems) == 1 else 's'}; {move}",
                err=True,
            )
            raise typer.Exit(1)


@app.command("index", epilog="Example: t4p shards index s3://bucket/tars --into s3://bucket/mine")
def index_command(
    url: Annotated[str, typer.Argument(metavar="URL", help="a place with tars, or with --counts a dataset")],
    into: Annotated[
        str | None, typer.Option(metavar="DST", help="where manifest and index go; by default beside the tars")
    ] = None,
    counts: Annotated[bool, typer.Option("--counts", help="decode every frame and store its number of voxels")] = False,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="read no more of the tars than the index takes: no checksums")
    ] = False,
    workers: Workers = None,
) -> None:
    """Make tars that are there a dataset, without copying them; or count the voxels of a dataset."""
    with user_errors() as stops:
        from shards.manifest import MANIFEST_NAME
        from shards.packing.existing import index_tars
        from shards.packing.filling import count_voxels_of
        from shards.stores.place import open_store

        if counts and headers_only:
            raise CallError("--counts decodes every frame, and --headers-only reads none: give one of the two")
        num_workers = workers or default_workers()
        with progress_bar("indexing") as on_progress:
            progress = stops.heard_at(on_progress)
            if counts and into is None and open_store(url).exists(MANIFEST_NAME):
                manifest = count_voxels_of(url, num_workers=num_workers, on_progress=progress)
            else:
                manifest = index_tars(
                    url, into, counts=counts, headers_only=headers_only, num_workers=num_workers, on_progress=progress
                )
        counted = "" if manifest.voxels_sha256 is None else ", voxels counted"
        counted += ", without checksums (t4p shards verify --fill writes them)" if headers_only else ""
        typer.echo(
            f"{into or url}: {manifest.num_samples} samples in {manifest.num_shards} shards{counted}\n"
            f"next: t4p shards info {into or url}"
        )


@app.command("info", epilog="Example: t4p shards info s3://bucket/mine")
def info_command(url: Dataset, as_json: Json = False) -> None:
    """Say what a dataset is, and what a few of its samples look like."""
    with user_errors():
        from shards.doors.text import shown
        from shards.reader import DatasetReader
        from shards.stores.store import take_faults
        from shards.summary import summarise
        from shards.terms import NOT_STATED

        dataset = DatasetReader(url)
        manifest, summary = dataset.manifest, summarise(dataset)
        facts = {
            "url": dataset.url,
            "format_version": manifest.format_version,
            "sample_kind": manifest.sample_kind,
            "num_samples": manifest.num_samples,
            "num_shards": manifest.num_shards,
            "bytes": manifest.size_bytes,
            "first_key": dataset.key(0, 0),
            "label_names": list(manifest.label_names),
            "provenance": dict(manifest.provenance),
            "shards_sha256": manifest.shards_sha256,
            "generation": manifest.generation,
            "licence": manifest.licence,
            "up_axis": manifest.up_axis,
            "voxels_counted": manifest.voxels_sha256 is not None,
            "checksums": bool(dataset.table.is_hashed.all()),
        }
        faults = take_faults(dataset.store)
        if as_json:
            _echo_json({**facts, "summary": asdict(summary), "storage_faults": faults})
        else:
            facts["licence"] = shown(manifest.licence) or NOT_STATED
            facts["up_axis"] = manifest.up_axis or "not known"
            for name in ("voxels_counted", "checksums"):
                facts[name] = "yes" if facts[name] else "no"
            for name, value in {**facts, **summary.lines()}.items():
                typer.echo(f"{name:15} {value if isinstance(value, str | int) else json.dumps(value)}")
        tell_faults(faults)


@app.command("show", epilog="Example: t4p shards show DST SCENE/FRAME --out frame.png")
def show_command(
    url: Dataset,
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="SCENE/FRAME, as `list` spells it; by default samples from all over"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the .png or .html to write; by default KEY.png or contact-sheet.png here")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=60, help="how many samples, without a KEY")] = 6,
    force: Force = False,
) -> None:
    """Write a picture or a page of a sample: colour, depth, labels, boxes; without a KEY, a contact sheet."""
    with user_errors():
        from commands.pages.dataset_view import show_dataset

        path = out or Path("contact-sheet.png" if key is None else key.replace("/", "-") + ".png")
        keys = show_dataset(url, key, path, count, force)
        typer.echo(f"wrote {path}: {', '.join(keys)}")


@app.command("page", epilog="Example: t4p shards page s3://bucket/mine --out mine.html")
def page_command(
    url: Dataset,
    out: Annotated[Path | None, typer.Option(help="the .html to write; by default NAME.html here")] = None,
    force: Force = False,
) -> None:
    """Write the page of a dataset: samples, a scene to turn, depth, labels, paths of the camera, terms, origin."""
    with user_errors():
        from commands.pages.dataset_page import write_dataset_page
        from shards.results import check_result

        path = out or Path(url.rstrip("/").rpartition("/")[2] + ".html")
        check_result(path, force)
        page = write_dataset_page(url, path, shlex.join(["t4p", *sys.argv[1:]]), force)
        typer.echo(f"wrote {path}: {page.summary}")


@app.command("list")
def list_command(
    url: Dataset,
    scene: Annotated[str | None, typer.Option(help="only samples of this scene, escaped or as the id was")] = None,
    skip: Annotated[int, typer.Option(min=0, help="leave out so many at the beginning")] = 0,
    count: Annotated[int, typer.Option(min=1, help="how many at most")] = 100,
    every: Annotated[bool, typer.Option("--all", help="all of them, whatever --count says")] = False,
    as_json: Json = False,
) -> None:
    """List the keys of a dataset, in the order of its shards."""
    with user_errors():
        from shards.reader import DatasetReader

        dataset = DatasetReader(url)
        stop = None if every else skip + count
        found = keys_of(dataset, scene)
        listed = list(islice(found, skip, stop))
        more = next(found, None) is not None
        if as_json:
            _echo_json({"url": dataset.url, "num_samples": dataset.num_samples, "keys": listed, "more": more})
            return
        for key in listed:
            typer.echo(key)
        if not listed:
            where = "" if scene is None else f" of scene {scene!r}"
            typer.echo(f"no samples{where} after the first {skip}" if skip else f"no samples{where}", err=True)
        elif more:
            of_scene = "" if scene is None else f" --scene {shlex.quote(scene)}"
            again = f"t4p shards list {shlex.quote(url)}{of_scene} --skip {skip + len(listed)} --count {count}"
            typer.echo(f"{len(listed)} keys; more: {again}", err=True)


def keys_of(dataset: DatasetReader, scene: str | None) -> Iterator[str]:
    """The keys of a dataset, or of one of its scenes; an index is read when its first key is asked for."""
    from shards.schema import escape_id

    spellings = () if scene is None else (f"{scene}/", f"{escape_id(scene)}/")
    for shard_index in range(dataset.manifest.num_shards):
        for key in dataset.index(shard_index).keys:
            if scene is None or key.startswith(spellings):
                yield key


@app.command("order", epilog="Example: t4p shards order DST --global-batch-size 32 --world-size 8 --rank 3 --steps 2")
def order_command(
    url: Annotated[str, typer.Argument(metavar="DST", help="A packed dataset.")],
    global_batch_size: Annotated[int, typer.Option(min=1)],
    world_size: Annotated[int, typer.Option(min=1)] = 1,
    rank: Annotated[int, typer.Option(min=0)] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    epoch: Annotated[int, typer.Option(min=0)] = 0,
    from_step: Annotated[int, typer.Option(min=0, help="First step of the epoch to show.")] = 0,
    steps: Annotated[int | None, typer.Option(min=0, help="How many; default: to the end of the epoch.")] = None,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks on a machine: samples move within it first. Default: all.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, max=100_000, help="As data.streams.")] = 64,
    shuffle_block: Annotated[int, typer.Option(min=1, help="Bytes, as data.shuffle_block.")] = 8 << 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Which samples a rank trains at which step, without reading any."""
    import numpy as np

    from t4p.data.course import Course, CourseSettings
    from t4p.data.fetch import Catalogue
    from t4p.data.order import steps_per_epoch
    from t4p.data.ranks import Nodes
    from t4p.errors import ConfigError

    catalogue = Catalogue([url])
    try:
        in_epoch = steps_per_epoch(catalogue.num_samples, global_batch_size)
        last = in_epoch if steps is None else min(in_epoch, from_step + steps)
        nodes = Nodes.equal(world_size, ranks_per_node or world_size)
        settings = CourseSettings(seed, streams, shuffle_block, global_batch_size, 1, nodes)
        course = Course(catalogue.pools, settings)
        if from_step >= in_epoch:
            raise ValueError(f"from-step is {from_step}; it must be in [0, {in_epoch}), the steps of an epoch")
        if rank >= world_size:
            raise ValueError(f"rank is {rank}; it must be in [0, {world_size}), the world size")
        listed: list[tuple[int, list[str]]] = []
        for step in range(from_step, last):
            batch = course.micro_batch(epoch * in_epoch + step, 0)
            mine = batch.samples[np.flatnonzero(batch.ranks == rank)]
            listed.append((step, [catalogue.key(shard, sample) for shard, sample in mine.tolist()]))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if as_json:
        typer.echo(json.dumps({"steps": [{"step": step, "keys": keys} for step, keys in listed]}))
    else:
        for step, keys in listed:
            typer.echo(f"{step:>8}  {' '.join(keys)}")


def _echo_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    app(prog_name="t4p shards")
