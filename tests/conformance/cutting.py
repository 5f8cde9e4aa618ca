"""Models of the zoo, packaged with every layer as a shard of its own, and run in pieces."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from edge.formats.tensor import Array
from host.answers import Mode, load_run, read_tensors
from host.bundle import OpenBundle
from host.compare import relative_error
from host.package import PackageRequest, package
from tests.zoo import ZooModel

EVERY_CUT = 10**6
"""More shards than any model has layers: nothing is joined."""

Tensors = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One input of a packaged model, and its answers.

    Attributes:
        inputs: Real ones, from `tests.zoo_inputs`.
        source: What the source model answers in its own framework.
        whole: What the optimised model answers before it is cut.
    """

    inputs: Tensors
    source: Tensors
    whole: Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class CutModel:
    """A packaged model whose every layer is a shard.

    Attributes:
        model: Of the zoo.
        bundle: On disk.
        samples: One of each size.
    """

    model: ZooModel
    bundle: OpenBundle
    samples: tuple[Sample, ...]

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self.bundle.manifest.shards)

    def chain(self, bounds: Sequence[int], *, mode: Mode) -> list[Tensors]:
        """Run every sample through the stages between neighbouring bounds, one session loaded at a time."""
        answers: list[Tensors] = [sample.inputs for sample in self.samples]
        for first, stop in pairwise(bounds):
            stage = load_run(self.bundle, first, stop, mode=mode)
            answers = [stage.run(dict(tensors)) for tensors in answers]
            stage.close()
        return answers

    def unequal(self, bounds: Sequence[int], *, mode: Mode) -> list[str]:
        """Name the outputs that differ by any bit from the whole model's."""
        return [
            f"{name} of sample {index}"
            for index, (found, sample) in enumerate(zip(self.chain(bounds, mode=mode), self.samples, strict=True))
            for name in sample.whole
            if not same_bits(found[name], sample.whole[name])
        ]

    def error(self, bounds: Sequence[int], *, mode: Mode) -> float:
        """Largest relative error against the whole model."""
        return max(
            largest_error(found, sample.whole)
            for found, sample in zip(self.chain(bounds, mode=mode), self.samples, strict=True)
        )

    def cut_sets(self) -> list[list[int]]:
        """Bounds of 1, 2 and 4 stages, and of three seeded random divisions, as far as there are shards."""
        count = self.shards
        even = [[count * part // parts for part in range(parts + 1)] for parts in (1, 2, 4) if parts <= count]
        rng = random.Random(self.model.name)
        drawn = [sorted(rng.sample(range(1, count), rng.randint(1, min(7, count - 1)))) for _ in range(3 * (count > 1))]
        return [*even, *([0, *inner, count] for inner in drawn)]


def cut_everywhere(model: ZooModel, target: Path, *, profile: str = "x86-gateway", quantize: str = "none") -> CutModel:
    """Package a model so that it can be cut wherever that is legal."""
    bundle = package(
        PackageRequest(
            source=model.source,
            profile=profile,
            target=target,
            quantize=quantize,
            inputs=model.inputs,
            max_shards=EVERY_CUT,
        )
    ).bundle
    samples = tuple(
        Sample(
            inputs=read_tensors(bundle, pair.inputs),
            source=read_tensors(bundle, pair.outputs),
            whole=read_tensors(bundle, pair.whole),
        )
        for pair in bundle.manifest.golden
    )
    return CutModel(model=model, bundle=bundle, samples=samples)


def same_bits(found: Array, expected: Array) -> bool:
    """Whether two arrays have equal dtype, shape and bytes."""
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def largest_error(found: Tensors, expected: Tensors) -> float:
    """Largest relative error of any output, `max|a - b| / max|b|`."""
    assert found.keys() == expected.keys()
    return max(relative_error(np.asarray(found[name]), np.asarray(expected[name])) for name in expected)
