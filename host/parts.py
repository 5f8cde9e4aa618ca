"""What a bundle is made of, before it is written, whatever the format of its shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.formats.bundle import RuntimeNeed
from edge.formats.processing import NO_PROCESSING, Processing
from host.compress.recipe import Recipe
from host.compress.report.records import Report
from host.model import Origin, Tensors
from host.partition.build import Partition
from host.passes.transaction import PassOutcome
from host.streams import Streams

if TYPE_CHECKING:
    from host.tflite.twin import Twins


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A golden input with what the source and the compressed whole answer."""

    inputs: Tensors
    outputs: Tensors
    whole: Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """A model in shards with all that is known about it.

    Attributes:
        name: of the model.
        origin: where it came from.
        partition: its layers and shards.
        runtimes: that run them, the preferred one first.
        recipe: decided.
        learned: weights that data changed, as a file; empty without.
        pairs: golden inputs and answers.
        streams: states and buckets.
        tolerance: relative error of shards against the whole, across processors.
        report: what was measured.
        processing: how inputs are made and answers are read, as far as it is known.
        twins: the same layers for other runtimes, if any.
        outcomes: of graph passes, in order.
        notes: things the user should hear.
    """

    name: str
    origin: Origin
    partition: Partition
    runtimes: tuple[RuntimeNeed, ...]
    recipe: Recipe
    learned: bytes = b""
    pairs: tuple[Answered, ...]
    streams: Streams
    tolerance: float
    report: Report
    processing: Processing = NO_PROCESSING
    twins: Twins | None = None
    outcomes: tuple[PassOutcome, ...] = ()
    notes: tuple[str, ...] = ()
