"""Let convolutions pad for themselves.

1. A Pad with zeros before a Conv becomes the Conv's own padding.
2. Padding by rule (``SAME_UPPER`` …) becomes padding by numbers, where the sizes are known.
"""

from __future__ import annotations

from onnxscript.rewriter.rules import common as rules

from host.passes.rewriting import rewritten

fuse_pads = rewritten(rules.normalize_pad_format_conv_rule, rules.fuse_pad_into_conv_rule)
