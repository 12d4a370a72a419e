"""The training of the small CLIP: settings, batches, one optimizer step after the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.small_clip.augment import random_colors, random_views
from recipes.small_clip.objective import ClassPrompts, caption_loss, class_weights, dense_loss, prompt_loss
from recipes.small_clip.rooms import TEST_ROOMS, TRAINING_ROOMS, VALIDATION_ROOMS, RoomFrames, RoomSet
from t4p.models.clip_package import CLIP, SimpleTokenizer
from t4p.models.dense_clip import OutputStride, build_dense_tower

OUTPUT_STRIDE: OutputStride = 8  # 20 x 15 cells of a 160 x 120 image; with 32 there would be 5 x 4


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result.

    Attributes:
        seed: seed of weights and draws.
        training, validation, test: the rooms.
        num_steps: steps of the optimizer.
        frames_per_step: frames of the dense loss.
        captions_per_step: captions of the caption loss.
        caption_every: so many steps the caption loss is taken.
        caption_weight: weight of the caption loss, the dense one having 1.
        prompt_weight: weight of the prompt loss, likewise.
        prompt_steps: before the first of num_steps, with the prompt loss alone.
        learning_rate: between the warm-up and the last steps.
        decay_steps: the last steps, in which it falls to 0.
        frozen_norm_steps: the last steps, in which batch norms use their running statistics. The two readings of the
            image tower share them and differ in their own: the weights have to learn to live with the mixture.
    """

    seed: int = 0
    training: RoomSet = TRAINING_ROOMS
    validation: RoomSet = VALIDATION_ROOMS
    test: RoomSet = TEST_ROOMS
    num_steps: int = 6000
    frames_per_step: int = 8
    captions_per_step: int = 16
    caption_every: int = 4
    caption_weight: float = 0.3
    prompt_weight: float = 0.2
    prompt_steps: int = 200
    learning_rate: float = 2.5e-3
    warmup_steps: int = 50
    weight_decay: float = 0.02
    gradient_clipping: float = 1.0
    decay_steps: int = 1500
    frozen_norm_steps: int = 1000


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
        _open_residual_branches(self.model.visual)
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
        for _ in range(recipe.prompt_steps):  # what the image tower is compared with should not move at first
            self._optimizer.zero_grad()
            self._prompt_loss().backward()
            self._optimizer.step()

    def step(self) -> tuple[float, float | None]:
        """Take one optimizer step; the dense loss and, where it was taken, the caption loss before it."""
        recipe = self._recipe
        self.model.train()
        if self._step >= recipe.num_steps - recipe.frozen_norm_steps:
            _freeze_norms(self.model.visual)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(self._step, recipe)
        self._optimizer.zero_grad()
        dense = self._dense_loss(self._next_frames(recipe.frames_per_step))
        (dense + recipe.prompt_weight * self._prompt_loss()).backward()
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

    def _prompt_loss(self) -> Tensor:
        return prompt_loss(self.model, self._prompts.draw(self._generator), self._prompts.draw(self._generator))

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
    """Linear up, constant, linear down to 0.

    Not a cosine: this way all steps but the last are those of a longer run too.
    """
    rise = (step + 1) / recipe.warmup_steps
    fall = (recipe.num_steps - step) / recipe.decay_steps
    return recipe.learning_rate * min(1.0, rise, fall)


def _open_residual_branches(visual: nn.Module) -> None:
    """open_clip begins with every residual branch at zero; AdamW takes hundreds of steps to open them."""
    for name, parameter in visual.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.ones_(parameter)


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
