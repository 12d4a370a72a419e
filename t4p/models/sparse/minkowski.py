"""The minkowski backend of the sparse pyramid; the only file that imports MinkowskiEngine."""

from __future__ import annotations

import collections
import collections.abc
import warnings
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from t4p.models.sparse.coordinates import halve_coords
from t4p.models.sparse.operands import check_level, check_operands, check_strided_weight, odd_kernel_size
from t4p.models.sparse.pyramid import SparseBackend


@cache
def load_minkowski_engine() -> ModuleType:
    """Import MinkowskiEngine 0.5.4, which still uses an alias that Python 3.10 removed.

    Raises:
        ImportError: the package is missing or broken; says how to build it.
    """
    added_alias = not hasattr(collections, "Sequence")
    if added_alias:
        collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it is CPU-only and, at random sites, of old escapes
            import MinkowskiEngine
    except ImportError as error:
        raise ImportError(
            f"the minkowski backend needs MinkowskiEngine 0.5.4, which does not import ({error}); run `make env`, or "
            "build the extra by hand: apt-get install libopenblas-dev, then SETUPTOOLS_USE_DISTUTILS=stdlib pip "
            'install --no-build-isolation --no-cache-dir "text4point[minkowski]"; or use the native backend, which '
            "needs nothing"
        ) from error
    finally:
        if added_alias:
            del collections.Sequence  # type: ignore[attr-defined]
    return MinkowskiEngine


class MinkowskiPyramid:
    """SparsePyramid on MinkowskiEngine, for comparison with what the field uses: CPU, float32 only.

    A float32 island: autocast is off inside, half-precision inputs are converted, results are float32. Its own
    coarse coordinates are repeatable but not sorted, so the canonical coordinates of every level are inserted into
    its coordinate manager and every convolution is told its output coordinates. Works on the raw convolution
    functions: a SparseTensor with a gradient cannot be used in two backward passes, these can with retain_graph.
    """

    def __init__(self, voxel_coords: Tensor, num_levels: int) -> None:
        """voxel_coords: (V, 4) int32, checked to be canonical (build_pyramid does).

        Raises:
            ImportError: MinkowskiEngine is missing.
            ValueError: no voxels (MinkowskiEngine fails on them), or coordinates that are not on the CPU.
        """
        self._engine = load_minkowski_engine()
        from MinkowskiEngineBackend._C import ConvolutionMode  # not in its package

        self._convolution_mode = ConvolutionMode.DEFAULT
        if voxel_coords.device.type != "cpu":
            raise ValueError(
                f"voxel_coords are on {voxel_coords.device} but the minkowski backend runs on the CPU (its CUDA "
                "sources do not compile with CUDA 12 or 13); use the native backend"
            )
        if len(voxel_coords) == 0:
            raise ValueError("no voxels: the minkowski backend cannot hold an empty batch; use the native backend")
        self._coords = [voxel_coords]
        for _ in range(num_levels - 1):
            self._coords.append(halve_coords(self._coords[-1])[0])
        # Its default, all cores, is set for the whole process and would undo torch.set_num_threads.
        self._manager = self._engine.CoordinateManager(D=3, num_threads=torch.get_num_threads())
        self._keys = [self._insert(level) for level in range(num_levels)]

    def _insert(self, level: int) -> Any:
        stride = 2**level
        coords = self._coords[level].clone()
        coords[:, 1:] *= stride
        key, _ = self._manager.insert_and_map(coords, tensor_stride=stride)
        if not torch.equal(self._manager.get_coordinates(key), coords):
            raise RuntimeError(f"MinkowskiEngine reordered the coordinates of level {level}; wanted them as inserted")
        return key

    @property
    def backend(self) -> SparseBackend:
        return "minkowski"

    @property
    def num_levels(self) -> int:
        return len(self._coords)

    def coords(self, level: int) -> Tensor:
        check_level(level, 0, self.num_levels - 1, "coords")
        return self._coords[level]

    def conv(self, features: Tensor, weight: Tensor, level: int) -> Tensor:
        check_level(level, 0, self.num_levels - 1, "conv")
        check_operands(features, weight, len(self._coords[level]), level)
        kernel_size = odd_kernel_size(weight)
        function = self._engine.MinkowskiConvolutionFunction
        return self._apply(function, features, weight, kernel_size, 1, level, level)

    def downsample(self, features: Tensor, weight: Tensor, level: int) -> Tensor:
        check_level(level, 0, self.num_levels - 2, "downsample")
        check_strided_weight(weight)
        check_operands(features, weight, len(self._coords[level]), level)
        function = self._engine.MinkowskiConvolutionFunction
        return self._apply(function, features, weight, 2, 2, level, level + 1)

    def upsample(self, features: Tensor, weight: Tensor, level: int) -> Tensor:
        check_level(level, 1, self.num_levels - 1, "upsample")
        check_strided_weight(weight)
        check_operands(features, weight, len(self._coords[level]), level)
        function = self._engine.MinkowskiConvolutionTransposeFunction
        return self._apply(function, features, weight, 2, 2, level, level - 1)

    def _apply(
        self, function: Any, features: Tensor, weight: Tensor, kernel_size: int, stride: int, source: int, target: int
    ) -> Tensor:
        if torch.float64 in (features.dtype, weight.dtype):
            raise ValueError(
                f"features are {features.dtype} and the weight {weight.dtype}, but the minkowski backend computes in "
                "float32; convert them, or use the native backend"
            )
        if kernel_size == 1:
            with torch.autocast("cpu", enabled=False):
                return features.float() @ weight[0].float()
        generator = self._engine.KernelGenerator(kernel_size=kernel_size, stride=stride, dimension=3)
        with torch.autocast("cpu", enabled=False):
            return _SavedTensors.apply(
                features.float(),
                weight.float(),
                function,
                generator,
                self._convolution_mode,
                self._keys[source],
                self._keys[target],
                self._manager,
            )


class _SavedTensors(Function):
    """A function of MinkowskiEngine whose tensors are saved as torch wants it.

    Its own hang on the graph as plain attributes, where torch's hooks for saved tensors never see them: activation
    checkpointing would keep every one of them. So the attributes are put on a stand-in for its context.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, function: Any, *arguments: Any) -> Tensor:
        stand_in = SimpleNamespace()
        output = function.forward(stand_in, features, weight, *arguments)
        ctx.save_for_backward(stand_in.input_features, stand_in.kernel_weights)
        ctx.function, ctx.misc = function, stand_in.misc
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        stand_in = SimpleNamespace(input_features=features, kernel_weights=weight, misc=ctx.misc)
        grad_features, grad_weight, *nothing = ctx.function.backward(stand_in, gradient)
        return grad_features, grad_weight, None, *nothing
