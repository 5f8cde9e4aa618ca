"""Onnxruntime's own account of its runs: which node ran when, for how long, and what shapes it met.

The profile is a list of events in JSON. A node's event stands after the events of the nodes inside it (the bodies of
`If` and `Loop`), and after all nodes of a run stands the event of the run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from host.errors import RuntimeRefusedError
from host.model import Model, Tensors
from host.reference import Mode, Reference
from host.work import Shape

_SUFFIX = "_kernel_time"
# How onnxruntime calls the types of tensors, and how many bytes an element has.
_ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "float8e4m3fn": 1,
    "float8e4m3fnuz": 1,
    "float8e5m2": 1,
    "float8e5m2fnuz": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float": 4,
    "int64": 8,
    "uint64": 8,
    "double": 8,
    "complex64": 8,
    "complex128": 16,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenTensor:
    """A tensor that a node read or made.

    Attributes:
        shape: Its sizes.
        item_bytes: Bytes of one element; 0 for texts and types that are smaller than a byte.
    """

    shape: Shape
    item_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRun:
    """One run of one node.

    Attributes:
        name: Of the node, in the default mode as onnxruntime's optimiser calls it.
        operator: Its operator type.
        seconds: Wall time inside its kernel, without the nodes in its bodies.
        inputs: Dense tensors that it read, without absent inputs and weights that onnxruntime packed beforehand.
        outputs: Dense tensors that it made.
    """

    name: str
    operator: str
    seconds: float
    inputs: tuple[SeenTensor, ...]
    outputs: tuple[SeenTensor, ...]


class _Arguments(msgspec.Struct):
    op_name: str = ""
    input_type_shape: tuple[dict[str, tuple[int, ...]], ...] = ()
    output_type_shape: tuple[dict[str, tuple[int, ...]], ...] = ()


class _Event(msgspec.Struct):
    """Times in microseconds."""

    name: str
    cat: str = ""
    ts: int = 0
    dur: int = 0
    args: _Arguments = msgspec.field(default_factory=_Arguments)


def traced(
    model: Model | ir.Model | bytes, runs: Sequence[Tensors], *, mode: Mode = "exact"
) -> tuple[tuple[NodeRun, ...], ...]:
    """Run a model under onnxruntime's profiler, on one thread.

    Args:
        model: A model, its graph, or serialised ONNX.
        runs: The inputs of each run.
        mode: See `host.reference.Reference`.

    Returns:
        The nodes of each run in the order in which they ended.

    Raises:
        RuntimeRefusedError: If onnxruntime refuses the model or its inputs, or writes a profile that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="shardwire-") as folder:
        reference = Reference(model, mode=mode, profile_folder=Path(folder))
        try:
            for sample in runs:
                reference.run(sample)
        finally:
            # Also after a failure: the session would write its profile later, into a folder that is gone.
            path = reference.end_profile()
        return parse_profile(path.read_bytes())


def parse_profile(data: bytes) -> tuple[tuple[NodeRun, ...], ...]:
    """Read a profile.

    Raises:
        RuntimeRefusedError: If it is no profile of onnxruntime.
    """
    try:
        events = msgspec.json.decode(data, type=list[_Event])
    except msgspec.DecodeError as error:
        raise RuntimeRefusedError(f"onnxruntime's profile cannot be read: {error}") from error
    runs: list[tuple[NodeRun, ...]] = []
    nodes: list[_Event] = []
    for event in events:
        if event.cat == "Node" and event.name.endswith(_SUFFIX):
            nodes.append(event)
        elif event.cat == "Session" and event.name == "model_run":
            runs.append(_node_runs(nodes))
            nodes = []
    return tuple(runs)


def _node_runs(events: Sequence[_Event]) -> tuple[NodeRun, ...]:
    found: list[NodeRun] = []
    # Events that no later event has been found to contain.
    open_events: list[_Event] = []
    for event in events:
        inner = 0
        while open_events and open_events[-1].ts >= event.ts:
            inner += open_events.pop().dur
        open_events.append(event)
        found.append(
            NodeRun(
                name=event.name.removesuffix(_SUFFIX),
                operator=event.args.op_name,
                seconds=max(event.dur - inner, 0) / 1e6,
                inputs=_tensors(event.args.input_type_shape),
                outputs=_tensors(event.args.output_type_shape),
            )
        )
    return tuple(found)


def _tensors(described: Sequence[Mapping[str, Shape]]) -> tuple[SeenTensor, ...]:
    return tuple(
        SeenTensor(shape=shape, item_bytes=_ITEM_BYTES.get(kind, 0)) for one in described for kind, shape in one.items()
    )
