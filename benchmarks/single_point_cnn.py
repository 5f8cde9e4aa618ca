"""Three convolutions, three poolings and a linear layer on MNIST: what each kind of operator gains, one by one.

The network is `benchmarks.nets.MnistNet`, trained by `benchmarks.train_mnist`. The times of the operators are those of
onnxruntime's profiler, one thread, batch 32, the fp32 original against the pruned and quantized result, in turns. What
only converts or moves data counts with the operator that it is for.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.compression import bytes_ratio, compressed, cpu_ratio, macs, memory_bytes, plan_here
from benchmarks.data import mnist
from benchmarks.images import INPUT, batches, drawn, logits, mnist_samples, prepared, samples, top1, trained
from benchmarks.measure import Figure, Key, main_of, say
from host.compress.pipeline import Training
from host.compress.recipe import PruneChannels, Recipe, Recover
from host.model import Model, Tensors, to_bytes
from host.timing import NodeTime, node_times

BATCH = 32
RATIO = 0.625
RECOVER = (Recover(method="distill", epochs=3, learning_rate=1e-3, batch=64),)
TRAINING_IMAGES = 3000
ROUNDS = 7
RUNS = 10
REPEATS = 20

KEYS = (
    Key(name="conv_speedup", meaning="time of the convolutions, fp32 original / result, batch 32"),
    Key(name="pool_speedup", meaning="the same of the poolings"),
    Key(name="fc_speedup", meaning="the same of the fully connected layer"),
    Key(name="latency_ratio", meaning="CPU time of one image, result / original"),
    Key(name="memory_ratio", meaning="weights and peak activations at batch 32, result / original"),
    Key(name="top1_drop", meaning="top-1 accuracy lost, 0.01 being one point"),
    Key(name="top1_fp32", meaning="top-1 accuracy of the original"),
    Key(name="images", meaning="test images"),
    Key(name="bytes_ratio", meaning="bytes of the result as an ONNX file / those of the original"),
    Key(name="macs_ratio", meaning="multiply-accumulates of the result / those of the original"),
    Key(name="conv_ms_fp32", meaning="time of the original's convolutions, batch 32"),
    Key(name="pool_ms_fp32", meaning="of its poolings"),
    Key(name="fc_ms_fp32", meaning="of its fully connected layer"),
    Key(name="rss_mb_fp32", meaning="resident memory of a process that ran the original, batch 32"),
    Key(name="rss_mb", meaning="the same of the result; both hold Python and onnxruntime"),
)

_KINDS = {
    "conv": ("Conv",),
    "pool": ("Pool",),
    "fc": ("Gemm", "MatMul"),
}

# Loads a model alone and says how much memory its process took at most, in KiB.
_RSS = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
feed = np.zeros([int(size) for size in sys.argv[2:]], np.float32)
for _ in range(3):
    session.run(None, {session.get_inputs()[0].name: feed})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def kind_of(operator: str) -> str | None:
    """``conv``, ``pool`` or ``fc``, whatever the runtime's kernel is called; None for what serves another operator."""
    return next((kind for kind, words in _KINDS.items() if any(word in operator for word in words)), None)


def seconds_by_kind(times: Sequence[NodeTime]) -> dict[str, float]:
    """Sum the nodes of each kind; a node of none counts with the next that has one, at the end with the last."""
    sums = dict.fromkeys(_KINDS, 0.0)
    waiting, latest = 0.0, None
    for node in times:
        waiting += node.seconds
        kind = kind_of(node.operator)
        if kind is not None:
            sums[kind] += waiting
            waiting, latest = 0.0, kind
    if latest is not None:
        sums[latest] += waiting
    return sums


def operator_rounds(model: Model, base: Model, inputs: Sequence[Tensors]) -> tuple[list[dict[str, float]], ...]:
    """Seconds by kind of both models, in turns."""
    rounds: tuple[list[dict[str, float]], ...] = ([], [])
    for _ in range(ROUNDS):
        for found, each in zip(rounds, (model, base), strict=True):
            found.append(seconds_by_kind(node_times(each, inputs, runs=RUNS)))
    return rounds


def resident_mb(model: Model, shape: Sequence[int]) -> float:
    """Largest resident memory of a process that runs nothing but a model."""
    with tempfile.TemporaryDirectory(prefix="shardwire-bench-") as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(to_bytes(model.ir))
        command = [sys.executable, "-c", _RSS, str(path), *map(str, shape)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1.024 / 1000


def measure() -> dict[str, Figure]:
    """Take all figures."""
    ingested = trained("mnist", mnist_samples)
    test, training = mnist(train=False), mnist(train=True)
    recipe = Recipe(prune=(PruneChannels(ratio=RATIO),), recover=RECOVER, quantize=plan_here())
    say("compressing")
    result = compressed(ingested, recipe, training=Training(samples=samples(drawn(training, TRAINING_IMAGES))))
    base = result.original
    say(f"answering {len(test)} images")
    accuracy = {
        name: top1(logits(each, batches(test)), test.labels)
        for name, each in (("fp32", base), ("result", result.model))
    }
    say("profiling")
    batch = {INPUT: prepared(test.pixels[:BATCH])}
    faster, slower = operator_rounds(result.model, base, [batch])
    found: dict[str, Figure] = {
        f"{kind}_speedup": statistics.median(b[kind] / a[kind] for a, b in zip(faster, slower, strict=True))
        for kind in _KINDS
    }
    shape = np.shape(batch[INPUT])
    return found | {
        "latency_ratio": cpu_ratio(result.model, base, ingested.samples[0], repeats=REPEATS),
        "memory_ratio": memory_bytes(result.model, batch) / memory_bytes(base, batch),
        "top1_drop": accuracy["fp32"] - accuracy["result"],
        "top1_fp32": accuracy["fp32"],
        "images": len(test),
        "bytes_ratio": bytes_ratio(result.model, base),
        "macs_ratio": macs(result.shrunk, batch) / macs(base, batch),
        **{f"{kind}_ms_fp32": statistics.median(each[kind] for each in slower) * 1e3 for kind in _KINDS},
        "rss_mb_fp32": resident_mb(base, shape),
        "rss_mb": resident_mb(result.model, shape),
    }


if __name__ == "__main__":
    main_of(__doc__, measure, KEYS)
