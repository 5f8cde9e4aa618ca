"""A TFLite model on the host: the file, its tree and its main subgraph."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host.errors import IngestError
from host.model import Origin, model_name
from host.tflite.file import MAX_TFLITE_BYTES, pack, unpack
from host.tflite.graph import TfliteGraph, read_graph, unique_names


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TfliteModel:
    """A TFLite network.

    Attributes:
        name: Short name, matching ``[a-z0-9][a-z0-9-]{0,62}``.
        data: The file, written again from the tree, so that no offset in it came from outside, with unique names.
        tree: Its records, `ModelT` and below. Read only.
        graph: Its main subgraph, checked.
        origin: Where it came from.
    """

    name: str
    data: bytes
    tree: Any
    graph: TfliteGraph
    origin: Origin


def read_tflite(path: Path) -> TfliteModel:
    """Read a `.tflite` file.

    Raises:
        IngestError: it cannot be read, is no TFLite file, or a damaged one.
        UnsupportedModelError: it is sound, but holds what stages cannot run.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_TFLITE_BYTES:
            raise IngestError(f"{path}: {size_bytes} bytes are more than a TFLite file can have")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise IngestError(f"{path}: no such file") from error
    except OSError as error:
        raise IngestError(f"{path}: cannot be read: {error.strerror}") from error
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    origin = Origin(format="tflite", digest=digest, description=path.name)
    return tflite_model(data, name=model_name(path.stem), origin=origin, where=str(path))


def tflite_model(data: bytes, *, name: str, origin: Origin, where: str = "") -> TfliteModel:
    """Make a model of the bytes of a `.tflite` file, wherever they are from.

    Args:
        data: the file.
        name: of the model.
        origin: where it came from.
        where: for messages; the name when empty.

    Raises:
        IngestError: it is no TFLite file, or a damaged one.
        UnsupportedModelError: it is sound, but holds what stages cannot run.
    """
    tree = unpack(data, where=where or name)
    try:
        graph = read_graph(tree, where=where or name)
        for subgraph in tree.subgraphs:
            for record, own in zip(subgraph.tensors, unique_names(subgraph), strict=True):
                record.name = own.encode()
        written = pack(tree).data
    except IngestError:
        raise
    except Exception as error:
        raise IngestError(f"{where or name}: a damaged TFLite file: {type(error).__name__}: {error}") from error
    return TfliteModel(name=name, data=written, tree=tree, graph=graph, origin=origin)
