"""Training a model towards the answers of another: seeds, stopping, going on, and what each method may change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from host.compress.recipe import Recover
from host.compress.recover import Lesson, RecoverError, recover, with_values
from host.compress.torch.feed import augmented, batches
from host.compress.torch.losses import Loss
from host.compress.torch.train import distill
from host.model import Model, Tensors
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos

STEP = Recover(method="distill", epochs=4, learning_rate=0.01, batch=8, patience=10)


@pytest.fixture(scope="module")
def teacher() -> Model:
    return normalise(model_of(conv_net()))


@pytest.fixture(scope="module")
def student(teacher: Model) -> Model:
    """The teacher with damaged weights."""
    rng = np.random.default_rng(3)
    return with_values(
        teacher,
        {
            name: (array * (1 + 0.3 * rng.standard_normal(array.shape))).astype(np.float32)
            for name, array in initializers(teacher).items()
        },
    )


def initializers(model: Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, value in model.ir.graph.initializers.items()
        if value.const_value is not None
    }


def error(model: Model, teacher: Model, samples: Sequence[Tensors]) -> float:
    found = np.concatenate([answer["y"] for answer in Reference(model).run_all(samples)])
    wanted = np.concatenate([answer["y"] for answer in Reference(teacher).run_all(samples)])
    # What a softmax does not see does not count.
    found, wanted = found - found.mean(1, keepdims=True), wanted - wanted.mean(1, keepdims=True)
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


def step(**fields: object) -> Recover:
    return msgspec.structs.replace(STEP, **fields)


@pytest.mark.parametrize("method", ["distill", "bias", "low-rank"])
def test_training_brings_the_answers_closer(student: Model, teacher: Model, method: str) -> None:
    found = recover(student, teacher, step(method=method, epochs=8), photos(64))
    assert error(found, teacher, photos(32, seed=9)) < 0.6 * error(student, teacher, photos(32, seed=9))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_same_seed_gives_the_same_bytes(student: Model, teacher: Model, optimizer: str) -> None:
    lesson = Lesson(optimizer=optimizer)  # type: ignore[arg-type]  # one of the two
    one, two = (distill(student, teacher, STEP, photos(20), lesson=lesson) for _ in range(2))
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in two.items()
    }


def test_another_seed_gives_other_weights(student: Model, teacher: Model) -> None:
    one, two = (distill(student, teacher, step(seed=seed), photos(20)) for seed in (0, 1))
    assert not np.array_equal(one["w1"], two["w1"])


def test_bias_training_changes_biases_only(student: Model, teacher: Model) -> None:
    assert sorted(distill(student, teacher, step(method="bias"), photos(16))) == ["b1", "b2", "b3"]


def test_biases_of_an_add_train_and_factors_do_not() -> None:
    text = (
        "net (float[1, 4] x) => (float[1, 3] y) "
        "<float[4] s = {1.0, 2.0, 3.0, 4.0}, float[3] b = {0.1, 0.2, 0.3}, "
        "float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}> "
        "{ m = Mul(x, s) p = MatMul(m, w) y = Add(p, b) }"
    )
    teacher = normalise(model_of(text))
    student = with_values(teacher, {"b": np.zeros(3, np.float32)})
    samples = [{"x": np.random.default_rng(i).standard_normal((1, 4)).astype(np.float32)} for i in range(8)]
    assert list(distill(student, teacher, step(method="bias"), samples)) == ["b"]


def test_a_low_rank_change_has_that_rank(student: Model, teacher: Model) -> None:
    found = distill(student, teacher, step(method="low-rank", rank=2), photos(16))
    assert sorted(found) == ["w1", "w2", "w3"]
    before = initializers(student)
    for name, array in found.items():
        change = (array - before[name]).reshape(len(array), -1)
        strengths = np.linalg.svd(change, compute_uv=False)
        assert strengths[0] > 0
        assert np.all(strengths[2:] < 1e-4 * strengths[0])


def test_training_stops_when_the_holdout_gains_no_more(teacher: Model) -> None:
    # A perfect student can only get worse.
    said: list[str] = []
    lesson = Lesson(holdout=photos(4, seed=5))
    found = distill(teacher, teacher, step(epochs=50, patience=2), photos(8), lesson=lesson, say=said.append)
    assert found == {}
    assert said[-1] == "distill: stopped after epoch 2: no gain in 2 epochs"


def test_the_best_epoch_is_kept(student: Model, teacher: Model) -> None:
    # A rate that is far too large: later epochs are worse than what the holdout liked best.
    holdout = photos(16, seed=5)
    lesson = Lesson(holdout=holdout)
    found = distill(student, teacher, step(learning_rate=1.0, epochs=3), photos(16), lesson=lesson)
    assert error(with_values(student, found), teacher, holdout) <= error(student, teacher, holdout)


class _StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["distill", "low-rank"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_stopped_and_continued_is_as_not_stopped(
    student: Model, teacher: Model, tmp_path: Path, method: str, optimizer: str
) -> None:
    holdout = photos(4, seed=5)
    plan = step(method=method)

    def lesson(checkpoint: Path | None) -> Lesson:
        return Lesson(holdout=holdout, checkpoint=checkpoint, optimizer=optimizer)  # type: ignore[arg-type]  # one of two

    whole = distill(student, teacher, plan, photos(20), lesson=lesson(None))
    path = tmp_path / "checkpoint.safetensors"

    for epoch in (1, 3, 4):

        def stop(now: int, _: int, batch: int, __: int, ___: float, epoch: int = epoch) -> None:
            if (now, batch) == (epoch, 2):
                raise _StopError

        with pytest.raises(_StopError):
            distill(student, teacher, plan, photos(20), lesson=lesson(path), progress=stop)
    said: list[str] = []
    found = distill(student, teacher, plan, photos(20), lesson=lesson(path), say=said.append)
    assert said[0] == f"{method}: goes on after epoch 3 of 4"
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in whole.items()
    }
    # A training that has ended is not done again.
    assert distill(student, teacher, plan, photos(20), lesson=lesson(path)).keys() == whole.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_folder_keeps_a_checkpoint_for_each_unfinished_training(
    student: Model, teacher: Model, tmp_path: Path
) -> None:
    def stop(now: int, *_: object) -> None:
        if now == 2:
            raise _StopError

    for rate in (1e-3, 2e-3):
        plan = step(learning_rate=rate)
        with pytest.raises(_StopError):
            distill(student, teacher, plan, photos(20), lesson=Lesson(checkpoint=tmp_path), progress=stop)
    assert len(list(tmp_path.iterdir())) == 2
    said: list[str] = []
    found = distill(
        student, teacher, step(learning_rate=2e-3), photos(20), lesson=Lesson(checkpoint=tmp_path), say=said.append
    )
    assert said[0] == "distill: goes on after epoch 1 of 4"
    whole = distill(student, teacher, step(learning_rate=2e-3), photos(20))
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in whole.items()
    }
    assert len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_of_another_training_is_refused(student: Model, teacher: Model, tmp_path: Path) -> None:
    lesson = Lesson(checkpoint=tmp_path / "checkpoint")
    distill(student, teacher, step(epochs=1), photos(4), lesson=lesson)
    with pytest.raises(RecoverError, match="the checkpoint of another training"):
        distill(student, teacher, step(epochs=2), photos(4), lesson=lesson)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_checkpoint_is_refused(student: Model, teacher: Model, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(RecoverError, match="not a checkpoint of a training: delete it to start again"):
        distill(student, teacher, STEP, photos(4), lesson=Lesson(checkpoint=path))


def test_progress_counts_epochs_and_batches(student: Model, teacher: Model) -> None:
    seen: list[tuple[int, int, int, int]] = []
    distill(student, teacher, step(epochs=2), photos(20), progress=lambda *args: seen.append(args[:4]))
    assert seen == [(1, 2, 1, 3), (1, 2, 2, 3), (1, 2, 3, 3), (2, 2, 1, 3), (2, 2, 2, 3), (2, 2, 3, 3)]


def test_labels_pull_towards_what_is_right(student: Model, teacher: Model) -> None:
    samples = photos(16)
    lesson = Lesson(labels=[2] * 16, label_weight=0.99)
    found = with_values(student, distill(student, teacher, step(epochs=20), samples, lesson=lesson))
    assert all(int(answer["y"].argmax()) == 2 for answer in Reference(found).run_all(samples))


def test_as_many_labels_as_samples(student: Model, teacher: Model) -> None:
    with pytest.raises(RecoverError, match="3 labels for 4 samples"):
        distill(student, teacher, STEP, photos(4), lesson=Lesson(labels=[0, 1, 2]))


def test_changed_images_are_answered_by_the_teacher(student: Model, teacher: Model) -> None:
    found = distill(student, teacher, step(epochs=8), photos(32), lesson=Lesson(augment=True))
    other = photos(32, seed=9)
    assert error(with_values(student, found), teacher, other) < 0.6 * error(student, teacher, other)


def test_images_are_mirrored_and_moved_but_other_inputs_are_not() -> None:
    images = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 1, 3, 16, 16)
    codes = torch.arange(8).reshape(2, 4)
    found = augmented({"x": images, "t": codes}, np.random.default_rng(0))
    assert found["x"].shape == images.shape
    assert not torch.equal(found["x"], images)
    assert set(found["x"].flatten().tolist()) <= set(images.flatten().tolist())
    assert torch.equal(found["t"], codes)


def test_augment_needs_images() -> None:
    model = normalise(model_of("net (float[1, 4] x) => (float y) <float[4] b = {1, 2, 3, 4}> { y = Add(x, b) }"))
    with pytest.raises(RecoverError, match="augment mirrors and moves images"):
        distill(model, model, STEP, [{"x": np.zeros((1, 4), np.float32)}], lesson=Lesson(augment=True))


def test_a_loss_that_explodes_is_named(student: Model, teacher: Model) -> None:
    lesson = Lesson(optimizer="sgd")
    with pytest.raises(RecoverError, match=r"the loss is not finite in epoch \d+: lower learning_rate \(now 10\)"):
        distill(student, teacher, step(learning_rate=10.0, epochs=20), photos(16), lesson=lesson)


def test_training_needs_samples(student: Model, teacher: Model) -> None:
    with pytest.raises(RecoverError, match="needs inputs"):
        distill(student, teacher, STEP, [])


def test_a_graph_fixed_to_one_sample_trains_in_batches() -> None:
    text = (
        "net (float[1, 2, 4, 4] x) => (float[1, 3] y) "
        "<float[2, 2, 1, 1] k = {1.0, 0.5, -0.5, 1.0}, int64[2] s = {1, 32}, int64[2] t = {16, 2}, "
        "float[2, 3] w = {1, 2, 3, 4, 5, 6}, int64[1] ax = {0}> "
        "{ c = Conv(x, k) r = Reshape(c, s) q = Reshape(r, t) m = MatMul(q, w) y = ReduceMean(m, ax) }"
    )
    teacher = normalise(model_of(text))
    student = with_values(teacher, {"w": np.array([[2, 1, 3], [4, 4, 3]], np.float32)})
    samples = [{"x": np.random.default_rng(i).standard_normal((1, 2, 4, 4)).astype(np.float32)} for i in range(24)]
    found = recover(student, teacher, step(epochs=10, learning_rate=0.1), samples)
    assert error(found, teacher, samples) < 0.5 * error(student, teacher, samples)


def test_samples_of_several_sizes_train_in_batches_of_one_size() -> None:
    samples = [{"x": np.zeros((1, 3, side, side))} for side in (4, 5, 4, 5, 5, 4, 4)]
    found = batches(samples, 2, seed=0, epoch=0)
    assert sorted(index for batch in found for index in batch) == list(range(7))
    assert all(len({samples[index]["x"].shape for index in batch}) == 1 for batch in found)
    assert all(len(batch) <= 2 for batch in found)


def test_each_epoch_has_its_own_order() -> None:
    samples = photos(16)
    assert batches(samples, 4, seed=0, epoch=0) == batches(samples, 4, seed=0, epoch=0)
    assert batches(samples, 4, seed=0, epoch=0) != batches(samples, 4, seed=0, epoch=1)


def test_the_loss_of_equal_answers_is_nothing() -> None:
    answers = {"y": torch.randn(5, 1, 10), "map": torch.randn(5, 1, 2, 4, 4)}
    loss = Loss({name: answer[0] for name, answer in answers.items()}, temperature=2.0, label_weight=0.3)
    assert float(loss(answers, answers)) == pytest.approx(0, abs=1e-6)


def test_probabilities_and_logits_have_the_same_loss() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 1, 10, generator=random), torch.randn(5, 1, 10, generator=random)
    on_logits = Loss({"y": a[0]}, temperature=2.0, label_weight=0.3)({"y": a}, {"y": b})
    p, q = a.softmax(-1), b.softmax(-1)
    on_probabilities = Loss({"y": p[0]}, temperature=2.0, label_weight=0.3)({"y": p}, {"y": q})
    assert float(on_logits) == pytest.approx(float(on_probabilities), rel=1e-4)


def test_threads_are_given_back(student: Model, teacher: Model) -> None:
    before = torch.get_num_threads()
    distill(student, teacher, step(epochs=1), photos(4), lesson=Lesson(threads=2))
    assert torch.get_num_threads() == before
