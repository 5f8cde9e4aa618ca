"""The passes over the fp32 graph, before quantization: fewer nodes, less work, same answers.

One line of the table is one transaction. They go twice over the model, because one pass makes work for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from host.model import Model, Tensors
from host.passes.collapse_slices import collapse_slices
from host.passes.drop_no_ops import drop_no_ops
from host.passes.eliminate_identities import eliminate_identities
from host.passes.fold_constants import fold_constants
from host.passes.fuse_affine_into_conv import fuse_affine_into_conv
from host.passes.fuse_average_pools import fuse_average_pools
from host.passes.fuse_batch_norms import fuse_batch_norms
from host.passes.fuse_clips import fuse_clips
from host.passes.fuse_convs import fuse_convs
from host.passes.fuse_linears import fuse_linears
from host.passes.fuse_pads import fuse_pads
from host.passes.matmul_add_to_gemm import matmul_add_to_gemm
from host.passes.merge_pools import merge_pools
from host.passes.pool_before_activation import pool_before_activation
from host.passes.pool_before_pointwise import pool_before_pointwise
from host.passes.share_constants import share_constants
from host.passes.share_subexpressions import share_subexpressions
from host.passes.transaction import NOTHING, GraphPass, OnPass, PassOutcome, Transactions

_ROUNDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedPass:
    """A pass and the name that reports give it."""

    name: str
    apply: GraphPass


PASSES: tuple[NamedPass, ...] = (
    NamedPass(name="fold-constants", apply=fold_constants),
    NamedPass(name="eliminate-identities", apply=eliminate_identities),
    NamedPass(name="drop-no-ops", apply=drop_no_ops),
    NamedPass(name="fuse-batch-norms", apply=fuse_batch_norms),
    NamedPass(name="fuse-affine-into-conv", apply=fuse_affine_into_conv),
    NamedPass(name="fuse-pads", apply=fuse_pads),
    NamedPass(name="fuse-convs", apply=fuse_convs),
    NamedPass(name="pool-before-pointwise", apply=pool_before_pointwise),
    NamedPass(name="fuse-average-pools", apply=fuse_average_pools),
    NamedPass(name="merge-pools", apply=merge_pools),
    NamedPass(name="fuse-clips", apply=fuse_clips),
    NamedPass(name="pool-before-activation", apply=pool_before_activation),
    NamedPass(name="collapse-slices", apply=collapse_slices),
    NamedPass(name="matmul-add-to-gemm", apply=matmul_add_to_gemm),
    NamedPass(name="fuse-linears", apply=fuse_linears),
    NamedPass(name="share-subexpressions", apply=share_subexpressions),
    NamedPass(name="share-constants", apply=share_constants),
)
"""Name and effect, in the order in which they run."""


def optimize(
    model: Model,
    samples: Sequence[Tensors],
    *,
    on_pass: OnPass | None = None,
    passes: Sequence[NamedPass] = PASSES,
    measured: bool = False,
) -> tuple[Model, tuple[PassOutcome, ...]]:
    """Run the passes of onnxscript and onnx-ir that help, each as a checked transaction.

    Args:
        model: A normalised model; it is not changed.
        samples: Inputs for the checks; two sizes where the model is dynamic.
        on_pass: Called with the outcome of each pass.
        passes: Which passes.
        measured: Whether to take the figures of the graph before and after each pass, its latency included.

    Returns:
        The model with every pass that kept its answers, and all outcomes.

    Raises:
        PassError: If the model does not run to begin with.
    """
    transactions = Transactions(model, samples, on_pass=on_pass, measured=measured)
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
