"""The named widths and depths of the U-Net, and what a configuration makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t4p.config.network import UNetConfig


@dataclass(frozen=True)
class UNetPlan:
    """Widths and depths of a SparseUNet.

    Attributes:
        stem_channels: width of the stem, at full resolution.
        stem_kernel_size: odd.
        encoder_channels, encoder_blocks: per stride, finest first; the last entry is the bottleneck.
        decoder_channels, decoder_blocks: per stride, coarsest first; the last entry is at full resolution.

    Raises:
        ValueError: lengths differ, or a number is not positive (odd for the stem's kernel).
    """

    stem_channels: int
    stem_kernel_size: int
    encoder_channels: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_channels: tuple[int, ...]
    decoder_blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        per_stride = (self.encoder_channels, self.encoder_blocks, self.decoder_channels, self.decoder_blocks)
        lengths = [len(values) for values in per_stride]
        if len(set(lengths)) != 1 or lengths[0] == 0:
            raise ValueError(
                f"encoder_channels, encoder_blocks, decoder_channels, decoder_blocks have {lengths} entries; wanted "
                "the same number, one per stride, at least one"
            )
        if min(self.stem_channels, *(min(values) for values in per_stride)) < 1:
            raise ValueError(f"{self}: every width and block count must be at least 1")
        if self.stem_kernel_size < 1 or self.stem_kernel_size % 2 == 0:
            raise ValueError(f"stem_kernel_size is {self.stem_kernel_size}; wanted an odd number, 5 or 3")

    @property
    def num_strides(self) -> int:
        return len(self.encoder_channels)

    def truncated(self, num_strides: int) -> UNetPlan:
        """The same network with only its finest strides: the bottleneck is at voxel size x 2^num_strides.

        Raises:
            ValueError: num_strides is not in 1 .. self.num_strides.
        """
        if not 1 <= num_strides <= self.num_strides:
            raise ValueError(f"num_strides is {num_strides}; this plan can be cut to 1 .. {self.num_strides}")
        return replace(
            self,
            encoder_channels=self.encoder_channels[:num_strides],
            encoder_blocks=self.encoder_blocks[:num_strides],
            decoder_channels=self.decoder_channels[-num_strides:],
            decoder_blocks=self.decoder_blocks[-num_strides:],
        )


def _plan(blocks: tuple[int, ...], decoder_channels: tuple[int, ...]) -> UNetPlan:
    return UNetPlan(32, 5, (32, 64, 128, 256), blocks[:4], decoder_channels, blocks[4:])


_BLOCKS_14 = (1, 1, 1, 1, 1, 1, 1, 1)
_BLOCKS_18 = (2, 2, 2, 2, 2, 2, 2, 2)
_BLOCKS_34 = (2, 3, 4, 6, 2, 2, 2, 2)

# Widths and depths of MinkowskiEngine's examples (MinkUNet14A is Res16UNet14A without its final linear layer).
PLANS: Mapping[str, UNetPlan] = MappingProxyType(
    {
        "Res16UNet14A": _plan(_BLOCKS_14, (128, 128, 96, 96)),
        "Res16UNet14B": _plan(_BLOCKS_14, (128, 128, 128, 128)),
        "Res16UNet14C": _plan(_BLOCKS_14, (192, 192, 128, 128)),
        "Res16UNet14D": _plan(_BLOCKS_14, (384, 384, 384, 384)),
        "Res16UNet18A": _plan(_BLOCKS_18, (128, 128, 96, 96)),
        "Res16UNet18B": _plan(_BLOCKS_18, (128, 128, 128, 128)),
        "Res16UNet18D": _plan(_BLOCKS_18, (384, 384, 384, 384)),
        "Res16UNet34A": _plan(_BLOCKS_34, (256, 128, 64, 64)),
        "Res16UNet34B": _plan(_BLOCKS_34, (256, 128, 64, 32)),
        "Res16UNet34C": _plan(_BLOCKS_34, (256, 128, 96, 96)),
    }
)


def norm_channels(plan: UNetPlan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels of all norms of a stage together: of the stem and each encoder stage, and of each decoder stage."""
    widths = (plan.stem_channels, *plan.encoder_channels)
    encoder = [
        below + channels * (2 * num_blocks + (below != channels))
        for below, channels, num_blocks in zip(widths, plan.encoder_channels, plan.encoder_blocks, strict=False)
    ]
    decoder = [  # its first block always projects: the skip makes it wider
        channels * (2 * num_blocks + 2)
        for channels, num_blocks in zip(plan.decoder_channels, plan.decoder_blocks, strict=True)
    ]
    return (plan.stem_channels, *encoder), tuple(decoder)


def build_plan(unet: UNetConfig) -> UNetPlan:
    """The named plan, cut to the wanted strides, with what the configuration sets in its place.

    Raises:
        ValueError: the name is unknown, or the lists do not fit together.
    """
    if unet.plan not in PLANS:
        raise ValueError(f"plan is {unet.plan!r}; known: {', '.join(PLANS)}")
    given = unet.model_dump(exclude={"plan", "num_strides", "activation_checkpointing"}, exclude_none=True)
    return replace(PLANS[unet.plan].truncated(unet.num_strides), **given)
