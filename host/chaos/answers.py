"""What the models of a chaos run answer, worked out before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge.formats.tensor import Array
from host.answers import Mode, load_whole, read_tensors
from host.bundle import OpenBundle
from host.compare import compare
from host.errors import UserError

DRAWN_INPUTS = 6
Tensors = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Inputs, and what each bundle answers to them.

    Attributes:
        inputs: distinct ones.
        expected: by the digest of a manifest, an answer for each input.
        tolerance: by the same, the largest relative error; 0 asks for equal bits.
    """

    inputs: Sequence[Tensors]
    expected: Mapping[str, Sequence[Tensors]]
    tolerance: Mapping[str, float]

    def right(self, digest: str | None, index: int, outputs: Tensors) -> bool:
        """Tell whether outputs are what the bundle of `digest` answers to input `index`."""
        if digest is None or digest not in self.expected:
            return False
        return compare(outputs, self.expected[digest][index], tolerance=self.tolerance[digest]) is None


def work_out(bundles: Sequence[OpenBundle], *, mode: Mode, seed: int) -> Answers:
    """Run every bundle over the same inputs: golden ones of the first, and drawn ones.

    Raises:
        UserError: the bundles do not take the same inputs, or answer alike.
    """
    first = bundles[0].manifest
    draw = np.random.default_rng(seed)
    inputs: list[Tensors] = [read_tensors(bundles[0], pair.inputs) for pair in first.golden]
    inputs += [{spec.name: _drawn(inputs[0][spec.name], draw) for spec in first.inputs} for _ in range(DRAWN_INPUTS)]
    expected: dict[str, list[Tensors]] = {}
    for bundle in bundles:
        if bundle.manifest.inputs != first.inputs:
            raise UserError(f"bundles {first.name} and {bundle.manifest.name} take different inputs")
        stage = load_whole(bundle, mode=mode)
        expected[bundle.manifest_blob.digest] = [stage.run(tensors) for tensors in inputs]
        stage.close()
    tolerance = {
        bundle.manifest_blob.digest: 0.0 if mode == "exact" else bundle.manifest.tolerance for bundle in bundles
    }
    alike = [
        index
        for index in range(len(inputs))
        for one, other in zip(list(expected), list(expected)[1:], strict=False)
        if compare(expected[one][index], expected[other][index], tolerance=max(1e-3, *tolerance.values())) is None
    ]
    if alike:
        raise UserError("the two bundles answer alike: nobody could tell which of them did")
    return Answers(inputs=inputs, expected=expected, tolerance=tolerance)


def _drawn(like: Array, draw: np.random.Generator) -> Array:
    """Draw an input of the size of a golden one; whole numbers are shuffled, as not every one may be allowed."""
    if like.dtype.kind == "f":
        return draw.uniform(-1.0, 1.0, like.shape).astype(like.dtype)
    return draw.permutation(like.ravel()).reshape(like.shape)
