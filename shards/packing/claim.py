"""Who may write to a destination: packing.json names the one packer, from its start to the published dataset."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from shards.doors.json_text import parse_json
from shards.errors import CallError, ShardError
from shards.manifest import MANIFEST_NAME, PACKING_NAME, Manifest
from shards.stores.second_look import believed
from shards.stores.store import MissingObjectError, Store

SHARD_FILE = re.compile(r"shard-\d{6,}\.(tar|idx)|(shards|index|voxels)\.bin")
_PIECE_FILE = re.compile(r"shard-\d{6,}\.idx")


@dataclass(frozen=True)
class Claim:
    """The right to write to a destination, held until somebody else takes the pack over.

    Attributes:
        store: the destination.
        owner: random token of this packer, in packing.json.
    """

    store: Store
    owner: str

    def require(self) -> None:
        """Raise ShardError unless the destination is still ours. Call before every change.

        Who publishes a dataset here has taken the place over before, and its mark stays until that is done. Between
        this look and the change another packer may step in. What it then finds changed under its hands are whole
        objects of the same options: of the same source these are the same bytes.
        """
        found = _read_fields(self.store, self.owner).get("owner")
        if found != self.owner:
            raise ShardError(
                f"{self.store.url}: another packer has taken over or published here since this one started; leave it "
                "to that one, or pack to another place"
            )


def claim(store: Store, provenance: Mapping[str, Any]) -> Claim:
    """Mark the destination as being packed with these options by us, or take over the unfinished pack of such options.

    Raises:
        CallError: there is a dataset.
        ShardError: there is an unfinished one of other options, or shards of unknown origin.
    """
    if store.exists(MANIFEST_NAME):
        raise CallError(
            f"{store.url}: already holds a dataset ({MANIFEST_NAME} is there); pack to another place, or delete it"
        )
    names = store.list()
    if PACKING_NAME not in names and (leftovers := [name for name in names if SHARD_FILE.fullmatch(name)]):
        raise ShardError(
            f"{store.url}: holds {leftovers[0]} ({len(leftovers)} such files) but neither {MANIFEST_NAME} nor "
            f"{PACKING_NAME}, so they are not ours to resume or replace; delete them, or pack to another place"
        )
    ours = Claim(store, uuid4().hex)
    mark = (json.dumps({"owner": ours.owner, **provenance}, indent=1, sort_keys=True) + "\n").encode("ascii")
    if not store.write_if_absent(PACKING_NAME, mark):
        found = _read_fields(store)
        if not _is_same(found, provenance):
            raise ShardError(
                f"{store.url}: holds an unfinished pack with other options ({_difference(found, provenance)}); repeat "
                "that call to finish it, or delete these objects, or pack to another place"
            )
        store.write(PACKING_NAME, mark)
    ours.require()
    store.remove_leftovers()
    return ours


def published_before(store: Store, provenance: Mapping[str, Any]) -> Manifest | None:
    """The dataset of a call with these options that was stopped after it had published and before it had cleaned up."""
    if not (store.exists(MANIFEST_NAME) and _is_same(_read_fields(store), provenance)):
        return None
    data = believed(store, partial(store.read, MANIFEST_NAME), None)
    manifest = Manifest.decode(data, f"{store.url}/{MANIFEST_NAME}")
    return manifest if _is_same(manifest.provenance, provenance) else None


def release(store: Store) -> None:
    """Remove what only packing needs, the mark last: while it is there, the same call comes back to do this."""
    for name in store.list():
        if _PIECE_FILE.fullmatch(name):
            store.delete(name)
    store.remove_leftovers()
    store.delete(PACKING_NAME)


def _read_fields(store: Store, owner: str | None = None) -> dict[str, Any]:
    """What packing.json says; empty when it is missing or not ours to read.

    Args:
        owner: who is expected there: what names it needs no second look.
    """
    try:
        read = partial(store.read, PACKING_NAME)
        return _fields(believed(store, read, None if owner is None else partial(_names, owner)))
    except MissingObjectError:
        return {}


def _names(owner: str, data: bytes) -> bool:
    return _fields(data).get("owner") == owner


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = parse_json(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _is_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return {name: value for name, value in found.items() if name != "owner"} == dict(wanted)


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    try:
        before, now = ({**value, **value["options"], **value["versions"]} for value in (found, wanted))
    except (KeyError, TypeError):
        return f"{PACKING_NAME} cannot be read"
    groups = ("owner", "options", "versions")
    names = [name for name in {**now, **before} if name not in groups and before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names)
