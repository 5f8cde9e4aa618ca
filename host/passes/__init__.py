"""Graph passes: `normalise`, `optimize` before quantization, `fuse` after it. One pass a file."""

from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.passes.optimise import optimize
from host.passes.transaction import PassOutcome

__all__ = ["PassOutcome", "fuse", "normalise", "optimize"]
