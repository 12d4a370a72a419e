"""The frozen CLIP towers: built, loaded and hashed by name, giving dense image features and label embeddings.

Towers stay outside the trained module and its checkpoints; a checkpoint records their name, `pretrained` and sha256.
"""

import copy
import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t4p.config.clip_models import (
    DEFAULT_OUTPUT_STRIDE,
    is_weights_file,
    problem_of_weights_file,
    read_model_file,
    unknown_name,
)
from t4p.errors import ClipError
from t4p.models.clip_package import (
    CLIP,
    OPENAI_DATASET_MEAN,
    OPENAI_DATASET_STD,
    CustomTextCLIP,
    HFTokenizer,
    SimpleTokenizer,
    download_pretrained,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
    open_clip,
)
from t4p.models.dense_clip import (
    DenseReading,
    DenseTower,
    OutputStride,
    build_dense_tower,
)
from t4p.models.zeros import with_zeros

RANDOM = "random"  # the value of `pretrained` that asks for seeded random weights
_LABELS_PER_BATCH = 256


@dataclass(frozen=True)
class _ModelSpec:
    """What open_clip needs to build a model, and how its images are normalised."""

    config: dict[str, Any]
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]


class ClipTowers(nn.Module):
    """CLIP's image tower, read densely, and its text tower. Frozen: always in eval mode, no parameter needs a gradient.

    Attributes:
        name, pretrained: as given to `load_towers`.
        embed_dim: d, the width of the joint space.
        image_mean, image_std: mean and deviation of the images' colours in [0, 1], per channel.
        cell_size: pixels per side of a dense cell.
        tokenizer: text to (texts, context length) token ids.
    """

    _mean: Tensor  # (1, 3, 1, 1), buffers that move with the towers and are no weights
    _std: Tensor

    def __init__(
        self,
        model: CLIP | CustomTextCLIP,
        tokenizer: Callable[..., Tensor],
        spec: _ModelSpec,
        *,
        name: str,
        pretrained: str,
        dense_tower: DenseTower,
    ) -> None:
        super().__init__()
        self.name = name
        self.pretrained = pretrained
        self.embed_dim = int(spec.config["embed_dim"])
        self.image_mean = spec.image_mean
        self.image_std = spec.image_std
        for name, values in (("_mean", self.image_mean), ("_std", self.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self._dense = dense_tower
        self.cell_size = self._dense.cell_size
        self.tokenizer = tokenizer
        self.model: CLIP | CustomTextCLIP = model.requires_grad_(False)
        super().train(False)

    @cached_property
    def sha256(self) -> str:
        """A hash of all weights and buffers as loaded; two towers with one sha256 compute the same features."""
        return _hash_weights(self.model)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever the surrounding module does: batch statistics of the towers must not move."""
        return self

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of dense cells for an image of height x width pixels.

        Raises:
            ClipError: a side is not a positive multiple of `cell_size`.
        """
        cell = self.cell_size
        if height <= 0 or width <= 0 or height % cell or width % cell:
            nearest = [max(cell, round(side / cell) * cell) for side in (height, width)]
            raise ClipError(
                f"image of {height}x{width} (height x width) for {self.name}: both sides must be multiples of {cell} "
                f"pixels; resize it to {nearest[0]}x{nearest[1]}"
            )
        return height // cell, width // cell

    def normalize(self, images: Tensor) -> Tensor:
        """(F, H, W, 3) uint8 to (F, 3, H, W) float32, as the image tower takes them."""
        return (images.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std

    @torch.no_grad()
    def dense_features(self, images: Tensor) -> Tensor:
        """Features of every cell, in CLIP's joint space.

        Args:
            images: (F, 3, H, W) float, normalised by `image_mean` and `image_std`; sides are multiples of `cell_size`.

        Returns:
            (F, d, Hc, Wc) float32, not normalised, without a graph. Computed in the caller's autocast precision.

        Raises:
            ClipError: the images do not fit.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ClipError(
                f"images for {self.name} have shape {tuple(images.shape)}; wanted (frames, 3, height, width)"
            )
        self.grid_size(images.shape[2], images.shape[3])
        return self._dense.features(images).float()

    @torch.no_grad()
    def nearest_labels(self, images: Tensor, text: Tensor) -> Tensor:
        """The row of the nearest text embedding at every pixel, the similarities interpolated between cells.

        Args:
            images: (F, H, W, 3) uint8; sides are multiples of `cell_size`.
            text: (K, d) unit-norm, of `encode_labels`.

        Returns:
            (F, H, W) int64.

        Raises:
            ClipError: the images do not fit.
        """
        cells = F.normalize(self.dense_features(self.normalize(images)), dim=1)
        similarity = torch.einsum("fdhw,kd->fkhw", cells, text)
        return F.interpolate(similarity, images.shape[1:3], mode="bilinear", align_corners=False).argmax(dim=1)

    @torch.no_grad()
    def encode_labels(self, labels: Sequence[str], template: str = "point cloud of a {}") -> Tensor:
        """Embed label names through the text tower, in float32 whatever the caller's autocast.

        Args:
            labels: K' names.
            template: the prompt; {} stands for the label.

        Returns:
            (K', d) float32, unit-norm, in the labels' order.

        Raises:
            ClipError: the template has no {}, or a prompt is longer than the text tower's context.
        """
        if template.count("{}") != 1:
            raise ClipError(f"prompt template is {template!r}; it must contain {{}} exactly once, where the label goes")
        prompts = [template.replace("{}", label) for label in labels]
        for prompt in prompts:
            self.check_prompt_fits(prompt)
        device = self.model.logit_scale.device
        embeddings = [torch.zeros(0, self.embed_dim, device=device)]
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(prompts), _LABELS_PER_BATCH):
                tokens = self.tokenizer(prompts[start : start + _LABELS_PER_BATCH]).to(device)
                embeddings.append(F.normalize(self.model.encode_text(tokens).float(), dim=-1))
        return torch.cat(embeddings)

    def encode_synonyms(
        self, words_of_label: Mapping[str, Sequence[str]], template: str = "point cloud of a {}"
    ) -> Tensor:
        """Embed labels that have synonyms: the mean of what `encode_labels` makes of each, of unit length again.

        Args:
            words_of_label: the synonyms of K' labels, at least one each.
            template: as for `encode_labels`, around every synonym.

        Returns:
            (K', d) float32, unit-norm, in the labels' order.

        Raises:
            ClipError: as `encode_labels`.
        """
        embeddings = self.encode_labels([word for words in words_of_label.values() for word in words], template)
        return mean_of_synonyms(embeddings, [len(words) for words in words_of_label.values()])

    def check_prompt_fits(self, prompt: str) -> None:
        """Refuse what the tokenizer would cut without a word: two long labels could become one.

        Raises:
            ClipError: the prompt is longer than the text tower's context.
        """
        if isinstance(self.tokenizer, SimpleTokenizer):
            num_tokens = len(self.tokenizer.encode(prompt)) + 2  # start and end
            if num_tokens > self.tokenizer.context_length:
                raise ClipError(
                    f"prompt {prompt!r} has {num_tokens} tokens and the text tower of {self.name} reads "
                    f"{self.tokenizer.context_length}; shorten the label or the template"
                )


def mean_of_synonyms(embeddings: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean direction of each label's synonyms.

    Args:
        embeddings: (S, d) unit-norm, the synonyms label after label.
        counts: of synonyms for each of K' labels, at least 1; S in all.

    Returns:
        (K', d) unit-norm; a label of one synonym keeps the very bits of its row.
    """
    if len(embeddings) == len(counts):
        return embeddings
    means = [
        rows[0] if len(rows) == 1 else F.normalize(rows.mean(dim=0), dim=0) for rows in embeddings.split(list(counts))
    ]
    return torch.stack(means)


def load_towers(
    name: str,
    pretrained: str,
    *,
    seed: int = 0,
    dense: DenseReading = "value",
    output_stride: OutputStride = DEFAULT_OUTPUT_STRIDE,
) -> ClipTowers:
    """Build a CLIP model, load its weights and freeze it.

    The global random state is left as it was.

    Args:
        name: a model name of open_clip, or the path of a model configuration (.json): open_clip's own format, or the
            open_clip_config.json of a downloaded model.
        pretrained: a tag open_clip knows for this name (downloaded and cached by open_clip), the path of a weights file
            that open_clip reads, or "random". A file does not say its activation: for OpenAI's weights name the
            "-quickgelu" model.
        seed: seed of the weights when `pretrained` is "random".
        dense: how the image tower is read at every cell, see `t4p.models.dense_clip`.
        output_stride: pixels per side of a dense cell of a ResNet tower; finer cells take the same weights.

    Raises:
        ClipError: an unknown name or tag, a missing or unfitting weights file, a failed download, or a tower without a
            dense reading.
    """
    spec = _find_spec(name)
    weights_path: str | None = None
    if pretrained != RANDOM:
        spec, weights_path = _find_weights(name, pretrained, spec)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reaches into the GPUs' generators
        model, tokenizer = _build_model(name, spec.config)
    # Before the weights, so that a model we cannot use fails before its file is read.
    dense_tower = build_dense_tower(model.visual, dense, name, output_stride)
    if weights_path is not None:
        _load_weights(model, weights_path, name)
    towers = ClipTowers(model, tokenizer, spec, name=name, pretrained=pretrained, dense_tower=dense_tower)
    _ = towers.sha256  # as loaded, before anybody changes a weight
    return towers


def build_zero_towers(
    name: str, *, dense: DenseReading = "value", output_stride: OutputStride = DEFAULT_OUTPUT_STRIDE
) -> ClipTowers:
    """The towers of a name with zeros for weights: for their sizes, without a file and in no time.

    Raises:
        ClipError: an unknown name, or a tower without a dense reading.
    """
    spec = _find_spec(name)
    tokenizers: list[Callable[..., Tensor]] = []

    def build() -> CLIP | CustomTextCLIP:
        model, tokenizer = _build_model(name, spec.config)
        tokenizers.append(tokenizer)
        return model

    model = with_zeros(build)
    dense_tower = build_dense_tower(model.visual, dense, name, output_stride)
    return ClipTowers(model, tokenizers[0], spec, name=name, pretrained="zeros", dense_tower=dense_tower)


def _find_spec(name: str) -> _ModelSpec:
    """Look the name up in open_clip, or read the configuration file that it names."""
    if name.endswith(".json"):
        return _read_spec(Path(name))
    config = open_clip.get_model_config(_registered_name(name)) if ":" not in name else None
    if config is None:
        raise unknown_name(name, open_clip.list_models())
    return _ModelSpec(config, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def _registered_name(name: str) -> str:
    return name.replace("/", "-")  # open_clip takes ViT-B/32 as well


def _read_spec(path: Path) -> _ModelSpec:
    config, preprocess = read_model_file(path)
    return _ModelSpec(
        config, tuple(preprocess.get("mean", OPENAI_DATASET_MEAN)), tuple(preprocess.get("std", OPENAI_DATASET_STD))
    )


def _find_weights(name: str, pretrained: str, spec: _ModelSpec) -> tuple[_ModelSpec, str]:
    """Resolve a tag or a path to a weights file, and to the model it was trained as."""
    tag = None if name.endswith(".json") else get_pretrained_cfg(_registered_name(name), pretrained)
    if not tag:
        if Path(pretrained).is_file():
            return spec, pretrained
        raise ClipError(_describe_missing_weights(name, pretrained))
    try:
        weights_path = download_pretrained(tag)
    except Exception as error:  # whatever the network, the hub's client or the cache raises, the way out is the same
        raise ClipError(
            f"the weights {pretrained!r} of {name} could not be downloaded ({_first_line(error)}); on a machine "
            "without network, download them elsewhere and give the file's path in model.clip.pretrained"
        ) from error
    # A tag knows its activation. RN50 with "openai" was trained with QuickGELU, which the name's configuration lacks:
    # open_clip warns and goes on, with other features than the model was trained for.
    config = {**spec.config, "quick_gelu": bool(spec.config.get("quick_gelu") or tag.get("quick_gelu"))}
    image_mean = tuple(tag.get("mean", spec.image_mean))
    return _ModelSpec(config, image_mean, tuple(tag.get("std", spec.image_std))), weights_path


def _describe_missing_weights(name: str, pretrained: str) -> str:
    found = f"model.clip.pretrained is {pretrained!r}"
    wanted = f"give the path of a weights file of {name}, or {RANDOM!r} for random weights"
    if is_weights_file(pretrained) and (problem := problem_of_weights_file(name, Path(pretrained))):
        return problem
    tags = [] if name.endswith(".json") else list_pretrained_tags_by_model(_registered_name(name))
    if not tags:
        return f"{found}, but {name} has no pretrained tags; {wanted}"
    return f"{found}, which is no tag of {name}; its tags: {', '.join(tags)}; or {wanted}"


def _build_model(name: str, config: dict[str, Any]) -> tuple[CLIP | CustomTextCLIP, Callable[..., Tensor]]:
    """Build the model with random weights from the global generator, and its tokenizer."""
    config = copy.deepcopy(config)
    timm_name = config["vision_cfg"].get("timm_model_name")
    if timm_name:
        raise ClipError(
            f"{name}: its image tower is timm's {timm_name}; dense features are known for open_clip's own RN50-type "
            "and ViT-type towers; use one of those (RN50, ViT-B-16, ...)"
        )
    if "multimodal_cfg" in config:
        raise ClipError(
            f"{name} is a captioning model (CoCa) with attentional pooling; use a plain CLIP such as ViT-B-16"
        )
    text_config = config["text_cfg"]
    hugging_face_text = "hf_model_name" in text_config
    if hugging_face_text:
        text_config["hf_model_pretrained"] = False  # the CLIP weights hold the text tower too
    model_class = CustomTextCLIP if config.pop("custom_text", False) or hugging_face_text else CLIP
    try:
        model = model_class(**config)
        tokenizer = _build_tokenizer(text_config)
    except Exception as error:  # a configuration can be wrong in as many ways as open_clip, torch and the hub can fail
        raise ClipError(
            f"{name}: open_clip cannot build this model: {type(error).__name__}: {_first_line(error)}"
        ) from error
    return model, tokenizer


def _build_tokenizer(text_config: dict[str, Any]) -> Callable[..., Tensor]:
    context_length = text_config.get("context_length", 77)
    options = text_config.get("tokenizer_kwargs", {})
    hub_name = text_config.get("hf_tokenizer_name")
    if not hub_name:
        return SimpleTokenizer(context_length=context_length, **options)
    return HFTokenizer(
        hub_name, context_length=context_length, tokenizer_mode=text_config.get("tokenizer_mode"), **options
    )


def _load_weights(model: nn.Module, path: str, name: str) -> None:
    try:
        open_clip.load_checkpoint(model, path)
    except pickle.UnpicklingError as error:  # its own words advise to run what is in it
        raise ClipError(
            f"{path} holds more than weights, or no weights of {name}; nothing of it was run. Give the weights of this "
            "model, as safetensors or as a state dict of tensors, from somebody you trust"
        ) from error
    except (
        Exception
    ) as error:  # a damaged or foreign file makes zipfile, pickle, safetensors or torch raise their own errors
        raise ClipError(
            f"{path} does not hold weights of {name}: {_first_line(error, num_lines=3)}; give the weights of this "
            "model, or the name that belongs to the file"
        ) from error


def _first_line(error: Exception, num_lines: int = 1) -> str:
    """Shorten an error of another library to what fits into a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:num_lines]) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _hash_weights(model: nn.Module) -> str:
    """sha256 over name, dtype, shape and bytes of every weight and buffer, in the order of their names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
