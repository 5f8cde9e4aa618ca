"""Join neighbouring limits of values into one.

1. Min after Max, or Max after Min, with constants becomes Clip.
2. Relu after Relu becomes one Relu; Clip and Relu in a row become one Clip.
"""

from __future__ import annotations

from onnxscript.rewriter.rules import common as rules

from host.passes.rewriting import rewritten

fuse_clips = rewritten(
    rules.min_max_rule,
    rules.max_min_rule,
    rules.successive_relu_rule,
    rules.successive_clip_rule,
    rules.successive_clip_relu_rule,
    rules.successive_relu_clip_rule,
)
