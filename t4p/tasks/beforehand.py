"""What a look at paths, manifests and the run folder tells before torch is imported: most mistakes cost no wait."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shards.errors import UserError
from shards.sample import Sample
from t4p.config.clip_models import is_weights_file, problem_of_weights_file
from t4p.config.data import DataConfig, LabelledDataConfig
from t4p.config.kinds import Needs, task_named
from t4p.config.network import FinetunedModelConfig, NetworkConfig
from t4p.config.packaged import find_packaged
from t4p.config.tasks import EvaluateConfig, JobConfig
from t4p.data.course import Pool, check_pools
from t4p.data.fetch import Catalogue
from t4p.data.few_labels import training_catalogue
from t4p.data.labels import build_label_table, require_a_label, require_labels
from t4p.data.lacking import lacks
from t4p.errors import CheckpointError, ClipError, ConfigError, RunError
from t4p.models.hub import fetched
from t4p.runs.checkpoint import MARKER, as_checkpoint, check_sizes, checkpoints_in
from t4p.runs.lock import describe_taken, is_locked
from t4p.tasks.submission import check_folder

NUM_LOOKS = 3  # samples of a dataset that are looked at
MOST_LOOKS = 32  # where labels are looked for in boxes: a rare one shows in few samples


def look_beforehand(config: JobConfig) -> None:
    """Refuse a training that cannot begin, as far as can be seen without torch. What it passes may still be refused.

    Raises:
        ConfigError: paths are not there, or datasets do not fit the configuration: all of them, each with its key.
        ShardError: a dataset is damaged or unreachable.
        RunError: another run is in the run folder.
    """
    run_dir = Path(config.run.dir)
    looks = _Looks()
    with looks.at("run.dir"):
        if os.environ.get("RANK", "0") == "0":  # rank 0 may hold the lock by the time another rank asks
            _look_at_run_folder(run_dir)
    with looks.at("train.resume"):
        if config.train.resume not in ("auto", "never"):
            check_sizes(as_checkpoint(Path(config.train.resume), lambda sentence: None))
    pools = None
    with looks.at("data.shards"):
        catalogue = _training_catalogue(config)
        _look_at_samples(config, catalogue)
        pools = catalogue.pools
    with looks.at("train.global_batch_size"):
        if pools is not None:
            _check_batch(config, pools)
    with looks.at("data.validation_shards"):
        if config.data.validation_shards:
            _look_at_samples(config, Catalogue(config.data.validation_shards), validation=True)
    with looks.at("model.clip"):
        _look_at_towers(config.model)
    resumes = any((directory / MARKER).exists() for directory in checkpoints_in(run_dir / "checkpoints"))
    with looks.at("model.pretrained"):
        if not resumes and isinstance(config.model, FinetunedModelConfig) and config.model.pretrained is not None:
            _look_at_weights("model.pretrained", fetched(config.model.pretrained))
    looks.tell()


def look_before_evaluation(config: EvaluateConfig, submission: Path | None = None) -> None:
    """Refuse an evaluation whose file or datasets are not there.

    Args:
        submission: folder for predictions; None writes none.

    Raises:
        ConfigError: the file or datasets are not there, or hold no scenes to submit: all of them, each with its key.
        ShardError: a dataset is damaged or unreachable.
    """
    looks = _Looks()
    with looks.at("model.exported"):
        _look_at_export(fetched(config.model.exported))
    with looks.at("data.shards"):
        catalogue = Catalogue(config.data.shards)
        if submission is not None:
            catalogue.require_scenes("a submission")
    with looks.at("--submission"):
        if submission is not None:
            check_folder(submission)
    looks.tell()


class _Looks:
    """Collects what looks find, so that all of it is told at once."""

    def __init__(self) -> None:
        self._found: list[tuple[str, UserError | ValueError]] = []

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Around a look at what the key names."""
        try:
            yield
        except (UserError, ValueError) as error:
            self._found.append((key, error))

    def tell(self) -> None:
        """Raise what was found.

        Raises:
            ConfigError: something in the call is wrong.
            UserError: nothing in it is, and something else failed: the error as it is.
        """
        if not self._found:
            return
        told = [str(error) if str(error).startswith(key) else f"{key}: {error}" for key, error in self._found]
        message = told[0] if len(told) == 1 else "\n  ".join([f"{len(told)} problem(s) in the configuration", *told])
        _, first = self._found[0]
        if not any(_is_of_the_call(error) for _, error in self._found):
            raise type(first)(message) from first
        raise ConfigError(message) from first


def _is_of_the_call(error: UserError | ValueError) -> bool:
    """Whether an error says that what was named is not there or is something else."""
    return not isinstance(error, UserError) or isinstance(error, CheckpointError) or error.exit_status == 2


def _look_at_run_folder(run_dir: Path) -> None:
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"run.dir {run_dir}: {existing} is a file, wanted a folder; choose another run.dir")
    try:
        taken = is_locked(run_dir)
    except OSError:
        return  # the run says what is wrong with the folder, and which bytes it could not write
    if taken:
        raise RunError(describe_taken(run_dir))


def _training_catalogue(config: JobConfig) -> Catalogue:
    if isinstance(config.data, LabelledDataConfig):
        return training_catalogue(config.data, config.run.seed)
    return Catalogue(config.data.urls, config.data.weights)


def _check_batch(config: JobConfig, pools: Sequence[Pool]) -> None:
    try:
        check_pools(pools, config.train.global_batch_size)
    except ValueError as error:
        if isinstance(config.data, LabelledDataConfig) and config.data.label_fraction < 1:
            raise ValueError(f"{error} (data.label_fraction is {config.data.label_fraction:g})") from error
        raise


def _look_at_samples(config: JobConfig, catalogue: Catalogue, validation: bool = False) -> None:
    if isinstance(config.data, DataConfig):
        catalogue.require_frames()
    if isinstance(config.data, LabelledDataConfig):
        labels, needs = config.model.label_names, task_named(config.task).needs(config)
        for url, names in zip(catalogue.urls, catalogue.label_names, strict=True):
            build_label_table(names, labels, config.data.ignored_labels, url, unlabelled=not needs.labels)
        for index, url in enumerate(catalogue.urls):
            samples = catalogue.few_of(index, NUM_LOOKS)
            lacking = [lacks(stored, needs) for _, stored in samples]
            if lacking and all(lacking):  # one that lacks it among others is broken, and training counts it
                keys = ", ".join(key for key, _ in samples)
                raise ConfigError(f"{url}: what was looked at ({keys}) {lacking[0]}")
        if not validation:  # where a label may have no point
            _look_at_labels(catalogue, labels, needs)


def _look_at_labels(catalogue: Catalogue, labels: Sequence[str], needs: Needs) -> None:
    """Refuse labels that nothing is learnt for: of datasets by their class names, of boxes alone by a look at some."""
    known = list(catalogue.label_names)
    mixed = any(known)  # then a label may be one of boxes alone, and few of them show it
    for index, url in enumerate(catalogue.urls):
        if known[index] and needs.boxes != "oriented":
            continue
        found = _labels_of_boxes(catalogue.few_of(index, MOST_LOOKS if mixed else NUM_LOOKS))
        if not mixed and set(found).isdisjoint(labels):
            found = _labels_of_boxes(catalogue.few_of(index, MOST_LOOKS))
        require_a_label(found, labels, url)
        known[index] = known[index] or found
    if mixed:
        require_labels(known, labels, catalogue.urls)


def _labels_of_boxes(samples: Sequence[tuple[str, Sample]]) -> tuple[str, ...]:
    """The labels of the boxes of samples, each once."""
    return tuple(dict.fromkeys(box.label for _, stored in samples for box in stored.boxes or ()))


def _look_at_towers(model: NetworkConfig) -> None:
    clip = model.clip
    if clip.name.endswith(".json"):
        find_packaged(clip.name)
    if is_weights_file(clip.pretrained):
        path = find_packaged(clip.pretrained) if clip.pretrained.startswith("configs/") else Path(clip.pretrained)
        if problem := problem_of_weights_file(clip.name, path):
            raise ClipError(problem)


def _look_at_export(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(
            f"model.exported is {str(path)!r}, a folder; wanted a file: `t4p checkpoint export {path} FILE` writes one"
        )
    _look_at_weights("model.exported", path)


def _look_at_weights(key: str, path: Path) -> None:
    if path.is_dir():
        check_sizes(as_checkpoint(path, lambda sentence: None))
    elif not path.is_file():
        raise CheckpointError(
            f"{key} is {str(path)!r}, and there is no such file; write one with `t4p checkpoint export CHECKPOINT FILE`"
        )
