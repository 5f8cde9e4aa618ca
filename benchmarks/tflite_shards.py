"""What cutting a TFLite model costs: whole, in two sub-models, at a random cut set, and in one for every operator.

The whole is the file of the zoo, loaded as anyone would: one interpreter, one thread, its XNNPACK delegate. Times are
those of stages as agents load them. CPU time, not wall time, is compared; the ways take turns.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Figure, Key, interleaved, main_of, paired_ratio, say
from edge.formats.tensor import Array
from host.answers import load_run
from host.bundle import OpenBundle
from host.dotted import resolve
from host.errors import IngestError
from host.package import PackageRequest, package
from host.tflite.build import TfliteCuts, divide
from host.tflite.cost import operator_macs
from host.tflite.model import read_tflite
from host.tflite.reference import TfliteMode, chain, load_interpreter, mode_for, run_interpreter
from host.tflite.submodel import extract
from tests.zoo import TFLITE_ZOO, ZooModel

PROFILE = "phone-mid"
ROUNDS = 15
REPEATS = 3
RANDOM_SETS = 8

_MODELS = {model.name.replace("-", "_"): model for model in TFLITE_ZOO}
_MEANINGS = {
    "cuts": "{model}: places where it may be cut",
    "bit_equal": "{model}: a sub-model for each operator and random cut sets, both kinds of kernels: every bit",
    "cpu_ratio": "{model}: all shards of the bundle on one device / the whole, CPU time",
    "cpu_ratio_two": "{model}: on two devices / the whole, CPU time",
    "cpu_ratio_apart": "{model}: an interpreter for each operator / the whole, CPU time",
    "cpu_ms_whole": "{model}: CPU time of one request, the whole",
}

KEYS = tuple(
    Key(name=f"{key}_{name}", meaning=meaning.format(model=name))
    for name in _MODELS
    for key, meaning in _MEANINGS.items()
)

Tensors = Mapping[str, Array]
Run = Callable[[], Sequence[Array]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """A model of the zoo, divided at every place, with one input."""

    file: bytes
    divided: TfliteCuts
    inputs: Tensors
    outputs: tuple[str, ...]

    def whole(self, mode: TfliteMode) -> Run:
        """Load the file as it came."""
        interpreter: Any = load_interpreter(self.file, mode=mode)
        given = list(self.inputs.values())
        return lambda: run_interpreter(interpreter, given)

    def cut(self, bounds: Sequence[int], mode: TfliteMode) -> Run:
        """Load a sub-model for each range between neighbouring bounds."""
        layers = self.divided.layers
        made = [
            extract(
                self.divided.model,
                range(layers.bounds[first], layers.bounds[stop]),
                working=layers.working,
                observed=self.divided.observed,
            )
            for first, stop in pairwise(bounds)
        ]
        parts = [(load_interpreter(each.data, mode=mode), each.inputs, each.outputs) for each in made]

        def run() -> Sequence[Array]:
            found = chain(parts, self.inputs)
            return [found[name] for name in self.outputs]

        return run


def _model(zoo: ZooModel) -> _Model:
    model = read_tflite(Path(zoo.source))
    sample = {
        name: np.ascontiguousarray(array) for name, array in resolve(str(zoo.inputs), fault=IngestError)()[0].items()
    }
    return _Model(
        file=Path(zoo.source).read_bytes(),
        divided=divide(model, [sample]),
        inputs=sample,
        outputs=model.graph.names(model.graph.outputs),
    )


def _halves(divided: TfliteCuts) -> list[int]:
    """Bounds of two sub-models of about the same work."""
    work = [
        sum(operator_macs(divided.model, operator, divided.observed) for operator in layer)
        for layer in divided.layers.layers
    ]
    middle = min(range(1, len(work)), key=lambda cut: abs(2 * sum(work[:cut]) - sum(work)))
    return [0, middle, len(work)]


def _cut_sets(count: int, name: str) -> list[list[int]]:
    rng = random.Random(name)
    drawn = [[0, *sorted(rng.sample(range(1, count), rng.randint(1, 9))), count] for _ in range(RANDOM_SETS)]
    return [list(range(count + 1)), *drawn]


def _bit_equal(model: _Model, sets: Sequence[Sequence[int]]) -> bool:
    modes: tuple[TfliteMode, ...] = ("exact", "default")
    for mode in {mode_for(model.divided.model.graph, mode) for mode in modes}:
        expected = [array.tobytes() for array in model.whole(mode)()]
        for bounds in sets:
            if [array.tobytes() for array in model.cut(bounds, mode)()] != expected:
                return False
    return True


def _stages(bundle: OpenBundle, bounds: Sequence[int], inputs: Tensors) -> Run:
    """Load consecutive stages of a bundle as agents do."""
    stages = [load_run(bundle, first, stop, mode="default") for first, stop in pairwise(bounds)]

    def run() -> Sequence[Array]:
        tensors = dict(inputs)
        for stage in stages:
            tensors = stage.run(tensors)
        return list(tensors.values())

    return run


def measure() -> dict[str, Figure]:
    """Take all figures."""
    figures: dict[str, Figure] = {}
    for name, zoo in _MODELS.items():
        say(f"cutting {name}")
        model = _model(zoo)
        count = len(model.divided.layers.cuts) - 1
        figures[f"cuts_{name}"] = count - 1
        figures[f"bit_equal_{name}"] = _bit_equal(model, _cut_sets(count, name))
        with tempfile.TemporaryDirectory(prefix="shardwire-bench-") as folder:
            request = PackageRequest(
                source=zoo.source, profile=PROFILE, target=Path(folder, name), inputs=zoo.inputs, max_shards=count
            )
            bundle = package(request).bundle
            ways = {
                "whole": model.whole("default"),
                "one": _stages(bundle, [0, count], model.inputs),
                "two": _stages(bundle, _halves(model.divided), model.inputs),
                "apart": model.cut(range(count + 1), "default"),
            }
            spent = interleaved(ways, rounds=ROUNDS, repeats=REPEATS)
        figures[f"cpu_ratio_{name}"] = paired_ratio(spent["one"], spent["whole"])
        figures[f"cpu_ratio_two_{name}"] = paired_ratio(spent["two"], spent["whole"])
        figures[f"cpu_ratio_apart_{name}"] = paired_ratio(spent["apart"], spent["whole"])
        figures[f"cpu_ms_whole_{name}"] = sorted(spent["whole"])[ROUNDS // 2] * 1e3
    return figures


def main() -> None:
    """Print them."""
    main_of(__doc__, measure, KEYS)


if __name__ == "__main__":
    main()
