"""Looking into a dataset: one sample, or a few spread over all of it, as a picture or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from commands.pages.page import Fact, Page, render_page
from commands.pages.sample_view import legend_of, names_of, view_sample
from commands.pages.sheet import draw_sheet
from shards.errors import CallError
from shards.reader import DatasetReader, spread
from shards.results import check_result, write_result
from shards.sample import Sample, check_sample
from shards.terms import NOT_STATED

PAGE_SUFFIX = ".html"


def show_dataset(url: str, key: str | None, out: Path, num_samples: int, force: bool = False) -> tuple[str, ...]:
    """Write a picture or a page of one sample, or of a few.

    Args:
        url: place of the dataset.
        key: SCENE/FRAME, escaped or as the ids were; None shows samples from all over the dataset.
        out: the file to write, `.png` or `.html`.
        num_samples: how many, without a key.
        force: replace a file that is there.

    Returns:
        The keys of what is shown.

    Raises:
        CallError: no such dataset or sample, another kind of file, or one that is there.
        ShardError: a sample is broken.
        ResultError: `out` cannot be written.
    """
    if out.suffix not in (PAGE_SUFFIX, ".png"):
        raise CallError(f"--out is {out}, wanted a name that ends in .png or {PAGE_SUFFIX}")
    check_result(out, force)
    dataset = DatasetReader(url)
    places = [dataset.find(key)] if key is not None else spread(dataset.samples_per_shard, num_samples)
    keys = tuple(dataset.key(*place) for place in places)
    samples = [read_checked(dataset, *place) for place in places]
    content = draw_samples(samples, dataset, as_page=out.suffix == PAGE_SUFFIX, one=key is not None)
    with write_result(out, force) as partial:
        partial.write_bytes(content)
    return keys


def draw_samples(samples: Sequence[Sample], dataset: DatasetReader, as_page: bool, one: bool) -> bytes:
    """The picture or the page of checked samples.

    Args:
        one: whether it is a single sample that was asked for, which has room.
    """
    names = names_of(samples, dataset.manifest.label_names)
    galleries = [view_sample(sample, names, small=not one) for sample in samples]
    if not as_page:
        return draw_sheet(galleries, legend_of(samples, names))
    kind = dataset.manifest.sample_kind
    facts = {
        "dataset": dataset.url,
        "samples": f"{dataset.num_samples:,} {kind} in {dataset.manifest.num_shards:,} shard(s)",
        "terms": dataset.manifest.licence or NOT_STATED,
    }
    if one:
        (only,) = galleries
        title, summary, galleries = only.heading, only.text, [replace(only, heading="In pictures", text="")]
    else:
        title, summary = f"{len(samples)} of {dataset.num_samples:,} {kind}", "Taken from all over the dataset."
    page = Page(
        title=title,
        summary=summary,
        galleries=tuple(galleries),
        facts=tuple(Fact(name, value) for name, value in facts.items() if value),
        data=facts,
    )
    return render_page(page).encode()


def read_checked(dataset: DatasetReader, shard_index: int, sample_index: int) -> Sample:
    """One sample, every array and image of it held against its numbers; ShardError where one does not fit."""
    is_scene = dataset.manifest.sample_kind == "scenes"
    read = dataset.read_scene if is_scene else dataset.read_frame
    sample: Sample = read(shard_index, sample_index)
    check_sample(sample, f"{dataset.url}, sample {dataset.key(shard_index, sample_index)}")
    return sample
