"""Make a drawing of matplotlib part of an HTML page: no styles of its own, colours by class, ids that clash with none.

A page with a strict content security policy allows no style attribute, and a page that is light or dark needs colours
that its style sheet decides. So a figure is drawn in stand-in colours, which become the classes ``f-NAME`` (fill) and
``s-NAME`` (stroke) here. The same figure gives the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree as ET

# Colours that no map of matplotlib has, by the name that the style sheet gives them.
STAND_INS: Mapping[str, str] = {
    "ink": "#0a0b01",
    "muted": "#0a0b02",
    "grid": "#0a0b03",
    "surface": "#0a0b04",
    "before": "#0a0b05",
    "after": "#0a0b06",
    "good": "#0a0b07",
    "warn": "#0a0b08",
    "bad": "#0a0b09",
}

_NAMES = {colour: name for name, colour in STAND_INS.items()}
_FONT_SIZE = re.compile(r"([\d.]+)px")
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_HREF = "{http://www.w3.org/1999/xlink}href"
_ROUNDED = frozenset({"d", "x", "y", "width", "height", "transform", "points", "stroke-dasharray", "stroke-width"})


def inlined(drawing: bytes, *, name: str, label: str) -> str:
    """Turn an SVG file of matplotlib into an element for an HTML page.

    Args:
        drawing: The file, drawn in `STAND_INS`, its text kept as text.
        name: Unique in the page, letters and dashes; ids begin with it.
        label: What the picture shows, for those who cannot see it.

    Returns:
        The ``<svg>`` element, escaped as XML.
    """
    root = ET.fromstring(drawing)  # noqa: S314  # matplotlib wrote it a moment ago: no foreign XML
    _remove(root, {"metadata", "style"})
    used = set(_references(root))
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = dict(element.attrib)
        element.attrib.clear()
        for key, value in attributes.items():
            _set(element, key, value, used, name)
    size = root.attrib.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"class": "plot", "role": "img", "aria-label": label, "viewBox": size})
    for element in root.iter():
        # Groups without an attribute only cost bytes, but taking them out would not be worth the code.
        element.tail = None if element.tail is None or not element.tail.strip() else element.tail
        if element.tag not in ("text", "tspan", "title"):
            element.text = None
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _remove(element: ET.Element, tags: set[str]) -> None:
    for child in list(element):
        if _local(child.tag) in tags:
            element.remove(child)
        else:
            _remove(child, tags)


def _references(root: ET.Element) -> Iterator[str]:
    for element in root.iter():
        if _HREF in element.attrib:
            yield element.attrib[_HREF].lstrip("#")
        for value in element.attrib.values():
            yield from _REFERENCE.findall(value)


def _set(element: ET.Element, key: str, value: str, used: set[str], name: str) -> None:
    if key == _HREF:
        element.set("href", f"#{name}-{value.lstrip('#')}")
    elif key == "id":
        if value in used:
            element.set("id", f"{name}-{value}")
    elif key == "style":
        for declaration in value.split(";"):
            prop, _, found = declaration.partition(":")
            _style(element, prop.strip(), found.strip())
    elif not key.startswith("{"):
        value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
        element.set(key, _rounded(value) if key in _ROUNDED else value)


def _style(element: ET.Element, prop: str, value: str) -> None:
    if prop in ("font", "font-size"):
        if size := _FONT_SIZE.search(value):
            element.set("font-size", size[1])
        if re.search(r"\b(bold|[67]00)\b", value):
            element.set("font-weight", "bold")
    elif prop == "font-weight":
        element.set("font-weight", value)
    elif prop in ("fill", "stroke") and value in _NAMES:
        classes = element.get("class", "")
        element.set("class", f"{classes} {prop[0]}-{_NAMES[value]}".strip())
    elif prop and not prop.startswith("font"):
        element.set(prop, _rounded(value) if prop in _ROUNDED else value)


def _rounded(text: str) -> str:
    return _DECIMALS.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text)
