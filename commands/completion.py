"""What a shell offers behind the word that is being typed (`t4p --install-completion`)."""

from __future__ import annotations

from pathlib import Path


def complete_format(incomplete: str) -> list[tuple[str, str]]:
    """Formats of raw datasets, with what they are."""
    from shards.sources.formats import FORMATS, GENERATORS

    formats = (*FORMATS, *GENERATORS)
    return [(each.name, each.summary) for each in formats if each.name.startswith(incomplete)]


def complete_config(incomplete: str) -> list[str]:
    """Configuration files, those that come with the code too, and keys with their "="."""
    if "=" in incomplete:
        return []
    offered = [*_files_here(incomplete), *(name for name in _packaged() if name.startswith(incomplete))]
    if not incomplete or "/" not in incomplete:
        offered += [f"{key}=" for key in _keys() if key.startswith(incomplete)]
    return list(dict.fromkeys(offered))


def _files_here(incomplete: str) -> list[str]:
    folder = Path(incomplete.rpartition("/")[0] or ("/" if incomplete.startswith("/") else "."))
    if not folder.is_dir():
        return []
    inside = [entry for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml") or entry.is_dir()]
    names = [f"{entry}/" if entry.is_dir() else str(entry) for entry in sorted(inside)]
    return [name for name in names if name.startswith(incomplete) and not Path(name).name.startswith(".")]


def _packaged() -> list[str]:
    from importlib import resources

    root = Path(str(resources.files("configs")))
    return sorted(f"configs/{path.relative_to(root)}" for path in root.rglob("*.yaml"))


def _keys() -> list[str]:
    from t4p.config.keys import sections_of
    from t4p.config.kinds import schemas

    found = (schema for several in schemas().values() for schema in several)
    names = (key.name for schema in found for section in sections_of(schema) for key in section.keys)
    return list(dict.fromkeys(names))
