"""Whether a run may go on from a checkpoint: what may differ between the two, and what may not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from t4p.config.files import changed_keys
from t4p.config.kinds import config_of_task
from t4p.errors import CheckpointError, ConfigError
from t4p.runs.checkpoint import CheckpointState
from t4p.runs.going_on import REMEDIES
from t4p.runs.not_finite import was_not_finite_after

# Keys that may differ between a checkpoint and the run that resumes from it.
FREE_KEYS = (
    "run.dir",
    "train.num_steps",
    "train.checkpoint_every",
    "train.validate_every",
    "train.step_timeout",
    "train.resume",
    "train.keep_checkpoints",
    "train.save_on_stop",
    "model.clip.pretrained",  # files may move; the weights in them are compared by hash
    "model.unet.activation_checkpointing",
    "data.num_workers",
    "data.cache_dir",
    "data.cache_bytes",
    "data.validation_shards",
    "data.shards",  # datasets may move; what is in them is compared by the hash of the shard tables
)


def refuse_changes(
    saved: CheckpointState, now: CheckpointState, directory: Path, freed: Collection[str] = ()
) -> tuple[str, ...]:
    """Refuse to go on from a checkpoint with something else than what wrote it. Another world size is fine.

    Args:
        freed: keys that may differ this time.

    Returns:
        The changes that only they allow: `key: then -> now`.

    Raises:
        CheckpointError: names every key that differs, and the next move.
    """
    if saved.order != now.order:
        raise CheckpointError(
            f"{directory}: cannot resume, its samples came in order {saved.order} and this version has order "
            f"{now.order}: a run cannot change it half way; end it with the version that began it "
            f"({saved.versions.get('text4point', 'an older one')}), or begin a new run in another run.dir"
        )
    differing = [change for change in changed_keys(_completed(saved.config), now.config) if not _is_free(change.key)]
    keys = [change for change in differing if change.key not in freed]
    changes = [str(change) for change in keys]
    if saved.shards_sha256 != now.shards_sha256:
        changes.append("data.shards: the datasets hold other samples than those it was trained on")
    weights = [_weights(state.config) for state in (saved, now)]
    if weights[0] != weights[1]:
        changes.append(f"data.shards: the weights of the mixture were {weights[0]}, now {weights[1]}")
    if saved.towers_sha256 != now.towers_sha256:
        before, after = (state.towers_sha256[:12] for state in (saved, now))
        changes.append(f"model.clip: the weights of the towers are not the same (sha256 {before} -> {after})")
    if changes:
        listed = "\n".join(f"  {line}" for line in changes)
        hint = ""
        if any(change.key == "train.zero_stage" for change in keys):
            stage = saved.config["train"]["zero_stage"]
            hint = (
                "\nthe optimizer's state cannot move to another ZeRO stage: keep train.zero_stage="
                f"{stage}; the number of ranks may change"
            )
        raise CheckpointError(
            f"{directory}: cannot resume, the configuration has changed:\n{listed}\n"
            f"take the changes back, or start a new run in another run.dir; what it was trained with is in "
            f"{directory.parent.parent / 'config.yaml'}{hint}"
        )
    return tuple(str(change) for change in differing)


def freed_keys(run_dirs: Collection[Path], step: int) -> tuple[str, ...]:
    """The keys that may also differ on resume from a step: those that help, where the run was not finite after it.

    Args:
        run_dirs: folders of the run that goes on and of the one that wrote the checkpoint.
    """
    return tuple(REMEDIES) if any(was_not_finite_after(run_dir, step) for run_dir in run_dirs) else ()


def _completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved configuration with the defaults of keys that came later: the run had what they now stand for."""
    try:
        return config_of_task(config).model_dump(mode="json")
    except (ConfigError, ValueError):  # of a version that had other keys
        return config


def _weights(config: Mapping[str, Any]) -> list[float] | None:
    """The weights of a mixture in a dumped configuration."""
    shards = config.get("data", {}).get("shards", ())
    weights = [place["weight"] for place in shards if isinstance(place, dict)]
    return weights or None


def _is_free(key: str) -> bool:
    return key in FREE_KEYS or key.startswith("cluster.")
