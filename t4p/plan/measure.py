"""What one rank's forward and backward pass holds in memory, measured by running the real network on one frame.

The network runs on the CPU with an empty batch and with one frame; a micro-batch of n frames is the empty one plus n
times the difference. Only two things depend on the world size, the gathered embeddings of the losses and the
statistics of the norms, and the loss's part is arithmetic (t4p/plan/pairs.py), the norms' is too small to matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

import torch  # noqa: TID253 - commands/main.py imports this module inside its command
from torch import Tensor, nn  # noqa: TID253

from t4p.config.tasks import LossConfig, PretrainConfig
from t4p.data.batch import Batch, PairRecipe
from t4p.data.sample import SampleSettings
from t4p.losses.contrastive_tiles import COLUMN_CHUNK, ROW_CHUNK
from t4p.models.clip import ClipTowers
from t4p.models.norm import RowBatchNorm
from t4p.models.sparse.native_functions import widest_turns_only
from t4p.models.zeros import with_zeros
from t4p.plan.live_memory import SizesOnly
from t4p.tasks.pretrain import PretrainModule, PretrainTask
from t4p.train.parameter_groups import GroupSettings, parameter_groups


class Ends(NamedTuple):
    """Distinct points and pixels of the pairs of a loss."""

    points: int
    pixels: int

    def times(self, num_frames: int) -> Ends:
        return Ends(num_frames * self.points, num_frames * self.pixels)


NO_ENDS = Ends(0, 0)  # of a task whose losses are no tiles


@dataclass(frozen=True)
class PassBytes:
    """Bytes alive in one pass over a micro-batch, beside what the engine holds: the highest of each part of it.

    Attributes:
        batch: the batch itself, on the device.
        tower: while the frozen tower looks at the images.
        forward: while the network computes the features of voxels and pixels.
        loss: from there to the first gradient of a parameter: the losses' forward pass, and the backward of the last.
        tiles: the part of it that is the tiles of that loss's logits, which do not grow with the frames for ever.
        backward: from the first gradient on, without gradients of parameters.
        gradients: gradients of parameters, alive when that is highest.
        kept: alive after the backward pass: the loss's graph holds the kernel maps until the next one replaces it.
    """

    batch: int
    tower: int
    forward: int
    loss: int
    tiles: int
    backward: int
    gradients: int
    kept: int

    @property
    def activations(self) -> int:
        """The highest of all parts."""
        return max(self.forward, self.loss, self.backward)


def tile_bytes(ends: Ends) -> int:
    """Two buffers of logits in fp32, for one tile of that many points and pixels of a rank or fewer."""
    return 2 * 4 * min(ends.points, ROW_CHUNK) * min(ends.pixels, COLUMN_CHUNK)


@dataclass(frozen=True, eq=False)
class NetworkFigures:
    """What is known of the network once it has run.

    Attributes:
        groups: numels of the parameters in the groups of the optimizer.
        buffer_bytes: running statistics.
        tower_weight_bytes: both frozen towers.
        tiled: ends of the frame's pairs whose loss is computed last: L_d's, or L_e's where L_d has no weight.
        norm_channels: channels of every norm whose statistics can be synchronised, in no order.
        empty, one_frame: passes over no frame and over one.
    """

    groups: tuple[tuple[int, ...], ...]
    buffer_bytes: int
    tower_weight_bytes: int
    tiled: Ends
    norm_channels: tuple[int, ...]
    empty: PassBytes
    one_frame: PassBytes

    def of_frames(self, num_frames: int) -> PassBytes:
        """A pass over so many frames like the one: the empty pass and so many times what the frame added to it."""
        empty, one = self.empty, self.one_frame

        def scaled(without_frame: int, with_frame: int) -> int:
            return without_frame + num_frames * (with_frame - without_frame)

        tiles = tile_bytes(self.tiled.times(num_frames))
        return PassBytes(
            batch=scaled(empty.batch, one.batch),
            tower=scaled(empty.tower, one.tower),
            forward=scaled(empty.forward, one.forward),
            loss=scaled(empty.loss, one.loss - one.tiles) + tiles,
            tiles=tiles,
            backward=scaled(empty.backward, one.backward),
            gradients=one.gradients,
            kept=scaled(empty.kept, one.kept),
        )


def frozen_part(config: PretrainConfig, towers: ClipTowers) -> PretrainTask:
    """What stands beside the network. The text tower sees zeros: multiplying what nobody reads takes a second."""
    with SizesOnly():
        return PretrainTask(towers, config.model, torch.device("cpu"), None, config.train.precision)


def measure_network(
    config: PretrainConfig, towers: ClipTowers, task: PretrainTask, settings: SampleSettings, frame: Batch
) -> NetworkFigures:
    """Run the network of a configuration on one frame, forward and backward, on the CPU.

    Args:
        task: frozen_part of the same towers.
        frame: a batch of one.
    """
    module = with_zeros(lambda: PretrainModule(config.model, config.loss, towers.embed_dim))
    precision = torch.bfloat16 if config.train.precision == "bf16" else None
    ends_e, ends_d = drawn_ends(config.loss, frame)
    tiled = ends_d if config.loss.weight_d else ends_e
    last_called = module.net if module.untrained else module.decoder2d
    return measure_module(
        module,
        GroupSettings(undecayed=module.untrained),
        last_called,
        task.inputs,
        PairRecipe(settings).join([]),
        frame,
        towers,
        precision,
        tiled,
    )


def measure_module(
    module: nn.Module,
    settings: GroupSettings,
    last_called: nn.Module,
    inputs_of: Callable[[Any], tuple[Tensor, ...]],
    nothing: Any,
    frame: Any,
    towers: ClipTowers,
    precision: torch.dtype | None,
    tiled: Ends = NO_ENDS,
) -> NetworkFigures:
    """Run any module of a task on nothing and on one frame, forward and backward, on the CPU.

    Args:
        settings: how the optimizer groups its parameters.
        last_called: the part of it whose result ends what is counted as `forward`.
        inputs_of: what the module takes of a batch.
        nothing, frame: batches of no sample and of one.
        towers: that stand beside it.
        precision: of autocast; None for none.
        tiled: as in NetworkFigures.
    """
    groups, _ = parameter_groups(module.train(), 0.0, settings)
    norms = [part for part in module.modules() if isinstance(part, RowBatchNorm) and part.training]
    return NetworkFigures(
        groups=tuple(tuple(parameter.numel() for parameter in group["params"]) for group in groups),
        buffer_bytes=_size(module.buffers()),
        tower_weight_bytes=_size([*towers.parameters(), *towers.buffers()]),
        tiled=tiled,
        norm_channels=tuple(norm.num_features for norm in norms),
        empty=_measure_pass(module, last_called, inputs_of, nothing, precision, NO_ENDS),
        one_frame=_measure_pass(module, last_called, inputs_of, frame, precision, tiled),
    )


def drawn_pairs(loss: LossConfig, frame: Batch) -> tuple[int, int]:
    """Pairs of L_e and of L_d that a frame gives to the losses."""
    return min(len(frame.voxel_of_pair_e), loss.num_pairs_e), len(frame.voxel_of_pair_d) if loss.weight_d else 0


def drawn_ends(loss: LossConfig, frame: Batch) -> tuple[Ends, Ends]:
    """Distinct ends of the pairs of L_e and of L_d that a frame gives to the losses; of L_e, where the losses draw them
    by the features of the image, the most there can be."""
    counts = drawn_pairs(loss, frame)
    ends = [
        Ends(*(min(count, len(end.unique())) for end in ends))
        for count, ends in zip(
            counts,
            (
                (frame.voxel_of_pair_e, frame.cell_of_pair_e),
                (frame.voxel_of_pair_d, frame.pixel_of_pair_d),
            ),
            strict=True,
        )
    ]
    return ends[0], ends[1]


def _measure_pass(
    module: nn.Module,
    last_called: nn.Module,
    inputs_of: Callable[[Any], tuple[Tensor, ...]],
    batch: Any,
    autocast: torch.dtype | None,
    tiled: Ends,
) -> PassBytes:
    module.train()
    module.zero_grad(set_to_none=True)
    with widest_turns_only(), SizesOnly() as live:
        moments = []
        hook = last_called.register_forward_hook(lambda *_: moments.append(live.now))
        inputs = inputs_of(batch)
        inputs_ready = live.now
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            loss = module(*inputs)[0]
        loss.backward()
        hook.remove()
    everything = live.timeline()
    gradients = live.timeline(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
    beside = everything - gradients
    (features_ready,) = moments
    first_gradient = int((gradients > 0).argmax())
    highest = first_gradient + int(beside[first_gradient:].argmax())
    return PassBytes(
        batch=_size(_tensors_of(batch)),
        tower=int(everything[: inputs_ready + 1].max()),
        forward=int(beside[inputs_ready : features_ready + 1].max()),
        loss=int(beside[features_ready : first_gradient + 1].max()),
        tiles=tile_bytes(tiled),
        backward=int(beside[highest]),
        gradients=int(gradients[highest]),
        kept=int(beside[-1] - live.timeline(inputs)[-1]),
    )


def _tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors of a batch and of the batches in it."""
    for value in vars(batch).values():
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors_of(value)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
