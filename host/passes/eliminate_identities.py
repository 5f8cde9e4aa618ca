"""Remove nodes that pass their input on.

1. An Identity node goes, and its readers read its input.
2. One between a graph's input and its output stays: an output comes from a node.
3. Nodes that nobody reads then go too: `host.passes.normalise` removes dead nodes from the result of every pass.
"""

from __future__ import annotations

from onnx_ir.passes import common

from host.passes.rewriting import in_place

eliminate_identities = in_place(common.IdentityEliminationPass())
