"""Make the small CLIP that is shipped in configs/clip: `python -m recipes.small_clip.train`, or `make small-clip`.

Renders its rooms, trains, and writes the weights beside their configuration together with a record of how they were
made and what they score. The same seed, threads and versions give the same file on the same kind of processor.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress

from commands.bars import progress_bars
from recipes.small_clip.objective import words_learnt
from recipes.small_clip.rooms import TRAINING_ROOMS, RoomFrames, RoomSet, render_rooms
from recipes.small_clip.score import TEMPLATES, score_dense, score_one_answer, score_retrieval
from recipes.small_clip.trainer import OUTPUT_STRIDE, Recipe, Trainer, write_weights
from t4p.config.clip_models import WORDS_SUFFIX
from t4p.config.packaged import find_packaged
from t4p.errors import RunError
from t4p.models.clip import load_towers

MAX_BYTES = 5_000_000  # of the weights, which every installation carries
ALIGNMENT = (
    "captions of whole images (the loss of CLIP) and exact region labels: every place of an image against prompts of "
    "all class names, classes weighted by frequency^-0.5. Like LSeg, it has been told what it sees where."
)
_CLIP_FOLDER = Path("configs/clip")
_NAME = "small-rooms"


def score_file(config: Path, weights: Path, frames: RoomFrames) -> dict[str, Any]:
    """Scores of the file as it is shipped, loaded the way everybody loads it."""
    towers = load_towers(str(config), str(weights), output_stride=OUTPUT_STRIDE)
    return {
        "dense": {template: _rounded(asdict(score_dense(towers, frames, template))) for template in TEMPLATES},
        "image_to_caption": _rounded(score_retrieval(towers, frames)),
    }


def train_and_validate(
    trainer: Trainer,
    config: Path,
    weights: Path,
    validation: RoomFrames,
    num_steps: int,
    validate_every: int,
    on_step: Callable[[], None],
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Take so many steps; every now and then, and at the end, write the weights and score them.

    Returns:
        What was found each time: the validation curve.
    """
    start = time.perf_counter()
    curve = []
    losses: list[float] = []
    caption_losses: list[float] = []
    for step in range(1, num_steps + 1):
        dense, caption = trainer.step()
        losses.append(dense)
        caption_losses += [] if caption is None else [caption]
        on_step()
        if step % validate_every == 0 or step == num_steps:
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
    return curve


def make_record(
    config: Path,
    weights: Path,
    recipe: Recipe,
    curve: list[dict[str, Any]],
    validation: RoomFrames,
    test: RoomFrames,
    seconds: float,
) -> dict[str, Any]:
    """How the file came about and what it scores: everything that is needed to make it again, or to doubt it.

    Args:
        seconds: seconds of rendering and training.
    """
    content = weights.read_bytes()
    return {
        "made_by": "make small-clip (python -m recipes.small_clip.train)",
        "alignment": ALIGNMENT,
        "rooms": "the series of the seeds in recipe.training, recipe.validation and recipe.test, used nowhere else",
        "output_stride": OUTPUT_STRIDE,
        "test": score_file(config, weights, test),
        "test_everything_a_wall": _rounded(asdict(score_one_answer(test))),
        "validation": score_file(config, weights, validation),
        "recipe": asdict(recipe),
        "curve": curve,
        "weights": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "seconds": round(seconds),
        "machine": {"processor": _processor(), "threads": torch.get_num_threads()},
        "versions": {name: metadata.version(name) for name in ("torch", "open_clip_torch", "numpy", "safetensors")}
        | {"python": platform.python_version()},
    }


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


def main(
    folder: Annotated[Path, typer.Argument(help="where weights and scores are written")] = _CLIP_FOLDER,
    steps: Annotated[int, typer.Option(min=1, help="of the optimizer; fewer make a weaker model")] = Recipe.num_steps,
    rooms: Annotated[int, typer.Option(min=1, help="training rooms, likewise")] = TRAINING_ROOMS.rooms,
    threads: Annotated[int, typer.Option(min=1, help="of torch; part of what makes two runs equal")] = 1,
    validate_every: Annotated[int, typer.Option(min=1, help="steps between two looks at the validation rooms")] = 1000,
) -> None:
    """Make the small CLIP of configs/clip/small-rooms.json from nothing."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    folder.mkdir(parents=True, exist_ok=True)
    config = find_packaged(_CLIP_FOLDER / f"{_NAME}.json")
    recipe = Recipe(training=replace(TRAINING_ROOMS, rooms=rooms), num_steps=steps)
    weights = folder / f"{_NAME}.safetensors"
    start = time.perf_counter()
    with progress_bars() as progress:
        training, validation = (_render(rooms, progress) for rooms in (recipe.training, recipe.validation))
        bar = progress.add_task("training", total=steps)
        trainer = Trainer(config, training, recipe)
        curve = train_and_validate(
            trainer, config, weights, validation, steps, validate_every, lambda: progress.advance(bar), typer.echo
        )
        seconds = time.perf_counter() - start
        test = _render(recipe.test, progress)
    record = make_record(config, weights, recipe, curve, validation, test, seconds)
    (folder / f"{_NAME}.scores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    words = json.dumps({"words": words_learnt(training.captions)})
    (folder / f"{_NAME}{WORDS_SUFFIX}").write_text(words + "\n", encoding="utf-8")
    if weights.stat().st_size > MAX_BYTES:
        raise RunError(f"{weights} has {weights.stat().st_size} bytes, more than the {MAX_BYTES} that may be shipped")
    for template, score in record["test"]["dense"].items():
        typer.echo(f"test rooms, {template!r}: mIoU {score['miou']:.3f}, furniture {score['miou_furniture']:.3f}")


if __name__ == "__main__":
    typer.run(main)
