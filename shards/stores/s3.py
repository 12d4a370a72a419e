"""One request at a time to S3; the only importer of boto3. `shards.stores.patient` decides what is asked again.

The S3 endpoint and credentials come from boto3's usual environment variables and files (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ...).
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import logging
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from shards.errors import needs_extra
from shards.stores import answers, object_store
from shards.stores.client import Part, Prefixed
from shards.stores.store import CHUNK_BYTES, FaultError, MissingObjectError, StoreError

with needs_extra("storage", "boto3", "object storage (s3://)"):
    import boto3
    import botocore
    import botocore.config
    import botocore.credentials
    import botocore.exceptions
    import botocore.httpsession
    import botocore.parsers
    import botocore.session
    import botocore.utils
    import urllib3.exceptions

_logger = logging.getLogger(__name__)
# What a body was altered on its way is told by: a checksum, no secret.
_md5 = partial(hashlib.md5, usedforsecurity=False)
_NOT_IMPLEMENTED = {"NotImplemented", "501"}
_NEXT_MOVE = "is the server up, and AWS_ENDPOINT_URL right?"
_CREDENTIAL_CODES = {
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; check AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the server does not know this access key; check AWS_ACCESS_KEY_ID",
    "AccessDenied": "these credentials may not do that here; ask for permission on the bucket (s3:ListBucket as well: "
    "without it the answer is the same for what is not there), use others, or set AWS_REQUEST_PAYER=requester where "
    "the reader pays, AWS_SKIP_SIGNATURE=true where the bucket is public",
    "ExpiredToken": "the session token has expired; fetch new credentials",
    "InvalidToken": "the session token is not valid; fetch new credentials",
}
_CUT_OFF = (
    botocore.exceptions.HTTPClientError,  # timeouts, connections closed, answers cut short; TLS
    botocore.exceptions.ConnectionError,
    botocore.exceptions.IncompleteReadError,
    urllib3.exceptions.HTTPError,  # boto3 lets some of these through
    http.client.HTTPException,
    OSError,
)


# Ways to sign that obstore has too. (Others: S3 on Express One Zone, several regions, and version 2.)
_SIGNED_ALIKE = {"s3v4", "v4"}
# obstore asks for credentials anew when they have less than five minutes left.
_ASK_AGAIN_AFTER = timedelta(minutes=6)
# Answers that send boto3 to another region.
_REDIRECTIONS = {301, 307}
_REDIRECTION_CODES = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}


@dataclass(frozen=True)
class _Connection:
    """What is connected in one process.

    Attributes:
        client: boto3's.
        settings: what obstore is to be told; None where it does not know how to ask.
    """

    pid: int
    client: Any
    settings: object_store.S3Settings | None


class _Addressed(Exception):
    """Ends a request before it is signed: where it would have gone is known."""


class S3Client(Prefixed):
    """Objects under one prefix of a bucket. One connection per process: boto3's clients do not survive a fork.

    Threads may use it at once.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        """Hold the objects s3://bucket/prefix/NAME; an empty prefix is the bucket itself."""
        super().__init__("s3", bucket, prefix)
        self._connection: _Connection | None = None
        self._reader: Any = None  # obstore's
        self._told_of_looks = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None, "_reader": None}

    def fetch(self, name: str, part: Part) -> None:
        with self._explained(name):
            settings = self._connect().settings
        if settings is None or not object_store.works_here():
            return self._fetch_by_boto3(name, part)
        reader = self._reader
        if reader is None:
            with self._explained(name):
                reader = self._reader = object_store.s3_store(settings)
        try:
            object_store.receive(reader, self._key(name), part, self._where(name), self._endpoint(), _NEXT_MOVE)
        except object_store.BeyondError:
            return self._fetch_by_boto3(name, part)
        except object_store.Answer as answer:
            if answer.status == 416:
                part.size_bytes = part.position  # there is nothing from here on
                return None
            if answer.status in _REDIRECTIONS or answer.code in _REDIRECTION_CODES:
                return self._fetch_by_boto3(name, part)
            raise self._refusal(self._where(name), answer.status, answer.code, answer.said) from answer
        return None

    def _fetch_by_boto3(self, name: str, part: Part) -> None:
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
                        part.add(chunk)
                except _CUT_OFF as error:
                    raise answers.cut_off(self._where(name), part.num_received, part.remaining, error) from error

    def put(self, name: str, data: bytes | Path) -> None:
        with self._explained(name):
            if isinstance(data, Path):
                with self._opened(data) as file:
                    checksum = hashlib.file_digest(file, _md5)
                    file.seek(0)
                    self._put(name, file, checksum)
            else:
                self._put(name, data, _md5(data))

    def _put(self, name: str, body: bytes | IO[bytes], checksum: Any, **conditions: str) -> None:
        content_md5 = base64.b64encode(checksum.digest()).decode()
        self._connected().put_object(
            Bucket=self.bucket, Key=self._key(name), Body=body, ContentMD5=content_md5, **conditions
        )

    def put_if_absent(self, name: str, data: bytes) -> bool:
        with self._explained(name):
            try:
                self._put(name, data, _md5(data), IfNoneMatch="*")
            except botocore.exceptions.ClientError as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    return False
                if _code(error) not in _NOT_IMPLEMENTED:
                    raise
            else:
                return True
        return self._put_after_a_look(name, data)

    def _put_after_a_look(self, name: str, data: bytes) -> bool:
        """As `put_if_absent`, where the store knows no conditions: of two that look at one moment both may write."""
        if not self._told_of_looks:
            self._told_of_looks = True
            _logger.warning(
                "%s: the store does not know If-None-Match, so it is looked whether a name is free before it is "
                "written: let no two calls pack to one place at a time",
                self._where(""),
            )
        if self.exists(name):
            return False
        self.put(name, data)
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
        self._reader = None
        if (connection := self._connection) is not None and connection.pid == os.getpid():
            connection.client.close()  # its connections; it opens others when it is used again

    def _understand(self, answer: dict[str, Any], name: str, part: Part) -> None:
        """Note version and size of the object; FaultError where the answer is not the range that was asked for."""
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", str(answer.get("ContentRange", "")))
        start, size = (int(told[1]), int(told[2])) if told else (0, int(answer["ContentLength"]))
        if start != part.position or (part.size_bytes is not None and size != part.size_bytes):
            answered = f"bytes from {start} on, of {size}"
            raise answers.another_range(self._where(name), self._endpoint(), part.position, answered)
        part.version, part.size_bytes = answer.get("ETag"), size

    @contextmanager
    def _opened(self, path: Path) -> Iterator[BufferedReader]:
        try:
            file = path.open("rb")
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
        with file:
            yield file

    def _connected(self) -> Any:
        return self._connect().client

    def _connect(self) -> _Connection:
        """This process's connection. Threads that come at once make one each, and the last one stays."""
        connection = self._connection
        if connection is None or connection.pid != os.getpid():
            config = botocore.config.Config(
                connect_timeout=object_store.CONNECT_TIMEOUT,
                read_timeout=object_store.READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": 1},  # what is repeated is PatientStore's to say
                # Samples carry a crc32c that the reader checks; a second one over every answer costs time.
                response_checksum_validation="when_required",
                # Other stores than AWS refuse the headers of the newer checksums; all know the older one, see `put`.
                request_checksum_calculation="when_required",
                signature_version=botocore.UNSIGNED if _is_set("AWS_SKIP_SIGNATURE") else None,
            )
            core = botocore.session.get_session()
            client = boto3.session.Session(botocore_session=core).client("s3", config=config)
            if _is_set("AWS_REQUEST_PAYER"):
                client.meta.events.register("before-call.s3", _pay)
            self._reader = None
            connection = self._connection = _Connection(os.getpid(), client, _settings(core, client, self.bucket))
        return connection

    def _endpoint(self) -> str:
        connection = self._connection
        return str(connection.client.meta.endpoint_url) if connection is not None else "the S3 endpoint"

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        where = self._where(name)
        try:
            yield
        except botocore.exceptions.ClientError as error:
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            raise self._refusal(where, status, _code(error), str(error)) from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
            raise StoreError(
                f"{where}: no S3 credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE; for a public bucket AWS_SKIP_SIGNATURE=true"
            ) from error
        except botocore.parsers.ResponseParserError as error:
            raise answers.unreadable(where, self._endpoint(), error) from error
        except _CUT_OFF as error:
            raise answers.no_answer(where, self._endpoint(), error, _NEXT_MOVE) from error
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise StoreError(f"{where}: {error}; check the bucket name and the AWS_* settings") from error

    def _refusal(self, where: str, status: int, code: str, said: str) -> StoreError:
        return answers.refusal(where, self._endpoint(), self.bucket, status, code, said, _CREDENTIAL_CODES)


def _settings(core: Any, client: Any, bucket: str) -> object_store.S3Settings | None:
    """What `client` would do with a request for an object of `bucket`: it is let prepare one. Nothing is sent.

    Raises:
        botocore.exceptions.BotoCoreError: there can be no such bucket, or no credentials are found.
    """
    seen: dict[str, Any] = {}

    def look(request: Any, region_name: str, signature_version: Any, **_: Any) -> None:
        seen.update(url=request.url, headers=request.headers, region=region_name, signature=signature_version)
        raise _Addressed

    client.meta.events.register("before-sign.s3.GetObject", look)
    try:
        with suppress(_Addressed):
            client.get_object(Bucket=bucket, Key="object")
    finally:
        client.meta.events.unregister("before-sign.s3.GetObject", look)
    signed = seen["signature"] is not botocore.UNSIGNED
    if signed and seen["signature"] not in _SIGNED_ALIKE:
        return None
    credentials = core.get_credentials() if signed else None
    if signed and credentials is None:
        raise botocore.exceptions.NoCredentialsError
    address = urlsplit(seen["url"])
    path = address.path.removesuffix("/object")
    in_path = path.endswith(f"/{bucket}")
    endpoint = f"{address.scheme}://{address.netloc}{path.removesuffix(f'/{bucket}') if in_path else path}"
    proxies = client.meta.config.proxies
    proxies = botocore.utils.get_environ_proxies(endpoint) if proxies is None else proxies
    verified = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True
    return object_store.S3Settings(
        bucket=bucket,
        endpoint=endpoint,
        region=seen["region"],
        virtual_hosted=not in_path,
        signed=signed,
        requester_pays="x-amz-request-payer" in seen["headers"],
        proxy=proxies.get(address.scheme),
        certificates=Path(botocore.httpsession.get_cert_path(verified)).read_bytes()
        if address.scheme == "https"
        else b"",
        credentials=partial(_credentials, credentials),
    )


def _credentials(credentials: Any) -> dict[str, Any]:
    """What botocore would sign with now, as obstore wants it; botocore renews what expires when it is asked."""
    now = credentials.get_frozen_credentials()
    expires = isinstance(credentials, botocore.credentials.RefreshableCredentials)
    return {
        "access_key_id": now.access_key,
        "secret_access_key": now.secret_key,
        "token": now.token,
        "expires_at": datetime.now(UTC) + _ASK_AGAIN_AFTER if expires else None,
    }


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "requester")


def _pay(params: dict[str, Any], **_: Any) -> None:
    params["headers"]["x-amz-request-payer"] = "requester"


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
