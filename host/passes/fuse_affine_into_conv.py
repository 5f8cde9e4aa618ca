"""Fold scales and offsets into the convolution beside them.

1. Mul by a constant scalar and Add of one before an unpadded Conv go into its weights and bias.
2. The same after a Conv.
"""

from __future__ import annotations

from onnxscript.rewriter.rules import common as rules

from host.passes.rewriting import rewritten

fuse_affine_into_conv = rewritten(rules.affine_conv_fusion_rule, rules.conv_affine_fusion_rule)
