"""What int8 leaves of EfficientNet-Lite0 and MobileNetV2, on random crops of labelled photos.

The photos that calibrate are other files than those that are measured. Everything is compared with the fp32 original,
which onnxruntime optimises as it loads it; the other baseline is int8 as a quantizer does it by itself. CPU time is of
one thread, taken in turns.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.compression import PLAIN, bytes_ratio, cpu_ratio, plan_here, quantized
from benchmarks.images import agreement, cosine, logits, top1
from benchmarks.measure import Figure, Key, main_of, say
from benchmarks.photos import (
    EFFICIENTNET,
    MOBILENET,
    Scaling,
    calibration_paths,
    centres,
    crops,
    labels,
    test_paths,
)
from host.ingest import ingest
from host.model import Ingested, Tensors

TEST_CROPS = 84
MOBILENET_CROPS = 42
CALIBRATION_CROPS = 12
REPEATS = 5

KEYS = (
    Key(name="agreement", meaning="crops on which int8, as run here, has the same first class as fp32"),
    Key(name="agreement_plain", meaning="the same of plain int8: MinMax, per channel, nothing corrected"),
    Key(name="cosine_run", meaning="mean cosine of the logits to those of fp32, as run here"),
    Key(name="cosine_plain", meaning="the same of plain int8"),
    Key(name="cosine_unfused", meaning="the same of int8 before fusing, every graph optimisation off"),
    Key(name="bytes_ratio", meaning="bytes of the int8 model as an ONNX file / those of fp32"),
    Key(name="cpu_ratio", meaning="CPU time of the int8 model / that of fp32, one thread, batch 1"),
    Key(name="photos_top1_fp32", meaning="photos named right by fp32, of those that did not calibrate"),
    Key(name="photos_top1_int8", meaning="the same by int8"),
    Key(name="photos", meaning="how many those are"),
    Key(name="crops", meaning="random crops of them"),
    Key(name="variant", meaning="types of activations and weights: what suits the processor that this runs on"),
    Key(name="mobilenet_agreement", meaning="MobileNetV2: agreement of int8 with fp32, as run here"),
    Key(name="mobilenet_agreement_plain", meaning="the same of plain int8"),
    Key(name="mobilenet_cosine_run", meaning="mean cosine of the logits to those of fp32, as run here"),
    Key(name="mobilenet_cosine_unfused", meaning="the same before fusing"),
    Key(name="mobilenet_bytes_ratio", meaning="bytes of the int8 model / those of fp32"),
    Key(name="mobilenet_cpu_ratio", meaning="CPU time of the int8 model / that of fp32"),
    Key(name="mobilenet_photos_top1_fp32", meaning="photos named right by fp32"),
    Key(name="mobilenet_photos_top1_int8", meaning="the same by int8"),
    Key(name="mobilenet_crops", meaning="random crops for MobileNetV2"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One network.

    Attributes:
        name: For progress.
        ingested: The network.
        scaling: What it takes.
        crops: Of each test photo.
    """

    name: str
    ingested: Ingested
    scaling: Scaling
    crops: int


def mobilenet_samples() -> list[Tensors]:
    """Inputs of MobileNetV2 to check its passes with."""
    return centres(calibration_paths(), MOBILENET)


def figures_of(case: Case) -> dict[str, Figure]:
    """Quantize a network in both ways and compare."""
    calibration = [
        *centres(calibration_paths(), case.scaling),
        *crops(calibration_paths(), CALIBRATION_CROPS, case.scaling, seed=1),
    ]
    inputs = crops(test_paths(), case.crops, case.scaling, seed=2)
    whole = centres(test_paths(), case.scaling)
    say(f"{case.name}: compressing")
    plan = plan_here()
    int8 = quantized(case.ingested, plan, calibration=calibration)
    plain = quantized(case.ingested, PLAIN, calibration=calibration)
    base = int8.original
    say(f"{case.name}: answering {len(inputs)} crops")
    expected = logits(base, inputs)
    run, by_plain = logits(int8.model, inputs), logits(plain.model, inputs)
    unfused = logits(int8.unfused, inputs, mode="exact")
    say(f"{case.name}: measuring CPU time")
    right = labels(test_paths())
    return {
        "agreement": agreement(run, expected),
        "agreement_plain": agreement(by_plain, expected),
        "cosine_run": cosine(run, expected),
        "cosine_plain": cosine(by_plain, expected),
        "cosine_unfused": cosine(unfused, expected),
        "bytes_ratio": bytes_ratio(int8.model, base),
        "cpu_ratio": cpu_ratio(int8.model, base, inputs[0], repeats=REPEATS),
        "photos_top1_fp32": top1(logits(base, whole), right),
        "photos_top1_int8": top1(logits(int8.model, whole), right),
        "photos": len(whole),
        "crops": len(inputs),
        "variant": plan.variant,
    }


def measure() -> dict[str, Figure]:
    """Take all figures."""
    found = figures_of(Case(name="EfficientNet-Lite0", ingested=ingest(""), scaling=EFFICIENTNET, crops=TEST_CROPS))
    say("MobileNetV2: exporting")
    mobilenet = ingest("benchmarks.models:mobilenet_v2", inputs=f"{__name__}:mobilenet_samples")
    others = figures_of(Case(name="MobileNetV2", ingested=mobilenet, scaling=MOBILENET, crops=MOBILENET_CROPS))
    wanted = {key.name for key in KEYS}
    named = {f"mobilenet_{name}": value for name, value in others.items()}
    return found | {name: value for name, value in named.items() if name in wanted}


if __name__ == "__main__":
    main_of(__doc__, measure, KEYS)
