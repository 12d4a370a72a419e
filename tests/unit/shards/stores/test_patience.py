"""What is asked again, how long, and what is believed: against scripted answers, and a real server behind faults."""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fault_proxy import EVERYTHING, FaultProxy
from s3_server import S3Server

from shards.stores.client import Part
from shards.stores.folder import FolderStore
from shards.stores.patience import Patience
from shards.stores.patient import PatientStore
from shards.stores.s3 import S3Client
from shards.stores.second_look import believed
from shards.stores.store import FaultError, MissingObjectError, StoreError

QUICK = Patience(seconds=0.2, seconds_before_contact=0.1, first_pause=0.001, longest_pause=0.01)
CONTENT = b"0123456789"
FAULT = FaultError("place/name: not now", "503")
GONE = MissingObjectError("place/name: no such object")


class Scripted:
    """A client whose every request has the next outcome of a list; the last one stays.

    An outcome is an error to raise, or for `fetch` the number of bytes that come, followed by an error or not.
    """

    url = "place"

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[int] = []
        self.connections = 1

    def _next(self, position: int = 0) -> object:
        self.requests.append(position)
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    def fetch(self, name: str, part: Part) -> None:
        outcome = self._next(part.position)
        count, error = outcome if isinstance(outcome, tuple) else (outcome, None)
        if isinstance(count, Exception):
            raise count
        part.size_bytes = len(CONTENT)
        part.add(CONTENT[part.position :][: min(count, part.remaining or 0)])
        if error is not None:
            raise error

    def put(self, name: str, data: bytes | Path) -> None:
        self.put_if_absent(name, b"")

    def put_if_absent(self, name: str, data: bytes = b"") -> bool:
        outcome = self._next()
        if isinstance(outcome, Exception):
            raise outcome
        return bool(outcome)

    exists = delete = list_page = put_if_absent

    def reconnect(self) -> None:
        self.connections += 1


@pytest.mark.parametrize(
    ("outcomes", "positions"),
    [
        ([10], [0]),
        ([FAULT, FAULT, 10], [0, 0, 0]),
        ([(4, FAULT), 10], [0, 4]),  # goes on where it was cut
        ([(4, FAULT), FAULT, (3, FAULT), 3], [0, 4, 4, 7]),
        ([(10, FAULT)], [0]),  # all bytes are here: nobody asks for more
        ([4, 6], [0, 4]),  # an answer that ends early without a word
    ],
)
def test_one_loop_goes_on_until_all_bytes_are_here(outcomes: list[object], positions: list[int]) -> None:
    client = Scripted(*outcomes)
    store = PatientStore(client, QUICK)
    assert store.read("name") == CONTENT
    assert client.requests == positions
    assert store.faults.total() == len(positions) - (positions != [0] or outcomes == [10])


def test_patience_is_a_time_that_begins_anew_with_every_byte() -> None:
    client = Scripted((1, FAULT), *[(1, FAULT)] * 8, 1)
    patience = Patience(seconds=0.02, seconds_before_contact=0.02, first_pause=0.016, longest_pause=0.016)
    assert PatientStore(client, patience).read("name") == CONTENT
    assert len(client.requests) == 10


@pytest.mark.parametrize(("answered", "at_least", "at_most"), [(True, 0.2, 0.6), (False, 0.1, 0.5)])
def test_patience_ends_and_says_how_long_it_was(answered: bool, at_least: float, at_most: float) -> None:
    client = Scripted(10, FAULT) if answered else Scripted(FAULT)
    store = PatientStore(client, QUICK)
    if answered:
        store.read("name")
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"place/name: not now \(asked \d+ times in 0 s\)"):
        store.read("name")
    assert at_least <= time.monotonic() - started < at_most
    assert len(client.requests) > 5


def test_an_answer_without_its_bytes_is_contact_too() -> None:
    cut = (0, FAULT)
    client = Scripted(*[cut] * 8, 10)
    patience = Patience(seconds=60, seconds_before_contact=0, first_pause=0.001, longest_pause=0.001)
    assert PatientStore(client, patience).read("name") == CONTENT
    with pytest.raises(StoreError, match="asked 2 times"):
        PatientStore(Scripted(*[FAULT] * 8, 10), patience).read("name")


def test_there_is_a_second_attempt_however_long_the_first_took() -> None:
    client = Scripted(FAULT, 10)
    assert PatientStore(client, Patience(seconds=0, seconds_before_contact=0)).read("name") == CONTENT


def test_what_asking_again_cannot_change_is_told_at_once() -> None:
    client = Scripted(StoreError("refused"))
    for call in (lambda s: s.read("n"), lambda s: s.write("n", b""), lambda s: s.exists("n"), lambda s: s.delete("n")):
        client.requests.clear()
        with pytest.raises(StoreError, match="refused"):
            call(PatientStore(client, QUICK))
        assert len(client.requests) == 1


@pytest.mark.parametrize(
    ("outcomes", "mine", "won"),
    [
        ([True], CONTENT, True),
        ([False], CONTENT, False),  # of equal bytes of somebody else's we do not claim them
        ([FAULT, True], CONTENT, True),
        ([FAULT, False, 10], CONTENT, True),  # its answer was lost: what is there is ours
        ([FAULT, False, 10], b"other", False),
    ],
)
def test_a_put_whose_answer_was_lost_is_no_conflict(outcomes: list[object], mine: bytes, won: bool) -> None:
    assert PatientStore(Scripted(*outcomes), QUICK).write_if_absent("name", mine) is won


@pytest.mark.parametrize(
    ("answers", "found", "faults"),
    [
        ([b"good"], b"good", {}),
        ([b"bad", b"good"], b"good", {"altered bytes": 1}),
        ([b"bad", b"ba", b"bad", b"good"], b"good", {"altered bytes": 3}),
        ([GONE, b"bad", GONE, b"good"], b"good", {"404 of what is there": 2, "altered bytes": 1}),
        ([b"bad"], b"bad", {}),  # the same at every look: damaged, and nobody blames the storage
        ([b"bad", b"worse", b"bad"], b"bad", {"altered bytes": 1}),
        ([GONE], None, {}),
        ([b"bad", GONE], None, {"altered bytes": 1}),
    ],
)
def test_damaged_or_missing_is_what_several_looks_say(
    answers: list[bytes | Exception], found: bytes | None, faults: dict[str, int]
) -> None:
    store = PatientStore(Scripted(0), QUICK)
    read, looks = _reading(answers)
    if found is None:
        with pytest.raises(MissingObjectError):
            believed(store, read, lambda data: data == b"good")
    else:
        assert believed(store, read, lambda data: data == b"good") == found
    assert store.faults == faults
    assert store.client.connections == len(looks)  # a new one for every look after the first


@pytest.mark.parametrize(
    ("answers", "num_looks"), [([b"a"], 2), ([b"a", b"b", b"a"], 3), ([GONE, b"a"], 3), ([b"b", b"c", b"a"], 4)]
)
def test_where_nothing_vouches_two_equal_answers_do(answers: list[bytes | Exception], num_looks: int) -> None:
    read, looks = _reading(answers)
    assert believed(PatientStore(Scripted(0), QUICK), read, None) == b"a"
    assert len(looks) == num_looks


def test_another_answer_every_time_is_the_storage_and_not_the_data() -> None:
    with pytest.raises(StoreError, match=r"gave \d+ different answers to one question.*alters data"):
        believed(PatientStore(Scripted(0), QUICK), lambda: os.urandom(8), lambda data: False)


def _reading(answers: Sequence[bytes | Exception]) -> tuple[Callable[[], bytes], list[int]]:
    """A function that gives the answers in turn, the last one again and again; and its calls."""
    looks: list[int] = []

    def read() -> bytes:
        answer = answers[min(len(looks), len(answers) - 1)]
        looks.append(len(looks))
        if isinstance(answer, Exception):
            raise answer
        return answer

    return read, looks


def test_copies_begin_without_faults_and_know_that_the_place_has_answered(tmp_path: Path) -> None:
    store = PatientStore(S3Client("bucket", "prefix"), QUICK)
    store._answered = True
    for each in (store, FolderStore(tmp_path)):
        each.faults["503"] += 1
        assert pickle.loads(pickle.dumps(each)).faults == Counter()
    assert pickle.loads(pickle.dumps(store))._answered


@pytest.mark.parametrize("kind", EVERYTHING)
def test_every_fault_of_a_real_connection_is_outlasted(
    kind: str, s3_server: S3Server, s3_bucket: str, monkeypatch
) -> None:
    bucket, _, prefix = s3_bucket.removeprefix("s3://").partition("/")
    content = os.urandom(200_000)
    with FaultProxy(s3_server.url, 0.4, 11, [kind]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patience = Patience(first_pause=0.001, longest_pause=0.05, looks_for_missing=12)
        store = PatientStore(S3Client(bucket, prefix), patience)
        for number in range(3):
            name = f"object-{number}"
            assert store.write_if_absent(name, content)
            assert not store.write_if_absent(name, b"other")
            assert believed(store, lambda: store.read(name), lambda data: data == content) == content  # noqa: B023
            piece = believed(store, lambda: store.read_range(name, 777, 100_000), lambda data: len(data) == 100_000)  # noqa: B023
            assert kind == "altered" or piece == content[777:100_777]
            store.write(name, content[::-1])
            assert store.exists(name)
        assert store.list() == ("object-0", "object-1", "object-2")
        store.delete("object-1")
        assert not store.exists("object-1")
        assert proxy.faults[kind]
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    assert PatientStore(S3Client(bucket, prefix)).read("object-2") == content[::-1]


def test_connections_are_kept_until_a_second_look(s3_server: S3Server, s3_bucket: str, monkeypatch) -> None:
    bucket, _, prefix = s3_bucket.removeprefix("s3://").partition("/")
    with FaultProxy(s3_server.url, 0.0, 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = PatientStore(S3Client(bucket, prefix))
        store.write("name", CONTENT)
        assert [store.read("name"), store.read_range("name", 2, 3)] == [CONTENT, b"234"]
        assert proxy.connections == 2  # one to write, one to read
        store.reconnect()
        assert store.read("name") == CONTENT
        assert proxy.connections == 3
