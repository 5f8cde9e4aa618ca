"""Text to token numbers, by a `tokenizer.json`; the only importer of `tokenizers`.

`tokenizers` (Rust, wheels for x86-64 and aarch64) comes with the extra `shardwire[text]`. It reads the file that the
model was trained with, normaliser and special tokens included, which no short code of one's own would do as exactly.
"""

import threading
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from edge.errors import BundleError, InvalidInput, ShardwireError
from edge.formats.steps import Tokenise
from edge.processing.values import ReadBlob, Value

MAX_TEXT_BYTES = 16 * 1024 * 1024

_REMEMBERED = 4
_known: dict[tuple[str, int], Any] = {}
_lock = threading.Lock()


def tokenise(step: Tokenise, value: Value) -> Value:
    """Turn a text to `[1, length]` token numbers, mask, or sentence numbers.

    Raises:
        InvalidInput: it is no text, or of absurd length.
        BundleError: the tokenizer file is none.
        ShardwireError: `tokenizers` is not installed.
    """
    text = value.held
    if not isinstance(text, str):
        raise InvalidInput(f"{value.where}: not a text")
    size_bytes = len(text.encode(errors="replace"))
    if size_bytes > MAX_TEXT_BYTES:
        raise InvalidInput(f"{value.where}: {size_bytes} bytes of text are more than {MAX_TEXT_BYTES}")
    # A lone surrogate, as a terminal may give it, is no text for others.
    encoding = _tokenizer(step, value.read).encode(text.encode(errors="replace").decode())
    numbers = {"ids": encoding.ids, "mask": encoding.attention_mask, "types": encoding.type_ids}[step.gives]
    size = next((size for size in step.sizes if size >= len(numbers)), len(numbers))
    held = np.full((1, size), step.value if step.gives == "ids" else 0, step.dtype)
    held[0, : len(numbers)] = numbers
    return replace(value, held=held)


def _tokenizer(step: Tokenise, read: ReadBlob) -> Any:
    """Return the tokenizer of a step, cut to its length; the last few are remembered."""
    key = (step.file.digest, step.most)
    with _lock:
        if key not in _known:
            if len(_known) >= _REMEMBERED:
                del _known[next(iter(_known))]
            _known[key] = _loaded(step, read)
        return _known[key]


def _loaded(step: Tokenise, read: ReadBlob) -> Any:
    if find_spec("tokenizers") is None:
        raise ShardwireError("reading text needs tokenizers: pip install 'shardwire[text]'")
    from tokenizers import Tokenizer

    data = read(step.file)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises a bare Exception for a malformed file
        reason = " ".join(str(error).split())[:120]
        raise BundleError(f"tokenizer {step.file.digest[:19]}: not a tokenizer.json ({reason})") from error
    tokenizer.no_padding()
    try:
        tokenizer.enable_truncation(max_length=step.most)
    except (ValueError, OverflowError) as error:
        raise BundleError(
            f"tokenizer {step.file.digest[:19]}: cannot be cut to {step.most} tokens ({error})"
        ) from error
    return tokenizer
