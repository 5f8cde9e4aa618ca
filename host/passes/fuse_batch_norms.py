"""Fold batch normalisation into the weights before it.

1. BatchNormalization after Conv, ConvTranspose or Gemm scales their weights and moves their bias.
2. One after an activation stays: it is not linear in the weights.
"""

from __future__ import annotations

from onnxscript.rewriter.rules import common as rules

from host.passes.rewriting import rewritten

fuse_batch_norms = rewritten(
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
)
