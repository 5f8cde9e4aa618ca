"""The same layers for another runtime: what a bundle holds beside its first shards, and how tensors cross between both.

A bundle's own `shards` are in one shard format; each `Build` holds the same layers in another, from the same weights.
Where the two hold a tensor of a cut differently (order of axes, quantization), the build's `Form` says how.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from edge.errors import BundleError
from edge.formats.shard import Shard
from edge.formats.tensor import DTYPES, MAX_NAME_LENGTH, MAX_RANK

ShardFormat = Literal["onnx", "tflite"]

SHARD_FORMATS: dict[str, ShardFormat] = {
    "onnxruntime": "onnx",
    "litert": "tflite",
    "tflite-runtime": "tflite",
}
"""Which shards a runtime takes, by the name of the runtime."""


class RuntimeNeed(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that can run the shards, from which version on."""

    name: str
    least_version: str


class OperatorUse(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One operator that the shards use, with the opset version of its domain; for TFLite its own version."""

    domain: str
    name: str
    version: int


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """How a build holds one tensor of a cut, where that differs from `Manifest.tensors`.

    Attributes:
        name: of the tensor, as in the cuts.
        dtype: a key of `DTYPES`.
        axes: the axis of the manifest's tensor that stands at each place here, as `numpy.transpose` takes them
            (`(0, 2, 3, 1)` for NHWC of an NCHW tensor); empty for the same order.
        scale, zero_point: `real = scale · (stored − zero_point)` where the build holds integers and the manifest
            floats; scale 0 for none.
    """

    name: str
    dtype: str
    axes: tuple[int, ...] = ()
    scale: float = 0.0
    zero_point: int = 0


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """All layers of the bundle for other runtimes.

    Attributes:
        runtimes: that run it, all of one shard format, which is not that of `Manifest.runtimes`.
        header: as `Manifest.header`; empty for TFLite.
        operators: as `Manifest.operators`.
        shards: of the same ranges of layers as `Manifest.shards`, reading the same tensors.
        forms: of the tensors that it holds differently.
    """

    runtimes: tuple[RuntimeNeed, ...]
    header: bytes = b""
    operators: tuple[OperatorUse, ...]
    shards: tuple[Shard, ...]
    forms: tuple[Form, ...] = ()

    @property
    def shard_format(self) -> ShardFormat:
        """The format of its shards."""
        return shard_format(self.runtimes)


def shard_format(runtimes: Sequence[RuntimeNeed]) -> ShardFormat:
    """Return the one shard format of runtimes; a runtime that this release does not know counts as ONNX's.

    Raises:
        BundleError: there is none, or more than one.
    """
    found = {SHARD_FORMATS.get(need.name, "onnx") for need in runtimes}
    if len(found) != 1:
        names = ", ".join(need.name for need in runtimes) or "no runtime"
        raise BundleError(f"manifest: {names} do not take shards of one format")
    return found.pop()


def check_build(build: Build, *, own: ShardFormat, shards: Sequence[Shard], where: str) -> None:
    """Raise `BundleError` where a build does not stand for the same layers as the bundle's own shards."""
    if build.shard_format == own:
        raise BundleError(f"{where}: a second build has shards in {own} too")
    if [(s.first_layer, s.stop_layer) for s in build.shards] != [(s.first_layer, s.stop_layer) for s in shards]:
        raise BundleError(f"{where}: the shards of the {build.shard_format} build hold other layers")
    for form in build.forms:
        axes = form.axes
        if len(form.name) > MAX_NAME_LENGTH or form.dtype not in DTYPES or len(axes) > MAX_RANK:
            raise BundleError(f"{where}: form of {form.name[:80]!r}: {form.dtype} with {len(axes)} axes")
        if axes and sorted(axes) != list(range(len(axes))):
            raise BundleError(f"{where}: form of {form.name[:80]!r}: axes {list(axes)} are no permutation")
        if not math.isfinite(form.scale) or form.scale < 0:
            raise BundleError(f"{where}: form of {form.name[:80]!r}: scale {form.scale}")
