"""Which layout a folder of raw data has: by the few names that tell each layout apart, or by what is missing of them.

Every format names its signs: patterns of files, or of folders where they end in "/", all of which lie in one folder of
its layout. Nothing is opened. What looks like two layouts is the one that is listed first: the more particular.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from shards.doors.text import shown
from shards.errors import CallError
from shards.sources.formats import FORMATS, FrameRef, SourceFormat
from shards.sources.options import SourceOptions
from shards.sources.raw_files import is_litter, natural_order

_DEEPEST = 5  # folders below the source: of ScanNet, scans/SCENE/ALL/color/
_MOST_FOLDERS = 3_000  # that are looked into: the first scenes tell
_MOST_NEAR = 5  # misses that are told


@dataclass(frozen=True)
class Look:
    """What a source looks like.

    Attributes:
        found: the formats all of whose signs some folder has, the more particular first.
        near: others, with a folder that has a part of their signs, and the missing ones.
    """

    found: tuple[SourceFormat, ...]
    near: tuple[tuple[SourceFormat, Path, tuple[str, ...]], ...]


def look_at(root: Path, formats: Sequence[SourceFormat] = FORMATS) -> Look:
    """Compare the names in a source with the signs of every format.

    Raises:
        CallError: there is no such file or folder.
    """
    if not root.exists():
        raise CallError(f"{root}: no such file or folder; give the folder that holds the raw dataset")
    whole: list[SourceFormat] = []
    best: dict[str, tuple[int, Path, tuple[str, ...]]] = {}
    for folder, names in _folders(root):
        for source_format in formats:
            missing = tuple(sign for sign in source_format.signs if not _has(names, sign))
            if not missing and source_format not in whole:
                whole.append(source_format)
            had = len(source_format.signs) - len(missing)
            if missing and had > best.get(source_format.name, (0,))[0]:
                best[source_format.name] = (had, folder, missing)
    found = tuple(one for one in formats if one in whole)
    near = [(best[one.name], one) for one in formats if one not in whole and one.name in best]
    near.sort(key=lambda item: -item[0][0] / len(item[1].signs))
    return Look(found, tuple((one, folder, missing) for (_, folder, missing), one in near))


def recognise(root: Path) -> SourceFormat:
    """The layout of a source.

    Raises:
        CallError: it has none that is known: with those that it nearly has, and what is missing.
    """
    look = look_at(root)
    if look.found:
        return look.found[0]
    near = "; ".join(
        f"nearly {one.name}, but {shown(folder)} has no {' and no '.join(missing)}"
        for one, folder, missing in look.near[:_MOST_NEAR]
    )
    raise CallError(
        f"{root}: in no layout that is known"
        + (f" ({near})" if near else "")
        + "; `t4p shards formats` lists the layouts: lay the files out as one of them, or as `folder`, which takes any "
        "frames"
    )


def detect_frames(root: Path, options: SourceOptions) -> tuple[SourceFormat, Sequence[FrameRef]] | None:
    """The layout of a folder and its frames; None where it has none that is known, or needs other options.

    Raises:
        ShardError: what is wrong with its frames.
    """
    for source_format in look_at(root).found:
        try:
            return source_format, source_format.scan(root, options)
        except CallError:
            continue
    return None


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders of a source, the nearest first, each with the shapes of its names; those of folders end in "/"."""
    if not root.is_dir():
        yield root.parent, [_shape(root.name)]
        return
    level, seen = [root], 0
    for _ in range(_DEEPEST):
        below: list[Path] = []
        for folder in level:
            if seen >= _MOST_FOLDERS:
                return
            seen += 1
            try:
                entries = [entry for entry in os.scandir(folder) if not is_litter(entry.name)]
            except OSError:
                continue
            subfolders = sorted((entry.name for entry in entries if entry.is_dir()), key=natural_order)
            files = (entry.name for entry in entries if not entry.is_dir())
            yield folder, sorted({_shape(name) for name in (*(f"{one}/" for one in subfolders), *files)})
            below += [folder / name for name in subfolders]
        level = below


def _shape(name: str) -> str:
    """A name in which every number is 0: the frames of a folder have few shapes."""
    return re.sub(r"\d+", "0", name.lower())


def _has(shapes: Sequence[str], sign: str) -> bool:
    """Whether one of some shapes fits a pattern, or one of several between bars."""
    return any(fnmatchcase(shape, one) for one in _shape(sign).split("|") for shape in shapes)
