"""Make the twin models of the tests: the same small PyTorch module as ONNX and as TFLite.

`python -m tests.models.make_twins [FOLDER]` writes them, by default here; it needs the extra `[litert-torch]`. The
weights are seeded, and equal versions of the converters give equal bytes. Every module takes `[1, 3, 16, 16]` in NCHW,
as PyTorch does; the TFLite twin takes the same and computes in NHWC inside, except `*_nhwc.tflite`, which takes NHWC.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from host.ingest.litert_torch import tflite_from_module
from host.ingest.torch import export
from host.model import from_bytes, to_bytes
from host.passes.forget import forget_texts

HERE = Path(__file__).resolve().parent
SHAPE = (1, 3, 16, 16)
_SEED = 6


class Residual(nn.Module):
    """Convolutions with a branch around two of them, so that some cuts carry two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU6())
        self.first = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU6())
        self.second = nn.Conv2d(16, 8, 1)
        self.tail = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU())
        self.classify = nn.Linear(12, 5)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [1, 5]."""
        stem = self.stem(image)
        joined = stem + self.second(self.first(stem))
        pooled = self.tail(joined).mean(dim=(2, 3))
        logits: Tensor = self.classify(pooled)
        return logits


class Depthwise(nn.Module):
    """Separable convolutions, batch norm, both kinds of pooling, and a linear layer on a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6())
        self.pointwise = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU())
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities [1, 10]."""
        small = nn.functional.max_pool2d(self.stem(image), 2)
        smaller = nn.functional.avg_pool2d(self.pointwise(self.depthwise(small)), 2)
        return torch.softmax(self.head(smaller.flatten(1)), dim=1)


MODULES: Mapping[str, Callable[[], nn.Module]] = {"depthwise": Depthwise, "residual": Residual}


def made(name: str) -> nn.Module:
    """One of the modules with its seeded weights, in evaluation mode."""
    torch.manual_seed(_SEED)
    module = MODULES[name]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            # As if it were trained: statistics that are not 0 and 1.
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    return module.eval()


def depthwise() -> tuple[nn.Module, tuple[Tensor]]:
    """A factory as `shardwire package tests.models.make_twins:depthwise` takes it."""
    return made("depthwise"), (torch.zeros(SHAPE),)


def residual() -> tuple[nn.Module, tuple[Tensor]]:
    """A factory as `shardwire package tests.models.make_twins:residual` takes it."""
    return made("residual"), (torch.zeros(SHAPE),)


def write(folder: Path) -> None:
    """Write all twins into a folder."""
    for name in sorted(MODULES):
        module, arguments = made(name), {"image": torch.zeros(SHAPE)}
        proto = from_bytes(export(module, arguments, name))
        forget_texts(proto)  # the exporter writes paths of this machine into every node
        (folder / f"{name}.onnx").write_bytes(to_bytes(proto))
        (folder / f"{name}.tflite").write_bytes(tflite_from_module(module, arguments, name))
    nhwc = tflite_from_module(made("residual"), {"image": torch.zeros(SHAPE)}, "residual", channels_last=("image",))
    (folder / "residual_nhwc.tflite").write_bytes(nhwc)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
