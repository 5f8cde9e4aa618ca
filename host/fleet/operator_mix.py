"""The bundle of microbenchmarks: the operators of real networks, a shard each, in fp32 and int8 and several sizes.

It is made here, without onnx and without a file: weights are one value over and over, which a device unfolds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from edge.formats.bundle import (
    Blob,
    BoundaryTensor,
    Compression,
    Constant,
    GraphPart,
    Layer,
    Manifest,
    OperatorUse,
    Origin,
    RuntimeNeed,
    Shard,
    digest_of,
    encode_graph_part,
    encode_manifest,
)
from edge.formats.tensor import TensorSpec
from host.fleet import onnx_bytes
from host.fleet.blobs import MemoryBlobs
from host.fleet.onnx_bytes import Attribute

NAME = "operator-mix"
_OPSET = 17
_IR_VERSION = 8
_MICROSOFT = "com.microsoft"
_ITEM_BYTES = {"float32": 4, "uint8": 1, "int8": 1, "int32": 4, "int64": 8}
_FORMATS = {"float32": "<f", "uint8": "<B", "int8": "<b", "int32": "<i", "int64": "<q"}
_SCALE = 0.05
_ZERO = 128

_CONVS = (
    # From, to, kernel, stride, groups: 3 × 3, pointwise and depthwise.
    (3, 32, 3, 2, 1),
    (32, 32, 3, 1, 32),
    (32, 16, 1, 1, 1),
    (16, 96, 1, 1, 1),
    (96, 96, 3, 2, 96),
    (96, 24, 1, 1, 1),
    (24, 64, 3, 1, 1),
    (64, 64, 3, 1, 1),
    (64, 64, 3, 2, 1),
    (64, 256, 1, 1, 1),
    (256, 256, 5, 1, 256),
    (256, 64, 1, 1, 1),
    (64, 128, 3, 2, 1),
    (128, 512, 1, 1, 1),
    (512, 512, 3, 1, 512),
    (512, 128, 1, 1, 1),
)
_IMAGE = (1, 3, 112, 112)
_TOKENS = (1, 64, 256)
_MATMULS = (256, 1024, 256, 64, 768, 256)
_GEMMS = (1024, 1000, 256)


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorMix:
    """The bundle.

    Attributes:
        blobs: of the manifest and of all shards.
    """

    manifest: Manifest
    manifest_blob: Blob
    blobs: MemoryBlobs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(kw_only=True, slots=True)
class _Builder:
    """Collects shards; each reads one tensor, or two, and makes one."""

    inputs: tuple[_Tensor, ...]
    tensors: dict[str, _Tensor] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    used: set[OperatorUse] = field(default_factory=set)
    _constants: list[Constant] = field(default_factory=list)
    _weight_bytes: int = 0

    def __post_init__(self) -> None:
        self.tensors.update({tensor.name: tensor for tensor in self.inputs})

    def constant(self, dtype: str, shape: tuple[int, ...], value: float) -> str:
        """Add a constant of one value to the next shard."""
        index = len(self._constants)
        name = f"w{len(self.shards)}.{index}"
        data = struct.pack(_FORMATS[dtype], value if dtype == "float32" else int(value))
        self._weight_bytes += math.prod(shape) * _ITEM_BYTES[dtype]
        if not shape:
            self._constants.append(
                Constant(name=name, fragment=onnx_bytes.initializer(onnx_bytes.tensor(name, dtype, (), data)))
            )
            return name
        size = f"{name}.shape"
        dims = struct.pack(f"<{len(shape)}q", *shape)
        self._constants += [
            Constant(name=size, fragment=onnx_bytes.initializer(onnx_bytes.tensor(size, "int64", (len(shape),), dims))),
            Constant(
                name=name,
                fragment=onnx_bytes.nodes(
                    onnx_bytes.node(
                        "ConstantOfShape",
                        (size,),
                        (name,),
                        attributes={"value": onnx_bytes.tensor("value", dtype, (1,), data)},
                    )
                ),
            ),
        ]
        self.used.add(OperatorUse(domain="", name="ConstantOfShape", version=_OPSET))
        return name

    def shard(
        self,
        operators: Sequence[tuple[str, Sequence[str]]],
        made: tuple[str, tuple[int, ...]],
        reads: Sequence[_Tensor],
        *,
        also: Sequence[_Tensor] = (),
        macs: int = 0,
        attributes: Mapping[str, Attribute] | None = None,
        domain: str = "",
    ) -> _Tensor:
        """Add a shard of operators one after another; the first has the attributes and the domain.

        Args:
            operators: name and inputs of each; the later ones take what the one before makes, then these.
            made: dtype and shape of what comes out.
            reads: what the first one takes before its own inputs.
            also: what it takes among them.
            macs: multiply-accumulate operations.
            attributes: of the first.
            domain: of the first.
        """
        index = len(self.shards)
        out = _Tensor(name=f"t{index}", dtype=made[0], shape=made[1])
        nodes = []
        taken: Sequence[str] = [tensor.name for tensor in reads]
        for at, (operator, more) in enumerate(operators):
            name = out.name if at == len(operators) - 1 else f"{out.name}.{at}"
            home, given = (domain, attributes) if at == 0 else ("", None)
            nodes.append(onnx_bytes.node(operator, (*taken, *more), (name,), domain=home, attributes=given))
            self.used.add(OperatorUse(domain=home, name=operator, version=1 if home else _OPSET))
            taken = [name]
        data = encode_graph_part(GraphPart(constants=tuple(self._constants), nodes=onnx_bytes.nodes(*nodes)))
        self.layers.append(
            Layer(
                name=f"{out.name}.node",
                operators=tuple(operator for operator, _ in operators),
                macs=macs,
                weight_bytes=self._weight_bytes,
                peak_activation_bytes=sum(tensor.size_bytes for tensor in (*reads, *also)) + out.size_bytes,
            )
        )
        self.shards.append(
            Shard(
                first_layer=index,
                stop_layer=index + 1,
                graph=self.keep(data),
                weights=(),
                reads=tuple(tensor.name for tensor in (*reads, *also)),
                size_bytes=len(data) + self._weight_bytes,
            )
        )
        self._constants, self._weight_bytes = [], 0
        self.tensors[out.name] = out
        self.made.append(out.name)
        return out

    def keep(self, data: bytes) -> Blob:
        """Store a blob."""
        self.blobs[digest_of(data)] = data
        return Blob(digest=digest_of(data), size_bytes=len(data))

    def cuts(self) -> tuple[tuple[str, ...], ...]:
        """Work out which tensors are alive before each shard, and after the last."""
        last_read = {name: index for index, shard in enumerate(self.shards) for name in shard.reads}
        results = [name for name in self.made if name not in last_read]
        made_at = {tensor.name: -1 for tensor in self.inputs} | {name: at for at, name in enumerate(self.made)}
        return tuple(
            tuple(
                name
                for name, made in made_at.items()
                if made < at and (name in results or last_read.get(name, -1) >= at)
            )
            for at in range(len(self.shards) + 1)
        )


@cache
def operator_mix() -> OperatorMix:
    """Make the bundle; the same bytes every time."""
    image = _Tensor(name="image", dtype="float32", shape=_IMAGE)
    tokens = _Tensor(name="tokens", dtype="float32", shape=_TOKENS)
    builder = _Builder(inputs=(image, tokens))
    _float_part(builder, image)
    _matmul_part(builder, tokens)
    _int8_part(builder, image)
    cuts = builder.cuts()
    names = dict.fromkeys(name for cut in cuts for name in cut)
    specs = {
        name: TensorSpec(name=name, dtype=builder.tensors[name].dtype, shape=builder.tensors[name].shape)
        for name in names
    }
    manifest = Manifest(
        name=NAME,
        version="1.0.0",
        origin=Origin(format="onnx", digest=digest_of(b""), licence="Apache-2.0", description="operators to time"),
        profile="x86-gateway",
        max_shard_bytes=1 << 30,
        compression=Compression(quantize="none"),
        operators=tuple(sorted(builder.used)),
        runtimes=(RuntimeNeed(name="onnxruntime", least_version="1.20.0"),),
        header=onnx_bytes.header(NAME, ir_version=_IR_VERSION, opsets={"": _OPSET, _MICROSOFT: 1}),
        inputs=(specs["image"], specs["tokens"]),
        outputs=tuple(specs[name] for name in cuts[-1]),
        tensors=tuple(_boundary(builder.tensors[name], specs[name]) for name in names),
        cuts=cuts,
        layers=tuple(builder.layers),
        shards=tuple(builder.shards),
        golden=(),
        tolerance=1.0,
        least_cosine=0.0,
    )
    blob = builder.keep(encode_manifest(manifest))
    return OperatorMix(manifest=manifest, manifest_blob=blob, blobs=MemoryBlobs(builder.blobs))


def _boundary(tensor: _Tensor, spec: TensorSpec) -> BoundaryTensor:
    return BoundaryTensor(
        spec=spec,
        size_bytes=tensor.size_bytes,
        as_input=onnx_bytes.graph_input(tensor.name, tensor.dtype, tensor.shape),
        as_output=onnx_bytes.graph_output(tensor.name, tensor.dtype, tensor.shape),
    )


def _after_conv(shape: tuple[int, ...], channels: int, stride: int) -> tuple[int, int, int, int]:
    return 1, channels, -(-shape[2] // stride), -(-shape[3] // stride)


def _conv_attributes(kernel: int, stride: int, groups: int) -> dict[str, Attribute]:
    return {"group": groups, "kernel_shape": (kernel,) * 2, "pads": (kernel // 2,) * 4, "strides": (stride,) * 2}


def _float_part(builder: _Builder, at: _Tensor) -> None:
    for inputs, outputs, kernel, stride, groups in _CONVS:
        shape = _after_conv(at.shape, outputs, stride)
        fan_in = inputs // groups * kernel * kernel
        weights = builder.constant("float32", (outputs, inputs // groups, kernel, kernel), 1 / fan_in)
        bias = builder.constant("float32", (outputs,), 0.1)
        # A pointwise convolution that narrows has no activation in real networks.
        after: list[tuple[str, Sequence[str]]] = [] if kernel == 1 and outputs < inputs else [("Relu", ())]
        before = at
        at = builder.shard(
            [("Conv", (weights, bias)), *after],
            ("float32", shape),
            (at,),
            macs=math.prod(shape) * fan_in,
            attributes=_conv_attributes(kernel, stride, groups),
        )
        if at.shape == before.shape and groups == 1:
            at = builder.shard([("Add", ())], ("float32", at.shape), (at, before))
            at = builder.shard([("Clip", _bounds(builder))], ("float32", at.shape), (at,))
    pooled = builder.shard([("GlobalAveragePool", ()), ("Flatten", ())], ("float32", (1, at.shape[1])), (at,))
    for width in _GEMMS:
        inputs = pooled.shape[1]
        weights = builder.constant("float32", (inputs, width), 1 / inputs)
        bias = builder.constant("float32", (width,), 0.1)
        pooled = builder.shard([("Gemm", (weights, bias))], ("float32", (1, width)), (pooled,), macs=inputs * width)


def _bounds(builder: _Builder) -> tuple[str, str]:
    return builder.constant("float32", (), 0.0), builder.constant("float32", (), 6.0)


def _matmul_part(builder: _Builder, at: _Tensor) -> None:
    rows = at.shape[1]
    for width in _MATMULS:
        inputs = at.shape[2]
        weights = builder.constant("float32", (inputs, width), 1 / inputs)
        shape = (1, rows, width)
        at = builder.shard([("MatMul", (weights,))], ("float32", shape), (at,), macs=rows * inputs * width)
        if width == inputs:
            bias = builder.constant("float32", (width,), 0.1)
            at = builder.shard([("Add", (bias,))], ("float32", shape), (at,))
            at = builder.shard([("Softmax", ())], ("float32", shape), (at,))


def _scales(builder: _Builder, *zeros: str) -> list[str]:
    """Scale and zero point, one pair for each dtype."""
    found = []
    for dtype in zeros:
        zero = float(_ZERO) if dtype == "uint8" else 0.0
        found += [builder.constant("float32", (), _SCALE), builder.constant(dtype, (), zero)]
    return found


def _int8_part(builder: _Builder, image: _Tensor) -> None:
    at = builder.shard([("QuantizeLinear", _scales(builder, "uint8"))], ("uint8", image.shape), (image,))
    for inputs, outputs, kernel, stride, groups in _CONVS:
        shape = _after_conv(at.shape, outputs, stride)
        fan_in = inputs // groups * kernel * kernel
        before = at
        # Scale and zero point of the input, then weights with theirs, those of the output, and the bias.
        given = _scales(builder, "uint8")
        weights = builder.constant("int8", (outputs, inputs // groups, kernel, kernel), 3)
        bias = builder.constant("int32", (outputs,), 10)
        given += [weights, *_scales(builder, "int8", "uint8"), bias]
        at = builder.shard(
            [("QLinearConv", given)],
            ("uint8", shape),
            (at,),
            macs=math.prod(shape) * fan_in,
            attributes=_conv_attributes(kernel, stride, groups),
        )
        if at.shape == before.shape and groups == 1:
            at = _int8_add(builder, at, before)
    flat = builder.shard([("DequantizeLinear", _scales(builder, "uint8"))], ("float32", at.shape), (at,))
    pooled = builder.shard([("GlobalAveragePool", ()), ("Flatten", ())], ("float32", (1, at.shape[1])), (flat,))
    at = builder.shard([("QuantizeLinear", _scales(builder, "uint8"))], ("uint8", pooled.shape), (pooled,))
    for width in _GEMMS:
        inputs = at.shape[1]
        given = _scales(builder, "uint8")
        given += [builder.constant("int8", (inputs, width), 3), *_scales(builder, "int8")]
        given += [builder.constant("int32", (width,), 10), *_scales(builder, "uint8")]
        at = builder.shard([("QGemm", given)], ("uint8", (1, width)), (at,), macs=inputs * width, domain=_MICROSOFT)
    builder.shard([("DequantizeLinear", _scales(builder, "uint8"))], ("float32", at.shape), (at,))


def _int8_add(builder: _Builder, at: _Tensor, before: _Tensor) -> _Tensor:
    # `QLinearAdd` takes the scale and zero point of an input right after it.
    first, second = _scales(builder, "uint8"), _scales(builder, "uint8")
    out = _scales(builder, "uint8")
    return builder.shard(
        [("QLinearAdd", (*first, before.name, *second, *out))],
        ("uint8", at.shape),
        (at,),
        also=(before,),
        domain=_MICROSOFT,
    )
