"""Inputs from files and callables, and made-up ones."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from host.errors import IngestError, UnsupportedModelError
from host.ingest.inputs import InputSpec, input_specs, load_inputs, synthetic
from tests.graphs import model_of

SPECS = (
    InputSpec(name="x", dtype="float32", shape=("n", 3)),
    InputSpec(name="rate", dtype="int64", shape=()),
)
ONE: dict[str, np.ndarray] = {"x": np.ones((2, 3), np.float32), "rate": np.array(16000, np.int64)}


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def one() -> dict[str, np.ndarray]:
    return ONE


def several() -> list[dict[str, np.ndarray]]:
    return [ONE, {**ONE, "x": np.zeros((5, 3), np.float32)}]


def fails() -> None:
    raise RuntimeError("no camera")


def test_a_file_with_one_sample(tmp_path: Path) -> None:
    (sample,) = load_inputs(save(tmp_path / "in.npz", **ONE), SPECS)
    assert sample["rate"].shape == ()
    assert np.array_equal(sample["x"], ONE["x"])


def test_one_more_axis_holds_several_samples(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    samples = load_inputs(save(tmp_path / "in.npz", x=x, rate=np.arange(4)), SPECS)
    assert len(samples) == 4
    assert np.array_equal(samples[3]["x"], x[3])
    assert samples[3]["rate"] == 3
    assert samples[3]["rate"].shape == ()


@pytest.mark.parametrize(("function", "count"), [("one", 1), ("several", 2)])
def test_a_callable(function: str, count: int) -> None:
    samples = load_inputs(f"tests.unit.test_inputs:{function}", SPECS)
    assert len(samples) == count
    assert list(samples[0]) == ["x", "rate"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": ONE["x"]}, "sample 0 lacks input 'rate'; the model takes rate, x"),
        ({**ONE, "z": ONE["x"]}, "sample 0 has 'z', but the model takes only rate, x"),
        (
            {**ONE, "x": np.ones((2, 3))},
            "sample 0: input 'x' is float64[2, 3], expected float32[n, 3]",
        ),
        (
            {**ONE, "x": np.ones((2, 4), np.float32)},
            "sample 0: input 'x' is float32[2, 4], expected float32[n, 3]",
        ),
        (
            {"x": np.ones((4, 2, 3), np.float32), "rate": np.arange(3)},
            "the arrays hold different numbers of samples: {'x': 4, 'rate': 3}",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = save(tmp_path / "in.npz", **arrays)
    with pytest.raises(IngestError) as caught:
        load_inputs(path, SPECS)
    assert str(caught.value) == f"--inputs {path}: {message}"


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"none\.npz: no such file$"):
        load_inputs(str(tmp_path / "none.npz"), SPECS)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(IngestError, match=r"text\.npz: not a readable \.npz file: File is not a zip file$"):
        load_inputs(str(tmp_path / "text.npz"), SPECS)
    with pytest.raises(IngestError, match=r"^--inputs 'photo.jpg': give a file that ends in \.npz"):
        load_inputs("photo.jpg", SPECS)


def test_a_pickle_in_a_file_is_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(IngestError, match="Object arrays cannot be loaded"):
        load_inputs(str(tmp_path / "evil.npz"), SPECS)


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.ingest.inputs.MAX_INPUTS_BYTES", 1 << 20)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as stream:
        stream.write(bytes(2 << 20))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(IngestError, match=r"bomb\.npz: 2097152 bytes are more than 1048576"):
        load_inputs(str(path), SPECS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tests.unit.test_inputs:nobody", "module tests.unit.test_inputs has no function 'nobody'"),
        ("no_such_module:f", "cannot import no_such_module: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "tests.unit.test_inputs:fails",
            (
                "RuntimeError: no camera; it must take nothing and return a mapping of input name to array, "
                "or an iterable of them"
            ),
        ),
    ],
)
def test_callables_that_fail_are_named(source: str, message: str) -> None:
    with pytest.raises(IngestError) as caught:
        load_inputs(source, SPECS)
    assert str(caught.value) == f"--inputs {source}: {message}"


def test_callables_are_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_inputs.py").write_text("import numpy\ndef make():\n    return {'x': numpy.zeros((1, 3), 'f4')}\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    (sample,) = load_inputs("my_inputs:make", SPECS[:1])
    assert sample["x"].shape == (1, 3)
    assert sys.path == before


def test_made_up_inputs_are_the_same_each_time_and_share_symbols() -> None:
    specs = (
        InputSpec(name="ids", dtype="int64", shape=("batch", "seq")),
        InputSpec(name="state", dtype="float32", shape=(2, "batch", 4)),
        InputSpec(name="mask", dtype="bool", shape=(None, "seq")),
    )
    first, second = (synthetic(specs, batch=3, other=7) for _ in range(2))
    assert {name: array.shape for name, array in first.items()} == {"ids": (3, 7), "state": (2, 3, 4), "mask": (3, 7)}
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert set(np.unique(first["ids"])) == {0, 1}


def test_what_a_model_takes_is_read_from_it() -> None:
    model = model_of("main (float[n,3,?] x, int64 rate) => (float[n,3,?] y) { y = Neg (x) }")
    assert [str(spec) for spec in input_specs(model.ir)] == ["float32[n, 3, ?]", "int64[]"]


def test_text_is_an_input_like_others() -> None:
    specs = input_specs(model_of("main (string[n] x) => (string[n] y) { y = Identity (x) }").ir)
    assert [str(spec) for spec in specs] == ["string[n]"]
    made = synthetic(specs, batch=4, other=1)["x"]
    assert made.shape == (4,)
    assert all(isinstance(word, str) for word in made.tolist())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "main (bfloat16[1] x) => (float[1] y) { y = Cast <to = 1> (x) }",
            "input 'x' has dtype bfloat16, which cannot travel between devices; allowed: bool, uint8, ",
        ),
        (
            "main (float[1] x) => (bfloat16[1] y) { y = Cast <to = 16> (x) }",
            "output 'y' has dtype bfloat16, which cannot travel between devices; allowed: bool, uint8, ",
        ),
    ],
)
def test_dtypes_that_cannot_travel_are_refused(text: str, message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        input_specs(model_of(text).ir)
    assert str(caught.value).startswith(message)
