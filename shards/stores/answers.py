"""What an answer of storage that is no success means: one set of sentences, whichever client was answered."""

from __future__ import annotations

from collections.abc import Mapping

from shards.stores.store import FaultError, MissingBucketError, MissingObjectError, StoreError

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
_MISSING_BUCKET_CODES = {"NoSuchBucket", "ContainerNotFound"}


def refusal(
    where: str, endpoint: str, bucket: str, status: int, code: str, said: str, credential_codes: Mapping[str, str]
) -> StoreError:
    """The error that an answer with an error status is.

    Args:
        where: the object that was asked for.
        endpoint: who answered.
        status: of HTTP.
        code: of the error, as the server calls it.
        said: the whole answer in the client's words.
        credential_codes: what a refusal of credentials means, and the next move, by its code.
    """
    if status >= 500 or status in _FAULT_STATUS or code in _FAULT_CODES:
        return FaultError(f"{where}: {endpoint} answers {said}; see the server's log for the cause", str(status))
    if code in _MISSING_BUCKET_CODES:
        return MissingBucketError(
            f"{where}: there is no bucket {bucket!r} at {endpoint}; create it, or correct the name"
        )
    if status == 404:
        return MissingObjectError(f"{where}: no such object at {endpoint}")
    if status == 412:
        return StoreError(f"{where}: the object was replaced while it was being read; try again")
    if code in credential_codes:
        return StoreError(f"{where}: {endpoint} refuses ({code}): {credential_codes[code]}")
    return StoreError(f"{where}: {endpoint} answers {said}; see the server's log for the cause")


def cut_off(where: str, num_received: int, remaining: int | None, why: object) -> FaultError:
    """An answer that ended before its end."""
    return FaultError(
        f"{where}: the answer broke off after {num_received} bytes, {remaining} were missing ({why}); check the "
        "network and try again",
        "answer cut off",
    )


def another_range(where: str, endpoint: str, position: int, answered: str) -> FaultError:
    """An answer with other bytes than were asked for."""
    return FaultError(
        f"{where}: asked for bytes from {position} on, {endpoint} answers with {answered}; is a proxy in between that "
        "does not know ranges?",
        "another range",
    )


def unreadable(where: str, endpoint: str, why: object) -> FaultError:
    """An answer that is not of the protocol."""
    return FaultError(f"{where}: {endpoint} gives an answer that cannot be read ({why})", "altered bytes")


def no_answer(where: str, endpoint: str, why: object, next_move: str) -> FaultError:
    """No answer at all."""
    return FaultError(f"{where}: cannot reach {endpoint} ({why}); {next_move}", "no answer")
