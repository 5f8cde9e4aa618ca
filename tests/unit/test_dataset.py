"""Samples with labels are read from what people have, drawn the same way each time, and refused by name."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge.formats.processing import InputRecipe
from edge.formats.steps import DecodeImage, Layout, Normalise, Resize
from host.compress.data import image_folder
from host.compress.data.dataset import Dataset, load_dataset
from host.errors import DatasetError
from host.ingest.inputs import InputSpec

IMAGE = (InputSpec(name="x", dtype="float32", shape=(1, 3, 4, 4)),)
TOKENS = (
    InputSpec(name="input_ids", dtype="int64", shape=("batch", 6)),
    InputSpec(name="attention_mask", dtype="int64", shape=("batch", 6)),
    InputSpec(name="token_type_ids", dtype="int64", shape=("batch", 6)),
)
PREPARE = InputRecipe(
    name="x",
    steps=(
        DecodeImage(colour="RGB"),
        Resize(width=4, height=4, resample="nearest"),
        Normalise(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        Layout(to="NCHW"),
    ),
)
HERE = "tests.unit.test_dataset"


def photo(path: Path, grey: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.new("RGB", (5, 5), (grey, grey, grey)).save(stream, format="PNG")
    path.write_bytes(stream.getvalue())
    return path


def images(folder: Path, *, labels: tuple[str, ...] | None = None) -> Dataset:
    return load_dataset(folder, specs=IMAGE, preprocess=PREPARE, labels=labels)


def arrays(path: Path, **content: np.ndarray) -> Dataset:
    np.savez(path, **content)  # type: ignore[arg-type]  # numpy's stub takes a flag among the names
    return load_dataset(path, specs=IMAGE)


def table(path: Path, text: str, specs: tuple[InputSpec, ...] = TOKENS) -> Dataset:
    path.write_text(text)
    return load_dataset(path, specs=specs)


def pairs() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    for index in range(3):
        yield {"x": np.full((1, 3, 4, 4), index, np.float32)}, index


def grouped() -> list[tuple[dict[str, np.ndarray], None, str]]:
    return [({"x": np.zeros((1, 3, 4, 4), np.float32)}, None, f"photo {index // 2}") for index in range(4)]


def only_inputs() -> list[dict[str, np.ndarray]]:
    return [{"x": np.zeros((1, 3, 4, 4), np.float32)}]


def fails() -> Iterator[dict[str, np.ndarray]]:
    yield from only_inputs()
    raise OSError("the camera is off")


def half_grouped() -> list[object]:
    return [*grouped(), (only_inputs()[0], 1)]


def words() -> list[str]:
    return ["hello"]


def wrong_label() -> list[object]:
    return [(only_inputs()[0], 0.5)]


# ------------------------------------------------------------------------------------------------------------- images


def test_folders_that_are_numbers_are_classes(tmp_path: Path) -> None:
    for number in (0, 7, 10):
        photo(tmp_path / str(number) / "a.png", number)
    (tmp_path / "7" / "notes.txt").write_text("not an image")
    dataset = images(tmp_path)
    assert [sample.label for sample in dataset] == [0, 10, 7]
    assert [float(sample.inputs["x"].max()) for sample in dataset] == [0.0, 10.0, 7.0]
    assert dataset[0].inputs["x"].shape == (1, 3, 4, 4)
    assert dataset.name == tmp_path.name
    assert not dataset.notes


def test_folders_are_classes_by_the_names_of_the_model(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        photo(tmp_path / name / "a.JPG", 1)
    assert images(tmp_path, labels=("dog", "fish", "cat")).classes == (2, 0)


def test_other_folders_are_classes_in_alphabetical_order_and_that_is_said(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        photo(tmp_path / name / "1.png", 1)
    dataset = images(tmp_path)
    assert dataset.classes == (0, 1, 2)
    assert dataset.notes == ("the classes are the folders in alphabetical order: 0 a, 1 b, 2 c",)
    assert images(tmp_path, labels=("x", "y", "z")).classes == (0, 1, 2)


def test_a_number_at_the_end_of_a_name_is_the_class(tmp_path: Path) -> None:
    photo(tmp_path / "imagenet_00_243.png", 1)
    photo(tmp_path / "imagenet_01_7.png", 2)
    dataset = images(tmp_path)
    assert dataset.classes == (243, 7)
    assert dataset.label(1) == 7


def test_images_without_a_class_have_no_label(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 1)
    assert images(tmp_path).classes == (None,)
    assert images(tmp_path).notes == ("the images have no labels: no file name ends in _NUMBER",)
    photo(tmp_path / "camera" / "IMG_2041.png", 1)
    camera = images(tmp_path / "camera", labels=("a", "b"))
    assert camera.label(0) is None
    assert camera.notes == ("the images have no labels: the number of IMG_2041.png is none of 2 classes",)


def test_images_are_decoded_when_they_are_asked_for_and_kept(tmp_path: Path) -> None:
    photo(tmp_path / "a_1.png", 5)
    (tmp_path / "b_2.png").write_text("no image")
    dataset = images(tmp_path)
    assert dataset[0].inputs["x"] is dataset[0].inputs["x"]
    with pytest.raises(DatasetError, match=r"b_2\.png: not an image$"):
        dataset[1]


def test_memory_for_images_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "KEPT_BYTES", 200)
    for name in ("a", "b"):
        photo(tmp_path / f"{name}.png", 5)
    dataset = images(tmp_path)
    assert dataset[0].inputs["x"] is dataset[0].inputs["x"]
    assert dataset[1].inputs["x"] is not dataset[1].inputs["x"]


def test_images_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    photo(folder / "cat" / "a.png", 1)
    with pytest.raises(
        DatasetError, match=r"set: images need the preprocessing of the model; without it give an \.npz"
    ):
        load_dataset(folder, specs=IMAGE)
    with pytest.raises(
        DatasetError, match=r"images are for the one input 'x', but the model takes input_ids, attention_"
    ):
        load_dataset(folder, specs=TOKENS, preprocess=PREPARE)
    with pytest.raises(
        DatasetError, match=r"set: no folder is named by a class .* and 1 folders are not its 2 classes"
    ):
        images(folder, labels=("a", "b"))
    photo(folder / "dog" / "a.png", 1)
    with pytest.raises(DatasetError, match=r"set/dog: 'dog' is no class of the model, but others here are$"):
        images(folder, labels=("cat", "fish"))
    photo(folder / "a.png", 1)
    with pytest.raises(DatasetError, match=r"set: holds images both in class folders and beside them, such as a\.png$"):
        images(folder)
    photo(tmp_path / "numbers" / "9" / "a.png", 1)
    with pytest.raises(DatasetError, match=r"numbers/9: the model has classes 0 to 1$"):
        images(tmp_path / "numbers", labels=("a", "b"))
    photo(tmp_path / "some" / "a_1.png", 1)
    photo(tmp_path / "some" / "b.png", 1)
    with pytest.raises(
        DatasetError, match=r"some/b\.png: its name does not end in _NUMBER, its class, as those of other"
    ):
        images(tmp_path / "some")
    (tmp_path / "empty" / "0").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"empty: holds no image, neither directly nor in class folders$"):
        images(tmp_path / "empty")


def test_an_image_of_another_shape_than_the_models_is_refused(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 1)
    other = (InputSpec(name="x", dtype="float32", shape=(1, 3, 8, 8)),)
    with pytest.raises(
        DatasetError, match=r"a\.png: input 'x' is float32\[1, 3, 4, 4\], expected float32\[1, 3, 8, 8\]$"
    ):
        load_dataset(tmp_path, specs=other, preprocess=PREPARE)[0]


# ------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("shape", [(5, 1, 3, 4, 4), (5, 3, 4, 4)])
def test_arrays_hold_samples_on_their_first_axis(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.arange(240, dtype=np.float32).reshape(shape)
    dataset = arrays(tmp_path / "in.npz", x=x, label=np.array([[3], [1], [2], [0], [1]]), group=np.array(list("aabbc")))
    assert len(dataset) == 5
    assert dataset[4].inputs["x"].shape == (1, 3, 4, 4)
    assert np.array_equal(dataset[4].inputs["x"].ravel(), x[4].ravel())
    assert dataset.classes == (3, 1, 2, 0, 1)
    assert dataset.groups == ("a", "a", "b", "b", "c")


def test_labels_may_be_masks(tmp_path: Path) -> None:
    masks = np.zeros((2, 4, 4), np.uint8)
    dataset = arrays(tmp_path / "in.npz", x=np.zeros((2, 3, 4, 4), np.float32), labels=masks)
    assert dataset.classes == (None, None)
    label = dataset.label(1)
    assert isinstance(label, np.ndarray)
    assert label.shape == (4, 4)


def test_an_input_of_the_models_own_shape_is_the_same_for_all(tmp_path: Path) -> None:
    specs = (
        InputSpec(name="x", dtype="float32", shape=(None, "n")),
        InputSpec(name="rate", dtype="int64", shape=()),
        InputSpec(name="state", dtype="float32", shape=(2, 1)),
    )
    np.savez(tmp_path / "in.npz", x=np.ones((3, 7), np.float32), rate=np.array(8), state=np.ones((2, 1), np.float32))
    dataset = load_dataset(tmp_path / "in.npz", specs=specs)
    assert [sample.inputs["x"].shape for sample in dataset] == [(1, 7)] * 3
    assert dataset[2].inputs["rate"] == 8
    assert set(dataset[2].inputs) == {"x", "rate", "state"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"y": np.zeros(3)}, "in.npz lacks input 'x'; the model takes x"),
        ({"x": np.zeros((2, 3, 4, 4), np.float32), "z": np.zeros(2)}, "in.npz has 'z', but the model takes only x"),
        ({"x": np.zeros((2, 3, 4, 4))}, "in.npz: input 'x' is float64[1, 3, 4, 4], expected float32[1, 3, 4, 4]"),
        ({"x": np.zeros((3, 4), np.float32)}, "in.npz: input 'x' is float32[3, 4], expected float32[1, 3, 4, 4]"),
        (
            {"x": np.zeros((2, 3, 4, 4), np.float32), "label": np.zeros(3, int)},
            "in.npz: the arrays hold different numbers of samples: {'x': 2, 'labels': 3}",
        ),
        ({"x": np.zeros((2, 3, 4, 4), np.float32), "label": np.zeros(2)}, "in.npz: the labels are float64; expected"),
        (
            {"x": np.zeros((2, 3, 4, 4), np.float32), "group": np.zeros(2)},
            "in.npz: the groups are float64[2]; expected",
        ),
        ({"x": np.zeros((0, 3, 4, 4), np.float32)}, "in.npz: holds no sample"),
        ({"x": np.array([{}], dtype=object)}, "in.npz: not a readable .npz file: Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        arrays(tmp_path / "in.npz", **content)
    assert message in str(caught.value)


def test_an_archive_that_unpacks_to_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.compress.data.sample_arrays.MAX_ARRAYS_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(2 << 20))
    with pytest.raises(DatasetError, match=r"bomb\.npz: unpacks to 2097152 bytes, more than 1048576$"):
        load_dataset(tmp_path / "bomb.npz", specs=IMAGE)


# ------------------------------------------------------------------------------------------------------------- tokens


def test_ids_are_padded_and_what_goes_with_them_is_made(tmp_path: Path) -> None:
    dataset = table(tmp_path / "t.csv", "input_ids,label,group\n101 7 102,1,a\n1 2 3 4 5 6 7 8,0,b\n")
    first, second = dataset
    assert first.inputs["input_ids"].tolist() == [[101, 7, 102, 0, 0, 0]]
    assert first.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0]]
    assert first.inputs["token_type_ids"].tolist() == [[0] * 6]
    assert second.inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert second.inputs["attention_mask"].tolist() == [[1] * 6]
    assert {array.dtype.name for array in first.inputs.values()} == {"int64"}
    assert dataset.classes == (1, 0)
    assert dataset.groups == ("a", "b")
    assert dataset.where(1).endswith("t.csv:3")


@pytest.mark.parametrize("text", ["5 6\n7\n", "ids\n5 6\n7\n", "\ufeffinput_ids\r\n5 6\r\n\r\n7\r\n"])
def test_a_file_may_hold_ids_alone(tmp_path: Path, text: str) -> None:
    dataset = table(tmp_path / "t.csv", text)
    assert [sample.inputs["input_ids"][0, :3].tolist() for sample in dataset] == [[5, 6, 0], [7, 0, 0]]
    assert dataset.classes == (None, None)


def test_an_open_length_is_that_of_the_row(tmp_path: Path) -> None:
    specs = (
        InputSpec(name="tokens", dtype="int32", shape=(1, None)),
        InputSpec(name="position_ids", dtype="int64", shape=(1, None)),
    )
    dataset = table(tmp_path / "t.csv", "5 6 7\n8\n", specs)
    assert dataset[0].inputs["tokens"].tolist() == [[5, 6, 7]]
    assert dataset[0].inputs["position_ids"].tolist() == [[0, 1, 2]]
    assert dataset[1].inputs["tokens"].shape == (1, 1)


def test_columns_may_hold_what_would_be_made(tmp_path: Path) -> None:
    dataset = table(tmp_path / "t.csv", "input_ids,token_type_ids\n5 6 7,0 0 1\n")
    assert dataset[0].inputs["token_type_ids"].tolist() == [[0, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: holds no sample"),
        ("input_ids\n", "t.csv: holds no sample"),
        ("1 2,3\n", "t.csv:1: 2 columns without names: name them in the first line"),
        (
            "text\nhello\n",
            "t.csv:1: column 'text' is no input of the model; it takes input_ids, attention_mask, token_",
        ),
        ("input_ids,ids\n1,2\n", "t.csv:1: a column is named twice: input_ids, input_ids"),
        ("input_ids,label\n1\n", "t.csv:2: 1 columns, expected 2: input_ids, label"),
        ("input_ids\n1 two\n", "t.csv:2: column 'input_ids': '1 two' is no row of token ids, as in 101 2023 102"),
        ("input_ids,label\n1,cat\n", "t.csv:2: label 'cat' is no number of a class"),
        ("input_ids,label\n,1\n", "t.csv:2: holds no token id"),
        ("input_ids,attention_mask\n1 2,1\n", "t.csv:2: the columns hold different numbers of ids: [1, 2]"),
        ("input_ids\n99999999999999999999\n", "t.csv:2: an id of 'input_ids' does not fit int64"),
        ("attention_mask\n1 1\n", "t.csv:2 lacks input 'input_ids'; the model takes input_ids, attention_mask, token_"),
        ('input_ids\n"1 2\n', "t.csv:2: not CSV: unexpected end of data"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        table(tmp_path / "t.csv", text)
    assert message in str(caught.value)


def test_a_table_is_for_ids_only(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"t\.csv:1: input 'x' is float32, no token ids: give an \.npz file$"):
        table(tmp_path / "t.csv", "1 2\n", IMAGE)


# ---------------------------------------------------------------------------------------------------------- callables


def test_a_function_may_give_pairs_groups_or_inputs_alone() -> None:
    dataset = load_dataset(f"{HERE}:pairs", specs=IMAGE)
    assert dataset.classes == (0, 1, 2)
    assert dataset.groups is None
    assert load_dataset(f"{HERE}:grouped", specs=IMAGE).groups == ("photo 0", "photo 0", "photo 1", "photo 1")
    assert load_dataset(f"{HERE}:only_inputs", specs=IMAGE)[0].label is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"{HERE}:nobody", f"{HERE}:nobody: module {HERE} has no function 'nobody'"),
        (f"{HERE}:fails", f"{HERE}:fails: OSError: the camera is off; it must take nothing and give an iterable of"),
        (f"{HERE}:words", f"{HERE}:words: sample 0 is a str; it must take nothing and give"),
        (f"{HERE}:half_grouped", f"{HERE}:half_grouped: sample 4 names no group, but others do"),
        (f"{HERE}:wrong_label", f"{HERE}:wrong_label: sample 0: a label is float64; expected the number of a class"),
        ("no_module:f", "no_module:f: cannot import no_module: ModuleNotFoundError"),
        ("nowhere", "nowhere: no such folder, and no other form of samples: give a file that ends in .npz, a .csv of"),
        ("nowhere.npz", "nowhere.npz: no such file"),
        ("nowhere.csv", "nowhere.csv: no such file"),
    ],
)
def test_sources_that_cannot_be_read_are_refused(source: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        load_dataset(source, specs=IMAGE)
    assert str(caught.value).startswith(message)


def test_a_function_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.compress.data.sample_callable.MAX_SAMPLES", 2)
    with pytest.raises(DatasetError, match=r"pairs: gives more than 2 samples$"):
        load_dataset(f"{HERE}:pairs", specs=IMAGE)
    monkeypatch.setattr("host.compress.data.sample_callable.MAX_CALLABLE_BYTES", 200)
    with pytest.raises(DatasetError, match=r"pairs: sample 1: the samples are more than 200 bytes$"):
        load_dataset(f"{HERE}:pairs", specs=IMAGE)
