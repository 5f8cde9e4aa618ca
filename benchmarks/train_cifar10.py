"""Train the CIFAR-10 network and write ``benchmarks/models/cifar10.onnx``."""

from __future__ import annotations

from benchmarks.data import cifar10
from benchmarks.nets import Cifar10Net
from benchmarks.training import Schedule, export, train

SCHEDULE = Schedule(epochs=11, rate=0.15, small_epochs=6)


def main() -> None:
    """Train, say how good it is, export."""
    training, test = cifar10(train=True), cifar10(train=False)
    export("cifar10", train("cifar10", Cifar10Net, training, test, SCHEDULE), test)


if __name__ == "__main__":
    main()
