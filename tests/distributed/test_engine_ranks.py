"""DeepSpeed ranks at every ZeRO stage must train as one plain torch process does on the whole batch.

The file is its own worker: `python test_engine_ranks.py FOLDER`, once per rank, takes part in one world, goes through
every stage there (importing torch and DeepSpeed takes longer than a stage), and leaves what it found in the folder.
What one process computes is found by the same workers, before they join their world.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from bumpy_wall import WALL_OVERRIDES, make_frame
from rank_processes import run_ranks, write_report
from torch import Tensor, nn

from t4p.config.files import load_config
from t4p.config.tasks import PretrainConfig
from t4p.losses.contrastive import contrastive_loss
from t4p.losses.logit_scale import clamped_logit_scale

pytestmark = pytest.mark.usefixtures("forked_python")

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = (0, 1, 2, 3)
PATIENCE = timedelta(minutes=4)  # for a rank that waits in a collective

# --- the whole module ---------------------------------------------------------------------------------------------

# Frames of rank 0 and of rank 1 in each micro-batch; a rank without a frame has no voxel at all.
SPLITS = (((0, 1), (2,)), ((3,), (4, 5)), ((6, 7, 8), ()), ((9,), (10, 11)), ((12, 13), (14,)))
VALIDATION_FRAMES = ((0, 1, 2), (3,))
WEIGHT_DECAY = 0.01
# The key bias of the attention moves every logit of a row by the same amount: its gradient is rounding, of which AdamW
# makes steps of full length.
WITHOUT_GRADIENT = "net.text_query.to_key.bias"


@dataclass(frozen=True)
class Plan:
    """How to train: the same plan goes to one process and to DeepSpeed's ranks."""

    optimizer: str
    num_steps: int
    learning_rate: float
    precision: str = "fp32"
    grad_accum_steps: int = 1
    gradient_clipping: float = 0.0
    overrides: tuple[str, ...] = ()

    def engine_settings(self, stage: int):
        from t4p.train.engine import EngineSettings

        return EngineSettings(
            zero_stage=stage,
            precision=self.precision,
            gradient_clipping=self.gradient_clipping,
            weight_decay=WEIGHT_DECAY,
            grad_accum_steps=self.grad_accum_steps,
        )

    def build_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.AdamW
        return kind(groups, lr=self.learning_rate)

    def micro_batches(self) -> Iterator[list[tuple]]:
        """Per step, the splits of its micro-batches."""
        count = 0
        for _ in range(self.num_steps):
            yield [SPLITS[(count + index) % len(SPLITS)] for index in range(self.grad_accum_steps)]
            count += self.grad_accum_steps


PLANS = {
    "sgd": Plan("sgd", num_steps=5, learning_rate=0.02),
    "adamw": Plan("adamw", num_steps=11, learning_rate=1e-3),
    "accumulated": Plan("sgd", num_steps=2, learning_rate=0.02, grad_accum_steps=2, gradient_clipping=0.1),
    "bf16": Plan("sgd", num_steps=5, learning_rate=0.02, precision="bf16"),
    "checkpointed": Plan(
        "sgd", num_steps=5, learning_rate=0.02, overrides=("model.unet.activation_checkpointing=true",)
    ),
    "only_e": Plan(
        "sgd",
        num_steps=3,
        learning_rate=0.02,
        overrides=("loss.weight_d=0", "loss.balance_e=1", "loss.num_pairs_e=20"),
    ),
}
# What one process computes for them: without bf16 and without checkpointing.
REFERENCES = {name: name for name in PLANS} | {"bf16": "sgd", "checkpointed": "sgd"}


def settings_of(plan: Plan) -> PretrainConfig:
    return load_config([REPOSITORY / "configs/smoke.yaml"], [*WALL_OVERRIDES, *plan.overrides])


class Data:
    """The inputs of PretrainModule for any frames, computed once."""

    def __init__(self) -> None:
        from t4p.models.towers import load_towers_from
        from t4p.tasks.pretrain import PretrainTask, build_sample_settings

        config = settings_of(PLANS["sgd"])
        self.towers = load_towers_from(config.model.clip, seed=0)
        self._settings = build_sample_settings(config, self.towers)
        self._task = PretrainTask(self.towers, config.model, torch.device("cpu"), None, "fp32")
        self._inputs: dict[tuple[int, ...], tuple[Tensor, ...]] = {}

    def inputs(self, seeds: tuple[int, ...]) -> tuple[Tensor, ...]:
        from t4p.data.batch import PairRecipe
        from t4p.data.sample import prepare_frame

        if seeds not in self._inputs:
            samples = [prepare_frame(make_frame(seed), f"room/{seed}", 0, self._settings) for seed in seeds]
            self._inputs[seeds] = self._task.inputs(PairRecipe(self._settings).join(samples))
        return self._inputs[seeds]

    def build_module(self, plan: Plan) -> nn.Module:
        from t4p.tasks.pretrain import PretrainModule

        config = settings_of(plan)
        torch.manual_seed(0)
        return PretrainModule(config.model, config.loss, self.towers.embed_dim)


def train_in_one_process(plan: Plan, data: Data) -> dict:
    """The definition of what the ranks have to reproduce, in plain torch."""
    from t4p.train.parameter_groups import parameter_groups

    module = data.build_module(plan)
    groups, _ = parameter_groups(module, WEIGHT_DECAY)
    optimizer = plan.build_optimizer(groups)
    before = embed_validation(module, data, (0, 1, 2, 3))
    losses, norms = [], []
    for splits in plan.micro_batches():
        module.train()
        parts = [module(*data.inputs(first + second))[0] / len(splits) for first, second in splits]
        optimizer.zero_grad()
        torch.stack(parts).sum().backward()
        largest = plan.gradient_clipping or math.inf
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), largest)))
        optimizer.step()
        losses.append(sum(parts).item())
    after = embed_validation(module, data, (0, 1, 2, 3))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    # DeepSpeed may let a parameter decay that has no gradient, torch does not; of L_e alone those of the decoders.
    unused = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    return {"losses": losses, "norms": norms, "state": state, "embedded": [before, after], "unused": unused}


def train_under_deepspeed(stage: int, plan: Plan, data: Data, reference: dict) -> dict:
    """Train by the plan on this rank's share.

    Returns:
        The largest differences from the reference, by what differs.
    """
    from t4p.distributed import all_reduce_sum, rank, world_size
    from t4p.models.text4point import Text4Point
    from t4p.train.engine import Engine

    engine = Engine(
        data.build_module(plan),
        plan.engine_settings(stage),
        world_size(),
        leaf_classes=(Text4Point,),
        build_optimizer=plan.build_optimizer,
    )
    embedded = []
    with engine.whole_module() as module:
        embedded.append(embed_validation(module, data, VALIDATION_FRAMES[rank()]))
    losses, norms = [], []
    for splits in plan.micro_batches():
        engine.module.train()
        loss_of_step = torch.zeros((), dtype=torch.float64)
        for split in splits:
            loss = engine.forward(*data.inputs(split[rank()]))[0]
            engine.backward(loss)
            engine.step(plan.learning_rate)
            loss_of_step += loss.detach().double() / len(splits)
        losses.append(all_reduce_sum(loss_of_step).item() / world_size())
        norms.append(engine.gradient_norm())
    with engine.whole_module() as module:
        embedded.append(embed_validation(module, data, VALIDATION_FRAMES[rank()]))
        state = module.state_dict()
        names_of_buffers = {name for name, _ in module.named_buffers()}
        moved = {name: largest_difference(state[name], value) for name, value in reference["state"].items()}
    pairs = zip(losses, reference["losses"], strict=True)
    return {
        "losses": [abs(found - wanted) for found, wanted in pairs],
        "wanted": reference["losses"],
        "norms": max(abs(n / wanted - 1) for n, wanted in zip(norms, reference["norms"], strict=True)),
        "smallest_norm": min(reference["norms"]),
        "parameters": max(
            error
            for name, error in moved.items()
            if name not in names_of_buffers | reference["unused"] and name != WITHOUT_GRADIENT
        ),
        "buffers": max(moved[name] for name in names_of_buffers),
        "embedded": [
            max(largest_difference(rows[frame], wanted[frame]) for frame in rows)
            for rows, wanted in zip(embedded, reference["embedded"], strict=True)
        ],
    }


def embed_validation(module: nn.Module, data: Data, frames: tuple[int, ...]) -> dict[int, Tensor]:
    """What validation does: `embed`, not `forward`, as often as a rank has frames."""
    module.eval()
    with torch.no_grad():
        return {frame: module.embed(*data.inputs((frame,))).points_d for frame in frames}


def largest_difference(found: Tensor, wanted: Tensor) -> float:
    return (found.double() - wanted.double()).abs().max().item()


# --- the contrastive loss alone -----------------------------------------------------------------------------------


LARGEST_SCALE = 100.0


class TinyTowers(nn.Module):
    """Two towers, a temperature and the loss.

    DeepSpeed refuses float64 parameters (its reduction asserts on them). These are float32, everything computed from
    them is float64: the loss is exact, and gradients are rounded only where they reach the parameters and DeepSpeed.
    """

    def __init__(self, log_logit_scale: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.point_weight = nn.Parameter(torch.randn(6, 5, generator=generator))
        self.pixel_weight = nn.Parameter(torch.randn(6, 5, generator=generator))
        self.log_logit_scale = nn.Parameter(torch.tensor([log_logit_scale]))

    def embed(self, points: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.point_weight.double(), self.pixel_weight.double()
        return F.normalize(points @ weights[0], dim=1), F.normalize(pixels @ weights[1], dim=1)

    def forward(self, points: Tensor, pixels: Tensor, point_ids: Tensor, pixel_ids: Tensor) -> tuple[Tensor]:
        scale = clamped_logit_scale(self.log_logit_scale.double(), 1.0, LARGEST_SCALE)
        return (contrastive_loss(*self.embed(points, pixels), scale, point_ids, pixel_ids),)


def contrastive_cases(world_size: int) -> list[tuple[list[int], float]]:
    """Pairs of each rank, and the logarithm of the logit scale: inside its bounds, and beyond the upper one."""
    uneven = [3 + 4 * r for r in range(world_size)]
    return [(uneven, 2.6), ([0] + [6] * (world_size - 1), 2.6), (uneven, 4.7), ([0] * world_size, 2.6)]


def contrastive_inputs(counts: list[int]) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(sum(counts))

    def of_rank(count: int) -> tuple[Tensor, ...]:
        rows = torch.randn(2, count, 6, generator=generator, dtype=torch.float64)
        ids = torch.randint(0, max(count - 1, 1), (2, count), generator=generator)
        return *rows, *ids

    return [of_rank(count) for count in counts]


def contrastive_reference(module: TinyTowers, parts: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Loss and gradients of one process with the whole matrix, by autograd alone."""
    points, pixels, point_ids, pixel_ids = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not len(points):
        return [torch.zeros(()), *(torch.zeros_like(p) for p in module.parameters())]
    rank_of_row = torch.cat([torch.full((len(part[0]),), r) for r, part in enumerate(parts)])
    points, pixels = module.embed(points, pixels)
    scale = module.log_logit_scale.detach().double().exp().clamp(max=LARGEST_SCALE).requires_grad_()
    logits = scale * points @ pixels.T
    same_point, same_pixel, same_rank = (i[:, None] == i[None] for i in (point_ids, pixel_ids, rank_of_row))
    duplicates = (same_point | same_pixel) & same_rank & ~torch.eye(len(points), dtype=torch.bool)
    logits = logits.masked_fill(duplicates, -torch.inf)
    own = torch.arange(len(points))
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    *towers, grad_scale = torch.autograd.grad(loss, (module.point_weight, module.pixel_weight, scale))
    stuck = (scale >= LARGEST_SCALE) & (grad_scale < 0)  # a descent step would lead further out
    return [loss.detach(), *towers, torch.where(stuck, 0.0, grad_scale * scale.detach())]


def contrastive_errors(stage: int, rank: int, world_size: int) -> list[list[float]]:
    """Per case, of the loss and of each averaged gradient, relative to its largest entry (at least 1)."""
    from deepspeed.utils import safe_get_full_grad

    from t4p.distributed import all_reduce_sum
    from t4p.train.engine import Engine

    errors = []
    for counts, log_logit_scale in contrastive_cases(world_size):
        parts = contrastive_inputs(counts)
        wanted = contrastive_reference(TinyTowers(log_logit_scale), parts)
        module = TinyTowers(log_logit_scale)
        plan = PLANS["sgd"]
        engine = Engine(module, plan.engine_settings(stage), world_size, build_optimizer=plan.build_optimizer)
        (loss,) = engine.forward(*parts[rank])
        engine.backward(loss)
        gradients = [safe_get_full_grad(parameter) for parameter in module.parameters()]
        found = [all_reduce_sum(loss.detach().clone()) / world_size, *gradients]
        sizes = [max(1.0, value.abs().max().item()) for value in wanted]
        errors.append([largest_difference(f, w) / s for f, w, s in zip(found, wanted, sizes, strict=True)])
    return errors


# --- weights that are not finite ----------------------------------------------------------------------------------


def save_poisoned(stage: int, rank: int, world_size: int, checkpoints: Path) -> str:
    """Save where one number of rank 1's own part of the weights is nan; what is told on this rank."""
    from t4p.distributed import all_reduce_sum, barrier
    from t4p.errors import NotFiniteError
    from t4p.runs.checkpoint import CheckpointState
    from t4p.train.engine import Engine
    from t4p.train.loop import save_checkpoint

    plan = PLANS["adamw"]
    engine = Engine(TinyTowers(2.6), plan.engine_settings(stage), world_size, build_optimizer=plan.build_optimizer)
    (loss,) = engine.forward(*contrastive_inputs([6] * world_size)[rank])
    engine.backward(loss)
    engine.step(0.1)
    finite = int(all_reduce_sum(torch.tensor(int(engine.is_finite()))))
    assert finite == world_size
    if rank == 1:
        part = next(part for part in engine._optimizer.state if part.numel())
        with torch.no_grad():
            part.view(-1)[-1] = math.nan
        assert not engine.is_finite()
    state = CheckpointState(1, world_size, {"train": {"resume": "auto", "zero_stage": stage}}, (), "", {})
    try:
        save_checkpoint(engine, checkpoints, state, keep=1)
    except NotFiniteError as error:
        return str(error)
    finally:
        barrier()
    return ""


# --- planted bugs -------------------------------------------------------------------------------------------------


def plant_bugs(stage: int, data: Data, reference: dict) -> dict:
    """What the comparison of SGD finds when the code is broken on purpose."""
    import t4p.losses.contrastive as contrastive
    import t4p.train.engine as engine_module

    plan = PLANS["sgd"]
    own_statistics = replace(plan, overrides=("model.norm=batch",))
    found = {"batch_norm_of_each_rank_alone": train_under_deepspeed(stage, own_statistics, data, reference)}
    unscaled = property(lambda layout: 0.5 / max(sum(layout.num_pairs), 1))
    with patch.object(contrastive.Layout, "weight", unscaled):
        found["loss_not_scaled_by_world_size"] = train_under_deepspeed(stage, plan, data, reference)
    if stage == 3:
        # Last, because the process group is of no use afterwards.
        with patch.object(engine_module, "_require_gradients", lambda module, inputs: inputs):
            try:
                found["leaf_inputs_without_gradient"] = train_under_deepspeed(stage, plan, data, reference)
            except RuntimeError as error:
                found["leaf_inputs_without_gradient"] = str(error)
    return found


# --- workers ------------------------------------------------------------------------------------------------------


def run_worker(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    import t4p.train.engine as engine_module
    from t4p.distributed import barrier

    # So that a module this small has several buckets, and parameters that are cut in parts at stage 3.
    engine_module.BUCKET_SIZE, engine_module.STAGE_3_WHOLE_BELOW = 20_000, 100
    data = Data()
    if world_size == 2:
        for name in sorted(set(REFERENCES.values()))[rank::2]:
            torch.save(train_in_one_process(PLANS[name], data), folder / f"{name}.pt")
    engine_module.start_process_group(PATIENCE)
    barrier()
    report: dict = {"contrastive": [contrastive_errors(stage, rank, world_size) for stage in STAGES]}
    if world_size == 2:
        for stage in STAGES:
            (folder / f"poisoned-{stage}").mkdir(exist_ok=True)
        report["poisoned"] = [
            save_poisoned(stage, rank, world_size, folder / f"poisoned-{stage}" / "checkpoints") for stage in STAGES
        ]
        report["written"] = [str(path) for path in folder.glob("poisoned-*/checkpoints")]
        references = {name: torch.load(folder / f"{name}.pt") for name in set(REFERENCES.values())}
        report["stages"] = [
            {name: train_under_deepspeed(stage, PLANS[name], data, references[REFERENCES[name]]) for name in PLANS}
            for stage in STAGES
        ]
        report["bugs"] = {stage: plant_bugs(stage, data, references["sgd"]) for stage in (1, 3)}
    write_report(folder, rank, world_size, report)
    # A few processes in a hundred abort while the interpreter takes DeepSpeed's stage 3 down, after all work was done.
    os._exit(0)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """By world size, what every rank found."""
    folder = tmp_path_factory.mktemp("engine_ranks")
    return {world_size: run_ranks(__file__, world_size, folder, timeout=900) for world_size in (2, 3)}


@pytest.fixture(params=(2, 3))
def reports(request: pytest.FixtureRequest, worlds: dict[int, list[dict]]) -> list[dict]:
    """What every rank of one world found."""
    return worlds[request.param]


@pytest.fixture(params=STAGES)
def found(request: pytest.FixtureRequest, worlds: dict[int, list[dict]]) -> list[dict]:
    """What both ranks found at one stage."""
    return [report["stages"][request.param] for report in worlds[2]]


def equals_one_process(errors: dict) -> bool:
    """The check that the real code passes and every planted bug must fail."""
    return max(*errors["losses"], errors["parameters"], errors["buffers"]) < 1e-5 and errors["norms"] < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_the_contrastive_loss_and_all_its_gradients_equal_one_process_with_all_pairs(reports, stage):
    for report in reports:
        for loss, *gradients in report["contrastive"][stage]:
            assert loss < 1e-9
            assert max(gradients) < 1e-6  # DeepSpeed's gradients are float32


def test_sgd_equals_one_process_also_where_a_rank_has_no_voxel(found):
    for errors in found:
        assert equals_one_process(errors["sgd"]), errors["sgd"]


def test_adamw_equals_one_process(found):
    for errors in found:
        relative = [e / wanted for e, wanted in zip(*(errors["adamw"][k] for k in ("losses", "wanted")), strict=True)]
        assert relative[0] < 1e-6
        assert relative[10] < 1e-3
        # 11 steps of length 1e-3, whatever the gradient: where it is rounding some of them go to the other side.
        assert errors["adamw"]["parameters"] < 4e-3


def test_accumulated_and_clipped_gradients_equal_their_definition_in_one_process(found):
    for errors in found:
        assert errors["accumulated"]["smallest_norm"] > 10 * PLANS["accumulated"].gradient_clipping
        assert equals_one_process(errors["accumulated"]), errors["accumulated"]


def test_bf16_stays_near_fp32_in_one_process(found):
    for errors in found:
        assert 1e-5 < max(errors["bf16"]["losses"]) < 2e-2  # of losses of 10 to 13
        assert errors["bf16"]["parameters"] < 1e-2
        assert errors["bf16"]["buffers"] < 1e-2


def test_activation_checkpointing_changes_nothing(found):
    for errors in found:
        assert equals_one_process(errors["checkpointed"]), errors["checkpointed"]


def test_l_e_alone_on_balanced_pairs_equals_one_process(found):
    for errors in found:
        assert equals_one_process(errors["only_e"]), errors["only_e"]


def test_validation_sees_the_whole_module_whatever_number_of_frames_a_rank_has(found):
    for errors in found:
        before, after = errors["sgd"]["embedded"]
        assert before < 1e-6
        assert after < 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_weights_that_are_not_finite_on_one_rank_are_saved_by_none(worlds, stage):
    for report in worlds[2]:
        assert report["poisoned"][stage].startswith("step 1: the weights or their optimizer are not finite after it; ")
        assert report["written"] == []


@pytest.mark.parametrize("bug", ["batch_norm_of_each_rank_alone", "loss_not_scaled_by_world_size"])
def test_the_check_rejects_a_planted_bug(worlds, bug):
    for report in worlds[2]:
        for stage in (1, 3):
            assert not equals_one_process(report["bugs"][stage][bug])


def test_a_leaf_whose_inputs_have_no_gradient_fails_instead_of_training_something_else(worlds):
    for report in worlds[2]:
        assert "size" in report["bugs"][3]["leaf_inputs_without_gradient"]


if __name__ == "__main__":
    run_worker(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(sys.argv[1]))
