"""Compute once what is computed twice.

1. Of two nodes with the same operator, attributes and inputs, one goes and its readers read the other.
"""

from __future__ import annotations

from onnx_ir.passes import common

from host.passes.rewriting import in_place

share_subexpressions = in_place(common.CommonSubexpressionEliminationPass())
