"""Running a plan on this machine: each stage in its own session, with what its devices would hand on."""

from pathlib import Path

import numpy as np
import pytest

from edge.errors import FormatError, InvalidInput
from edge.formats.plan import Plan
from host.answers import load_whole, run_plan
from host.bundle import OpenBundle
from tests.tiny_bundle import make_deployment, make_diamond_bundle, make_input

BUNDLE = make_diamond_bundle()


@pytest.fixture
def bundle(tmp_path: Path) -> OpenBundle:
    folder = tmp_path / "blobs" / "sha256"
    folder.mkdir(parents=True)
    for digest, data in BUNDLE.blobs.items():
        (folder / digest.removeprefix("sha256:")).write_bytes(data)
    return OpenBundle(
        folder=tmp_path,
        manifest=BUNDLE.manifest,
        manifest_blob=BUNDLE.manifest_blob,
        artefact_digest="",
        signatures=(),
    )


def plan(*devices: str, beside: tuple[int, ...] = ()) -> Plan:
    made = make_deployment(BUNDLE, devices, beside=beside).plan
    assert made is not None
    return made


@pytest.mark.parametrize(
    "of", [plan("a"), plan("a", "b"), plan("a", "b", "c", "d"), plan("a", "b", "c", "d", beside=(2,))], ids=str
)
def test_whatever_the_plan_the_answer_has_the_bits_of_the_whole(bundle: OpenBundle, of: Plan) -> None:
    inputs = {"x": make_input(4)}
    whole = load_whole(bundle, mode="exact").run(inputs)
    found = run_plan(bundle, of, inputs)
    assert found["y"].tobytes() == whole["y"].tobytes()
    np.testing.assert_allclose(found["y"], BUNDLE.answer(make_input(4)), atol=1e-5)


def test_a_plan_of_another_bundle_is_refused(bundle: OpenBundle) -> None:
    other = plan("a", "b")
    short = Plan(objective="throughput", stages=other.stages[:1], bottleneck_seconds=1.0, latency_seconds=1.0, binds="")
    with pytest.raises(FormatError, match="stages do not cover the 4 shards of 'diamond'"):
        run_plan(bundle, short, {"x": make_input(0)})


def test_inputs_that_do_not_fit_are_refused(bundle: OpenBundle) -> None:
    with pytest.raises(InvalidInput, match="stage takes the tensors"):
        run_plan(bundle, plan("a", "b"), {"z": make_input(0)})
