"""TFLite models in shards: cut anywhere, in both modes, they have the bits of the file that was not cut."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edge.formats.tensor import Array
from host.answers import verify_answers
from host.errors import PackageError, UnsupportedModelError
from host.export import export_onnx
from host.package import PackageRequest, package
from host.tflite.build import TfliteCuts, divide
from host.tflite.model import read_tflite
from host.tflite.reference import TfliteMode, chain, load_interpreter, mode_for
from host.tflite.submodel import extract
from tests.conformance.cutting import CutModel, Tensors, cut_everywhere, same_bits
from tests.zoo import REFUSED_TFLITE, TFLITE_ZOO, ZooModel

MODES: tuple[TfliteMode, ...] = ("exact", "default")

Part = tuple[Any, Sequence[str], Sequence[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A model of the zoo in shards of one operator.

    Attributes:
        packaged: As a bundle, whose shards agents load.
        divided: As sub-models of any size.
        answers: Of the file by itself, by mode; the interpreter is asked without any code of the host.
        loaded: Sub-models by mode and place, so that each is loaded once.
    """

    packaged: CutModel
    divided: TfliteCuts
    answers: dict[TfliteMode, dict[str, Array]]
    loaded: dict[tuple[str, int, int], Part] = field(default_factory=dict)

    @property
    def inputs(self) -> Tensors:
        """The one input."""
        return self.packaged.samples[0].inputs

    def unequal(self, bounds: Sequence[int], mode: TfliteMode) -> list[str]:
        """Run the sub-models between neighbouring bounds; name the outputs that differ from the file's by any bit."""
        parts = [self._part(first, stop, mode_for(self.divided.model.graph, mode)) for first, stop in pairwise(bounds)]
        found = chain(parts, self.inputs)
        return [name for name, array in self.answers[mode].items() if not same_bits(found[name], array)]

    def _part(self, first: int, stop: int, mode: TfliteMode) -> Part:
        if (mode, first, stop) not in self.loaded:
            layers = self.divided.layers
            made = extract(
                self.divided.model,
                range(layers.bounds[first], layers.bounds[stop]),
                working=layers.working,
                observed=self.divided.observed,
            )
            self.loaded[mode, first, stop] = (load_interpreter(made.data, mode=mode), made.inputs, made.outputs)
        return self.loaded[mode, first, stop]


def _by_itself(model: ZooModel, inputs: Tensors, mode: TfliteMode) -> dict[str, Array]:
    kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if mode == "exact" else OpResolverType.AUTO
    interpreter = Interpreter(model_path=model.source, num_threads=1, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], inputs[detail["name"]])
    interpreter.invoke()
    return {detail["name"]: interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()}


@pytest.fixture(scope="module", params=TFLITE_ZOO, ids=str)
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    zoo: ZooModel = request.param
    folder = tmp_path_factory.mktemp(zoo.name)
    packaged = cut_everywhere(zoo, folder / "bundle")
    inputs = packaged.samples[0].inputs
    model = read_tflite(Path(zoo.source))
    answers = {mode: _by_itself(zoo, inputs, mode_for(model.graph, mode)) for mode in MODES}
    yield Cut(packaged=packaged, divided=divide(model, [inputs]), answers=answers)
    shutil.rmtree(folder)


def test_every_operator_that_works_on_the_input_is_a_shard(cut: Cut) -> None:
    tree = schema.ModelT.InitFromPackedBuf(Path(cut.packaged.model.source).read_bytes())
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    kinds = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in tree.operatorCodes]
    # These make weights of what is in the file; they go with whoever reads them.
    working = [op for op in tree.subgraphs[0].operators if kinds[op.opcodeIndex] not in ("DEQUANTIZE", "DENSIFY")]
    assert len(cut.packaged.bundle.manifest.layers) == cut.packaged.shards == len(working)


@pytest.mark.parametrize("mode", MODES)
def test_a_sub_model_for_each_operator_gives_the_bits_of_the_file(cut: Cut, mode: TfliteMode) -> None:
    assert cut.unequal(range(cut.packaged.shards + 1), mode) == []


@pytest.mark.parametrize("mode", MODES)
def test_sub_models_of_random_cut_sets_give_the_bits_of_the_file(cut: Cut, mode: TfliteMode) -> None:
    rng = random.Random(cut.packaged.model.name)
    count = cut.packaged.shards
    for _ in range(5):
        bounds = [0, *sorted(rng.sample(range(1, count), rng.randint(1, 7))), count]
        assert cut.unequal(bounds, mode) == [], bounds


def test_stages_as_devices_load_them_give_the_bits_of_the_file(cut: Cut) -> None:
    expected = cut.answers["default"]
    for bounds in (list(range(cut.packaged.shards + 1)), *cut.packaged.cut_sets()):
        found = cut.packaged.chain(bounds, mode="default")[0]
        assert all(same_bits(found[name], expected[name]) for name in expected), bounds


def test_the_golden_answers_are_those_of_the_file(cut: Cut) -> None:
    sample = cut.packaged.samples[0]
    for name, array in cut.answers["default"].items():
        assert same_bits(sample.source[name], array)
        assert same_bits(sample.whole[name], array)


def test_several_tensors_are_alive_at_some_cuts(cut: Cut) -> None:
    assert max(len(names) for names in cut.packaged.bundle.manifest.cuts) > 1


def test_no_shard_holds_what_another_needs(cut: Cut) -> None:
    manifest = cut.packaged.bundle.manifest
    size = sum(blob.size_bytes for blob in manifest.blobs(0, len(manifest.shards)))
    file = Path(cut.packaged.model.source).stat().st_size
    # What a file of its own costs besides: tables of some hundred bytes.
    assert size < file + 1000 * len(manifest.shards)


def test_the_bundle_verifies(cut: Cut) -> None:
    assert [verdict.fault for verdict in verify_answers(cut.packaged.bundle)] == [None] * 4


def test_there_is_no_onnx_file_in_it(cut: Cut, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="its shards are TFLite models; only bundles of ONNX shards are exported"):
        export_onnx(cut.packaged.bundle, tmp_path / "net.onnx")


def test_packaging_again_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = {
        package(
            PackageRequest(source=TFLITE_ZOO[1].source, profile="phone-mid", target=tmp_path / name)
        ).bundle.artefact_digest
        for name in ("once", "again")
    }
    assert len(digests) == 1


def test_a_model_with_operators_that_litert_lacks_is_refused_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        package(PackageRequest(source=REFUSED_TFLITE.source, profile="phone-mid", target=tmp_path / "bundle"))
    assert str(caught.value) == (
        f"{REFUSED_TFLITE.source}: LiteRT has no custom operator Landmarks2TransformMatrix, TransformLandmarks, "
        "TransformTensorBilinear: export the model without it, or cut it off before it"
    )
    assert list(tmp_path.iterdir()) == []
