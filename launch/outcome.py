"""What became of a job: the failures of its ranks, the likely cause first, and whether another attempt is worth it.

Outcomes cross process boundaries as JSON files, so that the cause of a failure survives whatever kills the processes in
between. Deciding is pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# What gloo, NCCL and torch's store say on a rank whose peer went away, in a plain RuntimeError or one of
# torch.distributed's. Storage that closes a connection raises others.
LOST_PEER = re.compile(
    "closed by (remote )?peer|reset by peer|broken pipe|remote process exited|connection was likely closed|got 0 bytes",
    re.IGNORECASE,
)
# Ray raises these in a worker or a driver when a process or a node that it talked to is gone. By name: whoever decides
# does not load Ray, and some of Ray Train's are not public.
LOSSES = frozenset(
    {
        "RayActorError",
        "RaySystemError",
        "RpcError",
        "ObjectLostError",
        "WorkerCrashedError",
        "LocalRayletDiedError",
        "NodeDiedError",
        "PreemptionError",
        "WorkerGroupStartupFailedError",
        "WorkerHealthCheckFailedError",
        "WorkerHealthCheckTimeoutError",
    }
)
# Raised by a rank itself, and yet nothing was wrong with what it was told to do: other processes may do better.
HUNG = "HungError"
OWN_LOSSES = frozenset({HUNG, "LostLoaderError"})
# Ray gives a new node of its own 30 s, whatever else the machine does. It may well come up the next time.
SLOW_START = "node timed out during startup"
# What Ray's words about a lost actor say when it was not the process alone that went away.
LOST_NODE = re.compile("node (has|is) (died|crashed|dead)|owner has died")


@dataclass(frozen=True)
class WorkerFailure:
    """How one rank failed.

    Attributes:
        error_type: qualified name of the exception's class; "" where the process was lost without one.
        message: words of the exception, or what Ray says about the lost process.
        traceback: as Python prints it; "" where there is none.
        time: seconds since the epoch.
        follows_loss: the exception, or one that it came of, says that another process is gone.
        for_users: the message is the whole story (`shards.errors.UserError`); the class name adds nothing.
        exit_status: what a command ends with: 2 where it blames the call, and not the run.
    """

    rank: int
    error_type: str
    message: str
    traceback: str
    time: float
    follows_loss: bool = False
    for_users: bool = False
    exit_status: int = 1


@dataclass(frozen=True)
class JobOutcome:
    """What is known of an attempt that has ended.

    Attributes:
        failures: failures of ranks, the likely cause first; empty after success.
        problem: what went wrong outside the workers; "" where nothing did.
        problem_traceback: as Python prints it.
        problem_is_loss: the problem is that a process or a node is gone, or did not come up in time: nothing was wrong.
        attempt: which one it was, counting from 1.
        stepped: a step was made.
    """

    failures: tuple[WorkerFailure, ...] = field(default=())
    problem: str = ""
    problem_traceback: str = ""
    problem_is_loss: bool = False
    attempt: int = 1
    stepped: bool = field(default=False, compare=False)


def worth_restarting(outcome: JobOutcome) -> str | None:
    """Whether the same job may well succeed when it begins again from its newest checkpoint.

    It may when all that happened is that processes, nodes or the driver went away. An error that a rank raised on its
    own account (a mistake in the configuration, damaged data, a loss that is not finite, a bug) would be raised again.

    Returns:
        What was lost, in one line, or None.
    """
    if any(not _is_loss(failure) for failure in outcome.failures):
        return None
    if outcome.failures:
        first = outcome.failures[0]
        return f"rank {first.rank}: {describe_cause(first)}".partition("\n")[0]
    return outcome.problem.partition("\n")[0] if outcome.problem_is_loss else None


def same_death_twice(outcome: JobOutcome, previous: JobOutcome | None) -> str | None:
    """Why a third attempt would end as the last two did: both died of the same before any step was made.

    A Ray that did not come up in time is no death, since a busy machine may be quicker the next time, and neither is a
    node that went away, since another comes.

    Returns:
        What to tell the user, or None.
    """
    if previous is None or outcome.stepped or previous.stepped or SLOW_START in outcome.problem:
        return None
    causes = [worth_restarting(each) for each in (previous, outcome)]
    nodes = [failure for each in (previous, outcome) for failure in each.failures if LOST_NODE.search(failure.message)]
    if nodes or None in causes or len({re.sub(r"\d+", "", cause) for cause in causes if cause}) > 1:
        return None
    return (
        f"{causes[1]}, and so it was in the attempt before, both times before the first step: this is no loss that "
        "another attempt would make good. Look at the end of logs/rank-0.log, try it with one worker, or run "
        "`t4p doctor` on that machine"
    )


def describe_cause(failure: WorkerFailure) -> str:
    """One failure in words for a user."""
    if not failure.error_type and "low on memory" in failure.message:
        return "Ray ended it because the machine ran out of memory; use fewer workers or a smaller batch"
    if not failure.error_type and LOST_NODE.search(failure.message):
        return "its node is gone, or Ray's own process on it"
    if not failure.error_type:
        return (
            "its process was killed, or crashed without a Python error (the system's memory running out does that too)"
        )
    if failure.follows_loss and not _is_own_loss(failure):
        return "it lost the connection to another process, which is gone, perhaps with its node"
    if failure.for_users:
        return failure.message
    return f"{failure.error_type.removeprefix('builtins.')}: {failure.message}"


def order_by_cause(failures: Sequence[WorkerFailure]) -> tuple[WorkerFailure, ...]:
    """The likely cause first.

    An error of its own, then what a rank saw while it waited, then a lost process (a stopped one is ended, too, by who
    cleans up after the others), then ranks that merely lost their peer.
    """

    def key(failure: WorkerFailure) -> tuple[int, float]:
        if not _is_loss(failure):
            return 0, failure.time
        if _is_own_loss(failure):
            return 1, failure.time
        return (3 if failure.error_type else 2), failure.time

    return tuple(sorted(failures, key=key))


def follows_loss(error: BaseException) -> bool:
    """Whether an exception, or one that it came of, says that a process or a node is gone.

    What it came of counts because code in between wraps: a checkpoint that could not be written since a rank died is an
    error of writing at first sight.
    """
    return any(_says_loss(each) for each in _with_causes(error))


def write_outcome(folder: Path, outcome: JobOutcome) -> None:
    _write_whole(folder / "outcome.json", asdict(outcome))


def read_outcome(folder: Path) -> JobOutcome | None:
    """None where the driver process ended before it could say anything."""
    path = folder / "outcome.json"
    if not path.exists():
        return None
    fields = json.loads(path.read_text(encoding="utf-8"))
    failures = tuple(WorkerFailure(**failure) for failure in fields.pop("failures"))
    return JobOutcome(failures=failures, **fields)


def write_failure(folder: Path, failure: WorkerFailure) -> None:
    _write_whole(folder / f"rank-{failure.rank}.failure.json", asdict(failure))


def read_failures(folder: Path) -> tuple[WorkerFailure, ...]:
    """What the ranks wrote down before they failed, the likely cause first."""
    files = folder.glob("rank-*.failure.json")
    failures = [WorkerFailure(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return order_by_cause(failures)


def _is_loss(failure: WorkerFailure) -> bool:
    return not failure.error_type or failure.follows_loss


def _is_own_loss(failure: WorkerFailure) -> bool:
    return failure.error_type.rpartition(".")[2] in OWN_LOSSES


def _says_loss(error: BaseException) -> bool:
    # torch.distributed's own classes live in torch._C or torch.distributed, and are RuntimeErrors.
    if type(error) is RuntimeError or (isinstance(error, RuntimeError) and type(error).__module__.startswith("torch")):
        return LOST_PEER.search(str(error)) is not None
    return not (LOSSES | OWN_LOSSES).isdisjoint(kind.__name__ for kind in type(error).__mro__)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # Ray Train's controller passes on what it met as an attribute.
        error = error.__cause__ or error.__context__ or getattr(error, "controller_failure", None)


def _write_whole(path: Path, fields: dict) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(fields), encoding="utf-8")
    partial.replace(path)
