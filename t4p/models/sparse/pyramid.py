"""The sparse-tensor interface: voxels at several resolutions and the convolutions between them."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from t4p.models.sparse.coordinates import check_canonical

SparseBackend = Literal["auto", "native", "minkowski"]


class SparsePyramid(Protocol):
    """Voxels at num_levels resolutions, each half the one before, with convolutions on plain feature tensors.

    Rows of every level are in canonical order, ascending (batch, x, y, z), for every backend; features are (V_l, C)
    tensors in that order. Weights have the same layout for every backend: (kernel offsets, Cin, Cout), offsets in
    z, y, x order with x fastest, index (dz * K + dy) * K + dx, as in MinkowskiEngine. Every operation is a
    cross-correlation, differentiable in features and weight.
    """

    @property
    def backend(self) -> SparseBackend:
        """That a pyramid of other voxels beside this one is built with."""
        ...

    @property
    def num_levels(self) -> int:
        """Resolutions, the input's included: 4 strides make 5 levels."""
        ...

    def coords(self, level: int) -> Tensor:
        """(V_l, 4) int32, batch first, in cells of that level: floor(input coordinate / 2^level)."""
        ...

    def conv(self, features: Tensor, weight: Tensor, level: int) -> Tensor:
        """Submanifold convolution: outputs at the level's own voxels only, absent neighbours count as 0.

        Args:
            features: (V_l, Cin).
            weight: (K^3, Cin, Cout), K odd.
            level: 0 .. num_levels - 1.

        Returns:
            (V_l, Cout).

        Raises:
            ValueError: level, rows or channels do not fit.
        """
        ...

    def downsample(self, features: Tensor, weight: Tensor, level: int) -> Tensor:
        """Kernel 2, stride 2: features (V_l, Cin), weight (8, Cin, Cout) to (V_{l+1}, Cout)."""
        ...

    def upsample(self, features: Tensor, weight: Tensor, level: int) -> Tensor:
        """Transposed kernel 2, stride 2, onto the existing voxels: (V_l, Cin), (8, Cin, Cout) to (V_{l-1}, Cout)."""
        ...


def require_backend(backend: SparseBackend) -> None:
    """Check that a backend is installed.

    Raises:
        ImportError: it is not; says how to install it.
    """
    if backend == "minkowski":
        from t4p.models.sparse.minkowski import load_minkowski_engine

        load_minkowski_engine()


def build_pyramid(backend: SparseBackend, voxel_coords: Tensor, num_levels: int) -> SparsePyramid:
    """Build the coordinates of every level; kernel maps follow on first use and are kept.

    Args:
        backend: "native" (plain torch, any device, any float type), "minkowski" (MinkowskiEngine: CPU, float32, an
            optional package), or "auto", which is native everywhere: it needs nothing, runs on every device, holds
            empty batches and any float type, and was as fast on one thread (benchmarks/bench_sparse.py).
        voxel_coords: (V, 4) int32 (batch, x, y, z), unique, in canonical order; negative x, y, z are welcome. V may
            be 0: such a pyramid is native whatever the backend, because MinkowskiEngine fails without voxels and a
            rank without any must still enter every collective with every weight.
        num_levels: resolutions, at least 1.

    Raises:
        ValueError: an unknown backend, num_levels below 1, or coordinates that are not canonical.
        ImportError: backend is "minkowski" and MinkowskiEngine is missing; says how to install it.
    """
    if num_levels < 1:
        raise ValueError(f"num_levels is {num_levels}; wanted at least 1")
    check_canonical(voxel_coords)
    if backend in ("auto", "native") or (backend == "minkowski" and len(voxel_coords) == 0):
        from t4p.models.sparse.native import NativePyramid

        return NativePyramid(voxel_coords, num_levels)
    if backend == "minkowski":
        from t4p.models.sparse.minkowski import MinkowskiPyramid

        return MinkowskiPyramid(voxel_coords, num_levels)
    raise ValueError(f"unknown sparse backend {backend!r}; choose auto, native or minkowski")
