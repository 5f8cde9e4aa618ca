"""A network that plain int8 ruins, and what the search makes of it with a budget of one point of top-1.

It computes what the CIFAR-10 network computes; `benchmarks.wide_ranges` says why 8 bits cannot hold it. The search
judges on one half of the test images; all figures are of the other half, so that `within_budget` may be false by chance
where the search found something just inside.
"""

from __future__ import annotations

import dataclasses
import time

from benchmarks.compression import PLAIN, bytes_ratio, quantized
from benchmarks.data import cifar10
from benchmarks.images import batches, cifar10_samples, logits, samples, top1, trained
from benchmarks.measure import Figure, Key, main_of, say
from benchmarks.wide_ranges import with_wide_ranges
from edge.formats.profile import load_profile
from host.compress.data.dataset import Dataset
from host.compress.judge.budget import Budget
from host.compress.pipeline import NO_TRAINING, prepare
from host.compress.search.search import BudgetUnmetError, Wish, search
from host.compress.search.workpiece import Material
from host.model import Ingested, Model

PROFILE = "rpi4"
BUDGET = 0.01
JUDGED_IMAGES = 5000

KEYS = (
    Key(name="top1_fp32", meaning="top-1 accuracy of the original"),
    Key(name="top1_base", meaning="the same of the network that it was made from"),
    Key(name="top1_naive", meaning="the same of plain int8: MinMax, per channel, nothing corrected"),
    Key(name="top1_searched", meaning="the same of what the search found; of the original where it refused"),
    Key(
        name="within_budget",
        meaning=f"whether that lost no more than {BUDGET:.0%}, on images that the search never saw",
    ),
    Key(name="refused", meaning="whether the search said that nothing keeps the budget, and listed what came closest"),
    Key(name="trials", meaning="candidates that the search judged"),
    Key(name="bytes_ratio", meaning="bytes of what it found as an ONNX file / those of the original"),
    Key(name="search_seconds", meaning="time that the search took"),
    Key(name="images", meaning="test images behind the accuracies"),
)


def widened(ingested: Ingested) -> Ingested:
    """The network with ranges that 8 bits cannot hold."""
    optimised = prepare(ingested, say=say).optimised
    return dataclasses.replace(ingested, model=with_wide_ranges(optimised, ingested.samples))


def measure() -> dict[str, Figure]:
    """Take all figures."""
    base = trained("cifar10", cifar10_samples)
    hard = widened(base)
    test = cifar10(train=False)
    judged, others = test.at(slice(0, JUDGED_IMAGES)), test.at(slice(JUDGED_IMAGES, None))
    inputs = batches(others)

    def accuracy(model: Model) -> float:
        return top1(logits(model, inputs), others.labels)

    naive = quantized(hard, PLAIN)
    dataset = Dataset.held(samples(judged), [int(label) for label in judged.labels], name="test images")
    material = Material(dataset=dataset, calibration=hard.samples, training=NO_TRAINING)
    wish = Wish(budget=Budget.parse(f"top1-drop<={BUDGET}"), profile=load_profile(PROFILE), ratios=())
    started = time.monotonic()
    chosen: Model | None = None
    try:
        result, found = search(hard, material, wish, say=say)
        chosen = result.model
    except BudgetUnmetError as refusal:
        say(str(refusal))
        found = refusal.found
    seconds = time.monotonic() - started
    original = naive.original
    top1_fp32 = accuracy(original)
    top1_searched = accuracy(chosen) if chosen is not None else top1_fp32
    return {
        "top1_fp32": top1_fp32,
        "top1_base": accuracy(base.model),
        "top1_naive": accuracy(naive.model),
        "top1_searched": top1_searched,
        "within_budget": chosen is not None and top1_fp32 - top1_searched <= BUDGET,
        "refused": chosen is None,
        "trials": len(found.trials),
        "bytes_ratio": bytes_ratio(chosen, original) if chosen is not None else 1.0,
        "search_seconds": seconds,
        "images": len(others),
    }


if __name__ == "__main__":
    main_of(__doc__, measure, KEYS)
