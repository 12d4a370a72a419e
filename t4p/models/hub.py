"""Exports on the Hugging Face hub: one file of a repository, fetched once into the hub's cache, and nothing pickled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from shards.errors import needs_extra
from t4p.errors import CheckpointError

SCHEME = "hf://"
HUB_FILE = "model.safetensors"  # what an export is called in a repository of the hub
_PART = r"[A-Za-z0-9][\w.-]*"
_COMMIT = re.compile("[0-9a-f]{40}")
_ID = re.compile(rf"(?P<repository>{_PART}/{_PART})(@(?P<revision>[\w./-]+))?", re.ASCII)


def spelt_out(named: str | Path) -> str:
    """`hf://OWNER/NAME` for OWNER/NAME, where that is no path here and OWNER no folder; else what was named."""
    text = str(named)
    is_id = _ID.fullmatch(text) is not None and not text.endswith(".safetensors")
    return f"{SCHEME}{text}" if is_id and not Path(text.partition("/")[0]).exists() else text


def fetched(named: str | Path) -> Path:
    """The path that was named; of `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION` that of its file in the hub's cache.

    Raises:
        CheckpointError: the hub has no such repository, revision or file, or cannot be reached; it says what to do.
        MissingExtraError: huggingface_hub is not installed.
    """
    text = str(named)
    if not text.startswith(SCHEME):
        return Path(named)
    found = _parsed(text)
    with needs_extra("hub", "huggingface_hub", f"{text} (a name on the Hugging Face hub, since no such path is here)"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HTTPError, XetDownloadError
    try:
        return Path(hf_hub_download(found["repository"], HUB_FILE, revision=found["revision"]))
    except (HTTPError, XetDownloadError, OSError, ValueError) as error:
        _explain(text, found["repository"], error)


def pinned(named: str) -> str:
    """`hf://OWNER/NAME@COMMIT` of a name on the hub: the commit that its revision is now, whose file is fetched.

    What the hub gives for any other revision may be another file tomorrow. A commit is asked for nothing.

    Raises:
        As `fetched`.
    """
    found = _parsed(named)
    if found["revision"] is not None and _COMMIT.fullmatch(found["revision"]):
        return named
    return f"{SCHEME}{found['repository']}@{fetched(named).parent.name}"  # the cache has snapshots/COMMIT/


def _parsed(named: str) -> re.Match[str]:
    found = _ID.fullmatch(named.removeprefix(SCHEME))
    if found is None:
        raise CheckpointError(
            f"{named}: is no name on the hub; wanted {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION"
        )
    return found


def _explain(named: str, repository: str, error: Exception) -> NoReturn:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        found = (
            f"{hub} gives {repository} only to those it has let in; ask for access on its page, and log in "
            "(`hf auth login`)"
        )
    elif isinstance(error, RepositoryNotFoundError):
        found = (
            f"{hub} has no {repository} that it shows to you, and there is no such path here; check the name, or log "
            "in where it is private (`hf auth login`)"
        )
    elif isinstance(error, RevisionNotFoundError):
        found = f"{hub} has no such revision of {repository}; name a branch, a tag or a commit of it"
    elif isinstance(error, RemoteEntryNotFoundError):
        found = (
            f"{repository} on {hub} holds no {HUB_FILE}, as exports are called there; download the file that it holds "
            "instead and name its path"
        )
    else:
        found = (
            f"{hub} could not be asked ({' '.join(str(error).split())[:300]}), the file is not in the cache, and there "
            "is no such path here; look at the network, HF_ENDPOINT and HF_HUB_OFFLINE, or bring the file here and "
            "name its path"
        )
    raise CheckpointError(f"{named}: {found}") from error
