"""Folders and s3:// behind one small interface; the only importer of boto3.

The S3 endpoint and credentials come from boto3's usual environment variables and files (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ...).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import needs_extra
from shards.stores.store import CHUNK_BYTES, MissingBucketError, MissingObjectError, StoreError

with needs_extra("storage", "boto3", "object storage (s3://)"):
    import boto3
    import botocore.config
    import botocore.exceptions
    from urllib3.exceptions import SSLError

_MAX_REQUESTS = 3  # per call, the first one included
_MAX_CUTS = 5  # bodies that may break off in the middle of one read
_CONNECT_TIMEOUT = 3.0  # seconds; three tries at an address that does not answer end in about ten
_READ_TIMEOUT = 60.0
_CREDENTIAL_CODES = {
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; check AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the server does not know this access key; check AWS_ACCESS_KEY_ID",
    "AccessDenied": "these credentials may not do that here; ask for permission on the bucket, or use others",
    "ExpiredToken": "the session token has expired; fetch new credentials",
    "InvalidToken": "the session token is not valid; fetch new credentials",
}
_BODY_CUT = (
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ConnectionClosedError,
    SSLError,  # boto3 lets this one of urllib3 through
)


class S3Store:
    """Objects under one prefix of a bucket. One client per process: boto3's clients do not survive a fork."""

    def __init__(self, bucket: str, prefix: str) -> None:
        """Hold the objects s3://bucket/prefix/NAME; an empty prefix is the bucket itself."""
        self.bucket = bucket
        self.prefix = prefix
        self.url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._client: Any = None
        self._client_pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_client_pid": 0}

    def read(self, name: str) -> bytes:
        return self._read(name, 0, None)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        return self._read(name, offset, length) if length > 0 else b""

    def write(self, name: str, data: bytes | Path) -> None:
        with self._explained(name):
            if isinstance(data, Path):
                with data.open("rb") as file:
                    self._connected().put_object(Bucket=self.bucket, Key=self._key(name), Body=file)
            else:
                self._connected().put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

    def write_if_absent(self, name: str, data: bytes) -> bool:
        with self._explained(name):
            for attempt in range(_MAX_CUTS):
                try:
                    self._connected().put_object(Bucket=self.bucket, Key=self._key(name), Body=data, IfNoneMatch="*")
                    return True
                except botocore.exceptions.ClientError as error:
                    code = _code(error)
                    if code in ("PreconditionFailed", "412"):
                        return False
                    if code not in ("ConditionalRequestConflict", "409"):
                        raise
                time.sleep(0.1 * 2**attempt)  # another writer is at it: ask again who won
        raise StoreError(f"{self._where(name)}: another writer kept it busy; try again")

    def exists(self, name: str) -> bool:
        try:
            with self._explained(name):
                try:
                    self._connected().head_object(Bucket=self.bucket, Key=self._key(name))
                except botocore.exceptions.ClientError:
                    # The answer to HEAD has no body, so no cause: a GET of the same object says what is wrong.
                    self._connected().get_object(Bucket=self.bucket, Key=self._key(name))["Body"].close()
        except MissingObjectError:
            return False
        return True

    def list(self) -> tuple[str, ...]:
        prefix = self._key("")
        names: list[str] = []
        with self._explained(""):
            pages = self._connected().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/"):
                names.extend(entry["Key"].removeprefix(prefix) for entry in page.get("Contents", ()))
        return tuple(sorted(filter(None, names)))

    def delete(self, name: str) -> None:
        with self._explained(name):
            self._connected().delete_object(Bucket=self.bucket, Key=self._key(name))

    def remove_leftovers(self) -> None:
        """Nothing to do: a put that ends early leaves nothing."""

    def _read(self, name: str, offset: int, length: int | None) -> bytes:
        """One object or a range of it. boto3 retries a request but never a body that breaks off: that is done here."""
        received = bytearray()
        request: dict[str, str] = {}
        expected = length
        for cuts in range(_MAX_CUTS + 1):
            start = offset + len(received)
            if length is not None:
                request["Range"] = f"bytes={start}-{offset + length - 1}"
            elif received:
                request["Range"] = f"bytes={start}-"
            with self._explained(name):
                try:
                    answer = self._connected().get_object(Bucket=self.bucket, Key=self._key(name), **request)
                except botocore.exceptions.ClientError as error:
                    if _code(error) in ("InvalidRange", "416") and length is not None and not received:
                        return b""  # the range starts past the end
                    raise
            if "IfMatch" not in request:  # from here on, the rest of exactly this version
                request["IfMatch"] = answer["ETag"]
                expected = int(answer["ContentLength"])
            try:
                for chunk in iter(lambda body=answer["Body"]: body.read(CHUNK_BYTES), b""):  # type: ignore[misc]
                    received += chunk
            except _BODY_CUT as error:
                if cuts == _MAX_CUTS:
                    raise StoreError(
                        f"{self._where(name)}: the answer broke off {cuts + 1} times, at last after {len(received)} of "
                        f"{expected} bytes ({error}); check the network and try again"
                    ) from error
                time.sleep(0.1 * 2**cuts)
            if len(received) == expected:
                return bytes(received)
        raise StoreError(f"{self._where(name)}: received {len(received)} of {expected} bytes; try again")

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _where(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _connected(self) -> Any:
        if self._client is None or self._client_pid != os.getpid():
            config = botocore.config.Config(
                connect_timeout=_CONNECT_TIMEOUT,
                read_timeout=_READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": _MAX_REQUESTS},
                # Samples carry a crc32c that the reader checks; a second one over every answer costs time.
                response_checksum_validation="when_required",
            )
            self._client = boto3.session.Session().client("s3", config=config)
            self._client_pid = os.getpid()
        return self._client

    def _endpoint(self) -> str:
        return str(self._client.meta.endpoint_url) if self._client is not None else "the S3 endpoint"

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        where = self._where(name)
        try:
            yield
        except botocore.exceptions.ClientError as error:
            raise self._explain(where, error) from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
            raise StoreError(
                f"{where}: no S3 credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError) as error:
            raise StoreError(
                f"{where}: cannot reach {self._endpoint()} ({error}); is the server up, and AWS_ENDPOINT_URL right?"
            ) from error
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise StoreError(f"{where}: {error}; check the bucket name and the AWS_* settings") from error

    def _explain(self, where: str, error: botocore.exceptions.ClientError) -> StoreError:
        code, endpoint = _code(error), self._endpoint()
        if code == "NoSuchBucket":
            return MissingBucketError(
                f"{where}: there is no bucket {self.bucket!r} at {endpoint}; create it, or correct the name"
            )
        if code in ("NoSuchKey", "404"):
            return MissingObjectError(f"{where}: no such object at {endpoint}")
        if code in ("PreconditionFailed", "412"):
            return StoreError(f"{where}: the object was replaced while it was being read; try again")
        if code in _CREDENTIAL_CODES:
            return StoreError(f"{where}: {endpoint} refuses ({code}): {_CREDENTIAL_CODES[code]}")
        return StoreError(f"{where}: {endpoint} answers {error}; see the server's log for the cause")


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
