"""Samples from a folder of images, prepared as the bundle declares."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edge.errors import ShardwireError
from edge.formats.processing import InputRecipe
from edge.processing.image import MAX_IMAGE_BYTES
from edge.processing.prepare import prepare_image
from host.compress.data.samples import MAX_SAMPLES, Class, Sample, TensorNeed, fitted
from host.errors import DatasetError
from host.model import Tensors

KEPT_BYTES = 512 << 20
"""Prepared images that a folder keeps in memory, because a search asks for each many times."""

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_NUMBERED = re.compile(r"_(\d+)$")


class ImageFolder:
    """Rows that are image files, decoded when they are asked for.

    Args:
        folder: Where they are.
        files: Each image and its class, in order.
        needs: What the model takes: one image.
        preprocess: How an image becomes that.
        notes: What was taken for granted.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[tuple[Path, Class]],
        needs: Sequence[TensorNeed],
        preprocess: InputRecipe,
        notes: tuple[str, ...],
    ) -> None:
        self.name = folder.name
        self.classes: Sequence[Class] = tuple(label for _, label in files)
        self.groups: Sequence[str] | None = None
        self.notes = notes
        self._folder = folder
        self._files = tuple(file for file, _ in files)
        self._needs = needs
        self._preprocess = preprocess
        self._kept: dict[int, Tensors] = {}
        self._kept_bytes = 0

    def load(self, index: int) -> Sample:
        """Decode and prepare one image, or take it from memory."""
        inputs = self._kept.get(index)
        if inputs is None:
            inputs = self._prepared(index)
            size_bytes = sum(array.nbytes for array in inputs.values())
            if self._kept_bytes + size_bytes <= KEPT_BYTES:
                self._kept[index] = inputs
                self._kept_bytes += size_bytes
        return Sample(inputs=inputs, label=self.classes[index])

    def where(self, index: int) -> str:
        """The file."""
        return str(self._files[index])

    def digest(self) -> str:
        """Of the names, classes and bytes of all files, and of the way in which they are prepared."""
        total = hashlib.sha256(msgspec.json.encode(self._preprocess, order="deterministic"))
        for index, (file, label) in enumerate(zip(self._files, self.classes, strict=True)):
            content = hashlib.sha256(self._content(index)).hexdigest()
            total.update(f"{file.relative_to(self._folder).as_posix()}\0{label}\0{content}\n".encode())
        return f"sha256:{total.hexdigest()}"

    def _prepared(self, index: int) -> Tensors:
        where = self.where(index)
        try:
            pixels = prepare_image(self._preprocess, self._content(index), where=where)
        except DatasetError:
            raise
        except ShardwireError as error:
            raise DatasetError(str(error)) from error
        return fitted({self._preprocess.name: pixels}, self._needs, where)

    def _content(self, index: int) -> bytes:
        file = self._files[index]
        try:
            with file.open("rb") as stream:
                # One more than allowed, so that what is too large is seen as such.
                return stream.read(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error


def load(
    folder: Path, needs: Sequence[TensorNeed], *, preprocess: InputRecipe | None, labels: Sequence[str] | None
) -> ImageFolder:
    """List a folder of images.

    Either ``folder/CLASS/photo.jpg``: the class is the folder's number, or the place of its name among the labels, or
    else its place in alphabetical order. Or ``folder/photo_7.jpg``: the class is the number behind the last ``_``;
    without numbers the images have no labels. Other files are passed over.

    Args:
        folder: Where they are.
        needs: What the model takes.
        preprocess: From a photo to its input.
        labels: Names of the classes in order.

    Raises:
        DatasetError: If there is no preprocessing, the model takes more than an image, there are no images, or their
            classes are not clear.
    """
    if preprocess is None:
        raise DatasetError(f"{folder}: images need the preprocessing of the model; without it give an .npz file")
    if [need.name for need in needs] != [preprocess.name]:
        names = ", ".join(need.name for need in needs)
        raise DatasetError(f"{folder}: images are for the one input {preprocess.name!r}, but the model takes {names}")
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        images = [entry for entry in entries if _is_image(entry)]
        folders = [entry for entry in entries if entry.is_dir()]
        by_class = {one: sorted(filter(_is_image, one.iterdir())) for one in folders}
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror}") from error
    if images and any(by_class.values()):
        raise DatasetError(f"{folder}: holds images both in class folders and beside them, such as {images[0].name}")
    if images:
        files, notes = _flat(images, labels)
    else:
        classes, notes = _classes(folder, folders, labels) if any(by_class.values()) else ({}, ())
        files = [(file, classes[one]) for one in folders for file in by_class[one]]
    if not files:
        raise DatasetError(f"{folder}: holds no image, neither directly nor in class folders")
    if len(files) > MAX_SAMPLES:
        raise DatasetError(f"{folder}: {len(files)} images are more than {MAX_SAMPLES}")
    return ImageFolder(folder, files, needs, preprocess, notes)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _flat(images: Sequence[Path], labels: Sequence[str] | None) -> tuple[list[tuple[Path, Class]], tuple[str, ...]]:
    numbers = [_NUMBERED.search(image.stem) for image in images]
    if not any(numbers):
        return [(image, None) for image in images], ("the images have no labels: no file name ends in _NUMBER",)
    files: list[tuple[Path, Class]] = []
    for image, number in zip(images, numbers, strict=True):
        if number is None:
            raise DatasetError(f"{image}: its name does not end in _NUMBER, its class, as those of others here do")
        files.append((image, int(number[1])))
    beyond = [image for image, label in files if label is not None and labels is not None and label >= len(labels)]
    if beyond:
        # Cameras number their photos, too.
        note = f"the images have no labels: the number of {beyond[0].name} is none of {len(labels or ())} classes"
        return [(image, None) for image in images], (note,)
    return files, ("the class of an image is the number at the end of its name",)


def _classes(
    folder: Path, folders: Sequence[Path], labels: Sequence[str] | None
) -> tuple[dict[Path, int], tuple[str, ...]]:
    """The class of each folder."""
    names = [one.name for one in folders]
    if all(name.isdecimal() for name in names):
        return _within({one: int(one.name) for one in folders}, labels), ()
    known = {name: index for index, name in reversed(list(enumerate(labels or ())))}
    if unknown := [name for name in names if name not in known]:
        if len(unknown) < len(names):
            raise DatasetError(f"{folder / unknown[0]}: {unknown[0]!r} is no class of the model, but others here are")
        if labels is not None and len(labels) != len(names):
            raise DatasetError(
                f"{folder}: no folder is named by a class of the model or by its number, and {len(names)} folders "
                f"are not its {len(labels)} classes; name them 0, 1, 2, …"
            )
        return (
            {one: index for index, one in enumerate(folders)},
            (f"the classes are the folders in alphabetical order: {_listed(names)}",),
        )
    return {one: known[one.name] for one in folders}, ()


def _within(classes: dict[Path, int], labels: Sequence[str] | None) -> dict[Path, int]:
    for one, index in classes.items():
        if labels is not None and index >= len(labels):
            raise DatasetError(f"{one}: the model has classes 0 to {len(labels) - 1}")
    return classes


def _listed(names: Iterable[str], *, most: int = 5) -> str:
    words = [f"{index} {name}" for index, name in enumerate(names)]
    return ", ".join(words[:most]) + (", …" if len(words) > most else "")
