"""What a channel is worth.

``l1``, ``l2``: the size of the weights that make it (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017),
each layer's relative to its mean so that tied layers of different scale count alike.

``activation``: how much the answers of the layers that read it change without it. With ``x_c`` the channel and ``W_c``
the weights that read it, the answer changes by ``x_c · W_c``, so by ``E[x_c²] · ‖W_c‖²`` in expectation (the sum of
squares that ThiNet minimises, Luo et al., ICCV 2017, taken channel by channel). If the readers are repaired their
biases take over the mean of what is missing, which leaves ``Var[x_c] · ‖W_c‖²``. Each reader's changes are relative to
their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from host.compress.constants import constant_of
from host.compress.prune.ties import Group, Ties
from host.compress.prune.tracing import Cut
from host.errors import RecipeError, RuntimeRefusedError
from host.model import Model, Tensors
from host.reference import Reference

Floats = npt.NDArray[np.float64]


def weight_importance(ties: Ties, group: Group, *, norm: Literal["l1", "l2"]) -> Floats:
    """Importance of each channel of a group by the weights that make it.

    Args:
        ties: Of the whole graph.
        group: One of its groups.
        norm: ``"l1"``: sum of absolute values; ``"l2"``: root of the sum of squares.

    Returns:
        One number a channel, in the order of ``group.roots``; larger is more important.
    """
    total = np.zeros(len(ties.root))
    members = set(group.roots.tolist())
    for cut in ties.cuts:
        if cut.role == "reads" or not members.intersection(cut.ids.tolist()):
            continue
        array = constant_of(cut.node.inputs[cut.input])
        # Biases and other vectors that follow say little about how much a channel carries.
        if array is None or array.ndim < 2:
            continue
        rows = _rows(array, cut.axis)
        sizes = np.abs(rows).sum(axis=1) if norm == "l1" else np.sqrt((rows**2).sum(axis=1))
        np.add.at(total, cut.ids, sizes / max(float(sizes.mean()), np.finfo(np.float64).tiny))
    return np.asarray(total[group.roots], np.float64)


class Activations:
    """Mean and mean square of every channel that a layer reads, over samples.

    Args:
        model: The model that will be pruned.
        ties: Of its graph.
        samples: Real inputs, at least one.

    Raises:
        RecipeError: If there is no sample, or the model cannot run them.
    """

    def __init__(self, model: Model, ties: Ties, samples: Sequence[Tensors]) -> None:
        if not samples:
            raise RecipeError("prune: criterion 'activation' needs samples: give --inputs, or choose l1 or l2")
        self._ties = ties
        self._reads = [cut for cut in ties.cuts if cut.role == "reads"]
        names = sorted({_taken(cut) for cut in self._reads})
        sums: dict[str, tuple[Floats, Floats, int]] = {}
        try:
            reference = Reference(model, extra_outputs=names)
            for sample in samples:
                for name, array in reference.run(sample, names).items() if names else ():
                    rows = _rows(array, ties.layouts[name].axis)
                    first, second, count = sums.get(name, (np.zeros(len(rows)), np.zeros(len(rows)), 0))
                    sums[name] = (first + rows.sum(axis=1), second + (rows**2).sum(axis=1), count + rows.shape[1])
        except RuntimeRefusedError as error:
            raise RecipeError(f"prune: the model does not run the samples: {error}") from error
        self._means = {name: first / count for name, (first, _, count) in sums.items()}
        self._squares = {name: second / count for name, (_, second, count) in sums.items()}

    def importance(self, group: Group, *, repaired: bool) -> Floats:
        """Importance of each channel of a group.

        Args:
            group: One of the graph's groups.
            repaired: Whether the readers' biases will take over the means.

        Returns:
            One number a channel, in the order of ``group.roots``; larger is more important.
        """
        total = np.zeros(len(self._ties.root))
        members = set(group.roots.tolist())
        for cut in self._reads:
            if members.isdisjoint(cut.ids.tolist()):
                continue
            weight = constant_of(cut.node.inputs[cut.input])
            if weight is None:
                continue
            name = _taken(cut)
            power = self._squares[name] - self._means[name] ** 2 if repaired else self._squares[name]
            change = np.maximum(power, 0) * (_rows(weight, cut.axis) ** 2).sum(axis=1)
            np.add.at(total, cut.ids, change / max(float(change.sum()), np.finfo(np.float64).tiny))
        return np.asarray(total[group.roots], np.float64)


def _taken(cut: Cut) -> str:
    value = cut.node.inputs[0]
    return str(value.name) if value is not None else ""


def _rows(array: npt.NDArray[np.generic], axis: int) -> Floats:
    """One row for each position along an axis."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
