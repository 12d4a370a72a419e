"""The pre-training module and task on small frames made here."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from bumpy_wall import WALL_OVERRIDES, make_frame
from torch.utils._python_dispatch import TorchDispatchMode

from t4p.config.files import load_config
from t4p.data.batch import Batch, build_batch
from t4p.data.sample import prepare_frame
from t4p.errors import ConfigError, RunError
from t4p.models.towers import load_towers_from
from t4p.runs.logs import StepRecord
from t4p.tasks.pretrain import PretrainModule, PretrainTask, build_sample_settings

OVERRIDES = [*WALL_OVERRIDES, "data.pixel_stride=1"]


@pytest.fixture(scope="module")
def config():
    return load_config(["configs/smoke.yaml"], OVERRIDES)


@pytest.fixture(scope="module")
def towers(config):
    return load_towers_from(config.model.clip, config.run.seed)


def batch_of(config, towers, seeds, epoch=0):
    settings = build_sample_settings(config, towers)
    return build_batch([prepare_frame(make_frame(seed), f"room/{seed}", epoch, settings) for seed in seeds], settings)


def module_and_task(config, towers, validation=None, precision="fp32"):
    torch.manual_seed(0)
    module = PretrainModule(config.model, config.loss, towers.embed_dim)
    return module, PretrainTask(towers, config.model, torch.device("cpu"), validation, precision)


class Products(TorchDispatchMode):
    """Counts matrix products, convolutions and attentions by the type they compute in."""

    def __init__(self):
        super().__init__()
        self.dtypes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(part in func.__name__ for part in ("mm", "convolution", "attention")):
            self.dtypes[next(value.dtype for value in args if isinstance(value, torch.Tensor))] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class OneBatch:
    """A validation stream of one batch."""

    batch: Batch

    def batches(self):
        return iter([self.batch])


@pytest.mark.parametrize(("clip", "dense"), [("tiny-vit32", "value-residual"), ("tiny-rn", "value")])
def test_the_frozen_tower_computes_in_the_precision_of_the_run_in_training_and_in_validation(clip, dense):
    tower = [f"model.clip.name=configs/clip/{clip}.json", "model.clip.pretrained=random", f"model.clip.dense={dense}"]
    config = load_config(["configs/smoke.yaml"], [*OVERRIDES, *tower])
    towers = load_towers_from(config.model.clip, config.run.seed)
    batch = batch_of(config, towers, (0,))
    images = towers.normalize(batch.images)
    features, counts = {}, {}
    for precision in ("fp32", "bf16"):
        module, task = module_and_task(config, towers, OneBatch(batch), precision)
        with Products() as training:
            features[precision] = task.inputs(batch)[2]
        with Products() as validation:
            task.validate(module)
        counts[precision] = training.dtypes, validation.dtypes
    (fp32, fp32_validation), (bf16, bf16_validation) = counts["fp32"], counts["bf16"]
    assert fp32[torch.float32] > 5
    assert bf16[torch.bfloat16] >= fp32[torch.float32]
    assert set(fp32) == set(fp32_validation) == {torch.float32}
    assert set(bf16) == {torch.bfloat16}
    assert bf16_validation[torch.bfloat16] == bf16[torch.bfloat16]
    assert torch.equal(features["fp32"], towers.dense_features(images))  # as it was
    assert features["bf16"].dtype == torch.float32
    assert not torch.equal(features["bf16"], features["fp32"])
    cosines = torch.nn.functional.cosine_similarity(features["bf16"], features["fp32"], dim=1)
    assert cosines.min() > 0.99


def test_every_trainable_parameter_gets_a_gradient_and_no_tower_weight_is_in_the_module(config, towers):
    module, task = module_and_task(config, towers)
    batch = batch_of(config, towers, (0, 1))
    loss, loss_e, loss_d, *_ = module(*task.inputs(batch))
    torch.testing.assert_close(loss, loss_e + loss_d)
    loss.backward()
    missing = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert missing == []
    tower_storage = {parameter.data_ptr() for parameter in towers.parameters()}
    assert tower_storage.isdisjoint(parameter.data_ptr() for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in towers.parameters())


def test_each_loss_alone_trains_what_it_should(config, towers):
    batch = batch_of(config, towers, (0, 1))
    module, task = module_and_task(config, towers)
    _, loss_e, *_ = module(*task.inputs(batch))
    loss_e.backward()
    reached = {n.split(".")[0] + "." + n.split(".")[1] for n, p in module.net.named_parameters() if p.grad is not None}
    assert {"unet.stem", "unet.encoder", "expand.weight"} <= reached
    assert "head.weight" not in reached
    assert all(p.grad is None for p in module.decoder2d.parameters())
    assert module.log_logit_scale_d.grad is None


def test_pairs_join_a_voxel_with_the_cell_that_its_points_are_seen_in(config, towers):
    """Follow every pair of a batch back to the frame it came from."""
    batch = batch_of(config, towers, (0, 1, 2))
    settings = build_sample_settings(config, towers)
    num_cells = settings.cell_grid[0] * settings.cell_grid[1]
    coarse = torch.unique(torch.cat([batch.voxel_coords[:, :1], batch.voxel_coords[:, 1:] >> 2], dim=1), dim=0)
    frame_of_voxel = coarse[batch.voxel_of_pair_e, 0]
    frame_of_cell = batch.cell_of_pair_e // num_cells
    assert torch.equal(frame_of_voxel.long(), frame_of_cell)
    num_pixels = settings.decoder_grid[0] * settings.decoder_grid[1]
    assert torch.equal(batch.voxel_coords[batch.voxel_of_pair_d, 0].long(), batch.pixel_of_pair_d // num_pixels)
    assert len(batch.voxel_of_pair_d) == 3 * config.loss.num_pairs_d
    assert len(batch.voxel_of_pair_e) <= 3 * config.loss.num_pairs_e


def test_a_sample_depends_on_seed_epoch_and_key_alone(config, towers):
    settings = build_sample_settings(config, towers)
    first, again = (batch_of(config, towers, (0,), 3) for _ in range(2))
    for name in ("voxel_coords", "voxel_features", "cell_of_pair_e", "uniform_of_pair_e", "pixel_of_pair_d"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    for other in (
        batch_of(config, towers, (0,), 4),
        build_batch([prepare_frame(make_frame(0), "room/1", 3, settings)], settings),
        build_batch([prepare_frame(make_frame(0), "room/0", 3, replace(settings, seed=1))], settings),
    ):
        assert first.voxel_coords.shape != other.voxel_coords.shape or not np.array_equal(
            first.voxel_coords, other.voxel_coords
        )


def test_an_empty_batch_has_the_shapes_of_a_full_one(config, towers):
    full = batch_of(config, towers, (0,))
    empty = batch_of(config, towers, ())
    for name in ("images", "voxel_coords", "voxel_features", "voxel_of_pair_e", "pixel_of_pair_d"):
        assert getattr(empty, name).shape[1:] == getattr(full, name).shape[1:]
        assert getattr(empty, name).dtype == getattr(full, name).dtype
        assert len(getattr(empty, name)) == 0


def test_a_few_steps_lower_both_losses(config, towers):
    module, task = module_and_task(config, towers)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    batch = batch_of(config, towers, (0, 1))
    inputs = task.inputs(batch)
    history = []
    for _ in range(12):
        loss, loss_e, loss_d, *_ = module(*inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((loss_e.item(), loss_d.item()))
    assert history[-1][0] < history[0][0] - 0.3
    assert history[-1][1] < history[0][1] - 0.3


def test_bf16_stays_close_to_fp32(config, towers):
    module, task = module_and_task(config, towers)
    batch = batch_of(config, towers, (0, 1))
    inputs = task.inputs(batch)
    exact = module(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(*inputs)
    for index in (1, 2):
        assert rounded[index].dtype == torch.float32
        assert rounded[index].item() == pytest.approx(exact[index].item(), rel=0.03)
        assert rounded[index].item() != exact[index].item()


def test_a_step_without_a_pair_ends_the_run(config, towers):
    _, task = module_and_task(config, towers)
    terms = {"loss": 3.0, "pairs_e": 1.0, "pairs_d": 1.0}
    record = StepRecord(7, terms, 0.1, 1.0, 14, 0, 2.0, 1.0, 0.0)
    task.check(record)
    with pytest.raises(RunError, match="no frame of the batch has a point that the image sees"):
        task.check(replace(record, terms=terms | {"pairs_d": 0.0}))


def test_an_image_size_that_does_not_fit_the_tower_is_refused(towers):
    config = load_config(["configs/smoke.yaml"], OVERRIDES)
    config = config.model_copy(update={"data": config.data.model_copy(update={"image_size": (100, 128)})})
    with pytest.raises(ConfigError, match="both must be multiples of 32"):
        build_sample_settings(config, towers)


def test_labels_are_embedded_with_the_template(config, towers):
    _, task = module_and_task(config, towers)
    batch = batch_of(config, towers, (0,))
    text = task.inputs(batch)[3]
    expected = towers.encode_labels(config.model.labels, "point cloud of a {}")
    torch.testing.assert_close(text, expected)
    assert text.shape == (20, towers.embed_dim)
