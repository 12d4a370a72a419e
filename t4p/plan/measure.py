"""What one rank's forward and backward pass holds in memory, measured by running the real network on one frame.

The network runs on the CPU with an empty batch and with one frame; a micro-batch of n frames is the empty one plus n
times the difference. Only two things depend on the world size, the gathered embeddings of the losses and the
statistics of the norms, and the loss's part is arithmetic (t4p/plan/pairs.py), the norms' is too small to matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch  # noqa: TID253 - t4p/cli.py imports this module inside its command
from torch import Tensor  # noqa: TID253

from t4p.config import PretrainConfig
from t4p.data.batch import Batch
from t4p.data.sample import FrameSample, SampleSettings
from t4p.data.stream import join
from t4p.models.clip import ClipTowers
from t4p.models.norm import RowBatchNorm
from t4p.plan.live_memory import LiveMemory
from t4p.tasks.pretrain import PretrainModule, PretrainTask


@dataclass(frozen=True)
class PassBytes:
    """Bytes alive in one pass over a micro-batch, beside what the engine holds.

    Attributes:
        batch: the batch itself, on the device.
        tower: the highest while the frozen tower looks at the images.
        activations: the highest of forward and backward pass, without gradients of parameters.
        gradients: of parameters, alive at that moment.
        kept: alive after the backward pass: the loss's graph holds the kernel maps until the next one replaces it.
    """

    batch: int
    tower: int
    activations: int
    gradients: int
    kept: int

    def of_frames(self, one_frame: PassBytes, num_frames: int) -> PassBytes:
        """The same of a micro-batch of so many frames like the one; self is the empty one."""
        values = {
            field.name: getattr(self, field.name)
            + num_frames * (getattr(one_frame, field.name) - getattr(self, field.name))
            for field in fields(self)
        }
        return PassBytes(**values)


@dataclass(frozen=True, eq=False)
class NetworkFigures:
    """What is known of the network once it has run.

    Attributes:
        groups: numels of the parameters in the groups of the optimizer: those that decay, those that do not.
        buffer_bytes: running statistics.
        tower_weight_bytes: both frozen towers.
        norm_channels: of every norm whose statistics can be synchronised, in no order.
        empty, one_frame: passes over no frame and over one.
    """

    groups: tuple[tuple[int, ...], ...]
    buffer_bytes: int
    tower_weight_bytes: int
    norm_channels: tuple[int, ...]
    empty: PassBytes
    one_frame: PassBytes

    def of_frames(self, num_frames: int) -> PassBytes:
        """A pass over so many frames."""
        return self.empty.of_frames(self.one_frame, num_frames)


def measure_network(
    config: PretrainConfig, towers: ClipTowers, settings: SampleSettings, sample: FrameSample
) -> NetworkFigures:
    """Run the network of a configuration on one frame, forward and backward, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        module = PretrainModule(config.model, config.loss, towers.embed_dim)
    task = PretrainTask(towers, config.model, torch.device("cpu"), None)
    precision = torch.bfloat16 if config.train.precision == "bf16" else None
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return NetworkFigures(
        groups=(
            tuple(parameter.numel() for parameter in parameters if parameter.ndim >= 2),
            tuple(parameter.numel() for parameter in parameters if parameter.ndim < 2),
        ),
        buffer_bytes=_size(module.buffers()),
        tower_weight_bytes=_size([*towers.parameters(), *towers.buffers()]),
        norm_channels=tuple(part.num_features for part in module.modules() if isinstance(part, RowBatchNorm)),
        empty=_measure_pass(module, task, join([], settings), precision),
        one_frame=_measure_pass(module, task, join([sample], settings), precision),
    )


def _measure_pass(module: PretrainModule, task: PretrainTask, batch: Batch, autocast: torch.dtype | None) -> PassBytes:
    module.train()
    module.zero_grad(set_to_none=True)
    with LiveMemory() as live:
        inputs = task.inputs(batch)
        inputs_ready = live.now
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            loss = module(*inputs)[0]
        loss.backward()
    everything = live.timeline()
    gradients = live.timeline(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
    beside_gradients = everything - gradients
    highest = int(beside_gradients[inputs_ready:].argmax()) + inputs_ready
    return PassBytes(
        batch=_size(value for value in vars(batch).values() if isinstance(value, Tensor)),
        tower=int(everything[: inputs_ready + 1].max()),
        activations=int(beside_gradients[highest]),
        gradients=int(gradients[highest]),
        kept=int(beside_gradients[-1] - live.timeline(inputs)[-1]),
    )


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
