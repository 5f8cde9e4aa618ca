"""What cutting costs: EfficientNet-Lite0 whole, in one session joined from shards, in two, and in one for every layer.

The whole is the optimised model as one ONNX file, written by `shardwire export` and loaded as anyone would. All runs
are on one thread. CPU time, not wall time, is compared; the four ways take turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.measure import Figure, Key, arguments, interleaved, paired_ratio, report, say
from edge.formats.tensor import Array
from edge.processing.prepare import prepare_image
from edge.stage import Stage
from host.answers import Mode, load_run
from host.bundle import OpenBundle
from host.compare import relative_error
from host.export import export_onnx
from host.ingest.zoo import PREPROCESS, photo_paths
from host.package import PackageRequest, package

PROFILE = "rpi4"
PHOTOS = 8
ROUNDS = 40
REPEATS = 5

KEYS = (
    Key(name="max_abs_error_fp32", meaning="largest difference to the whole, any cut set, default mode (logits)"),
    Key(name="max_relative_error_fp32", meaning="the same through the largest logit"),
    Key(name="bit_equal_exact", meaning="fp32, exact mode, a session for every layer: every bit of the whole"),
    Key(name="bit_equal_int8", meaning="int8, both modes, every way: every bit of the whole"),
    Key(name="cpu_ms_fp32_whole", meaning="CPU time of one request, fp32, one file, one session"),
    Key(name="cpu_ms_int8_whole", meaning="CPU time of one request, int8, one file, one session"),
    Key(name="cpu_ratio_fp32_composed", meaning="all shards in one session / the whole, CPU time"),
    Key(name="cpu_ratio_fp32_two", meaning="two sessions / the whole, CPU time"),
    Key(name="cpu_ratio_fp32_all_cuts", meaning="a session for every layer / the whole, CPU time"),
    Key(name="cpu_ratio_int8_composed", meaning="all shards in one session / the whole, CPU time"),
    Key(name="cpu_ratio_int8_two", meaning="two sessions / the whole, CPU time"),
    Key(name="cpu_ratio_int8_all_cuts", meaning="a session for every layer / the whole, CPU time"),
    Key(name="shards", meaning="shards of the int8 model"),
    Key(name="largest_shard_bytes", meaning="the largest of them, or of the fp32 model's"),
    Key(name="max_shard_bytes", meaning=f"what {PROFILE} allows"),
)

Tensors = Mapping[str, Array]


class Whole:
    """The model as one file in one session.

    Args:
        path: Written by `export_onnx`.
        mode: As devices run it, or unoptimised.
    """

    def __init__(self, path: Path, mode: Mode) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if mode == "default" else level.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(path, options)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Tensors) -> Tensors:
        """Run once."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """Stages that follow each other, all loaded."""

    stages: tuple[Stage, ...]

    def run(self, inputs: Tensors) -> Tensors:
        """Run them all once."""
        tensors = dict(inputs)
        for stage in self.stages:
            tensors = stage.run(tensors)
        return tensors


def chain(bundle: OpenBundle, bounds: Sequence[int], mode: Mode) -> Chain:
    """Load a stage between each two neighbouring bounds."""
    return Chain(stages=tuple(load_run(bundle, first, stop, mode=mode) for first, stop in pairwise(bounds)))


def halves(bundle: OpenBundle) -> tuple[int, int, int]:
    """Bounds of two stages of about the same work."""
    manifest = bundle.manifest
    work = [sum(layer.macs for layer in manifest.layers[s.first_layer : s.stop_layer]) for s in manifest.shards]
    middle = min(range(1, len(work)), key=lambda cut: abs(2 * sum(work[:cut]) - sum(work)))
    return 0, middle, len(work)


def ways(bundle: OpenBundle, whole: Path, mode: Mode) -> dict[str, Whole | Chain]:
    """The four ways to run a bundle."""
    count = len(bundle.manifest.shards)
    return {
        "whole": Whole(whole, mode),
        "composed": chain(bundle, (0, count), mode),
        "two": chain(bundle, halves(bundle), mode),
        "all_cuts": chain(bundle, range(count + 1), mode),
    }


def photos() -> list[Tensors]:
    """Real photos, prepared."""
    return [
        {PREPROCESS.name: prepare_image(PREPROCESS, path.read_bytes(), where=path.name)}
        for path in photo_paths()[:PHOTOS]
    ]


def _packaged(folder: Path, quantize: str) -> tuple[OpenBundle, Path]:
    say(f"packaging EfficientNet-Lite0, weights {quantize}")
    bundle = package(PackageRequest(source="", profile=PROFILE, target=folder / quantize, quantize=quantize)).bundle
    whole = folder / f"{quantize}.onnx"
    export_onnx(bundle, whole)
    return bundle, whole


def _bit_equal(bundle: OpenBundle, path: Path, mode: Mode, inputs: Sequence[Tensors]) -> bool:
    running = ways(bundle, path, mode)
    expected = [running["whole"].run(each) for each in inputs]
    return all(
        found[name].tobytes() == want[name].tobytes()
        for way in running.values()
        for each, want in zip(inputs, expected, strict=True)
        for found in [way.run(each)]
        for name in want
    )


def _errors(running: Mapping[str, Whole | Chain], exact: Whole, inputs: Sequence[Tensors]) -> tuple[float, float]:
    absolute = relative = 0.0
    for each in inputs:
        expected = exact.run(each)
        for way in running.values():
            for name, found in way.run(each).items():
                absolute = max(absolute, float(np.max(np.abs(found - expected[name]))))
                relative = max(relative, relative_error(found, expected[name]))
    return absolute, relative


def _cpu(running: Mapping[str, Whole | Chain], inputs: Tensors) -> dict[str, list[float]]:
    works = {name: lambda way=way: way.run(inputs) for name, way in running.items()}
    return interleaved(works, rounds=ROUNDS, repeats=REPEATS)


def measure() -> dict[str, Figure]:
    """Take all figures."""
    figures: dict[str, Figure] = {}
    inputs = photos()
    with tempfile.TemporaryDirectory(prefix="shardwire-bench-") as name:
        fp32, fp32_path = _packaged(Path(name), "none")
        int8, int8_path = _packaged(Path(name), "int8")
        say("comparing answers")
        running = ways(fp32, fp32_path, "default")
        absolute, relative = _errors(running, Whole(fp32_path, "exact"), inputs)
        figures["max_abs_error_fp32"], figures["max_relative_error_fp32"] = absolute, relative
        figures["bit_equal_exact"] = _bit_equal(fp32, fp32_path, "exact", inputs)
        modes: tuple[Mode, ...] = ("exact", "default")
        figures["bit_equal_int8"] = all(_bit_equal(int8, int8_path, mode, inputs) for mode in modes)
        say("measuring CPU time")
        for kind, way in (("fp32", running), ("int8", ways(int8, int8_path, "default"))):
            spent = _cpu(way, inputs[0])
            figures[f"cpu_ms_{kind}_whole"] = sorted(spent["whole"])[ROUNDS // 2] * 1e3
            for each in ("composed", "two", "all_cuts"):
                figures[f"cpu_ratio_{kind}_{each}"] = paired_ratio(spent[each], spent["whole"])
        sizes = [shard.size_bytes for bundle in (fp32, int8) for shard in bundle.manifest.shards]
        figures["shards"] = len(int8.manifest.shards)
        figures["largest_shard_bytes"] = max(sizes)
        figures["max_shard_bytes"] = int8.manifest.max_shard_bytes
    return figures


def main() -> None:
    """Print them."""
    as_json = arguments(__doc__)
    report(measure(), KEYS, as_json=as_json)


if __name__ == "__main__":
    main()
