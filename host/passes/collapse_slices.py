"""Remove slices that take everything.

1. A Slice from the start to the end of an axis in steps of one goes.
2. The same where only its result's shape shows it.
"""

from __future__ import annotations

from onnxscript.rewriter.rules import common as rules

from host.passes.rewriting import rewritten

collapse_slices = rewritten(rules.collapse_slice_rule, rules.collapse_slice2_rule)
