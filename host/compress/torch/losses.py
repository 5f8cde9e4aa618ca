"""How far a student's answers are from its teacher's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - the name by which everybody knows it
from torch import Tensor

from host.compress.recover import RecoverError

_LEAST = 1e-7
_SUM_TOLERANCE = 1e-3


def logits(answer: Tensor, *, probabilities: bool) -> Tensor:
    """Answers as numbers whose softmax is a distribution over classes.

    Args:
        answer: [..., classes].
        probabilities: Whether it is a distribution already.

    Returns:
        [rows, classes].
    """
    rows = answer.reshape(-1, answer.shape[-1])
    return torch.log(rows.clamp(min=_LEAST)) if probabilities else rows


def are_probabilities(answer: Tensor) -> bool:
    """Whether each row is a distribution: nothing negative, sum one."""
    total = answer.sum(-1)
    return bool((answer >= 0).all()) and bool(((total - 1).abs() < _SUM_TOLERANCE).all())


class Loss:
    """The loss of a batch of answers.

    An output of two axes and at least two columns is taken for scores of classes: its loss is the Kullback-Leibler
    divergence of the softened distributions times the squared temperature (Hinton et al. 2015, "Distilling the
    Knowledge in a Neural Network", section 2), mixed with the cross entropy of the labels where there are labels. The
    loss of any other float output is its squared difference over the square of the teacher's. Outputs count alike.

    Args:
        example: The teacher's answers to one sample, by output name.
        temperature: By which logits are divided.
        label_weight: Share of the labels' cross entropy.

    Raises:
        RecoverError: If no output is made of floats.
    """

    def __init__(self, example: Mapping[str, Tensor], *, temperature: float, label_weight: float) -> None:
        floats = {name: answer for name, answer in example.items() if answer.is_floating_point() and answer.numel()}
        if not floats:
            raise RecoverError("no output of the model is made of floats: there is nothing to train towards")
        self._names = tuple(floats)
        self._temperature = temperature
        self._label_weight = label_weight
        # By name of each output of class scores: whether they are probabilities already.
        self._classes = {
            name: are_probabilities(answer)
            for name, answer in floats.items()
            if answer.ndim == 2 and answer.shape[-1] >= 2
        }

    @property
    def takes_labels(self) -> bool:
        """Whether an output has class scores."""
        return bool(self._classes)

    def __call__(
        self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], labels: Tensor | None = None
    ) -> Tensor:
        """The loss, one number.

        Args:
            found: The student's answers by output name, [count, *shape of one answer].
            wanted: The teacher's.
            labels: Class of each sample, [count].
        """
        parts = [self._part(name, found[name], wanted[name]) for name in self._names]
        loss = torch.stack(parts).mean()
        if labels is None or not self._classes:
            return loss
        name = next(iter(self._classes))
        scores = logits(found[name], probabilities=self._classes[name])
        known = F.cross_entropy(scores, labels.repeat_interleave(len(scores) // len(labels)))
        return (1 - self._label_weight) * loss + self._label_weight * known

    def _part(self, name: str, found: Tensor, wanted: Tensor) -> Tensor:
        if name not in self._classes:
            return (found - wanted).square().sum() / wanted.square().sum().clamp(min=_LEAST)
        heat, probabilities = self._temperature, self._classes[name]
        return (
            F.kl_div(
                F.log_softmax(logits(found, probabilities=probabilities) / heat, -1),
                F.log_softmax(logits(wanted, probabilities=probabilities) / heat, -1),
                reduction="batchmean",
                log_target=True,
            )
            * heat**2
        )
