"""The passes over the fp32 graph, before quantization: fewer nodes, same answers.

One line of the table is one transaction. They go twice over the model, because one pass makes work for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass, RewriteRule, RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from host.model import Model, Tensors
from host.passes.transaction import NOTHING, GraphPass, OnPass, PassOutcome, Transactions

# In elements, as onnxscript counts: at most 64 KiB of eight-byte ones, unless the folded inputs go in exchange.
MAX_FOLDED_ELEMENTS = 8192
MAX_FOLD_INPUT_ELEMENTS = 8192
_ROUNDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedPass:
    """A pass and the name that reports give it."""

    name: str
    apply: GraphPass


def _fold_constants(model: ir.Model) -> ir.Model | None:
    result = fold_constants_ir(
        model,
        onnx_shape_inference=True,
        input_size_limit=MAX_FOLD_INPUT_ELEMENTS,
        output_size_limit=MAX_FOLDED_ELEMENTS,
    )
    return result.model if result.modified else None


def _in_place(graph_pass: ir.passes.PassBase) -> GraphPass:
    def apply(model: ir.Model) -> ir.Model | None:
        result = graph_pass(model)
        return result.model if result.modified else None

    return apply


def _rewrite(*chosen: RewriteRule) -> GraphPass:
    return _in_place(RewritePass(RewriteRuleSet(list(chosen))))


PASSES: tuple[NamedPass, ...] = (
    NamedPass(name="fold-constants", apply=_fold_constants),
    NamedPass(name="eliminate-identities", apply=_in_place(common.IdentityEliminationPass())),
    NamedPass(
        name="drop-no-ops",
        apply=_rewrite(
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
        ),
    ),
    NamedPass(
        name="fuse-batch-norms",
        apply=_rewrite(
            rules.fuse_batchnorm_into_conv_rule,
            rules.fuse_batchnorm_into_conv_transpose_rule,
            rules.fuse_batchnorm_into_gemm_rule,
        ),
    ),
    NamedPass(
        name="fuse-affine-into-conv", apply=_rewrite(rules.affine_conv_fusion_rule, rules.conv_affine_fusion_rule)
    ),
    NamedPass(name="fuse-pads", apply=_rewrite(rules.normalize_pad_format_conv_rule, rules.fuse_pad_into_conv_rule)),
    NamedPass(
        name="fuse-clips",
        apply=_rewrite(
            rules.min_max_rule,
            rules.max_min_rule,
            rules.successive_relu_rule,
            rules.successive_clip_rule,
            rules.successive_clip_relu_rule,
            rules.successive_relu_clip_rule,
        ),
    ),
    NamedPass(
        name="collapse-slices",
        apply=_rewrite(rules.collapse_slice_rule, rules.collapse_slice2_rule),
    ),
    NamedPass(
        name="matmul-add-to-gemm",
        apply=_rewrite(
            rules.matmul_add_to_gemm_rule,
            rules.transpose_a_matmul_add_to_gemm_rule,
            rules.transpose_b_matmul_add_to_gemm_rule,
            rules.transpose_ab_matmul_add_to_gemm_rule,
        ),
    ),
    NamedPass(name="share-subexpressions", apply=_in_place(common.CommonSubexpressionEliminationPass())),
    NamedPass(name="share-constants", apply=_in_place(common.DeduplicateHashedInitializersPass())),
)
"""Name and effect, in the order in which they run."""


def optimize(
    model: Model,
    samples: Sequence[Tensors],
    *,
    on_pass: OnPass | None = None,
    passes: Sequence[NamedPass] = PASSES,
) -> tuple[Model, tuple[PassOutcome, ...]]:
    """Run the passes of onnxscript and onnx-ir that help, each as a checked transaction.

    Args:
        model: A normalised model; it is not changed.
        samples: Inputs for the checks; two sizes where the model is dynamic.
        on_pass: Called with the outcome of each pass.
        passes: Which passes.

    Returns:
        The model with every pass that kept its answers, and all outcomes.

    Raises:
        PassError: If the model does not run to begin with.
    """
    transactions = Transactions(model, samples, on_pass=on_pass)
    broken: set[str] = set()
    for _ in range(_ROUNDS):
        changed = False
        for step in passes:
            if step.name in broken:
                continue
            outcome = transactions.attempt(step.name, step.apply)
            changed |= outcome.kept
            if not outcome.kept and outcome.reason != NOTHING:
                broken.add(step.name)
        if not changed:
            break
    return transactions.model, transactions.outcomes
