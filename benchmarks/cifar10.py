"""What int8 and pruning leave of a CIFAR-10 network, on all 10,000 test images.

The network is `benchmarks.nets.Cifar10Net`, trained by `benchmarks.train_cifar10`; what was pruned and recovered by
`benchmarks.prune_cifar10` is made again from its recipe. Calibration, the choice of channels, repair and recovery see
training images only. The speed-up is of the CPU time of one thread, the fp32 original against the pruned and quantized
result, batch 1, in turns.
"""

from __future__ import annotations

from benchmarks.compression import (
    PLAIN,
    bytes_ratio,
    cpu_ratios,
    digest,
    from_file,
    macs,
    plan_here,
    quantized,
    replayed,
)
from benchmarks.data import cifar10
from benchmarks.images import batches, cifar10_samples, logits, top1, trained
from benchmarks.measure import Figure, Key, main_of, say
from benchmarks.prune_cifar10 import PRUNED
from host.model import Model

REPEATS = 20

KEYS = (
    Key(name="top1_fp32", meaning="top-1 accuracy of the original"),
    Key(name="top1_int8", meaning="the same of int8, as run here"),
    Key(name="top1_int8_plain", meaning="the same of plain int8: MinMax, per channel, nothing corrected"),
    Key(name="top1_int8_unfused", meaning="the same of int8 before fusing, every graph optimisation off"),
    Key(name="bytes_ratio_int8", meaning="bytes of the int8 model as an ONNX file / those of the original"),
    Key(name="speedup_int8", meaning="CPU time of the original / that of int8, one thread, batch 1"),
    Key(name="top1_pruned", meaning="top-1 accuracy after pruning, recovery and int8, as run here"),
    Key(name="macs_ratio_pruned", meaning="multiply-accumulates of that / those of the original"),
    Key(name="bytes_ratio_pruned", meaning="bytes of that / those of the original"),
    Key(name="speedup_pruned", meaning="CPU time of the original / that of the pruned int8 model"),
    Key(name="same_digest", meaning="the decided recipes, run again, give the same bytes"),
    Key(name="images", meaning="test images"),
)


def measure() -> dict[str, Figure]:
    """Take all figures."""
    ingested = trained("cifar10", cifar10_samples)
    test = cifar10(train=False)
    inputs = batches(test)
    say("quantizing")
    int8, plain = quantized(ingested, plan_here()), quantized(ingested, PLAIN)
    say(f"replaying {PRUNED.name}")
    pruned = from_file(ingested, PRUNED)
    say(f"answering {len(test)} images")
    base = int8.original

    def accuracy(model: Model) -> float:
        return top1(logits(model, inputs), test.labels)

    one = ingested.samples[0]
    say("measuring CPU time")
    ratios = cpu_ratios({"int8": int8.model, "pruned": pruned.model}, base, one, repeats=REPEATS)
    return {
        "top1_fp32": accuracy(base),
        "top1_int8": accuracy(int8.model),
        "top1_int8_plain": accuracy(plain.model),
        "top1_int8_unfused": top1(logits(int8.unfused, inputs, mode="exact"), test.labels),
        "bytes_ratio_int8": bytes_ratio(int8.model, base),
        "speedup_int8": 1 / ratios["int8"],
        "top1_pruned": accuracy(pruned.model),
        "macs_ratio_pruned": macs(pruned.shrunk, one) / macs(base, one),
        "bytes_ratio_pruned": bytes_ratio(pruned.model, base),
        "speedup_pruned": 1 / ratios["pruned"],
        "same_digest": all(digest(replayed(ingested, each).model) == digest(each.model) for each in (int8, pruned)),
        "images": len(test),
    }


if __name__ == "__main__":
    main_of(__doc__, measure, KEYS)
