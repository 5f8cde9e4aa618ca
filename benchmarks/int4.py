"""What 4-bit weights leave of all-MiniLM-L6-v2: which of 200 sentences is nearest to another one, bytes, CPU time.

For the first sentence of each pair the nearest of all second ones is looked for. The sentences are of Python's own
help texts. fp32 and dynamic int8 are measured in the same run, CPU time on one thread, batch 1, in turns.
"""

from __future__ import annotations

import numpy as np

from benchmarks.compression import bytes_ratio, cpu_ratios, quantized
from benchmarks.images import cosine, logits
from benchmarks.measure import Figure, Key, main_of, say
from benchmarks.sentences import pairs, tokenized
from edge.formats.tensor import Array
from host.compress.recipe import Quantize
from host.ingest import ingest

PAIRS = 200
REPEATS = 5

KEYS = (
    Key(name="neighbour_agreement", meaning="first sentences whose nearest second one is the same as in fp32"),
    Key(name="neighbour_agreement_int8", meaning="the same of dynamic int8"),
    Key(name="cosine", meaning="mean cosine of the int4 embeddings to those of fp32"),
    Key(name="cosine_int8", meaning="the same of dynamic int8"),
    Key(name="pairs_found_fp32", meaning="first sentences whose nearest one is their own neighbour in the text, fp32"),
    Key(name="pairs_found_int4", meaning="the same in int4"),
    Key(name="bytes_ratio", meaning="bytes of the int4 model as an ONNX file / those of fp32"),
    Key(name="bytes_ratio_int8", meaning="the same of dynamic int8"),
    Key(name="latency_ratio_int8", meaning="CPU time of int4 / that of dynamic int8"),
    Key(name="latency_ratio_fp32", meaning="CPU time of int4 / that of fp32"),
    Key(name="pairs", meaning="pairs of sentences"),
)


def nearest(firsts: Array, seconds: Array) -> Array:
    """For each of the first embeddings the index of the second that is most like it; all are of length one."""
    return np.asarray((firsts @ seconds.T).argmax(1))


def measure() -> dict[str, Figure]:
    """Take all figures."""
    say("exporting all-MiniLM-L6-v2")
    ingested = ingest("benchmarks.models:minilm", inputs="benchmarks.sentences:samples")
    say("quantizing")
    int4 = quantized(ingested, Quantize(mode="int4"))
    int8 = quantized(ingested, Quantize(mode="int8-dynamic"))
    models = {"fp32": int4.original, "int4": int4.model, "int8": int8.model}
    found = pairs(PAIRS)
    inputs = tokenized([sentence for pair in found for sentence in pair])
    say(f"answering {len(inputs)} sentences")
    answers = {name: logits(model, inputs) for name, model in models.items()}
    near = {name: nearest(each[::2], each[1::2]) for name, each in answers.items()}
    own = np.arange(PAIRS)
    say("measuring CPU time")
    ratios = cpu_ratios({"fp32": models["fp32"], "int8": models["int8"]}, models["int4"], inputs[0], repeats=REPEATS)
    return {
        "neighbour_agreement": float(np.mean(near["int4"] == near["fp32"])),
        "neighbour_agreement_int8": float(np.mean(near["int8"] == near["fp32"])),
        "cosine": cosine(answers["int4"], answers["fp32"]),
        "cosine_int8": cosine(answers["int8"], answers["fp32"]),
        "pairs_found_fp32": float(np.mean(near["fp32"] == own)),
        "pairs_found_int4": float(np.mean(near["int4"] == own)),
        "bytes_ratio": bytes_ratio(models["int4"], models["fp32"]),
        "bytes_ratio_int8": bytes_ratio(models["int8"], models["fp32"]),
        "latency_ratio_int8": 1 / ratios["int8"],
        "latency_ratio_fp32": 1 / ratios["fp32"],
        "pairs": PAIRS,
    }


if __name__ == "__main__":
    main_of(__doc__, measure, KEYS)
