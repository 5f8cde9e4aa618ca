"""Join a matrix product and its bias.

1. MatMul of two matrices and Add become Gemm.
2. A Transpose of a matrix before them becomes an attribute of the Gemm.
"""

from __future__ import annotations

from onnxscript.rewriter.rules import common as rules

from host.passes.rewriting import rewritten

matmul_add_to_gemm = rewritten(
    rules.matmul_add_to_gemm_rule,
    rules.transpose_a_matmul_add_to_gemm_rule,
    rules.transpose_b_matmul_add_to_gemm_rule,
    rules.transpose_ab_matmul_add_to_gemm_rule,
)
