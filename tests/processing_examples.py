"""The recipes that docs/processing.md shows, as files that `shardwire package --processing` takes."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
from PIL import Image, ImageDraw, ImageFont

from tests.minilm import minilm_file
from tests.zoo import packaged_file

_DOC = Path(__file__).resolve().parent.parent / "docs" / "processing.md"


def example(heading: str) -> str:
    """The TOML below a heading of docs/processing.md."""
    pattern = rf"^### {re.escape(heading)}$.*?^```toml$\n(.*?)^```$"
    found = re.search(pattern, _DOC.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"docs/processing.md shows no recipe below {heading!r}"
    return found[1]


def write_example(heading: str, folder: Path) -> Path:
    """Write a recipe, and the files that it names, into a folder; return the path of the recipe."""
    text = example(heading)
    if "tokenizer.json" in text:
        (folder / "tokenizer.json").write_bytes(minilm_file("tokenizer.json").read_bytes())
    if "charset.txt" in text:
        (folder / "charset.txt").write_text("\n".join([*ppocr_letters(), " ", ""]), encoding="utf-8")
    if "labels.txt" in text:
        (folder / "labels.txt").write_text("".join(f"class {number}\n" for number in range(1000)), encoding="utf-8")
    path = folder / f"{heading.replace(' ', '-').lower()}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def ppocr_letters() -> list[str]:
    """The letters that PP-OCRv4 reads, as its ONNX file lists them; without the space."""
    model = onnx.load(str(ppocr_file()), load_external_data=False)
    text: str = next(entry.value for entry in model.metadata_props if entry.key == "character")
    return text.splitlines()


def ppocr_file() -> Path:
    """PP-OCRv4 that reads a line."""
    return packaged_file("rapidocr_onnxruntime", "models", "ch_PP-OCRv4_rec_infer.onnx")


def face_detector_file() -> Path:
    """BlazeFace for faces that are near."""
    return packaged_file("mediapipe", "modules", "face_detection", "face_detection_short_range.tflite")


def face_photo() -> Path:
    """A portrait of Grace Hopper, 512 x 600 pixels, which matplotlib carries; her face is in the middle."""
    return packaged_file("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg")


def write_line(text: str, path: Path) -> Path:
    """Render a line of text as an image file."""
    font = ImageFont.load_default(36)
    left, top, right, bottom = font.getbbox(text)
    line = Image.new("RGB", (int(right - left) + 6, 48), "white")
    ImageDraw.Draw(line).text((3 - left, (48 - (bottom - top)) / 2 - top), text, fill="black", font=font)
    line.save(path)
    return path
