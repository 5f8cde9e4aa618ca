"""PyTorch architectures written by hand for weights that come with packages: the three nets of MTCNN, and MobileNetV2.

Each factory returns (module, example inputs), as `host.ingest.ingest("tests.torch_models:factory")` wants it. The names
of the attributes are those of the weights' files.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.models import Factory, mobilenet_v2
from tests.zoo import packaged_file

__all__ = ["mobilenet_v2", "mtcnn_o", "mtcnn_p", "mtcnn_r"]


def mtcnn_p() -> Factory:
    """MTCNN's proposing net, [1, 3, 120, 120] -> boxes [1, 4, 55, 55], faces [1, 2, 55, 55]."""
    return _loaded(_PNet(), packaged_file("facenet_pytorch", "data", "pnet.pt")), (torch.zeros(1, 3, 120, 120),)


def mtcnn_r() -> Factory:
    """MTCNN's refining net, [1, 3, 24, 24] -> boxes [1, 4], faces [1, 2]."""
    return _loaded(_RNet(), packaged_file("facenet_pytorch", "data", "rnet.pt")), (torch.zeros(1, 3, 24, 24),)


def mtcnn_o() -> Factory:
    """MTCNN's deciding net, [1, 3, 48, 48] -> boxes [1, 4], landmarks [1, 10], faces [1, 2]."""
    return _loaded(_ONet(), packaged_file("facenet_pytorch", "data", "onet.pt")), (torch.zeros(1, 3, 48, 48),)


def _loaded(module: nn.Module, weights: Path) -> nn.Module:
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return module.eval()


def _by_columns(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, W * H * C]: the weights were trained with columns before rows."""
    return x.permute(0, 3, 2, 1).flatten(1)


class _PNet(nn.Module):
    """The proposing net of Zhang et al. 2016, "Joint Face Detection and Alignment using MTCNN"."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), torch.softmax(self.conv4_1(x), 1)


class _RNet(nn.Module):
    """The refining net of MTCNN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(self.prelu1(self.conv1(x)))
        x = self.pool(self.prelu2(self.conv2(x)))
        x = self.prelu4(self.dense4(_by_columns(self.prelu3(self.conv3(x)))))
        return self.dense5_2(x), torch.softmax(self.dense5_1(x), 1)


class _ONet(nn.Module):
    """The deciding net of MTCNN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.pool(self.prelu1(self.conv1(x)))
        x = self.pool(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu5(self.dense5(_by_columns(self.prelu4(self.conv4(x)))))
        return self.dense6_2(x), self.dense6_3(x), torch.softmax(self.dense6_1(x), 1)
