"""The file that `t4p checkpoint export` writes: one safetensors file with all that inference needs, and its reader.

Tensors: the module's parameters (fp32) and buffers under their own names (`net.`; after pre-training `decoder2d.` and
both temperatures, after fine-tuning `prompt_tokens`, and those of the task's own head), `label_embeddings` and
`neutral_embeddings`. The header holds the resolved configuration and where the weights come from, as JSON, and a hash
over all of that and the tensors: safetensors has none, and a flipped bit would be another weight. Nothing here needs
DeepSpeed, the towers or the dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shards.doors.json_text import parse_json
from shards.results import write_result
from t4p.config.kinds import config_of_task, task_named
from t4p.config.network import NetworkConfig
from t4p.config.tasks import FinetuneLossConfig, JobConfig, LossConfig, PretrainConfig
from t4p.errors import CheckpointError, ConfigError
from t4p.losses.logit_scale import clamped_logit_scale
from t4p.models.decoder2d import Decoder2d
from t4p.models.text4point import Text4Point, build_text4point
from t4p.runs.terms import UNKNOWN, Terms

FORMAT = "text4point-export-1"
CONTENT_HASH = "content_sha256"  # entry of the header; files of version 0.1.0 have none
LABEL_EMBEDDINGS = "label_embeddings"
NEUTRAL_EMBEDDINGS = "neutral_embeddings"  # and their words in the header; older files have none
TEMPERATURES = ("log_logit_scale_e", "log_logit_scale_d")
Model = TypeVar("Model", bound=NetworkConfig)


@dataclass(frozen=True)
class ExportedNetwork:
    """What is left of a run without images: the 3D network and the words it is asked.

    Attributes:
        config: configuration of the run, resolved; its type tells the task.
        step: optimizer steps taken.
        net: the 3D network, in eval mode. After fine-tuning its second output has one channel per label:
            the scores, or for a head of words what `t4p.models.score_map.score_voxels` adds to the score map.
        labels: K' names (`config` has their synonyms), and
        label_embeddings: (K', d) what the text tower made of them, or the mean of their synonyms (behind the learnt
            prompt tokens, after fine-tuning): the third argument of `net`.
        towers_sha256: hash of the CLIP towers that it was trained against.
        versions: versions of Python and the packages that trained it.
        finetuned_share: share of the weights, between 0 and 1; the rest are those that the fine-tuning began with.
        beside: the weights that are no part of `net`, by their names in the trained module.
        logit_scale: multiplier of cosines with words: what it was trained with, by the end of it.
        neutral: (d,) what the text tower made of words that fit anything, by word; empty in older files.
        terms: what it was trained on, with the licences; of older files, the names of its datasets.
    """

    config: JobConfig
    step: int
    net: Text4Point
    labels: tuple[str, ...]
    label_embeddings: Tensor
    towers_sha256: str
    versions: Mapping[str, str]
    finetuned_share: float
    beside: Mapping[str, Tensor]
    logit_scale: float = field(default=LossConfig().logit_scale_init, kw_only=True)
    neutral: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    terms: Terms = field(default=UNKNOWN, kw_only=True)

    def part(self, name: str) -> dict[str, Tensor]:
        """The weights of a part beside `net`, by their names in that part."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.beside.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class ExportedModel(ExportedNetwork):
    """All trained weights of a pre-training.

    Attributes:
        decoder2d: the 2D decoder on top of CLIP's dense features, in eval mode.
        logit_scale_e, logit_scale_d: multipliers of cosine similarities.
    """

    config: PretrainConfig
    decoder2d: Decoder2d
    logit_scale_e: float
    logit_scale_d: float


def write_exported(
    path: Path,
    weights: Mapping[str, Tensor],
    label_embeddings: Tensor,
    config: JobConfig,
    step: int,
    towers_sha256: str,
    versions: Mapping[str, str],
    finetuned_share: float = 1.0,
    force: bool = False,
    neutral: Mapping[str, Tensor] | None = None,
    terms: Terms = UNKNOWN,
) -> None:
    """Write the file, whole or not at all.

    Args:
        weights: parameters and buffers of the trained module.
        label_embeddings: (K', d) of `config.model.label_words`.
        finetuned_share: as for `t4p.tasks.export.export_checkpoint`; it stands in the header.
        force: replace a file that is there.
        neutral: (d,) of words that fit anything, by word.
        terms: what the weights were made of.

    Raises:
        CallError: a file is there, or the folder is not.
        ResultError: the file cannot be written.
    """
    header = {
        "format": FORMAT,
        "config": json.dumps(config.model_dump(mode="json")),
        "step": json.dumps(step),
        "labels": json.dumps(config.model.label_names),
        "towers_sha256": json.dumps(towers_sha256),
        "versions": json.dumps(dict(versions)),
        "finetuned_share": json.dumps(finetuned_share),
        "neutral_words": json.dumps(list(neutral or ())),
        "terms": json.dumps(terms.to_json()),
    }
    # Copies: safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    tensors[LABEL_EMBEDDINGS] = label_embeddings.detach().cpu().float().contiguous()
    if neutral:
        tensors[NEUTRAL_EMBEDDINGS] = torch.stack(list(neutral.values())).detach().cpu().float()
    header[CONTENT_HASH] = _hash_content(header, tensors)
    with write_result(path, force) as partial:
        try:
            save_file(tensors, partial, header)
        except SafetensorError as error:  # its words for a full disk
            raise OSError(str(error)) from error


def load_exported(path: Path | str, device: torch.device | str = "cpu") -> ExportedModel:
    """Read the export of a pre-training into networks ready for inference.

    Raises:
        CheckpointError: the file is not an export, is one of a fine-tuning, is damaged, or does not hold exactly the
            weights of its configuration.
        ConfigError: the configuration in it needs something that is not here (the sparse backend).
    """
    common = load_exported_network(path, device)
    config, tensors = common.config, dict(common.beside)
    if not isinstance(config, PretrainConfig):
        raise CheckpointError(
            f"{path}: is of a fine-tuning ({config.task}), without the parts beside the 3D network that a pre-training "
            "has; read it with load_exported_network, or name the export of a pre-training"
        )
    decoder = config.model.decoder2d
    clip_dim = common.label_embeddings.shape[1]
    scales = [tensors.pop(name, None) for name in TEMPERATURES]
    decoder2d = Decoder2d(clip_dim, decoder.hidden_channels, config.model.embed_dim_d, upsample=decoder.upsample)
    _load_strictly(path, torch.nn.ModuleDict({"decoder2d": decoder2d}), tensors)
    scale_e, scale_d = (
        float(clamped_logit_scale(scale, 1.0, config.loss.logit_scale_max)) if scale is not None else None
        for scale in scales
    )
    if scale_e is None or scale_d is None:
        raise CheckpointError(f"{path}: holds no temperatures ({', '.join(TEMPERATURES)}); export it again")
    decoder2d.to(device).eval().requires_grad_(False)
    return ExportedModel(
        **{**vars(common), "config": config}, decoder2d=decoder2d, logit_scale_e=scale_e, logit_scale_d=scale_d
    )


def load_exported_network(path: Path | str, device: torch.device | str = "cpu") -> ExportedNetwork:
    """Read the 3D network and its label embeddings from the export of a pre-training or a fine-tuning.

    Raises:
        CheckpointError, ConfigError: as `load_exported`.
    """
    tensors, header = _read(Path(path), device)
    try:
        config = config_of_task(header["config"])
        embeddings = tensors.pop(LABEL_EMBEDDINGS)
        clip_dim = embeddings.shape[1]
        step, labels = int(header["step"]), tuple(header["labels"])
        towers_sha256, versions = str(header["towers_sha256"]), dict(header["versions"])
        finetuned_share = float(header.get("finetuned_share", 1.0))  # older files have none
        neutral = _neutral(header.get("neutral_words", []), tensors)
        terms = Terms.parse(header.get("terms", {})).naming(header["config"])
    # A ValidationError is a ValueError.
    except (ConfigError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise _damaged(path, error) from error
    model = for_one_process(config.model)
    own = {name: tensors.pop(name) for name in list(tensors) if name.startswith("net.")}
    net = build_text4point(model, clip_dim, task_named(config.task).out_dim(config))
    _load_strictly(path, torch.nn.ModuleDict({"net": net}), own)
    net.to(device).eval().requires_grad_(False)
    return ExportedNetwork(
        config,
        step,
        net,
        labels,
        embeddings,
        towers_sha256,
        versions,
        finetuned_share,
        tensors,
        logit_scale=_logit_scale(config, tensors),
        neutral=neutral,
        terms=terms,
    )


def read_terms(path: Path | str) -> Terms:
    """What the weights of an export were made of.

    Raises:
        CheckpointError: the file is not an export, or is damaged.
    """
    _, header = _read(Path(path), "cpu")
    try:
        return Terms.parse(header.get("terms", {})).naming(header["config"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _neutral(words: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not words:
        return {}
    return dict(zip((str(word) for word in words), tensors.pop(NEUTRAL_EMBEDDINGS), strict=True))


def _logit_scale(config: JobConfig, tensors: Mapping[str, Tensor]) -> float:
    """That of L_e where it was learnt, that of the score map after a fine-tuning."""
    learnt, loss = tensors.get(TEMPERATURES[0]), getattr(config, "loss", None)
    if learnt is not None and isinstance(loss, LossConfig):
        return float(clamped_logit_scale(learnt, 1.0, loss.logit_scale_max))
    return float(getattr(loss, "logit_scale", FinetuneLossConfig().logit_scale))


def for_one_process(model: Model) -> Model:
    """The same weights outside of the run: no ranks to share statistics with, and a backend that is here."""
    return model.model_copy(update={"norm_group_size": None, "sparse_backend": "auto"})


def _load_strictly(path: Path | str, parts: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        parts.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights are not those of its configuration: {error}") from error


def _read(path: Path, device: torch.device | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the header's entries parsed."""
    wanted = f"wanted a file that `t4p checkpoint export` wrote ({FORMAT})"
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path}: is no export: its format is {metadata.get('format')!r}; {wanted}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is no export, or one that is cut short; {wanted}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {wanted}") from error
    noted = metadata.pop(CONTENT_HASH, None)
    if noted is not None and noted != _hash_content(metadata, tensors):
        raise CheckpointError(
            f"{path}: is not what was written: its header and weights do not have the sha256 that its header notes; "
            "copy it again from where it came, or export it again"
        )
    try:
        header = {name: parse_json(text) for name, text in metadata.items() if name != "format"}
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    return {name: tensor.to(device) for name, tensor in tensors.items()}, header


def _hash_content(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the entries of a header, and name, dtype, shape and bytes of every tensor, in the order of names."""
    digest = hashlib.sha256(json.dumps(sorted(header.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path | str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: its header is damaged or of another version of text4point ({type(error).__name__}: "
        f"{' '.join(str(error).split())}); export it again with this version"
    )
