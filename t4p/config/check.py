"""Every mistake of a configuration that can be known without reading data: no torch, no network, no dataset.

The schemas know what holds within a section; here is what holds between sections, and between a configuration, the
CLIP model that it names and the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from t4p.config.clip_models import ClipModel, problem_of_reading, read_clip_model, words_not_learnt
from t4p.config.data import DataConfig
from t4p.config.network import FinetunedModelConfig, NetworkConfig
from t4p.config.plans import build_plan, norm_channels
from t4p.config.run import FinetuneTrainConfig
from t4p.config.section import Problem, Section, sections_in
from t4p.config.tasks import JobConfig
from t4p.errors import ClipError


def check(config: Section, num_workers: int | None = None) -> tuple[Problem, ...]:
    """All problems of a configuration, those within a section first.

    Args:
        config: configuration of any command; its sections may have been validated without their rules.
        num_workers: the world size; None leaves out what depends on it.
    """
    problems = [
        Problem(tuple(".".join((*path, key)) for key in problem.keys), problem.text)
        for path, section in sections_in(config)
        for problem in section.rules()
    ]
    if isinstance(config, JobConfig):
        problems += _problems_of_dropping(config)
        problems += _problems_with_clip(config)
        if num_workers is not None:
            problems += problems_of_world(config, num_workers)
    return tuple(problems)


def _problems_of_dropping(config: JobConfig) -> Iterator[Problem]:
    features = config.model.point_features
    for name, share in config.data.drop_features:
        if share and name not in features:
            yield Problem(
                (f"data.drop_features.{name}", "model.point_features"),
                f"data.drop_features.{name} is {share:g}, and {name} is not in model.point_features "
                f"([{','.join(features)}]); leave it out, or set model.point_features=[{','.join((*features, name))}]",
            )


def _problems_with_clip(config: JobConfig) -> Iterator[Problem]:
    model = config.model
    try:
        found = read_clip_model(model.clip)
    except ClipError as error:
        yield Problem(("model.clip.name",), str(error).removeprefix("model.clip.name "))
        return
    if found is None:
        return
    if found.kind is None:
        yield Problem(
            ("model.clip.name",),
            f"{model.clip.name} has an image tower without a dense reading (one of timm, or a captioning model's); "
            "use a plain CLIP such as RN50 or ViT-B-16",
        )
    else:
        reading = problem_of_reading(found.kind, model.clip.dense, model.clip.output_stride, found.patch_size or 0)
        if reading is not None:
            yield Problem(("model.clip.dense" if found.kind == "resnet" else "model.clip.output_stride",), reading)
    yield from problems_of_text_query(model, found.embed_dim)
    yield from _problems_of_words(model)
    if isinstance(config.data, DataConfig):
        yield from _problems_of_image_size(config.data, model, found)


def _problems_of_words(model: NetworkConfig) -> Iterator[Problem]:
    """Synonyms that a text tower of few words has never read. A name alone may be anything: a head can learn it."""
    if not isinstance(model.labels, Mapping):
        return
    synonyms = [word for words in model.labels.values() for word in words]
    if strange := words_not_learnt(model.clip, synonyms):
        yield Problem(
            ("model.labels",),
            f"the text tower of {model.clip.name} was never trained with {', '.join(strange)}, so what it says of "
            "them is noise; take these synonyms out, or name a CLIP of the whole language",
        )


def problems_of_text_query(model: NetworkConfig, clip_dim: int) -> Iterator[Problem]:
    """What keeps the Text Querying Module from a CLIP model that is `clip_dim` wide."""
    text_query = model.text_query
    if clip_dim % text_query.num_heads:
        yield Problem(
            ("model.text_query.num_heads",),
            f"{text_query.num_heads} does not divide {clip_dim}, the width of the CLIP model; choose a divisor",
        )
    if clip_dim * text_query.mlp_ratio < 1:
        yield Problem(
            ("model.text_query.mlp_ratio",),
            f"{text_query.mlp_ratio:g} leaves the MLP no hidden channel: the CLIP model is {clip_dim} wide; choose at "
            f"least {1 / clip_dim:g}",
        )


def problem_of_image_size(image_size: tuple[int, int], cell_size: int, name: str) -> Problem | None:
    """Whether an image (height, width) is cut into whole cells of a tower."""
    height, width = image_size
    if not (height % cell_size or width % cell_size):
        return None
    nearest = [max(cell_size, round(side / cell_size) * cell_size) for side in (height, width)]
    return Problem(
        ("data.image_size",),
        f"{height}x{width}, but a dense cell of {name} is {cell_size} pixels: both must be multiples of {cell_size}, "
        f"such as [{nearest[0]}, {nearest[1]}]",
    )


def _problems_of_image_size(data: DataConfig, model: NetworkConfig, found: ClipModel) -> Iterator[Problem]:
    cell_size = found.cell_size(model.clip)
    if cell_size is not None:
        problem = problem_of_image_size(data.image_size, cell_size, model.clip.name)
        if problem is not None:
            yield problem


def problems_of_world(config: JobConfig, num_workers: int) -> Iterator[Problem]:
    """What does not divide among this many workers: the batch, a group of the batch norm, or one of the optimizer."""
    batch = config.train.global_batch_size
    if num_workers < 1:
        yield Problem(("--workers",), f"{num_workers}; at least 1 is wanted")
        return
    if num_workers > batch:
        yield Problem(
            ("train.global_batch_size",),
            f"{batch}, and there are {num_workers} workers (--workers, or the section cluster): every worker takes at "
            "least one frame of each batch; use fewer workers, or a larger batch",
        )
    group = config.model.norm_group_size
    if group is not None and num_workers % group:
        yield Problem(
            ("model.norm_group_size",),
            f"{group}, and there are {num_workers} workers (--workers, or the section cluster): the groups must be "
            f"equal; use a multiple of {group} workers, or another group size",
        )
    yield from _problems_of_optimizer_groups(config, num_workers)


def _problems_of_optimizer_groups(config: JobConfig, num_workers: int) -> Iterator[Problem]:
    """Layer-wise rates make a group of the norms of each stage, which has to have a number for every worker.

    Under ZeRO 1 and 2 DeepSpeed 0.19.8 cannot load a universal checkpoint where a worker has nothing of a group
    ("list index out of range"), so a run could not be resumed with so many workers.
    """
    train, model = config.train, config.model
    if not isinstance(train, FinetuneTrainConfig) or not isinstance(model, FinetunedModelConfig):
        return
    if train.layer_decay == 1 or train.zero_stage not in (1, 2):
        return
    try:
        encoder, decoder = norm_channels(build_plan(model.unet))
    except ValueError:  # the rules of its own section tell
        return
    trained = (() if "encoder" in model.frozen else encoder) + (() if "decoder" in model.frozen else decoder)
    sizes = [2 * channels for channels in trained]  # a weight and a bias

    def bare(workers: int) -> list[int]:
        return [size for size in sizes if leaves_ranks_bare(size, workers)]

    if found := bare(num_workers):
        fewer = next(workers for workers in range(num_workers, 0, -1) if not bare(workers))
        yield Problem(
            ("train.layer_decay",),
            f"{train.layer_decay:g}, with {num_workers} workers: the norms of a stage learn at a rate of their own and "
            f"are {min(found)} numbers, of which some workers would have none, and under train.zero_stage="
            f"{train.zero_stage} no run of another number could go on here; set train.zero_stage=0 or 3, use {fewer} "
            "workers, or leave train.layer_decay out",
        )


def leaves_ranks_bare(num_numbers: int, num_ranks: int) -> bool:
    """Whether some rank has nothing of an optimizer group under ZeRO 1 and 2, which cut it into equal even parts."""
    part = 2 * -(-num_numbers // (2 * num_ranks))
    return part * (num_ranks - 1) >= num_numbers
