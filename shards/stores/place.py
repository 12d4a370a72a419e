"""The store that a URL names."""

from __future__ import annotations

import re
from pathlib import Path

from shards.errors import CallError
from shards.stores.folder import FolderStore
from shards.stores.store import Store


def open_store(url: str) -> Store:
    """The store at `url`: a folder, or a prefix of a bucket in object storage. Nothing is contacted or created yet.

    Raises:
        CallError: empty, another kind of URL, or no bucket in it.
    """
    if not url:
        raise CallError("the place of the dataset is empty, wanted a folder or s3://bucket/prefix")
    if (other := _other_kind(url)) is not None:
        raise CallError(
            f"{url}: is {other}, and a dataset is named by the folder or prefix that holds its manifest.json; "
            "WebDataset tars that are there become one with `t4p shards index TARS --into DST`"
        )
    scheme, separator, rest = url.partition("://")
    if not separator and url.lower().startswith("s3:"):
        raise CallError(f"{url}: wanted a folder or s3://bucket/prefix, with two slashes")
    if not separator:
        return FolderStore(Path(url))
    if scheme not in ("s3", "gs", "az"):
        raise CallError(f"{url}: {scheme}:// is not supported, wanted a folder or s3://, gs:// or az://bucket/prefix")
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise CallError(f"{url}: names no bucket, wanted {scheme}://bucket/prefix")
    from shards.stores.patient import PatientStore

    if scheme == "s3":
        from shards.stores.s3 import S3Client  # boto3 takes a third of a second, and a folder needs none

        return PatientStore(S3Client(bucket, prefix.strip("/")))
    from shards.stores.object_store import ObjectStoreClient

    return PatientStore(ObjectStoreClient(scheme, bucket, prefix.strip("/")))


def _other_kind(url: str) -> str | None:
    """What a place is in the words of WebDataset, where it is none of ours."""
    if url.startswith("pipe:"):
        return "a command"
    if re.search(r"\{\d+\.\.\d+\}", url):
        return "a brace pattern of tars"
    if url.endswith((".tar", ".tar.gz", ".tgz")) and not Path(url).is_dir():
        return "a single tar"
    return None
