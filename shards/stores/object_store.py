"""One request at a time through obstore; its only importer. It reads s3:// for S3Client, and is all of gs:// and az://.

obstore's own retries are off: `shards.stores.patience` decides what is asked again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shards.errors import needs_extra
from shards.stores import answers
from shards.stores.client import Part, Prefixed
from shards.stores.store import FaultError, MissingObjectError, StoreError

with needs_extra("storage", "obstore", "object storage (s3://, gs://, az://)"):
    import obstore
    import obstore.exceptions
    import obstore.store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CONNECT_TIMEOUT = 3.0  # seconds
READ_TIMEOUT = 20.0  # seconds without a byte
# Bytes; what came before a cut and is less than this is lost. Handing a piece over wakes a thread that waits for the
# interpreter, so that large ones are cheaper; where something was cut before, little is put at risk.
_PIECE, _PIECE_AFTER_A_CUT = 1 << 20, 1 << 16
_ONE_ATTEMPT: RetryConfig = {"max_retries": 0}
_NO_PROXY = "http://unused.invalid"  # which the endpoint is excluded from: or the library asks the environment itself
_CREDENTIAL_CODES = {
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS, and ask for permission on the bucket",
    "az": "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, and ask for permission on the container",
}
# Processes, each forked from the one before, in which obstore's threads were started. They are the library's own, one
# set for a process, and a fork leaves them behind: in a child every request would wait for ever.
_with_threads: list[int] = []


@dataclass(frozen=True)
class S3Settings:
    """How a bucket is reached, as boto3 decided it.

    Attributes:
        endpoint: URL; with the bucket in its host where `virtual_hosted`.
        signed: False for anonymous requests; `credentials` are not asked then.
        proxy: URL; None for none.
        certificates: PEM of the authorities that are trusted; empty where the endpoint has no TLS.
        credentials: obstore's S3Credential; asked for before a request, at most every minute where they expire.
    """

    bucket: str
    endpoint: str
    region: str
    virtual_hosted: bool
    signed: bool
    requester_pays: bool
    proxy: str | None
    certificates: bytes
    credentials: Callable[[], Any]


def s3_store(settings: S3Settings) -> Any:
    """What `receive` reads a bucket from. Every setting is given: obstore looks into the environment for the others."""
    return obstore.store.S3Store(
        settings.bucket,
        config={
            "aws_endpoint_url_s3": settings.endpoint,
            "region": settings.region,
            "virtual_hosted_style_request": settings.virtual_hosted,
            "skip_signature": not settings.signed,
            "request_payer": settings.requester_pays,
        },
        client_options=_client_options(settings.endpoint, settings.proxy, settings.certificates),
        retry_config=_ONE_ATTEMPT,
        credential_provider=settings.credentials if settings.signed else None,
    )


def works_here() -> bool:
    """Whether this process may use obstore: none that it was forked from has."""
    return all(pid == os.getpid() for pid in _with_threads)


class Answer(Exception):
    """An answer with an error status.

    Attributes:
        status: of HTTP.
        code: of the error, as the server calls it.
        said: both, and the server's sentence.
    """

    def __init__(self, status: int, code: str, said: str) -> None:
        """Say `said`."""
        super().__init__(said)
        self.status, self.code, self.said = status, code, said


class BeyondError(Exception):
    """What obstore cannot do and others may: a key with an empty part ("a//b"), a certificate that signs itself."""


def receive(store: Any, key: str, part: Part, where: str, endpoint: str, next_move: str) -> None:
    """Add to `part` what comes of the rest of it, in order; what came before a fault stays.

    Args:
        where: the object, for messages.
        endpoint: who is asked, for messages.
        next_move: where nobody answers.

    Raises:
        Answer: an error status.
        BeyondError: nothing was asked, and another client may know how.
        FaultError: no answer, or one that broke off or is another one.
        StoreError: credentials could not be had.
    """
    end = None if part.length is None else part.offset + part.length
    options: Any = {"range": {"offset": part.position} if end is None else (part.position, end)}
    if part.version is not None:
        options["if_match"] = part.version
    begun = False
    with _understood(where, endpoint, part, next_move, lambda: begun):
        try:
            answer = obstore.get(store, key, options=options)
        except ValueError as error:
            raise BeyondError(str(error)) from error
        begun, size = True, int(answer.meta["size"])
        if part.size_bytes is not None and size != part.size_bytes:
            raise answers.another_range(where, endpoint, part.position, f"an object of {size}")
        part.version, part.size_bytes = answer.meta["e_tag"], size
        for piece in answer.stream(_PIECE if part.num_asked <= 1 else _PIECE_AFTER_A_CUT):
            part.add(piece)
            if part.is_complete:
                return


class ObjectStoreClient(Prefixed):
    """Objects under one prefix of gs://BUCKET or az://CONTAINER; settings and credentials from the usual environment.

    One store per process: obstore's own do not survive a pickle.
    """

    def __init__(self, scheme: str, bucket: str, prefix: str) -> None:
        """Hold the objects SCHEME://bucket/prefix/NAME; an empty prefix is the bucket itself."""
        super().__init__(scheme, bucket, prefix)
        self.scheme = scheme
        self._store: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    def fetch(self, name: str, part: Part) -> None:
        with self._explained(name) as store:
            try:
                receive(store, self._key(name), part, self._where(name), self._endpoint(), self._next_move())
            except Answer as answer:
                if answer.status != 416:
                    raise
                part.size_bytes = part.position  # there is nothing from here on

    def put(self, name: str, data: bytes | Path) -> None:
        with self._explained(name) as store:
            obstore.put(store, self._key(name), data)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        with self._explained(name) as store:
            try:
                obstore.put(store, self._key(name), data, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def exists(self, name: str) -> bool:
        try:
            self.fetch(name, Part(0, 1))  # unlike to HEAD, an answer has a body, which says what is wrong
        except MissingObjectError:
            return False
        return True

    def list_page(self, token: str | None) -> tuple[list[str], str | None]:
        try:
            with self._explained("") as store:
                found = obstore.list_with_delimiter(store, self.prefix or None)["objects"]
        except MissingObjectError as error:  # nobody answers a listing with that who means it
            raise FaultError(str(error), "404 of what is there") from error
        prefix = self._key("")
        return [entry["path"].removeprefix(prefix) for entry in found], None

    def delete(self, name: str) -> None:
        with self._explained(name) as store:
            try:
                obstore.delete(store, self._key(name))
            except FileNotFoundError:
                return

    def reconnect(self) -> None:
        self._store = None

    def _connected(self) -> Any:
        store = self._store
        if store is None:
            options = _client_options(f"https://{self.scheme}", None, b"")
            del options["proxy_url"], options["proxy_excludes"], options["allow_http"]  # as the environment says
            kind = obstore.store.GCSStore if self.scheme == "gs" else obstore.store.AzureStore
            store = self._store = kind(self.bucket, client_options=options, retry_config=_ONE_ATTEMPT)
        return store

    def _endpoint(self) -> str:
        return f"the storage of {self.scheme}://"

    def _next_move(self) -> str:
        return "is the network up, and the storage's address right?"

    @contextmanager
    def _explained(self, name: str) -> Iterator[Any]:
        """A store to ask; what it answers in the words of StoreError."""
        where, endpoint = self._where(name), self._endpoint()
        if not works_here():
            raise StoreError(
                f"{where}: cannot be read in a process forked from one that has read {self.scheme}:// already; start "
                "it with spawn or forkserver"
            )
        try:
            with _understood(where, endpoint, None, self._next_move()):
                yield self._connected()
        except Answer as answer:
            status, code = answer.status, answer.code or str(answer.status)
            refused = {code: _CREDENTIAL_CODES[self.scheme]} if status in (401, 403) else {}
            raise answers.refusal(where, endpoint, self.bucket, status, code, answer.said, refused) from answer
        except (BeyondError, ValueError) as error:
            raise StoreError(f"{where}: {error}; correct the name or the settings") from error
        except OSError as error:  # of a local file
            raise StoreError(f"{error.filename or where}: cannot be read ({error.strerror or error})") from error


def _client_options(endpoint: str, proxy: str | None, certificates: bytes) -> ClientConfig:
    options: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
        "read_timeout": timedelta(seconds=READ_TIMEOUT),
        "timeout": timedelta(days=1),  # of a whole answer: a long one over a slow line is no fault
        "proxy_url": proxy or _NO_PROXY,
        "proxy_excludes": "" if proxy else urlsplit(endpoint).hostname or "",
    }
    if certificates:
        options["root_certificate"] = certificates
    return options


@contextmanager
def _understood(
    where: str, endpoint: str, part: Part | None, next_move: str, has_begun: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Around requests: obstore tells its errors apart in their text alone."""
    if os.getpid() not in _with_threads:
        _with_threads.append(os.getpid())
    try:
        yield
    except (obstore.exceptions.BaseError, FileNotFoundError) as error:
        text, _, source = str(error).partition("\n\nDebug source:")
        if status := re.search(r"non-2xx status code: (\d{3})([^:]*)", text):
            code, message = (re.search(rf"<{tag}>([^<]*)<", text) for tag in ("Code", "Message"))
            said = f"{status[1]}{status[2]}" + (f" ({code[1]}): {message[1]}" if code and message else "")
            raise Answer(int(status[1]), code[1] if code else "", said) from error
        if isinstance(error, FileNotFoundError):
            raise
        if isinstance(error, obstore.exceptions.UnauthenticatedError):
            raise StoreError(f"{where}: no credentials ({text}); check where they come from") from error
        causes = re.findall(r'(?:message|error): "([^"]*)"|(TimedOut)', source)
        why = next((message or "timed out" for message, _ in reversed(causes)), text.rpartition(": ")[2])
        if part is not None and has_begun():
            raise answers.cut_off(where, part.num_received, part.remaining, why) from error
        if "InvalidCertificate" in source:
            raise BeyondError(re.sub(r"\s+", " ", source[source.index("InvalidCertificate") :])) from error
        if "HTTP error" in text:
            raise answers.no_answer(where, endpoint, why, next_move) from error
        if part is not None and re.search("(?i)range|partial", text):
            raise answers.another_range(where, endpoint, part.position, text) from error
        raise answers.unreadable(where, endpoint, text) from error
