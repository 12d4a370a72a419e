"""What the small CLIP learns from: captions of whole images, and names of what is seen at every place.

The second half makes it an LSeg-like model more than a CLIP of web images: its cells are told what they show. With
captions alone the same tower learned next to nothing about places in the time there is (the trial in PLATFORM.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.small_clip.rooms import CLASS_NAMES
from t4p.models.clip_package import CLIP, SimpleTokenizer
from t4p.models.dense_clip import DenseTower

# A class is named by another one at every step, so that its embedding hangs on the class and not on the wording.
TEMPLATES = (
    "point cloud of a {}",
    "a photo of a {}",
    "{}",
    "a {}",
    "the {}",
    "a {} in a room",
    "a picture of a {}",
    "an image of the {}",
    "there is a {} here",
    "a close view of a {}",
)
MAX_LOGIT_SCALE = 20.0  # a larger one needs less distance between classes: this is what a 3D network has to learn
_UPSAMPLE = 4  # of similarity maps, to the labels: half the resolution of the images


def words_learnt(captions: Sequence[str]) -> list[str]:
    """Every word that the text tower is trained with, in alphabetical order: of these captions and of the prompts."""
    prompts = (template.format(name) for template in TEMPLATES for name in CLASS_NAMES)
    return sorted(set(re.findall(r"\w+", " ".join((*captions, *prompts)))))


class ClassPrompts:
    """Token ids of every class in every template."""

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        self._tokens = torch.stack(
            [tokenizer([template.format(name) for name in CLASS_NAMES]) for template in TEMPLATES]
        )

    def draw(self, generator: torch.Generator) -> Tensor:
        """(K, context length) token ids, every class in a template of its own."""
        chosen = torch.randint(len(TEMPLATES), (len(CLASS_NAMES),), generator=generator)
        return self._tokens[chosen, torch.arange(len(CLASS_NAMES))]


def class_weights(labels: Tensor) -> Tensor:
    """(K,) weights of the classes: frequency to the power -1/2, 1 on average over the labelled pixels.

    Args:
        labels: uint8, 0 for unlabelled.
    """
    counts = torch.bincount(labels.flatten(), minlength=len(CLASS_NAMES) + 1)[1:].double()
    frequency = counts / counts.sum()
    weights = torch.where(counts > 0, frequency.clamp(min=1e-12).rsqrt(), 0.0)
    return (weights / (weights * frequency).sum()).float()


def logit_scale(model: CLIP) -> Tensor:
    """The multiplier of cosine similarities."""
    return model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)


def dense_loss(
    model: CLIP, dense: DenseTower, images: Tensor, labels: Tensor, prompts: Tensor, weights: Tensor
) -> Tensor:
    """Cross-entropy of what every place shows, over the prompts of all classes.

    Args:
        model: whose text tower and temperature are used.
        dense: the reading of its image tower.
        images: (B, 3, H, W) normalised.
        labels: (B, H / 2, W / 2) int64, 0 for unlabelled.
        prompts: (K, context length) token ids.
        weights: (K,) of the classes.
    """
    with torch.autocast("cpu", torch.bfloat16):  # a third less time, and the weights stay float32
        cells = dense.features(images)
    cells = F.normalize(cells.float(), dim=1)
    text = model.encode_text(prompts, normalize=True)
    similarity = torch.einsum("fdhw,kd->fkhw", cells, text)
    maps = F.interpolate(similarity, scale_factor=_UPSAMPLE, mode="bilinear", align_corners=False)
    return F.cross_entropy(logit_scale(model) * maps, labels - 1, weight=weights, ignore_index=-1)


def prompt_loss(model: CLIP, prompts: Tensor, same_prompts: Tensor) -> Tensor:
    """Cross-entropy of every class among all classes in another wording: equal classes agree, others stay apart.

    Without it the text tower, whose random weights give all prompts nearly one embedding, left pairs of classes at
    cosines up to 0.998 after 1,500 steps, and no image feature can tell such a pair apart.

    Args:
        model: whose text tower and temperature are used.
        prompts: (K, context length) token ids.
        same_prompts: likewise, the same classes in wordings of their own.
    """
    embeddings, same = model.encode_text(torch.cat([prompts, same_prompts]), normalize=True).chunk(2)
    logits = logit_scale(model).detach() * embeddings @ same.T
    own = torch.arange(len(prompts))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def caption_loss(model: CLIP, images: Tensor, captions: Tensor) -> Tensor:
    """CLIP's own loss: every image among all captions, every caption among all images.

    Args:
        model: image size as its image tower was built for.
        images: (B, 3, S, S) normalised.
        captions: (B, context length) token ids.
    """
    image_embeddings = model.encode_image(images, normalize=True)
    text_embeddings = model.encode_text(captions, normalize=True)
    logits = logit_scale(model) * image_embeddings @ text_embeddings.T
    own = torch.arange(len(images))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
