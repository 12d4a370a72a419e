"""A proxy in front of a real S3 server that does to a share of the requests what networks and gateways do."""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_HEAD_END = b"\r\n\r\n"
_CAUSES = {
    "503": b"503 Slow Down",
    "500": b"500 Internal Server Error",
    "404": b"404 Not Found",
    # Not drawn: what stores that are not AWS lack, and who is not let in.
    "501": b"501 Not Implemented",
    "400": b"400 Bad Request",
    "403": b"403 Forbidden",
}
_CODES = {
    "503": b"SlowDown",
    "500": b"InternalError",
    "404": b"NoSuchKey",
    "501": b"NotImplemented",
    "400": b"InvalidArgument",
    "403": b"AccessDenied",
}
# What can happen to any request; to what is read as well; to an answer with a body; to an upload.
ALWAYS = ("503", "500", "reset", "lost", "late")
OF_READS = ("404",)
OF_BODIES = ("cut", "short", "long", "altered")
OF_UPLOADS = ("altered upload",)
EVERYTHING = (*ALWAYS, *OF_READS, *OF_BODIES, *OF_UPLOADS)


@dataclass(frozen=True)
class Message:
    """A request or an answer as it came over the wire."""

    head: bytes
    body: bytes

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode("latin1")

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def with_length(self, length: int) -> bytes:
        """The head, announcing another length of the body."""
        return re.sub(rb"(?i)(\r\ncontent-length: *)\d+", rb"\g<1>%d" % length, self.head)


class FaultProxy:
    """Listens on 127.0.0.1 until it is closed; every fault is drawn from its seed, in the order of the requests.

    Attributes:
        url: to put where the server's stands.
        num_requests: that came.
        faults: what was done to them.
        connections: that were opened.
    """

    def __init__(self, target_url: str, rate: float, seed: int, kinds: Sequence[str] = EVERYTHING) -> None:
        host, _, port = target_url.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._rate = rate
        self._kinds = kinds
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_requests = 0
        self.connections = 0
        self.faults: Counter[str] = Counter()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Requests of one connection, until one of them ends it."""
        with client, suppress(OSError, EOFError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            incoming = client.makefile("rb")
            with socket.create_connection(self._target) as server:
                answers = server.makefile("rb")
                while True:
                    request = _read_request(incoming, client)
                    kind, where = self._draw(request)
                    if kind in _CAUSES:
                        client.sendall(_refusal(kind, request))
                        return
                    if kind == "reset":
                        _reset(client)
                        return
                    body = _flipped(request.body, where) if kind == "altered upload" else request.body
                    server.sendall(request.head + body)
                    answer = _read_answer(answers, request)
                    if kind == "lost":
                        _reset(client)
                        return
                    if not _pass_on(client, answer, kind, where):
                        return

    def _draw(self, request: Message) -> tuple[str, float]:
        """What happens to a request, and where in its body."""
        fits = [*ALWAYS]
        if request.method in ("GET", "HEAD"):
            fits += OF_READS
        if request.method == "GET":
            fits += OF_BODIES
        if request.method == "PUT" and request.body:
            fits += OF_UPLOADS
        with self._lock:
            self.num_requests += 1
            kinds = [kind for kind in self._kinds if kind in fits]
            if not kinds or self._dice.random() >= self._rate:
                return "", 0.0
            kind = self._dice.choice(kinds)
            self.faults[kind] += 1
            return kind, self._dice.random()


def _pass_on(client: socket.socket, answer: Message, kind: str, where: float) -> bool:
    """Send an answer, or what is left of it; whether the connection goes on."""
    body, middle = answer.body, int(where * len(answer.body))
    if not body or answer.status >= 300:
        kind = kind if kind == "late" else ""
    if kind == "cut":
        client.sendall(answer.head + body[:middle])
    elif kind == "short":
        client.sendall(answer.with_length(middle) + body[:middle])
    elif kind == "long":
        client.sendall(answer.with_length(len(body) + 1000) + body)
    elif kind == "altered":
        client.sendall(answer.head + _flipped(body, where))
    else:
        if kind == "late":
            time.sleep(0.02 + 0.1 * where)
        client.sendall(answer.head + body)
    return kind not in ("cut", "short", "long")


def _read_request(stream: Any, client: socket.socket) -> Message:
    head = _read_head(stream)
    if re.search(rb"(?i)\r\nexpect: *100-continue", head):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = re.sub(rb"(?i)\r\nexpect: *100-continue", b"", head)
    return Message(head, _read_body(stream, head))


def _read_answer(stream: Any, request: Message) -> Message:
    head = _read_head(stream)
    if request.method == "HEAD" or head.split(b" ", 2)[1] in (b"204", b"304"):
        return Message(head, b"")
    return Message(head, _read_body(stream, head))


def _read_head(stream: Any) -> bytes:
    head = b""
    while not head.endswith(_HEAD_END):
        line = stream.readline()
        if not line:
            raise EOFError
        head += line
    return head


def _read_body(stream: Any, head: bytes) -> bytes:
    if length := re.search(rb"(?i)\r\ncontent-length: *(\d+)", head):
        return stream.read(int(length[1]))
    body = b""
    while re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        size = stream.readline()
        body += size + stream.read(int(size.split(b";")[0], 16) + 2)
        if body.endswith(b"0\r\n\r\n") and int(size.split(b";")[0], 16) == 0:
            break
    return body


def _refusal(kind: str, request: Message) -> bytes:
    body = b"<Error><Code>%s</Code><Message>by the proxy</Message></Error>" % _CODES[kind]
    head = b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (_CAUSES[kind], len(body)) + (b"" if request.method == "HEAD" else body)


def _flipped(data: bytes, where: float) -> bytes:
    altered = bytearray(data)
    altered[int(where * len(data))] ^= 0x10
    return bytes(altered)


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.shutdown(socket.SHUT_RD)
    client.close()
