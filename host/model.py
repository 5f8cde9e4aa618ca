"""The model as the host sees it: an ONNX IR graph with a name and an origin, and what ingest learnt about it.

Nobody changes ``Model.ir`` in place: a step that needs another graph takes `copied` and returns a new `Model`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import onnx
import onnx_ir as ir

from edge.formats.processing import NO_PROCESSING, Processing
from edge.formats.tensor import Array
from host.errors import IngestError

Tensors = Mapping[str, Array]
Graph: TypeAlias = ir.Model

PROTOBUF_LIMIT_BYTES = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a model came from.

    Attributes:
        format: ``"onnx"`` or ``"torch"``.
        digest: ``sha256:…`` of the source file; of the factory's name and state for a torch factory; of the weights
            file for the default model.
        licence: SPDX expression of the weights, or ``"unknown"`` when the source does not say.
        description: One line for people.
    """

    format: str
    digest: str
    licence: str = "unknown"
    description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Model:
    """A network on the host.

    Attributes:
        name: Short name, matching ``[a-z0-9][a-z0-9-]{0,62}``.
        ir: The graph and its weights. Read only: take `copied` before changing anything.
        origin: Where it came from.
    """

    name: str
    ir: Graph
    origin: Origin

    def with_ir(self, graph: Graph) -> Model:
        """This model with another graph, the same name and origin."""
        return dataclasses.replace(self, ir=graph)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Golden:
    """One input and what the *source* model answers to it, the truth that every later step is compared with.

    Attributes:
        inputs: Array by graph input name.
        outputs: Array by graph output name, from torch in eval mode, or from onnxruntime with all graph
            optimisations off on the source ONNX.
    """

    inputs: Tensors
    outputs: Tensors


class TorchSource(Protocol):
    """The PyTorch module that a model was exported from, for the one step that changes the module itself."""

    @property
    def module(self) -> Any:
        """The `torch.nn.Module`, in evaluation mode; read only."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Example tensor by argument name of ``forward``."""

    def exported(self, module: Any) -> Model:
        """Export a changed module as the first one was."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ingested:
    """What `host.ingest.ingest` learnt from a source.

    Attributes:
        model: The model as it was found, shapes bound as asked, not yet normalised.
        samples: Inputs for verification and calibration.
        golden: At least one; two of different size where the model is dynamic.
        processing: How inputs are made and answers are read, as far as it is known.
        holdout: Inputs that calibration never sees, for an honest fidelity figure; empty when there are too few.
        holdout_groups: What each of those was taken from, such as the photo of a crop; empty where each stands alone.
        notes: Things the user should hear, such as "inputs are synthetic".
        torch: The module it was exported from, if any.
    """

    model: Model
    samples: tuple[Tensors, ...]
    golden: tuple[Golden, ...]
    processing: Processing = NO_PROCESSING
    holdout: tuple[Tensors, ...] = ()
    holdout_groups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    torch: TorchSource | None = None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names in output order, if known."""
        return self.processing.classes


def copied(model: ir.Model) -> ir.Model:
    """Return a model that shares nothing with ``model`` that a pass may change.

    ``ir.Model.clone`` is not enough: the clone shares its tensors, and renaming a value renames its tensor.
    """
    return ir.serde.deserialize_model(ir.serde.serialize_model(model))


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialise to a protobuf message with all weights inside."""
    return ir.serde.serialize_model(model)


def to_bytes(model: ir.Model) -> bytes:
    """Serialise to bytes, equal for equal models.

    Raises:
        IngestError: If the model does not fit into one protobuf message (2 GiB).
    """
    size_bytes = weight_bytes(model)
    if size_bytes >= PROTOBUF_LIMIT_BYTES:
        raise IngestError(
            f"the model has {size_bytes} bytes of weights, more than the {PROTOBUF_LIMIT_BYTES} that one ONNX message "
            "can hold; use a smaller model"
        )
    data: bytes = to_proto(model).SerializeToString(deterministic=True)
    return data


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Read a protobuf message into a graph."""
    return ir.serde.deserialize_model(proto)


def from_bytes(data: bytes) -> ir.Model:
    """Read serialised ONNX into a graph."""
    return from_proto(onnx.load_model_from_string(data))


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers and constants of a model, subgraphs and functions included."""
    total = 0
    for graph in model.graphs():
        total += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
    for node in all_nodes(model):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                total += int(attribute.value.nbytes)
    return total


def all_nodes(model: ir.Model) -> tuple[ir.Node, ...]:
    """Every node of a model: its graph, the subgraphs, and its functions."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    for function in model.functions.values():
        nodes.extend(ir.traversal.RecursiveGraphIterator(function))
    return tuple(nodes)


def node_count(model: ir.Model) -> int:
    """Number of nodes, those of subgraphs and functions included."""
    return len(all_nodes(model))


def distinct_sizes(samples: Sequence[Tensors], *, limit: int = 2) -> tuple[Tensors, ...]:
    """The first sample of each input size, at most ``limit`` of them."""
    found: dict[tuple[tuple[str, tuple[int, ...]], ...], Tensors] = {}
    for sample in samples:
        found.setdefault(tuple(sorted((name, array.shape) for name, array in sample.items())), sample)
    return tuple(found.values())[:limit]


def model_name(text: str) -> str:
    """Turn any text into a name that topics and tags accept, ``[a-z0-9][a-z0-9-]{0,62}``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-") or "model"
