"""What needs PyTorch: a model that can be trained, training, and pruning of modules.

Importing this package without torch raises one clear line, so that its modules may import torch at their top. Import it
late: a model that comes as ONNX and is not trained needs none of it.
"""

from __future__ import annotations

import importlib.util

from host.compress.recover import RecoverError


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise RecoverError("training and pruning of modules need torch: pip install 'shardwire[torch]'")


_require_torch()
