"""Compute once what depends on constants only.

1. A node whose inputs are all known becomes a constant: shape arithmetic, mostly.
2. Neither its inputs nor its output may have more than 8192 elements, so that a fold cannot blow the weights up; the
   larger ones are left to the device, which folds them when it loads.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.optimizer import fold_constants_ir

# In elements, as onnxscript counts: at most 64 KiB of eight-byte ones, unless the folded inputs go in exchange.
MAX_FOLDED_ELEMENTS = 8192
MAX_FOLD_INPUT_ELEMENTS = 8192


def fold_constants(model: ir.Model) -> ir.Model | None:
    """Fold constants, in place; None where there are none to fold."""
    result = fold_constants_ir(
        model,
        onnx_shape_inference=True,
        input_size_limit=MAX_FOLD_INPUT_ELEMENTS,
        output_size_limit=MAX_FOLDED_ELEMENTS,
    )
    return result.model if result.modified else None
