"""One request at a time to S3; the only importer of boto3. `shards.stores.patient` decides what is asked again.

The S3 endpoint and credentials come from boto3's usual environment variables and files (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ...).
"""

from __future__ import annotations

import http.client
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from shards.errors import needs_extra
from shards.stores.client import Part
from shards.stores.store import CHUNK_BYTES, FaultError, MissingBucketError, MissingObjectError, StoreError

with needs_extra("storage", "boto3", "object storage (s3://)"):
    import boto3
    import botocore.config
    import botocore.exceptions
    import botocore.parsers
    import urllib3.exceptions

_CONNECT_TIMEOUT = 3.0  # seconds
_READ_TIMEOUT = 20.0  # seconds without a byte
_CREDENTIAL_CODES = {
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; check AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the server does not know this access key; check AWS_ACCESS_KEY_ID",
    "AccessDenied": "these credentials may not do that here; ask for permission on the bucket, or use others",
    "ExpiredToken": "the session token has expired; fetch new credentials",
    "InvalidToken": "the session token is not valid; fetch new credentials",
}
# Answers that say "not now", or "not as it arrived", with a status that does not: a body altered on its way there.
_FAULT_CODES = {
    "BadDigest",
    "IncompleteBody",
    "InvalidDigest",
    "OperationAborted",
    "ConditionalRequestConflict",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_FAULT_STATUS = {408, 409, 425, 429}
_CUT_OFF = (
    botocore.exceptions.HTTPClientError,  # timeouts, connections closed, answers cut short; TLS
    botocore.exceptions.ConnectionError,
    botocore.exceptions.IncompleteReadError,
    urllib3.exceptions.HTTPError,  # boto3 lets some of these through
    http.client.HTTPException,
    OSError,
)


class S3Client:
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

    def fetch(self, name: str, part: Part) -> None:
        # Always a range: the answer then says the size of the whole beside its own length, and a short one is noticed.
        end = "" if part.length is None else part.offset + part.length - 1
        request = {"Range": f"bytes={part.position}-{end}"}
        if part.version is not None:
            request["IfMatch"] = part.version
        with self._explained(name):
            try:
                answer = self._connected().get_object(Bucket=self.bucket, Key=self._key(name), **request)
            except botocore.exceptions.ClientError as error:
                if _code(error) not in ("InvalidRange", "416"):
                    raise
                part.size_bytes = part.position  # there is nothing from here on
                return
            with closing(answer["Body"]) as body:
                self._understand(answer, name, part)
                try:
                    while (remaining := part.remaining) and (chunk := body.read(min(CHUNK_BYTES, remaining))):
                        part.received += chunk
                except _CUT_OFF as error:
                    raise FaultError(
                        f"{self._where(name)}: the answer broke off after {len(part.received)} bytes, {part.remaining} "
                        f"were missing ({error}); check the network and try again",
                        "answer cut off",
                    ) from error

    def put(self, name: str, data: bytes | Path) -> None:
        with self._explained(name):
            if isinstance(data, Path):
                with self._opened(data) as file:
                    self._connected().put_object(Bucket=self.bucket, Key=self._key(name), Body=file)
            else:
                self._connected().put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        with self._explained(name):
            try:
                self._connected().put_object(Bucket=self.bucket, Key=self._key(name), Body=data, IfNoneMatch="*")
            except botocore.exceptions.ClientError as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    return False
                raise
        return True

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

    def list_page(self, token: str | None) -> tuple[list[str], str | None]:
        prefix = self._key("")
        following = {} if token is None else {"ContinuationToken": token}
        try:
            with self._explained(""):
                page = self._connected().list_objects_v2(Bucket=self.bucket, Prefix=prefix, Delimiter="/", **following)
        except MissingObjectError as error:  # nobody answers a listing with that who means it
            raise FaultError(str(error), "404 of what is there") from error
        names = [entry["Key"].removeprefix(prefix) for entry in page.get("Contents", ())]
        return list(filter(None, names)), page.get("NextContinuationToken")

    def delete(self, name: str) -> None:
        with self._explained(name):
            self._connected().delete_object(Bucket=self.bucket, Key=self._key(name))

    def reconnect(self) -> None:
        if self._client is not None and self._client_pid == os.getpid():
            self._client.close()  # its connections; it opens others when it is used again

    def _understand(self, answer: dict[str, Any], name: str, part: Part) -> None:
        """Note version and size of the object; FaultError where the answer is not the range that was asked for."""
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", str(answer.get("ContentRange", "")))
        start, size = (int(told[1]), int(told[2])) if told else (0, int(answer["ContentLength"]))
        if start != part.position or (part.size_bytes is not None and size != part.size_bytes):
            raise FaultError(
                f"{self._where(name)}: asked for bytes from {part.position} on, {self._endpoint()} answers with bytes "
                f"from {start} on, of {size}; is a proxy in between that does not know ranges?",
                "another range",
            )
        part.version, part.size_bytes = answer.get("ETag"), size

    @contextmanager
    def _opened(self, path: Path) -> Iterator[IO[bytes]]:
        try:
            file = path.open("rb")
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
        with file:
            yield file

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _where(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _connected(self) -> Any:
        if self._client is None or self._client_pid != os.getpid():
            config = botocore.config.Config(
                connect_timeout=_CONNECT_TIMEOUT,
                read_timeout=_READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": 1},  # what is repeated is PatientStore's to say
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
        except botocore.parsers.ResponseParserError as error:
            raise FaultError(
                f"{where}: {self._endpoint()} gives an answer that cannot be read ({error})", "altered bytes"
            ) from error
        except _CUT_OFF as error:
            raise FaultError(
                f"{where}: cannot reach {self._endpoint()} ({error}); is the server up, and AWS_ENDPOINT_URL right?",
                "no answer",
            ) from error
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise StoreError(f"{where}: {error}; check the bucket name and the AWS_* settings") from error

    def _explain(self, where: str, error: botocore.exceptions.ClientError) -> StoreError:
        code, endpoint = _code(error), self._endpoint()
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status >= 500 or status in _FAULT_STATUS or code in _FAULT_CODES:
            return FaultError(f"{where}: {endpoint} answers {error}; see the server's log for the cause", str(status))
        if code == "NoSuchBucket":
            return MissingBucketError(
                f"{where}: there is no bucket {self.bucket!r} at {endpoint}; create it, or correct the name"
            )
        if status == 404:
            return MissingObjectError(f"{where}: no such object at {endpoint}")
        if status == 412:
            return StoreError(f"{where}: the object was replaced while it was being read; try again")
        if code in _CREDENTIAL_CODES:
            return StoreError(f"{where}: {endpoint} refuses ({code}): {_CREDENTIAL_CODES[code]}")
        return StoreError(f"{where}: {endpoint} answers {error}; see the server's log for the cause")


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
