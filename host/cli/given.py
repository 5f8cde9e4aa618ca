"""What `run` and `infer` are given, as requests: photos, sounds, texts and arrays, prepared as the bundle says."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.buckets import pad
from edge.errors import InvalidInput
from edge.formats.bundle import Manifest
from edge.formats.tensor import Array, as_tensor
from edge.processing.prepare import Given, prepare, sources
from edge.processing.values import Prepared, ReadBlob
from edge.streams import CarriedState, is_carried

MAX_INPUT_BYTES = 1 << 30

_WORDS = {"image": "photos (JPEG, PNG)", "audio": "sounds (WAV)", "text": "texts (--text, .txt)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request.

    Attributes:
        shown: what it is called on the terminal and in JSON: a file, or the text.
        prepared: its inputs.
    """

    shown: str
    prepared: Prepared


def read_requests(
    files: Sequence[Path], texts: Sequence[str], manifest: Manifest, *, read: ReadBlob
) -> tuple[Request, ...]:
    """Read what a command is given.

    A model that takes a file and a text gets each file with the one text; else each file and each text is a request.

    Args:
        files: `.npz` with arrays by input name, `.txt`, WAV, or photos.
        texts: given on the command line.
        manifest: of the bundle.
        read: gives the files of the bundle.

    Raises:
        InvalidInput: a file is missing, not readable, or nothing that the bundle takes.
        BundleError: a file of the bundle cannot be had.
    """
    taken = sources(manifest.processing, manifest.inputs)
    both = "text" in taken and taken & {"image", "audio"} and bool(files and texts)
    if both and len(texts) != 1:
        raise InvalidInput(
            f"model {manifest.name!r} takes a file and a text: give one --text, which goes with each file"
        )
    with_text = texts[0] if both else None
    found = [_request(str(path), _given(path, manifest, with_text), manifest, read) for path in files]
    if not both:
        found += [_request(text, _text(text, manifest), manifest, read) for text in texts]
    return tuple(found)


def _request(shown: str, given: Given, manifest: Manifest, read: ReadBlob) -> Request:
    prepared = prepare(manifest.processing, given, read=read)
    tensors = prepared.tensors
    try:
        pad(CarriedState(manifest).feed(tensors) if is_carried(tensors, manifest) else tensors, manifest)
    except InvalidInput as error:
        raise InvalidInput(f"{given.where}: {error}") from error
    return Request(shown=shown, prepared=prepared)


def _text(text: str, manifest: Manifest) -> Given:
    if "text" not in sources(manifest.processing, manifest.inputs):
        raise InvalidInput(f"model {manifest.name!r} takes no texts; {_takes(manifest)}")
    return Given(text=text, where=repr(text[:40]))


def _given(path: Path, manifest: Manifest, text: str | None) -> Given:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_INPUT_BYTES:
            raise InvalidInput(f"{path}: {size_bytes} bytes are more than {MAX_INPUT_BYTES}")
        if path.suffix == ".npz":
            return Given(arrays=_read_arrays(path), text=text, where=str(path))
        data = path.read_bytes()
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no .npz of plain arrays"
        raise InvalidInput(f"{path}: cannot be read ({reason})") from error
    taken = sources(manifest.processing, manifest.inputs)
    if path.suffix == ".txt" and "text" in taken:
        return Given(text=_decoded(path, data), where=str(path))
    if not taken & {"image", "audio"}:
        raise InvalidInput(f"{path}: model {manifest.name!r} takes no {_kind(path)}; {_takes(manifest)}")
    is_sound = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    if is_sound and "audio" not in taken:
        raise InvalidInput(f"{path}: model {manifest.name!r} takes no sounds; {_takes(manifest)}")
    # What is no sound where only sounds are taken is said by the step that reads it.
    if is_sound or "image" not in taken:
        return Given(audio=data, text=text, where=str(path))
    return Given(image=data, text=text, where=str(path))


def _kind(path: Path) -> str:
    return {".wav": "sounds", ".txt": "texts"}.get(path.suffix.lower(), "photos")


def _takes(manifest: Manifest) -> str:
    taken = sources(manifest.processing, manifest.inputs)
    words = [word for source, word in _WORDS.items() if source in taken]
    names = ", ".join(spec.name for spec in manifest.inputs)
    return f"give {', '.join(words)}" if words else f"give an .npz with the arrays {names}"


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not a text in UTF-8") from error


def _read_arrays(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        size_bytes = sum(entry.file_size for entry in archive.infolist())
    if size_bytes > MAX_INPUT_BYTES:
        raise InvalidInput(f"{path}: unpacks to {size_bytes} bytes, more than {MAX_INPUT_BYTES}")
    with np.load(path, allow_pickle=False) as arrays:  # noqa: TID251  # pickle is refused here
        return {name: as_tensor(arrays[name]) for name in arrays.files}
