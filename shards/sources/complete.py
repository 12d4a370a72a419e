"""Which frames have all their files: what is missing ends the packing, or is left out on demand, and always counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from shards.doors.text import shown
from shards.errors import ShardError
from shards.sources.raw_files import FilesByStem, natural_order

_logger = logging.getLogger(__name__)


def complete_stems(colors: FilesByStem, depths: FilesByStem, only_complete: bool) -> list[str]:
    """The frames that have both images, in natural order.

    Args:
        only_complete: whether frames that lack one are left out, and counted, instead of refused.

    Raises:
        ShardError: a frame lacks one.
    """
    for have, lack in ((colors, depths), (depths, colors)):
        missing = sorted(set(have.files) - set(lack.files), key=natural_order)
        if missing and not only_complete:
            raise ShardError(
                f"{have.files[missing[0]]}: {lack.lacks(missing[0])} ({len(missing)} of {len(have.files)} lack "
                "theirs); restore it, remove the frame, or take what is complete with --only-complete"
            )
        warn_of_lost(have.folder, "files have no partner and are left out", missing, len(have.files))
    return sorted(set(colors.files) & set(depths.files), key=natural_order)


def present_files(files: FilesByStem, stems: Sequence[str], what: str) -> dict[str, Path]:
    """Files that only some frames need to have, by frame; how many lack theirs is said.

    Args:
        what: the files are, in messages.

    Raises:
        ShardError: there are such files and none fits a frame: a mistake in their names.
    """
    found = {stem: files.files[stem] for stem in stems if stem in files.files}
    missing = [stem for stem in stems if stem not in found]
    if files.files and missing and not found:
        raise ShardError(
            f"{files.folder}: none of its {len(files.files)} files is named like a frame; wanted "
            f"{missing[0]}{files.suffixes[0]}, ..."
        )
    warn_of_lost(files.folder, f"frames have no {what}", missing, len(stems))
    return found


def warn_of_lost(where: Path, what: str, lost: Sequence[str], total: int) -> None:
    """Say how many of a source's parts cannot be used, and which is the first."""
    if lost:
        _logger.warning("%s: %d of %d %s, the first is %s", shown(where), len(lost), total, what, shown(lost[0]))
