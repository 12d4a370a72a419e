"""What a CLIP model's JSON says of it, without building it: no torch, and open_clip only as a folder of files."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shards.doors.files import read_file
from shards.doors.json_text import MAX_BYTES, parse_json
from shards.terms import NOT_STATED
from t4p.config.network import ClipConfig
from t4p.config.packaged import find_packaged
from t4p.errors import ClipError, ConfigError

OutputStride = Literal[32, 16, 8]
DEFAULT_OUTPUT_STRIDE: OutputStride = 32
TowerKind = Literal["resnet", "vit"]

OUR_TOWERS = "Apache-2.0, made with Text4Point from its own procedural rooms"
RANDOM_TOWERS = "random weights, no terms"
WORDS_SUFFIX = ".words.json"  # beside a model's JSON: {"words": [...]}, all that its text tower was trained with
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".npy", ".ckpt")


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model as its configuration describes it.

    Attributes:
        embed_dim: d, the width of the joint space.
        kind: kind of its image tower; None where it is neither (no dense reading is known for those).
        patch_size: pixels per side of a ViT's patch; None for a ResNet.
        context_length: tokens that its text tower reads.
    """

    embed_dim: int
    kind: TowerKind | None
    patch_size: int | None
    context_length: int

    def cell_size(self, clip: ClipConfig) -> int | None:
        """Pixels per side of a dense cell."""
        return self.patch_size if self.kind == "vit" else clip.output_stride if self.kind == "resnet" else None


def read_clip_model(clip: ClipConfig) -> ClipModel | None:
    """The model that a configuration names; None where the file, or open_clip, which would know the name, is not here.

    Raises:
        ClipError: nobody knows the name, or the file is no model configuration.
    """
    if clip.name.endswith(".json"):
        try:
            file = find_packaged(clip.name)
        except ConfigError:
            return None  # a job that is sent to a cluster may name a file that only the cluster sees
        config = read_model_file(file)[0]
    else:
        folder = _open_clip_models()
        if folder is None:
            return None
        file = folder / f"{clip.name.replace('/', '-')}.json"  # open_clip takes ViT-B/32 as well
        if not file.is_file():
            raise unknown_name(clip.name, sorted(path.stem for path in folder.glob("*.json")))
        config = parse_json(file.read_text(encoding="utf-8"))
    try:
        vision = config["vision_cfg"]
        layers, patch = vision.get("layers"), vision.get("patch_size")
        kind: TowerKind | None = None
        if "timm_model_name" not in vision and "multimodal_cfg" not in config:
            kind = "resnet" if isinstance(layers, list) else "vit"
        return ClipModel(
            embed_dim=int(config["embed_dim"]),
            kind=kind,
            patch_size=int(patch or 16) if kind == "vit" and not isinstance(patch, list) else None,
            context_length=int(config["text_cfg"].get("context_length", 77)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClipError(
            f"model.clip.name is {clip.name!r}, whose model configuration is malformed ({type(error).__name__}: "
            f"{error}); give an open_clip model configuration"
        ) from error


def terms_of_towers(clip: ClipConfig) -> str:
    """The licence of the towers that a configuration names, in a line: of those made here; open_clip states none."""
    if clip.pretrained == "random":
        return RANDOM_TOWERS
    if clip.pretrained.startswith("configs/"):
        return OUR_TOWERS
    return NOT_STATED


def words_file(clip: ClipConfig) -> Path | None:
    """The list of all words that a text tower of few words was trained with, beside its JSON; None where none is."""
    try:
        name = find_packaged(clip.name) if clip.name.endswith(".json") else Path(clip.name)
    except ConfigError:
        return None  # whoever loads the tower is told that it is not there
    listed = name.with_name(f"{name.stem}{WORDS_SUFFIX}")
    return listed if name.suffix == ".json" and listed.is_file() else None


def words_not_learnt(clip: ClipConfig, phrases: Sequence[str]) -> tuple[str, ...]:
    """The words of some phrases that a text tower of few words was never trained with: its answer is noise.

    Only towers with a list of their words beside their JSON have any; that which ships for the rooms is one.
    """
    if (listed := words_file(clip)) is None:
        return ()
    learnt = set(parse_json(read_file(listed))["words"])
    asked = (word for phrase in phrases for word in re.findall(r"[^\W_]+", phrase.lower()) or [phrase])
    return tuple(word for word in dict.fromkeys(asked) if word not in learnt)


def unknown_name(name: str, known: list[str]) -> ClipError:
    """The error for a name that open_clip does not know."""
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"for example RN50 or ViT-B-16, of {len(known)} names"
    return ClipError(
        f"model.clip.name is {name!r}, which open_clip does not know; {hint}; or give the path of a model "
        "configuration that ends in .json (open_clip_config.json of a downloaded model)"
    )


def read_model_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model configuration in open_clip's own format, or the open_clip_config.json of a downloaded model.

    Returns:
        What builds the model, and how its images are prepared ("mean", "std"; may be empty).

    Raises:
        ClipError: the file cannot be read, or is none.
    """
    try:
        document = parse_json(read_file(path, MAX_BYTES))
    except OSError as error:
        raise ClipError(
            f"model.clip.name is the path {path}: {error.strerror}; give an existing model configuration"
        ) from error
    except ValueError as error:
        raise ClipError(f"{path} is not JSON: {error}; give an open_clip model configuration") from error
    config = document.get("model_cfg", document) if isinstance(document, dict) else {}
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ClipError(f"{path} is not an open_clip model configuration: it has no {', '.join(missing)}")
    return config, document.get("preprocess_cfg", {})


def problem_of_reading(kind: TowerKind, reading: str, output_stride: int, patch_size: int) -> str | None:
    """Why an image tower cannot be read densely in this way; None where it can.

    Args:
        kind: kind of the tower.
        reading: `model.clip.dense`.
        output_stride: `model.clip.output_stride`.
        patch_size: side of a patch of a ViT, in pixels.
    """
    if kind == "resnet" and reading != "value":
        return (
            f"dense reading {reading!r} is for ViT towers, and this is a ResNet, whose attention pool has no residual; "
            "use 'value'"
        )
    if kind == "vit" and output_stride != DEFAULT_OUTPUT_STRIDE:
        return (
            f"output stride {output_stride} is for ResNet towers, whose last layers can keep their resolution; this is "
            f"a ViT, whose cells are its patches of {patch_size} pixels; leave model.clip.output_stride out, and make "
            "the images larger to have more cells"
        )
    return None


def is_weights_file(pretrained: str) -> bool:
    """Whether `model.clip.pretrained` is the path of a file, and not a tag that open_clip knows or "random"."""
    return "/" in pretrained or pretrained.endswith(_WEIGHT_SUFFIXES)


def problem_of_weights_file(name: str, path: Path) -> str | None:
    """Why a file of weights cannot be read, as far as its path tells; None where it can."""
    if path.is_file():
        return None
    return (
        f"model.clip.pretrained is {str(path)!r}, and that file is {'a folder' if path.is_dir() else 'not there'}; "
        f"give the path of a weights file of {name}, or 'random' for random weights"
    )


def _open_clip_models() -> Path | None:
    """The folder of open_clip's model configurations; open_clip itself, which takes seconds, is not imported."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / "model_configs"
