"""Inputs padded to the sizes that a bundle names, and answers cut back."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edge.buckets import Cut, cut_back, pad
from edge.errors import BundleError, InvalidInput
from edge.formats.bundle import Manifest
from edge.formats.streams import Bucket, StreamState, check_streams
from edge.formats.tensor import TensorSpec
from tests.tiny_bundle import make_tiny_bundle

IDS = TensorSpec(name="ids", dtype="int64", shape=(1, None))
MASK = TensorSpec(name="mask", dtype="int64", shape=(1, None))
OUT = TensorSpec(name="out", dtype="float32", shape=(1, None, 4))
SIZES = (4, 8)
BUCKETS = (
    Bucket(input="ids", axis=1, sizes=SIZES, value=7, outputs=(("out", 1),)),
    Bucket(input="mask", axis=1, sizes=SIZES, outputs=(("out", 1),)),
)


def manifest(*buckets: Bucket, inputs: tuple[TensorSpec, ...] = (IDS, MASK)) -> Manifest:
    return msgspec.structs.replace(make_tiny_bundle().manifest, inputs=inputs, outputs=(OUT,), buckets=buckets)


def sentence(length: int) -> dict[str, Any]:
    return {"ids": np.arange(1, length + 1)[None], "mask": np.ones((1, length), np.int64)}


@pytest.mark.parametrize(("length", "padded"), [(1, 4), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_an_input_gets_the_smallest_size_that_holds_it(length: int, padded: int) -> None:
    found = pad(sentence(length), manifest(*BUCKETS))
    assert found.inputs["ids"].tolist() == [[*range(1, length + 1), *[7] * (padded - length)]]
    assert found.inputs["mask"].tolist() == [[1] * length + [0] * (padded - length)]
    assert {array.dtype for array in found.inputs.values()} == {np.dtype(np.int64)}
    answer = {"out": np.arange(4 * padded, dtype=np.float32).reshape(1, padded, 4)}
    assert found.cut(answer)["out"].tolist() == answer["out"][:, :length].tolist()


def test_what_is_too_long_is_refused_in_one_line() -> None:
    with pytest.raises(InvalidInput) as caught:
        pad(sentence(9), manifest(*BUCKETS))
    assert str(caught.value) == (
        "input 'ids' has 9 along dimension 1, the largest that tiny takes is 8: shorten it or split it"
    )


def test_inputs_that_belong_together_have_one_length() -> None:
    with pytest.raises(InvalidInput) as caught:
        pad({**sentence(3), "mask": np.ones((1, 5), np.int64)}, manifest(*BUCKETS))
    assert str(caught.value) == ("input 'mask' has 5 along dimension 1, another input that belongs to it has 3")


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"ids": np.ones((1, 3), np.int64)}, "missing input 'mask'; the model takes ['ids', 'mask']"),
        ({**sentence(3), "ids": np.ones(3, np.int64)}, "input 'ids' is int64[3], expected int64[1, '?']"),
        ({**sentence(3), "ids": np.ones((1, 3), np.int32)}, "input 'ids' is int32[1, 4], expected int64[1, '?']"),
    ],
)
def test_what_does_not_fit_is_refused_as_ever(inputs: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        pad(inputs, manifest(*BUCKETS))
    assert str(caught.value) == reason


def test_a_fixed_dimension_has_one_size() -> None:
    fixed = TensorSpec(name="ids", dtype="int64", shape=(1, 6))
    one = Bucket(input="ids", axis=1, sizes=(6,), outputs=(("out", 1),))
    found = pad({"ids": np.ones((1, 2), np.int64)}, manifest(one, inputs=(fixed,)))
    assert found.inputs["ids"].tolist() == [[1, 1, 0, 0, 0, 0]]
    assert found.cuts == (Cut(output="out", axis=1, size=2),)


def test_without_buckets_nothing_is_copied() -> None:
    given = sentence(3)
    found = pad(given, manifest())
    assert all(found.inputs[name] is array for name, array in given.items())
    assert found.cuts == ()


def test_an_answer_without_the_dimension_stays_as_it_is() -> None:
    scores = np.ones(3, np.float32)
    assert cut_back({"scores": scores}, (Cut(output="scores", axis=1, size=1), Cut(output="x", axis=0, size=1))) == {
        "scores": scores
    }


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "float16", "float64"])
def test_every_number_is_padded_in_its_own_dtype(dtype: str) -> None:
    spec = TensorSpec(name="x", dtype=dtype, shape=(None,))
    found = pad({"x": np.ones(1, dtype)}, manifest(Bucket(input="x", axis=0, sizes=(2,), value=1), inputs=(spec,)))
    assert found.inputs["x"].tolist() == [1, 1]
    assert found.inputs["x"].dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("bucket", "reason"),
    [
        ({"input": "words"}, "bucket of 'words' is padded with 0, which is no string"),
        ({"input": "nobody"}, "bucket of 'nobody' names a dimension that the model does not have"),
        ({"axis": 2}, "bucket of 'ids' names a dimension that the model does not have"),
        ({"axis": -1}, "bucket of 'ids' names a dimension that the model does not have"),
        ({"outputs": (("out", 3),)}, "bucket of 'ids' names a dimension that the model does not have"),
        ({"outputs": (("in", 0),)}, "bucket of 'ids' names a dimension that the model does not have"),
        ({"sizes": ()}, "bucket of 'ids' has sizes [], which do not ascend from 1"),
        ({"sizes": (0, 4)}, "bucket of 'ids' has sizes [0, 4], which do not ascend from 1"),
        ({"sizes": (8, 4)}, "bucket of 'ids' has sizes [8, 4], which do not ascend from 1"),
        ({"axis": 0, "sizes": (1, 2)}, "bucket of 'ids' has sizes [1, 2], but dimension 0 is always 1"),
        ({"value": 0.5}, "bucket of 'ids' is padded with 0.5, which is no int64"),
        ({"value": float("inf")}, "bucket of 'ids' is padded with inf, which is no int64"),
    ],
)
def test_a_bundle_with_a_bucket_that_does_not_fit_is_refused(bucket: dict[str, Any], reason: str) -> None:
    words = TensorSpec(name="words", dtype="string", shape=(None, None))
    one = Bucket(**{"input": "ids", "axis": 1, "sizes": SIZES, **bucket})
    with pytest.raises(BundleError) as caught:
        check_streams((IDS, words), (OUT,), (), (one,), where="manifest")
    assert str(caught.value) == f"manifest: {reason}"


def test_a_dimension_has_one_bucket_and_a_state_none() -> None:
    with pytest.raises(BundleError, match="two buckets of one dimension"):
        check_streams((IDS,), (OUT,), (), (BUCKETS[0], BUCKETS[0]), where="manifest")
    state = TensorSpec(name="s", dtype="int64", shape=(1, 4))
    made = TensorSpec(name="n", dtype="int64", shape=(1, None))
    carried = StreamState(input="s", output="n")
    with pytest.raises(BundleError, match="state 's' cannot be padded"):
        check_streams((state,), (made,), (carried,), (Bucket(input="s", axis=1, sizes=(4,)),), where="manifest")


def test_a_request_without_the_state_is_told_of_streams() -> None:
    carried = msgspec.structs.replace(
        manifest(), outputs=(MASK, OUT), states=(StreamState(input="mask", output="mask"),)
    )
    with pytest.raises(InvalidInput) as caught:
        pad({"ids": np.ones((1, 2), np.int64)}, carried)
    assert str(caught.value) == "input 'mask' is the state of a stream: open one with Client.open_stream, or give it"


S = TensorSpec(name="s", dtype="float32", shape=(2, 1))


@pytest.mark.parametrize(
    ("given", "made", "reason"),
    [
        ("other", TensorSpec(name="n", dtype="float32", shape=(2, 1)), "'other' <- 'n' names no input and output"),
        ("open", TensorSpec(name="n", dtype="float32", shape=(2, 1)), "'open' <- 'n' has no fixed shape to begin with"),
        (
            "s",
            TensorSpec(name="n", dtype="float16", shape=(2, 1)),
            "'s' <- 'n' joins an input and an output of different dtype or shape",
        ),
        (
            "s",
            TensorSpec(name="n", dtype="float32", shape=(2, 3)),
            "'s' <- 'n' joins an input and an output of different dtype or shape",
        ),
        (
            "s",
            TensorSpec(name="n", dtype="float32", shape=(2,)),
            "'s' <- 'n' joins an input and an output of different dtype or shape",
        ),
    ],
)
def test_a_bundle_with_a_state_that_does_not_fit_is_refused(given: str, made: TensorSpec, reason: str) -> None:
    inputs = (S, TensorSpec(name="open", dtype="float32", shape=(2, None)))
    with pytest.raises(BundleError) as caught:
        check_streams(inputs, (made,), (StreamState(input=given, output="n"),), (), where="manifest")
    assert str(caught.value) == f"manifest: state {reason}"


def test_what_a_model_leaves_open_may_be_a_state() -> None:
    made = TensorSpec(name="n", dtype="float32", shape=(None, 1))
    check_streams((S,), (made,), (StreamState(input="s", output="n"),), (), where="manifest")
    with pytest.raises(BundleError, match="belongs to two states"):
        check_streams((S,), (made,), (StreamState(input="s", output="n"),) * 2, (), where="manifest")
