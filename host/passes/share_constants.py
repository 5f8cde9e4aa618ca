"""Keep equal weights once.

1. Of two constants with the same type, shape and bytes, one goes and its readers share the other.
"""

from __future__ import annotations

from onnx_ir.passes import common

from host.passes.rewriting import in_place

share_constants = in_place(common.DeduplicateHashedInitializersPass())
