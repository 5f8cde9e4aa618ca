"""What compression cost: how far a model's answers are from those of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.formats.tensor import Array
from host.compare import cosine, relative_error
from host.errors import QuantizeError
from host.model import Model, Tensors
from host.reference import Mode, Reference


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """How close a candidate's answers are to the reference's.

    Attributes:
        mode: How the candidate was run: ``exact`` (every optimisation off) or ``default`` (as a device runs it).
        samples: Number of inputs.
        cosine: Mean over inputs and float outputs.
        worst_cosine: The smallest.
        max_relative_error: Largest ``max|a - b| / max|b|``.
        top1_agreement: Share of inputs whose largest score stands at the same place, over outputs of shape
            ``[N, classes]``; None if there is no such output.
    """

    mode: Mode
    samples: int
    cosine: float
    worst_cosine: float
    max_relative_error: float
    top1_agreement: float | None

    def __str__(self) -> str:
        agreement = "" if self.top1_agreement is None else f", top-1 agreement {self.top1_agreement:.1%}"
        return (
            f"cosine {self.cosine:.5f} (worst {self.worst_cosine:.5f}), "
            f"max relative error {self.max_relative_error:.2e}{agreement}, {self.samples} inputs"
        )


def fidelity(reference: Model, candidate: Model, samples: Sequence[Tensors], *, mode: Mode = "exact") -> Fidelity:
    """Compare a candidate with a reference, which runs with every optimisation off.

    Measure a quantized model twice: unfused in ``exact`` mode, which simulates quantization the same on every
    processor, and fused in ``default`` mode, as it will run on this kind of processor.

    Args:
        reference: The model to be close to.
        candidate: The model to judge.
        samples: Inputs, best some that calibration has not seen.
        mode: How the candidate runs.

    Raises:
        QuantizeError: If there is no sample, or the models have different outputs.
        RuntimeRefusedError: If one of them does not run.
    """
    if not samples:
        raise QuantizeError("fidelity needs inputs: pass --inputs")
    truth, judged = Reference(reference, mode="exact"), Reference(candidate, mode=mode)
    if set(truth.outputs) != set(judged.outputs):
        raise QuantizeError(f"outputs differ: {', '.join(truth.outputs)} and {', '.join(judged.outputs)}")
    cosines: list[float] = []
    errors: list[float] = []
    agreements: list[bool] = []
    for sample in samples:
        want, have = truth.run(sample), judged.run(sample)
        for name, expected in want.items():
            if expected.dtype.kind != "f":
                continue
            if have[name].shape != expected.shape:
                raise QuantizeError(
                    f"output {name!r} is {list(have[name].shape)} after compression and was {list(expected.shape)}"
                )
            cosines.append(cosine(have[name], expected))
            errors.append(relative_error(have[name], expected))
            agreements.extend(_same_top(have[name], expected))
    return Fidelity(
        mode=mode,
        samples=len(samples),
        cosine=float(np.mean(cosines)) if cosines else 1.0,
        worst_cosine=min(cosines, default=1.0),
        max_relative_error=max(errors, default=0.0),
        top1_agreement=float(np.mean(agreements)) if agreements else None,
    )


def _same_top(found: Array, expected: Array) -> list[bool]:
    if expected.ndim != 2 or expected.shape[1] < 2:
        return []
    return [bool(same) for same in found.argmax(axis=1) == expected.argmax(axis=1)]
