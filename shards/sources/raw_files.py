"""Files of raw datasets: what a folder lists, and their bytes. Every message names the file, what was found, wanted."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.doors.text import shown
from shards.errors import CallError, ShardError

MAX_FILE_BYTES = 1 << 28
COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")
DEPTH_SUFFIXES = (".png", ".pgm", ".tif", ".tiff")
# What systems leave in folders of their own accord, besides names that begin with a dot.
_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


def require_folder(root: Path) -> None:
    """Raise CallError unless `root` is a folder that can be listed."""
    if not root.exists():
        raise CallError(f"{root}: no such file or folder; give the folder that holds the raw dataset")
    if not root.is_dir():
        raise CallError(f"{root}: not a folder; give the folder that holds the raw dataset")


def name_of(folder: Path) -> str:
    """The name that a user gave a folder, also where it is a link to another one."""
    return Path(os.path.abspath(folder)).name


def is_litter(name: str) -> bool:
    """Whether a file or folder is none of the data: hidden, such as the ._NAME of a Mac's copy, or a system's own."""
    return name.startswith(".") or name.lower() in _LITTER


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder under `root` with its file names, all in natural order, without litter.

    Raises:
        ShardError: a folder cannot be listed, or is a link to another place.
    """

    def refuse(error: OSError) -> None:
        raise _cannot_list(error) from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = sorted((name for name in subfolders if not is_litter(name)), key=natural_order)
        for name in subfolders:
            require_no_link(Path(folder) / name)
        yield Path(folder), sorted((name for name in names if not is_litter(name)), key=natural_order)


def list_names(folder: Path) -> list[str]:
    """Names of the files and folders in a folder, in natural order, without litter; none where it is no folder.

    Raises:
        ShardError: it cannot be listed.
    """
    if not folder.is_dir():
        return []
    try:
        return sorted((name for name in os.listdir(folder) if not is_litter(name)), key=natural_order)
    except OSError as error:
        raise _cannot_list(error) from error


def _cannot_list(error: OSError) -> ShardError:
    return ShardError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")


@dataclass(frozen=True, eq=False)
class FilesByStem:
    """The files of a folder by what comes before a suffix.

    Attributes:
        folder: they lie in.
        suffixes: that were wanted.
        files: with one of them, in any case.
        others: names of those with the right stem and another suffix.
    """

    folder: Path
    suffixes: tuple[str, ...]
    files: Mapping[str, Path]
    others: Mapping[str, Sequence[str]]

    def lacks(self, stem: str) -> str:
        """That there is no file of a frame, and what there is in its stead."""
        wanted = f"no file {stem}{_kind(self.suffixes[0])}.* in {self.folder}"
        if found := self.others.get(stem):
            return f"{wanted} that is read: found {', '.join(found)}, wanted {' or '.join(self.suffixes)}"
        return wanted


def files_by_stem(folder: Path, suffixes: Sequence[str], names: Sequence[str] | None = None) -> FilesByStem:
    """The files of a folder that end in one of some suffixes, which may be several (`.color.png`), in any case.

    Args:
        names: of the folder, where they are known.

    Raises:
        ShardError: two files have one stem, or one is a link.
    """
    files: dict[str, Path] = {}
    others: dict[str, list[str]] = {}
    kind = _kind(suffixes[0])
    for name in list_names(folder) if names is None else names:
        suffix = next((one for one in suffixes if name.lower().endswith(one)), None)
        if suffix is None:
            end = name.lower().find(f"{kind}.")
            if end > 0:
                others.setdefault(name[:end], []).append(name)
            continue
        stem, path = name[: -len(suffix)], folder / name
        require_no_link(path)
        if stem in files:
            raise ShardError(f"{path}: {files[stem].name} is of the same frame; keep one of the two")
        files[stem] = path
    return FilesByStem(folder, tuple(suffixes), files, others)


def _kind(suffix: str) -> str:
    """What files of a kind have before their own suffix: ".depth" of ".depth.png", "" of ".png"."""
    return suffix.rpartition(".")[0]


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key under which frame 2 precedes frame 10."""
    pieces = re.split(r"(\d+)", name)
    return tuple((int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces) + ((-2, name),)


def require_no_link(path: Path) -> None:
    """Raise ShardError where a file or folder of a source is a symbolic link: it may lead to what nobody meant to pack.

    The folder that is given as a source may be one: somebody typed its name.
    """
    if path.is_symlink():
        raise ShardError(
            f"{path}: a symbolic link, and what it leads to is not packed along; put the files themselves there, or "
            "give the folder it leads to as the source"
        )


def beside(folder: Path, name: str, where: str) -> Path:
    """The file that a list names, relative to its folder; back slashes, as Windows writes them, part folders too.

    Raises:
        ShardError: the name leads out of the folder.
    """
    name = name.replace("\\", "/")
    if not name or os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
        raise ShardError(f"{where}: names '{shown(name)}', which is not within {folder}; wanted names of files there")
    return folder / name


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a larger file."""

    path: Path
    offset: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.path} ({self.size_bytes} bytes from {self.offset})"


Where = Path | Part


def read_bytes(where: Where) -> bytes:
    """The whole file, or the part of it.

    Raises:
        ShardError: it cannot be read, is a link, pipe or device, larger than the file of one frame is, or too short.
    """
    path, offset, wanted = (where.path, where.offset, where.size_bytes) if isinstance(where, Part) else (where, 0, None)
    require_no_link(path)
    if wanted is not None and wanted > MAX_FILE_BYTES:
        raise ShardError(f"{where}: one frame has at most {MAX_FILE_BYTES} bytes; is the file damaged?")
    try:
        # Opening a pipe would wait for somebody to write; a link made since the look above is not followed.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ShardError(f"{path}: no file but a pipe, device or folder; put a file there, or remove it")
            if wanted is None and facts.st_size > MAX_FILE_BYTES:
                raise ShardError(
                    f"{path}: {facts.st_size} bytes, and a file of one frame has at most {MAX_FILE_BYTES}; is it "
                    "another kind of file?"
                )
            file.seek(offset)
            data = file.read(MAX_FILE_BYTES if wanted is None else wanted)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    if wanted is not None and len(data) != wanted:
        raise ShardError(f"{where}: the file ends {wanted - len(data)} bytes before that; copy it again")
    return data
