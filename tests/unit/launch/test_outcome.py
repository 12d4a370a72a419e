from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import DistBackendError, DistNetworkError

from launch.outcome import (
    JobOutcome,
    WorkerFailure,
    follows_loss,
    order_by_cause,
    read_failures,
    read_outcome,
    worth_restarting,
    write_failure,
    write_outcome,
)
from launch.worker import describe_error
from t4p.errors import HungError, LostLoaderError

# What a rank's gloo said when its peer was killed.
CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:2453"


def failure(rank: int, error_type: str, message: str, time: float = 1.0, follows_loss: bool = False) -> WorkerFailure:
    return WorkerFailure(rank, error_type, message, "", time, follows_loss)


LOST = failure(1, "", "The actor died unexpectedly before finishing this task")
OUT_OF_MEMORY = failure(1, "", "Task was killed due to the node running low on memory")
LOST_NODE = failure(
    1, "", "The actor died unexpectedly before finishing this task.\nThe actor died because its node has died."
)
LOST_PEER = failure(0, "builtins.RuntimeError", CLOSED, follows_loss=True)
OWN_ERROR = failure(1, "builtins.ValueError", "boom")


def test_an_outcome_survives_the_way_through_files(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None
    outcome = JobOutcome((failure(1, "builtins.ValueError", "boom\\nmore", 2.5),), "problem", "traceback", True, 3)
    write_outcome(tmp_path, outcome)
    assert read_outcome(tmp_path) == outcome


def test_a_rank_that_hung_is_called_so_before_those_that_were_ended_for_it() -> None:
    hung = describe_error(0, HungError("hung at step 3: no rank got on for 9 s; rank 1 gives no sign\nset it"))
    assert hung.follows_loss
    assert order_by_cause([LOST_PEER, LOST, hung]) == (hung, LOST, LOST_PEER)
    assert order_by_cause([hung, OWN_ERROR]) == (OWN_ERROR, hung)
    lost = worth_restarting(JobOutcome((hung, LOST)))
    assert lost == "rank 0: hung at step 3: no rank got on for 9 s; rank 1 gives no sign"
    assert worth_restarting(JobOutcome((describe_error(0, LostLoaderError("loader process 7 was killed")),)))


def test_what_ranks_write_down_is_read_with_the_likely_cause_first(tmp_path: Path) -> None:
    assert read_failures(tmp_path) == ()
    for each in (LOST_PEER, OWN_ERROR):
        write_failure(tmp_path, each)
    assert read_failures(tmp_path) == (OWN_ERROR, LOST_PEER)


def test_the_likely_cause_comes_first() -> None:
    broken_peer = failure(0, "builtins.RuntimeError", CLOSED, 1.0, follows_loss=True)
    lost = failure(2, "", "The actor died unexpectedly", 3.0)
    raised = failure(1, "builtins.ValueError", "boom", 4.0)
    raised_later = failure(3, "builtins.ValueError", "boom too", 5.0)
    assert order_by_cause([broken_peer, lost]) == (lost, broken_peer)
    assert order_by_cause([broken_peer, lost, raised_later, raised]) == (raised, raised_later, lost, broken_peer)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (JobOutcome((LOST,)), "rank 1: its process was killed"),
        (JobOutcome((LOST, LOST_PEER)), "rank 1: its process was killed"),
        (JobOutcome((OUT_OF_MEMORY,)), "rank 1: Ray ended it because the machine ran out of memory"),
        (JobOutcome((LOST_NODE,)), "rank 1: its node is gone"),
        (JobOutcome((LOST_PEER,)), "rank 0: it lost the connection to another process"),
        (
            JobOutcome((failure(0, "t4p.errors.CheckpointError", "could not write\nit", follows_loss=True),)),
            "rank 0: it lost the connection",
        ),
        (
            JobOutcome(problem="the process that runs Ray was killed\nlog", problem_is_loss=True),
            "the process that runs",
        ),
    ],
)
def test_what_was_lost_is_worth_another_attempt(outcome: JobOutcome, reason: str) -> None:
    found = worth_restarting(outcome)
    assert found is not None
    assert found.startswith(reason)
    assert "\n" not in found, "for one line on the console"


@pytest.mark.parametrize(
    "outcome",
    [
        JobOutcome(),
        JobOutcome(problem="Ray could not be started"),
        JobOutcome((OWN_ERROR,)),
        JobOutcome((OWN_ERROR, LOST, LOST_PEER)),
        JobOutcome((failure(0, "t4p.errors.ConfigError", "data.image_size"),)),
        JobOutcome((failure(0, "t4p.errors.RunError", "step 7: the loss is nan"), LOST_PEER)),
        JobOutcome((failure(0, "t4p.errors.DataError", "Connection reset by peer"),)),
        JobOutcome((failure(0, "t4p.errors.CheckpointError", "cannot resume"),)),
        JobOutcome((failure(0, "shards.errors.ShardError", "damaged"),)),
        JobOutcome((failure(0, "builtins.RuntimeError", "CUDA error: an illegal memory access"),)),
        JobOutcome((failure(0, "torch.OutOfMemoryError", "CUDA out of memory"),)),
        JobOutcome((failure(0, "ray.exceptions.RuntimeEnvSetupError", "no such package"),)),
    ],
)
def test_success_and_what_would_go_wrong_again_are_not(outcome: JobOutcome) -> None:
    assert worth_restarting(outcome) is None


class RayActorError(Exception):
    """Ray's own are compared by name: importing them here would load Ray."""


class ActorDied(RayActorError):
    pass


class ControllerError(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.controller_failure = cause


def wrapped(cause: Exception) -> Exception:
    error = ValueError("the checkpoint could not be written")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RuntimeError(CLOSED), True),
        (wrapped(RuntimeError(CLOSED)), True),
        (DistNetworkError("failed to recv, got 0 bytes"), True),
        (DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (DistBackendError("socketProgress: Connection closed by remote peer node-1<41234>"), True),  # libnccl's
        (RayActorError("gone"), True),
        (ActorDied("gone"), True),
        (ControllerError(ActorDied("gone")), True),
        (ControllerError(ValueError("wrong")), False),
        (ValueError("wrong"), False),
        (ConnectionError("no Ray"), False),
        (wrapped(OSError(28, "No space left on device")), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        # A storage server that hangs up has nothing to do with the ranks.
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (BrokenPipeError(32, "Broken pipe"), False),
    ],
)
def test_a_loss_is_known_by_what_says_it(error: Exception, wanted: bool) -> None:
    assert follows_loss(error) is wanted


def test_a_circle_of_causes_has_an_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert not follows_loss(first)
