"""Train the MNIST network and write ``benchmarks/models/mnist.onnx``."""

from __future__ import annotations

from benchmarks.data import mnist
from benchmarks.nets import MnistNet
from benchmarks.training import Schedule, export, train

SCHEDULE = Schedule(epochs=12, batch=64, rate=0.03, smoothing=0.0, shift_pixels=2, flip=False, threads=1)


def main() -> None:
    """Train, say how good it is, export."""
    training, test = mnist(train=True), mnist(train=False)
    export("mnist", train("mnist", MnistNet, training, test, SCHEDULE), test)


if __name__ == "__main__":
    main()
