"""Train a pruned model towards the answers of the original: all its weights, its biases only, or a low-rank change.

Seeds are fixed and the state is saved after each epoch: stopped and continued gives the same bytes as not stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from edge.formats.tensor import Array
from host.compress.recipe import Recover
from host.compress.recover import Lesson, Progress, RecoverError, Say
from host.compress.torch.change import change_of
from host.compress.torch.checkpoint import Checkpoint, Progressed, load, save
from host.compress.torch.feed import augmented, batches, digest_of, grouped, require_images, stacked
from host.compress.torch.graph import OnnxModule
from host.compress.torch.losses import Loss
from host.model import Model, Tensors, to_bytes
from host.reference import Reference

_MOMENTUM = 0.9
# A tensor whose root mean square is a tenth or more gets the whole learning rate.
_STEPS_TO_ITS_SIZE = 10.0
# One of zeros has to start somewhere.
_LEAST_SHARE = 0.05


def distill(
    student: Model,
    teacher: Model,
    step: Recover,
    samples: Sequence[Tensors],
    *,
    lesson: Lesson | None = None,
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> dict[str, Array]:
    """Train a model towards another's answers.

    Args:
        student: The model to train, normalised.
        teacher: The original, with the same inputs and outputs.
        step: ``distill``, ``bias`` or ``low-rank``, with its numbers.
        samples: What is trained on.
        lesson: Holdout, labels, checkpoint and the rest. With a holdout, the weights of the epoch that answers it best
            are kept, the untrained ones included, and training stops after ``patience`` epochs without gain. Without
            one, the weights of the last epoch are kept.
        progress: Told about each batch.
        say: Told about each epoch.

    Returns:
        New values by initializer name; those that did not change are left out.

    Raises:
        RecoverError: If an operator cannot be trained, labels do not fit, the checkpoint belongs to another training,
            or the loss stops being finite.
    """
    lesson = lesson or Lesson()
    _check(samples, lesson)
    with _threads(lesson.threads):
        return _Training(student, teacher, step, samples, lesson).run(progress, say)


class _Training:
    def __init__(
        self, student: Model, teacher: Model, step: Recover, samples: Sequence[Tensors], lesson: Lesson
    ) -> None:
        self._step, self._lesson, self._samples = step, lesson, samples
        self._student = OnnxModule(student, samples[0])
        self._teacher = OnnxModule(teacher, samples[0]) if lesson.augment else None
        reference = Reference(teacher)
        # Answered once; only changed images need the teacher again.
        self._wanted = [] if lesson.augment else reference.run_all(samples)
        self._wanted_holdout = reference.run_all(lesson.holdout)
        example = {name: torch.from_numpy(np.array(array)) for name, array in reference.run(samples[0]).items()}
        self._loss = Loss(example, temperature=lesson.temperature, label_weight=lesson.label_weight)
        if lesson.labels is not None and not self._loss.takes_labels:
            raise RecoverError("labels need an output [N, classes], and the model has none: leave them out")
        self._change = change_of(student, self._student, step)
        for parameter in self._student.parameters():
            parameter.requires_grad_(False)
        self._parameters = list(self._change.parameters.values())
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._optimizer = _optimizer(self._parameters, step, lesson)
        self._job = _job(student, teacher, step, samples, lesson) if lesson.checkpoint is not None else ""
        self._checkpoint = lesson.checkpoint
        if lesson.checkpoint is not None and lesson.checkpoint.is_dir():
            self._checkpoint = lesson.checkpoint / f"{hashlib.sha256(self._job.encode()).hexdigest()}.safetensors"
        self._epoch, self._waited = 0, 0
        self._before = {name: value.detach().clone() for name, value in self._change.values().items()}
        self._best = [parameter.detach().clone() for parameter in self._parameters]
        self._best_loss: float | None = None

    def run(self, progress: Progress, say: Say) -> dict[str, Array]:
        """Train from the start or from the checkpoint to the end."""
        step = self._step
        if not self._resumed():
            self._best_loss = self._holdout_loss()
        elif self._epoch:
            say(f"{step.method}: goes on after epoch {self._epoch} of {step.epochs}")
        while self._epoch < step.epochs and not self._is_stuck():
            loss = self._one_epoch(progress)
            self._epoch += 1
            held = self._holdout_loss()
            said = "" if held is None else f", on the holdout {held:.4g}"
            say(f"{step.method}: epoch {self._epoch} of {step.epochs}: loss {loss:.4g}{said}")
            if held is None or self._best_loss is None or held < self._best_loss:
                self._best_loss, self._waited = held, 0
                self._best = [parameter.detach().clone() for parameter in self._parameters]
            else:
                self._waited += 1
            self._saved()
        if self._epoch < step.epochs:
            say(f"{step.method}: stopped after epoch {self._epoch}: no gain in {self._waited} epochs")
        if self._checkpoint is not None and self._checkpoint != self._lesson.checkpoint:
            # A folder of checkpoints is for what is not finished.
            self._checkpoint.unlink(missing_ok=True)
        return self._result()

    def _is_stuck(self) -> bool:
        return self._best_loss is not None and self._waited >= self._step.patience

    def _one_epoch(self, progress: Progress) -> float:
        step, total = self._step, 0.0
        order = batches(self._samples, step.batch, seed=step.seed, epoch=self._epoch)
        # A stream of its own, so that the order of samples does not depend on whether images change.
        rng = np.random.default_rng([step.seed, self._epoch, 1])
        for index, chosen in enumerate(order):
            done = (self._epoch + index / len(order)) / step.epochs
            for group in self._optimizer.param_groups:
                group["lr"] = group["share"] * step.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            inputs, wanted = self._lesson_of(chosen, rng)
            loss = self._loss(self._student.batch(inputs, self._change.values()), wanted, self._labels(chosen))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RecoverError(
                    f"{step.method}: the loss is not finite in epoch {self._epoch + 1}: lower learning_rate "
                    f"(now {step.learning_rate:g})"
                )
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
            total += value * len(chosen)
            progress(self._epoch + 1, step.epochs, index + 1, len(order), value)
        return total / len(self._samples)

    def _lesson_of(
        self, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inputs = stacked(self._samples, chosen)
        if self._teacher is None:
            return inputs, stacked(self._wanted, chosen)
        inputs = augmented(inputs, rng)
        with torch.no_grad():
            return inputs, self._teacher.batch(inputs)

    def _labels(self, chosen: Sequence[int]) -> Tensor | None:
        labels = self._lesson.labels
        return None if labels is None else torch.tensor([int(labels[index]) for index in chosen])

    def _holdout_loss(self) -> float | None:
        holdout = self._lesson.holdout
        if not holdout:
            return None
        total = 0.0
        with torch.no_grad():
            values = self._change.values()
            for chosen in grouped(holdout, range(len(holdout)), self._step.batch):
                found = self._student.batch(stacked(holdout, chosen), values)
                total += float(self._loss(found, stacked(self._wanted_holdout, chosen))) * len(chosen)
        return total / len(holdout)

    def _result(self) -> dict[str, Array]:
        with torch.no_grad():
            for parameter, best in zip(self._parameters, self._best, strict=True):
                parameter.copy_(best)
            return {
                name: value.detach().numpy().copy()
                for name, value in self._change.values().items()
                if not torch.equal(value, self._before[name])
            }

    def _saved(self) -> None:
        if self._checkpoint is None:
            return
        tensors: dict[str, Tensor] = {}
        for index, (parameter, best) in enumerate(zip(self._parameters, self._best, strict=True)):
            tensors[f"now/{index}"], tensors[f"best/{index}"] = parameter.detach(), best
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{index}/{key}": value for key, value in state.items() if value is not None})
        progressed = Progressed(job=self._job, epoch=self._epoch, best=self._best_loss, waited=self._waited)
        save(self._checkpoint, Checkpoint(progressed=progressed, tensors=tensors))

    def _resumed(self) -> bool:
        found = load(self._checkpoint, job=self._job) if self._checkpoint is not None else None
        if found is None:
            return False
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in found.tensors.items():
            if name.startswith("optimizer/"):
                _, place, key = name.split("/")
                state.setdefault(int(place), {})[key] = tensor
        with torch.no_grad():
            for index, parameter in enumerate(self._parameters):
                parameter.copy_(found.tensors[f"now/{index}"])
                self._best[index] = found.tensors[f"best/{index}"].clone()
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        self._epoch, self._waited = found.progressed.epoch, found.progressed.waited
        self._best_loss = found.progressed.best
        return True


def _optimizer(parameters: Sequence[torch.nn.Parameter], step: Recover, lesson: Lesson) -> torch.optim.Optimizer:
    shares = [_share(parameter) if step.method == "distill" else 1.0 for parameter in parameters]
    groups = [{"params": [parameter], "share": share} for parameter, share in zip(parameters, shares, strict=True)]
    if lesson.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=step.learning_rate, momentum=_MOMENTUM)
    return torch.optim.Adam(groups, lr=step.learning_rate)


def _share(parameter: Tensor) -> float:
    """The part of the learning rate that a weight gets: less for one of small values, all for a bias.

    Adam moves each value by about the learning rate, whatever its size, and folding batch norms leaves weights of very
    different sizes: what is a small step for one layer would wipe out another (Shazeer & Stern 2018, "Adafactor",
    section 8, scale steps by the root mean square for the same reason).
    """
    if parameter.ndim <= 1:
        return 1.0
    size = float(parameter.detach().square().mean().sqrt())
    return min(max(size * _STEPS_TO_ITS_SIZE, _LEAST_SHARE), 1.0)


def _check(samples: Sequence[Tensors], lesson: Lesson) -> None:
    if not samples:
        raise RecoverError("training needs inputs: pass --inputs")
    if lesson.labels is not None and len(lesson.labels) != len(samples):
        raise RecoverError(f"{len(lesson.labels)} labels for {len(samples)} samples: give one for each")
    if lesson.augment:
        require_images(samples)


def _job(student: Model, teacher: Model, step: Recover, samples: Sequence[Tensors], lesson: Lesson) -> str:
    digest = hashlib.sha256(msgspec.json.encode(step))
    digest.update(to_bytes(student.ir))
    digest.update(to_bytes(teacher.ir))
    labels = None if lesson.labels is None else [int(label) for label in lesson.labels]
    numbers = (labels, lesson.augment, lesson.threads, lesson.optimizer, lesson.temperature, lesson.label_weight)
    digest.update(msgspec.json.encode(numbers))
    for part in (samples, lesson.holdout):
        digest.update(b"".join(digest_of(part)))
        digest.update(b"\n")
    return f"sha256:{digest.hexdigest()}"


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
