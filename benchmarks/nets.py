"""The two convolutional networks that are trained here, in PyTorch. What is measured is their export in `models/`."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.data import CLASSES


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    """Two convolutions added to what goes into them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.second(self.first(x))
        return x + changed


class Cifar10Net(nn.Module):
    """``[N, 3, 32, 32] -> [N, 10]``: eight 3×3 convolutions with two residual blocks; 377 k weights, 30 M MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(3, 32),
            _conv(32, 48, stride=2),
            _Residual(48),
            _conv(48, 96, stride=2),
            _Residual(96),
            _conv(96, 128, stride=2),
        )
        self.classifier = nn.Linear(128, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """The logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(image).mean((2, 3)))
        return logits


class MnistNet(nn.Module):
    """``[N, 1, 28, 28] -> [N, 10]``: three 3×3 convolutions, each with ReLU and 2×2 max-pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, 128, 256):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(256 * 3 * 3, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """The logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(image).flatten(1))
        return logits
