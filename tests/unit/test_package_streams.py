"""States and buckets that `shardwire package` is told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge.buckets import pad
from edge.formats.streams import Bucket, StreamState
from host.answers import load_whole, read_tensors, verify_answers
from host.errors import PackageError
from host.package import PackageRequest, package
from host.streams import parse_buckets, parse_states
from tests.graphs import parsed

# A running sum over time, and a mask; each position is two numbers.
RECURRENT = """
net (int64[b, n] ids, float[b, n] mask, float[b, 2] memory) => (float[b, n, 2] out, float[b, 2] after)
<float[4, 2] table = {0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4}, int64[1] one = {1}, int64[1] last = {2}>
{
    looked = Gather (table, ids)
    wide = Unsqueeze (mask, last)
    masked = Mul (looked, wide)
    total = ReduceSum <keepdims = 0> (masked, one)
    after = Add (total, memory)
    held = Unsqueeze (memory, one)
    out = Add (masked, held)
}
"""


def saved(folder: Path, text: str = RECURRENT) -> str:
    onnx.save(parsed(text), folder / "net.onnx")
    return str(folder / "net.onnx")


def packaged(folder: Path, **options: Any) -> Any:
    text = options.pop("text", RECURRENT)
    request = PackageRequest(
        source=saved(folder, text), profile="rpi4", quantize="none", target=folder / "bundle", **options
    )
    return package(request).bundle


def test_a_bundle_says_what_a_stream_carries_and_what_is_padded(tmp_path: Path) -> None:
    bundle = packaged(tmp_path, shapes={"b": 1}, states=("memory=after",), buckets=("ids:1=4,16,8@3",))
    manifest = bundle.manifest
    assert manifest.states == (StreamState(input="memory", output="after"),)
    # The mask has the same symbol, and both make `out` longer.
    assert manifest.buckets == (
        Bucket(input="ids", axis=1, sizes=(4, 8, 16), value=3, outputs=(("out", 1),)),
        Bucket(input="mask", axis=1, sizes=(4, 8, 16), outputs=(("out", 1),)),
    )
    assert manifest.inputs[0].shape == (1, None), "nothing is bound"
    # Golden inputs are those of the largest and the smallest size, so that the sizes in the manifest are the largest.
    assert [read_tensors(bundle, pair.inputs)["ids"].shape for pair in manifest.golden] == [(1, 16), (1, 4)]
    assert manifest.tensor("ids").size_bytes == 8 * 16
    assert [verdict.fault for verdict in verify_answers(bundle)] == [None] * 8


def test_padding_changes_no_answer(tmp_path: Path) -> None:
    manifest = (bundle := packaged(tmp_path, shapes={"b": 1}, buckets=("ids:1=4,8@3",))).manifest
    stage = load_whole(bundle)
    inputs: dict[str, Any] = {
        "ids": np.array([[1, 2, 3, 0, 1]]),
        "mask": np.ones((1, 5), np.float32),
        "memory": np.ones((1, 2), np.float32),
    }
    plain = stage.run(inputs)
    padded = pad(inputs, manifest)
    assert padded.inputs["ids"].shape == (1, 8)
    answer = padded.cut(stage.run(padded.inputs))
    assert {name: array.tolist() for name, array in answer.items()} == {
        name: array.tolist() for name, array in plain.items()
    }


FIXED = "net (float[1, 6] x) => (float[1, 6] y) { y = Relu (x) }"


def test_a_fixed_dimension_is_padded_to_its_size(tmp_path: Path) -> None:
    (bucket,) = packaged(tmp_path, text=FIXED, buckets=("x:1->y:1",)).manifest.buckets
    assert bucket == Bucket(input="x", axis=1, sizes=(6,), outputs=(("y", 1),))


OPEN = "net (float[1, n] x) => (float[1, n] y, float[1, 6] z) <int64[1] one = {1}> { y = Relu (x) s = ReduceSum (x, one) c = Constant <value = float[1, 6] {1, 1, 1, 1, 1, 1}> () z = Mul (s, c) }"  # noqa: E501  # one graph


def test_one_size_of_an_open_dimension_is_told_from_a_constant_one(tmp_path: Path) -> None:
    (bucket,) = packaged(tmp_path, text=OPEN, buckets=("x:1=6",)).manifest.buckets
    assert bucket.outputs == (("y", 1),), "z has six numbers whatever comes"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"states": ("memory=after",)},
            (
                "--state: input 'memory' has the open dimension b, so a stream cannot begin with zeros: bind it, for "
                "example with --shape b=1"
            ),
        ),
        (
            {"states": ("memory=out",), "shapes": {"b": 1, "n": 3}},
            "--state: input 'memory' is float32[1, 2], output 'out' is float32[1, 3, 2]: a state is both",
        ),
        (
            {"states": ("hidden=after",)},
            "--state: the model has no input 'hidden'; it has ids, mask, memory",
        ),
        ({"states": ("memory=hidden",)}, "--state: the model has no output 'hidden'; it has after, out"),
        ({"states": ("memory",)}, "--state 'memory': give INPUT=OUTPUT, for example state=stateN"),
        ({"buckets": ("ids=4",)}, "--bucket 'ids=4': give INPUT:AXIS=SIZE,SIZE, for example ids:1=16,32,64"),
        ({"buckets": ("ids:1=4,,8",)}, "--bucket 'ids:1=4,,8': give INPUT:AXIS=SIZE,SIZE, for example ids:1=16,32,64"),
        ({"buckets": ("ids:1=0,4",)}, "--bucket 'ids:1=0,4': sizes begin at 1, and there are at most 64"),
        ({"buckets": ("ids:1=4@e",)}, "--bucket 'ids:1=4@e': 'e' is no number to pad with"),
        ({"buckets": ("words:1=4",)}, "--bucket: the model has no input 'words'; it has ids, mask, memory"),
        ({"buckets": ("ids:2=4",)}, "--bucket: input 'ids' has 2 dimensions, and no number 2"),
        (
            {"buckets": ("ids:1",)},
            "--bucket: dimension 1 of input 'ids' is open: give sizes, as ids:1=16,32,64",
        ),
        (
            {"buckets": ("ids:1=4,8",), "shapes": {"n": 4}},
            "--bucket: dimension 1 of input 'ids' is always 4: give no other sizes",
        ),
        (
            {"buckets": ("memory:1=2",), "shapes": {"b": 1}, "states": ("memory=after",)},
            "--bucket: 'memory' is a state, which has one size",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError) as caught:
        packaged(tmp_path, **options)
    assert str(caught.value) == reason
    assert not (tmp_path / "bundle").exists()


def test_names_may_hold_what_separates() -> None:
    assert parse_states(["serving/a:0=out=1"]) == (StreamState(input="serving/a:0", output="out=1"),)
    assert parse_buckets(["serving_x:0:1=8@-1.5->a:0:1->b:2"]) == (
        Bucket(input="serving_x:0", axis=1, sizes=(8,), value=-1.5, outputs=(("a:0", 1), ("b", 2))),
    )
