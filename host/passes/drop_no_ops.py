"""Remove operators that change nothing, and join those of which one is enough.

1. Adding or subtracting 0, multiplying with or dividing by 1; Dropout at inference.
2. Cast to the type that is there, Expand to the shape that is there, Transpose to the order that is there.
3. Cast after Cast, Transpose after Transpose, Reshape after Reshape, Unsqueeze after Unsqueeze become one.
"""

from __future__ import annotations

from onnxscript.rewriter.rules import common as rules

from host.passes.rewriting import rewritten

drop_no_ops = rewritten(
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.dropout_zero_rule,
    rules.dropout_inference_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.cast_cast_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.unsqueeze_unsqueeze_rule,
)
