"""Make the small CLIP that is shipped in configs/clip: `python -m t4p.small_clip.train`, or `make small-clip`.

Renders its rooms, trains, and writes the weights beside their configuration together with a record of how they were
made and what they score. The same seed, threads and versions give the same file on the same kind of processor.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from t4p.config import find_packaged
from t4p.errors import RunError
from t4p.models.clip import load_towers
from t4p.models.dense_clip import OutputStride, build_dense_tower
from t4p.small_clip.augment import random_colors, random_views
from t4p.small_clip.objective import ClassPrompts, caption_loss, class_weights, dense_loss
from t4p.small_clip.rooms import (
    TEST_ROOMS,
    TRAINING_ROOMS,
    VALIDATION_ROOMS,
    RoomFrames,
    RoomSet,
    render_rooms,
)
from t4p.small_clip.score import (
    TEMPLATES,
    score_dense,
    score_one_answer,
    score_retrieval,
)

OUTPUT_STRIDE: OutputStride = 8  # 20 x 15 cells of a 160 x 120 image; with 32 there would be 5 x 4
MAX_BYTES = 5_000_000  # of the weights, which every installation carries
_CLIP_FOLDER = Path("configs/clip")
_NAME = "small-rooms"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result.

    Attributes:
        seed: of weights and draws.
        training, validation, test: the rooms.
        num_steps: of the optimizer.
        frames_per_step: of the dense loss.
        captions_per_step: of the caption loss.
        caption_every: so many steps the caption loss is taken.
        caption_weight: of the caption loss, the dense one having 1.
        learning_rate: at the end of the warm-up; a cosine takes it to 0.
        frozen_norms_from: share of the steps after which batch norms use their running statistics. The two readings
            of the image tower share them and differ in their own: the weights have to learn to live with the mixture.
    """

    seed: int = 0
    training: RoomSet = TRAINING_ROOMS
    validation: RoomSet = VALIDATION_ROOMS
    test: RoomSet = TEST_ROOMS
    num_steps: int = 6000
    frames_per_step: int = 12
    captions_per_step: int = 16
    caption_every: int = 2
    caption_weight: float = 0.3
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    weight_decay: float = 0.02
    gradient_clipping: float = 1.0
    frozen_norms_from: float = 0.7


class Trainer:
    """A model on its way, and what it is trained on.

    Attributes:
        model: open_clip's.
    """

    def __init__(self, config: Path, frames: RoomFrames, recipe: Recipe) -> None:
        document = json.loads(config.read_text(encoding="utf-8"))
        torch.manual_seed(recipe.seed)
        self.model = CLIP(**document["model_cfg"])
        self.model.visual.to(memory_format=torch.channels_last)
        self._mean, self._std = (torch.tensor(document["preprocess_cfg"][k]).view(1, 3, 1, 1) for k in ("mean", "std"))
        self._dense = build_dense_tower(self.model.visual, "value", str(config), OUTPUT_STRIDE)
        tokenizer = SimpleTokenizer(context_length=document["model_cfg"]["text_cfg"]["context_length"])
        self._prompts = ClassPrompts(tokenizer)
        self._captions = tokenizer(list(frames.captions))
        self._colors = torch.from_numpy(frames.colors).permute(0, 3, 1, 2).contiguous()
        self._labels = torch.from_numpy(frames.labels)
        self._weights = class_weights(self._labels)
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._recipe = recipe
        self._optimizer = build_optimizer(self.model, recipe)
        self._step = 0
        self._order = torch.zeros(0, dtype=torch.int64)

    def step(self) -> tuple[float, float | None]:
        """Take one optimizer step; the dense loss and, where it was taken, the caption loss before it."""
        recipe = self._recipe
        self.model.train()
        if self._step >= recipe.frozen_norms_from * recipe.num_steps:
            _freeze_norms(self.model.visual)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(self._step, recipe)
        self._optimizer.zero_grad()
        dense = self._dense_loss(self._next_frames(recipe.frames_per_step))
        dense.backward()
        caption = None
        if self._step % recipe.caption_every == 0:
            caption = self._caption_loss(self._next_frames(recipe.captions_per_step))
            (recipe.caption_weight * caption).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_clipping)
        self._optimizer.step()
        self._step += 1
        return dense.item(), None if caption is None else caption.item()

    def _dense_loss(self, chosen: Tensor) -> Tensor:
        images, labels = random_views(self._colors[chosen], self._labels[chosen], self._generator)
        prompts = self._prompts.draw(self._generator)
        return dense_loss(self.model, self._dense, self._normalize(images), labels, prompts, self._weights)

    def _caption_loss(self, chosen: Tensor) -> Tensor:
        images = random_colors(self._colors[chosen].float().div_(255), self._generator)
        if torch.rand((), generator=self._generator) < 0.5:
            images = images.flip(3)
        size = self.model.visual.image_size
        images = F.interpolate(self._normalize(images), (size, size), mode="bilinear", align_corners=False)
        return caption_loss(self.model, images, self._captions[chosen])

    def _normalize(self, images: Tensor) -> Tensor:
        return ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    def _next_frames(self, count: int) -> Tensor:
        """Positions of the next frames of an endless row of shuffles."""
        while len(self._order) < count:
            self._order = torch.cat([self._order, torch.randperm(len(self._colors), generator=self._generator)])
        chosen, self._order = self._order[:count], self._order[count:]
        return chosen


def build_optimizer(model: CLIP, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; norms, biases, temperature and embeddings do not decay."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim >= 2 and "embedding" not in name else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to 0."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.num_steps))


def _freeze_norms(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()


def write_weights(model: CLIP, path: Path) -> None:
    """Write the weights in half precision."""
    halves = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    save_file(halves, path)


def score_file(config: Path, weights: Path, frames: RoomFrames) -> dict[str, Any]:
    """Scores of the file as it is shipped, loaded the way everybody loads it."""
    towers = load_towers(str(config), str(weights), output_stride=OUTPUT_STRIDE)
    return {
        "dense": {template: _rounded(asdict(score_dense(towers, frames, template))) for template in TEMPLATES},
        "image_to_caption": _rounded(score_retrieval(towers, frames)),
    }


def make_small_clip(
    config: Path, folder: Path, recipe: Recipe, validate_every: int, progress: Progress, log: Callable[[str], None]
) -> dict[str, Any]:
    """Render, train, measure; write `small-rooms.safetensors` and `small-rooms.scores.json` into `folder`.

    Returns:
        What the scores file holds.
    """
    start = time.perf_counter()
    weights = folder / f"{_NAME}.safetensors"
    training, validation = (_render(rooms, progress) for rooms in (recipe.training, recipe.validation))
    trainer = Trainer(config, training, recipe)
    log(f"{recipe.training.num_frames} frames rendered, {time.perf_counter() - start:.0f} s")
    curve = []
    losses: list[float] = []
    caption_losses: list[float] = []
    bar = progress.add_task("training", total=recipe.num_steps)
    for step in range(1, recipe.num_steps + 1):
        dense, caption = trainer.step()
        losses.append(dense)
        caption_losses += [] if caption is None else [caption]
        progress.advance(bar)
        if step % validate_every == 0 or step == recipe.num_steps:
            write_weights(trainer.model, weights)
            scores = score_file(config, weights, validation)
            point = {
                "step": step,
                "seconds": round(time.perf_counter() - start),
                "dense_loss": _mean(losses),
                "caption_loss": _mean(caption_losses),
                "miou": scores["dense"][TEMPLATES[0]]["miou"],
                "miou_furniture": scores["dense"][TEMPLATES[0]]["miou_furniture"],
                "recall_at_1": scores["image_to_caption"]["recall_at_1"],
            }
            curve.append(point)
            log("  ".join(f"{key} {value}" for key, value in point.items()))
            losses, caption_losses = [], []
    seconds = time.perf_counter() - start
    test = _render(recipe.test, progress)
    record = {
        "made_by": "python -m t4p.small_clip.train",
        "alignment": (
            "captions of whole images (CLIP's loss) and exact region labels: cells of the image tower against prompts "
            "of the class names, weights frequency^-0.5. As LSeg, it has been told what it sees where."
        ),
        "rooms_used_nowhere_else": "series of the seeds in recipe.training, recipe.validation and recipe.test",
        "output_stride": OUTPUT_STRIDE,
        "test": score_file(config, weights, test) | {"everything_a_wall": _rounded(asdict(score_one_answer(test)))},
        "validation": score_file(config, weights, validation),
        "recipe": asdict(recipe),
        "curve": curve,
        "weights": {"bytes": weights.stat().st_size, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()},
        "seconds": round(seconds),
        "machine": {"processor": _processor(), "threads": torch.get_num_threads()},
        "versions": {name: metadata.version(name) for name in ("torch", "open_clip_torch", "numpy", "safetensors")}
        | {"python": platform.python_version()},
    }
    text = json.dumps(record, indent=1)
    (folder / f"{_NAME}.scores.json").write_text(text + "\n", encoding="utf-8")
    if weights.stat().st_size > MAX_BYTES:
        raise RunError(f"{weights} has {weights.stat().st_size} bytes, more than the {MAX_BYTES} that may be shipped")
    return record


def _render(rooms: RoomSet, progress: Progress) -> RoomFrames:
    bar = progress.add_task(f"rooms of seed {rooms.seed}", total=rooms.num_frames)
    return render_rooms(rooms, lambda done, total: progress.update(bar, completed=done, total=total))


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _rounded(value: Any) -> Any:
    """Floats of a record to four digits, nan to null."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def _showing_progress() -> Iterator[Progress]:
    """Bars on stderr, silent when that is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


def main(
    folder: Annotated[Path, typer.Argument(help="where weights and scores are written")] = _CLIP_FOLDER,
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps; fewer make another, weaker model")] = 6000,
    rooms: Annotated[int, typer.Option(min=1, help="training rooms, likewise")] = TRAINING_ROOMS.rooms,
    threads: Annotated[int, typer.Option(min=1, help="of torch; part of what makes two runs equal")] = 1,
    validate_every: Annotated[int, typer.Option(min=1, help="steps between two looks at the validation rooms")] = 500,
) -> None:
    """Make the small CLIP of configs/clip/small-rooms.json from nothing."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    folder.mkdir(parents=True, exist_ok=True)
    config = find_packaged(_CLIP_FOLDER / f"{_NAME}.json")
    recipe = Recipe(training=replace(TRAINING_ROOMS, rooms=rooms), num_steps=steps)
    with _showing_progress() as progress:
        record = make_small_clip(config, folder, recipe, validate_every, progress, typer.echo)
    for template, score in record["test"]["dense"].items():
        typer.echo(f"test rooms, {template!r}: mIoU {score['miou']:.3f}, furniture {score['miou_furniture']:.3f}")


if __name__ == "__main__":
    typer.run(main)
