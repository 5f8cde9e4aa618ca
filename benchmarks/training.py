"""Training a small image classifier on this machine's processor, and exporting it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.data import Images, cache_folder
from benchmarks.images import MODELS, prepared
from benchmarks.measure import say
from host.ingest.torch import OPSET
from host.model import from_bytes, to_bytes
from host.passes.forget import forget_texts

_EVALUATION_BATCH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: Times through the training images.
        batch: Images in one step.
        rate: Largest learning rate: reached after `warm_up` of all steps, then down to nothing along a cosine.
        warm_up: Share of the steps.
        smoothing: Of the labels.
        decay: Of the weights of convolutions and linear layers.
        shift_pixels: Largest random shift of a training image to any side.
        small_epochs: The first epochs, which see smaller squares of the images, for half the time.
        small_pixels: Side of those.
        flip: Whether half of the training images are mirrored.
        seed: Of everything random.
        threads: Of torch. Another number gives other last bits, and so another network of the same quality.
    """

    epochs: int
    batch: int = 128
    rate: float = 0.1
    warm_up: float = 0.15
    smoothing: float = 0.05
    decay: float = 5e-4
    shift_pixels: int = 4
    small_epochs: int = 0
    small_pixels: int = 24
    flip: bool = True
    seed: int = 1
    threads: int = 2


def train(name: str, make: Callable[[], nn.Module], training: Images, test: Images, schedule: Schedule) -> nn.Module:
    """Train a network, in bfloat16 where the processor has it, and say how good it becomes on the test images.

    Its weights after each epoch are in the cache folder.

    Args:
        name: Of the network.
        make: Makes it, with random weights.
        training: Seen, shifted and mirrored at random.
        test: Only looked at; nothing is chosen by them.
        schedule: How.
    """
    torch.set_num_threads(schedule.threads)
    torch.manual_seed(schedule.seed)
    module = make()
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it, its annotations do not
    plain = [weights for weights in module.parameters() if weights.ndim < 2]
    decayed = [weights for weights in module.parameters() if weights.ndim >= 2]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": schedule.decay}, {"params": plain, "weight_decay": 0.0}],
        lr=schedule.rate,
        momentum=0.9,
        nesterov=True,
    )
    steps = schedule.epochs * (len(training) // schedule.batch)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps, schedule.warm_up))
    rng = np.random.default_rng(schedule.seed)
    padding = ((0, 0), *[(schedule.shift_pixels, schedule.shift_pixels)] * 2, (0, 0))
    padded = Images(pixels=np.pad(training.pixels, padding, mode="reflect"), labels=training.labels)
    for epoch in range(schedule.epochs):
        started, total, seen = time.monotonic(), 0.0, 0
        module.train()
        side = schedule.small_pixels if epoch < schedule.small_epochs else training.pixels.shape[1]
        for images, labels in _batches(padded, side, schedule, rng):
            with torch.autocast("cpu", torch.bfloat16):
                logits = module(images)
            loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=schedule.smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch annotates it so
            optimizer.step()
            rates.step()
            total, seen = total + loss.item(), seen + 1
        say(f"{name}: epoch {epoch + 1}/{schedule.epochs}: loss {total / seen:.4f}, {time.monotonic() - started:.0f} s")
        cache_folder().mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, checkpoint(name))
    say(f"{name}: top-1 {evaluate(module, test):.4f} on {len(test)} test images")
    return module


def checkpoint(name: str) -> Path:
    """Where the weights after the latest epoch are."""
    return cache_folder() / f"{name}.safetensors"


def evaluate(module: nn.Module, images: Images) -> float:
    """Top-1 accuracy in float32."""
    module.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), _EVALUATION_BATCH):
            part = images.at(slice(start, start + _EVALUATION_BATCH))
            found = module(torch.from_numpy(prepared(part.pixels))).argmax(1).numpy()
            right += int((found == part.labels).sum())
    return right / len(images)


def export(name: str, module: nn.Module, example: Images) -> Path:
    """Write a network to ``benchmarks/models`` as ONNX, with any batch.

    Args:
        name: Of the file, without suffix.
        module: Changed to evaluation mode.
        example: Two images or more; only their shape matters.

    Returns:
        The file.
    """
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as above
    module.eval()
    inputs = torch.from_numpy(prepared(example.pixels[:2]))
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module,
        kwargs={"image": inputs},
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes={"image": {0: batch}},
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    graph = from_bytes(program.model_proto.SerializeToString(deterministic=True))
    forget_texts(graph)
    path = MODELS / f"{name}.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(to_bytes(graph))
    say(f"wrote {path}")
    return path


def _rate(done: float, warm_up: float) -> float:
    if done < warm_up:
        return done / warm_up
    return (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up))) / 2


def _batches(
    padded: Images, side: int, schedule: Schedule, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """A random square of each image, in a random order, maybe mirrored; a last part of a batch is left out."""
    count, room = len(padded), padded.pixels.shape[1] - side
    order = rng.permutation(count)
    for start in range(0, count - schedule.batch + 1, schedule.batch):
        chosen = order[start : start + schedule.batch]
        places = rng.integers(0, room + 1, (schedule.batch, 2))
        mirrored = rng.random(schedule.batch) < (0.5 if schedule.flip else 0.0)
        pixels = np.stack(
            [
                padded.pixels[index, top : top + side, left : left + side][:, :: -1 if flip else 1]
                for index, (top, left), flip in zip(chosen, places, mirrored, strict=True)
            ]
        )
        images = torch.from_numpy(prepared(pixels)).to(memory_format=torch.channels_last)
        yield images, torch.from_numpy(padded.labels[chosen])
