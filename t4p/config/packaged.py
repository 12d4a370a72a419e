"""The files that come with the code: `configs/`, wherever it is installed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from t4p.errors import ConfigError


def find_packaged(path: str | Path) -> Path:
    """The path itself where it exists, else the file of that name among the packaged `configs/`.

    Raises:
        ConfigError: neither exists.
    """
    path = Path(path)
    if path.exists():
        return path
    if path.parts and path.parts[0] == "configs":
        packaged = Path(str(resources.files("configs"))).joinpath(*path.parts[1:])
        if packaged.is_file():
            return packaged
    raise ConfigError(f"{path}: no such file, neither from {Path.cwd()} nor among the packaged configs/")
