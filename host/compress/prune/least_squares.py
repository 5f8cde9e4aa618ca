"""Fit the weights of a linear layer again, towards given answers, from sums that are small whatever the data.

With the rows X of what the layer takes, its weights W₀ and the answers Y that it should give, the change D minimises
``‖Y − X (W₀ + D) − b‖² + λ t ‖D‖²``, t the mean of the diagonal of XᵀX: ridge regression (Hoerl & Kennard, 1970)
towards the weights that are there, so that what the samples never show stays as it was. Layer-wise reconstruction of
what pruning took is from He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""λ that are tried on samples held out."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sums:
    """What is left of the data. g groups are independent layers side by side, with F inputs and O outputs each.

    Attributes:
        squares: XᵀX, float64[g, F, F].
        products: XᵀR with the residuals ``R = Y − X W₀ − b₀``, float64[g, F, O].
        inputs: Column sums of X, float64[g, F].
        residuals: Column sums of R, float64[g, O].
        energy: Sum of the squares of R.
        rows: Number of rows.
    """

    squares: Floats
    products: Floats
    inputs: Floats
    residuals: Floats
    energy: float
    rows: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            squares=self.squares + other.squares,
            products=self.products + other.products,
            inputs=self.inputs + other.inputs,
            residuals=self.residuals + other.residuals,
            energy=self.energy + other.energy,
            rows=self.rows + other.rows,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Change:
    """What is added to the weights, float64[g, F, O], and the biases, float64[g, O]."""

    weights: Floats
    biases: Floats


def sums_of(rows: Floats, residuals: Floats) -> Sums:
    """Sums of one batch.

    Args:
        rows: X, float64[g, P, F].
        residuals: R, float64[g, P, O].
    """
    across = rows.transpose(0, 2, 1)
    return Sums(
        squares=across @ rows,
        products=across @ residuals,
        inputs=rows.sum(axis=1),
        residuals=residuals.sum(axis=1),
        energy=float(np.sum(residuals**2)),
        rows=rows.shape[1],
    )


def best_change(fit: Sums, held: Sums | None, *, with_bias: bool) -> Change | None:
    """The change that helps most on what was held out, fitted again on everything.

    Args:
        fit: Sums of the samples to fit on.
        held: Sums of others, to choose λ; None if there are too few samples, then it is `RIDGES`' second largest.
        with_bias: Whether the layer has a bias of its own.

    Returns:
        None if no change helps.
    """
    if fit.energy == 0:
        return None
    if held is None:
        return _solved(fit, RIDGES[-2], with_bias=with_bias)
    candidates: list[tuple[float, int, float | None]] = []
    ridges: list[float | None] = [*RIDGES, *([None] if with_bias else [])]
    for order, ridge in enumerate(ridges):
        change = _solved(fit, ridge, with_bias=with_bias)
        candidates.append((_error(held, change), order, ridge))
    error, _, ridge = min(candidates)
    if not error < held.energy:
        return None
    return _solved(fit + held, ridge, with_bias=with_bias)


def _solved(sums: Sums, ridge: float | None, *, with_bias: bool) -> Change:
    """The minimum for one λ; None lets only the biases change."""
    squares, products = sums.squares, sums.products
    if with_bias:
        squares = squares - sums.inputs[:, :, None] * sums.inputs[:, None, :] / sums.rows
        products = products - sums.inputs[:, :, None] * sums.residuals[:, None, :] / sums.rows
    weights = np.zeros_like(products)
    if ridge is not None:
        features = squares.shape[1]
        scale = np.trace(squares, axis1=1, axis2=2) / features
        # An input that is always zero would make the system singular.
        scale = np.maximum(scale * ridge, np.finfo(np.float32).tiny)
        weights = np.linalg.solve(squares + scale[:, None, None] * np.eye(features), products)
    biases = np.zeros_like(sums.residuals)
    if with_bias:
        biases = (sums.residuals - np.einsum("gf,gfo->go", sums.inputs, weights)) / sums.rows
    return Change(weights=weights, biases=biases)


def _error(sums: Sums, change: Change) -> float:
    """``‖R − X D − b‖²``, from sums alone."""
    weights, biases = change.weights, change.biases
    answered = np.einsum("gf,gfo->go", sums.inputs, weights)
    return float(
        sums.energy
        - 2 * np.sum(weights * sums.products)
        + np.sum(weights * (sums.squares @ weights))
        - 2 * np.sum(biases * sums.residuals)
        + sums.rows * np.sum(biases**2)
        + 2 * np.sum(biases * answered)
    )
