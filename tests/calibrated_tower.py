"""A tower with random weights whose features differ from cell to cell, made from training frames alone.

open_clip initialises a ModifiedResNet for training: the last norm of every block is 0 and batch-norm has no statistics,
so a random one maps every cell to nearly the same vector (cosine 0.999, measured), which no logit scale below 100 can
tell apart. Here the zeros become ones, the batch-norm statistics are measured on a few training frames, and the mean
feature is taken out. No weight is learned.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import nn

from t4p.models.clip import load_towers


def save_calibrated_tower(config: Path, images: Sequence[NDArray[np.uint8]], path: Path, seed: int = 0) -> None:
    """Write the weights of a calibrated random ModifiedResNet, to be named by `model.clip.pretrained`.

    Args:
        config: model JSON of open_clip.
        images: (H, W, 3), of the training set.
        path: of the weights file.
    """
    spec = config.stem
    if spec not in open_clip.list_models():
        open_clip.add_model_config(config)
    torch.manual_seed(seed)
    model = open_clip.create_model(spec, pretrained=None)
    for name, parameter in model.visual.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.ones_(parameter)
    torch.save(model.state_dict(), path)

    towers = load_towers(str(config), str(path))
    batch = towers.normalize(torch.from_numpy(np.stack(images)))
    visual = model.visual
    norms = [module for module in visual.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        model.eval()
        for norm in norms:
            norm.momentum = None  # a cumulative average over what follows
            norm.train()
        visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(batch)))))
        torch.save(model.state_dict(), path)
        features = load_towers(str(config), str(path)).dense_features(batch)
        model.visual.attnpool.c_proj.bias -= features.mean(dim=(0, 2, 3))
    torch.save(model.state_dict(), path)
