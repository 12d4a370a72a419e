"""What a run does when it is called again, in words that are true of what its folder holds. No torch."""

from __future__ import annotations

from pathlib import Path

from t4p.runs.checkpoint import check_sizes, checkpoint_name, newest_checkpoint, step_of

# What may change on resume after a loss that was not finite, and what to do with each.
REMEDIES = {
    "train.learning_rate": "lower",
    "train.warmup_steps": "lengthen",
    "train.gradient_clipping": "lower",
}


def how_it_goes_on(checkpoints: Path, resume: str) -> str:
    """What is saved, and what the same command does with it: "saved step 120; the same command goes on from it (...)".

    Args:
        checkpoints: folder of the run's checkpoints.
        resume: the run's `train.resume`.
    """
    newest, _ = newest_checkpoint(checkpoints, check_sizes)
    if newest is None:
        return f"nothing is saved yet: the same command begins again{_from_where(resume)}"
    return f"saved step {step_of(newest)}; {_same_command(resume)} goes on from it ({newest})"


def move_after_not_finite(checkpoints: Path, resume: str, step: int, began_after: int | None) -> str:
    """The next move after the loss, the gradient or the weights of a step were not finite.

    Args:
        step: the first that was not finite.
        began_after: the step that this run went on from, 0 for none. Of weights, None: they follow from the rate of the
            step. A loss and its gradient follow from the weights before the step, and come again at any rate.
    """
    first, *others = (f"{how} {key}" for key, how in REMEDIES.items())
    remedy = f"{first}, {' or '.join(others)}"
    before = step - 1
    newest, _ = newest_checkpoint(checkpoints, check_sizes, below=step if began_after is None else before)
    stuck = began_after is not None and (checkpoints / checkpoint_name(before)).is_dir()
    if newest is not None:
        why = f"; from step {before} it comes to the same at any rate" if stuck else ""
        command = _same_command(resume, "the command")
        return f"{remedy}, which may change now: {command} goes on from step {step_of(newest)}{why}"
    if stuck:
        return (
            f"{remedy}, and begin again in another run.dir: step {before} alone is saved, and from there it "
            "comes to the same at any rate"
        )
    if began_after == before == 0:
        return (
            "no learning rate changes what comes before the first update: check the data with "
            "`t4p shards verify DATASET`, and what the run begins with"
        )
    if began_after == before:
        return f"it follows from {resume} at any rate: set train.resume to an earlier checkpoint, or begin without one"
    return f"{remedy}, and start again: nothing is saved yet, so the command begins again{_from_where(resume)}"


def _same_command(resume: str, command: str = "the same command") -> str:
    return command if resume == "auto" else f"{command} with train.resume=auto"


def _from_where(resume: str) -> str:
    return "" if resume in ("auto", "never") else f" from {resume}"
