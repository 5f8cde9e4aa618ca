"""The forms in which a pass can be written, each made a function from a model to its result.

None as a result means that there was nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnxscript.rewriter import RewritePass, RewriteRule, RewriteRuleSet

from host.passes.transaction import GraphPass


def in_place(graph_pass: ir.passes.PassBase) -> GraphPass:
    """Make a function of a pass of onnx-ir."""

    def apply(model: ir.Model) -> ir.Model | None:
        result = graph_pass(model)
        return result.model if result.modified else None

    return apply


def rewritten(*rules: RewriteRule) -> GraphPass:
    """Make a function of rewrite rules of onnxscript."""
    return in_place(RewritePass(RewriteRuleSet(list(rules))))


def at_every_node(edit: Callable[[ir.Node, ir.Graph], bool]) -> GraphPass:
    """Make a function of an edit that looks at one node of any graph and its neighbours.

    Args:
        edit: Gets a node and the main graph, where new constants go; changes the node's graph in place and returns
            whether it did.
    """

    def apply(model: ir.Model) -> ir.Model | None:
        changed = False
        for graph in tuple(model.graphs()):
            for node in tuple(graph):
                # An edit may have removed one that was still to come.
                if node.graph is graph:
                    changed |= edit(node, model.graph)
        return model if changed else None

    return apply
