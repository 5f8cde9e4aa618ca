"""The window that a convolution or a pooling moves over its input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Size and steps of a window, one number a spatial axis.

    Attributes:
        kernel: Its size.
        strides: Its step.
        dilations: Distance of neighbouring taps.
        pads: Rows added before each axis, then after each.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether it holds one element."""
        return math.prod(self.kernel) == 1

    @property
    def is_padded(self) -> bool:
        """Whether it may hang over the border."""
        return any(self.pads)

    @property
    def is_dilated(self) -> bool:
        """Whether there are gaps in it."""
        return any(size > 1 and step > 1 for size, step in zip(self.kernel, self.dilations, strict=True))


def window_of(node: ir.Node, kernel: tuple[int, ...] | None = None) -> Window | None:
    """Read the window of a node; None where its padding depends on the input's size, or it rounds up.

    Args:
        node: A convolution or pooling.
        kernel: Spatial sizes of a convolution's weights; a pooling says them itself.
    """
    attributes = node.attributes
    sizes = kernel if kernel is not None else tuple(attributes.get_ints("kernel_shape", ()))
    padding = attributes.get_string("auto_pad", "NOTSET")
    if not sizes or attributes.get_int("ceil_mode", 0) != 0 or padding not in ("NOTSET", "VALID"):
        return None
    ones, zeros = (1,) * len(sizes), (0,) * 2 * len(sizes)
    return Window(
        kernel=sizes,
        strides=tuple(attributes.get_ints("strides", ones)),
        dilations=tuple(attributes.get_ints("dilations", ones)),
        pads=zeros if padding == "VALID" else tuple(attributes.get_ints("pads", zeros)),
    )


def set_window(node: ir.Node, window: Window) -> None:
    """Write a window into a node; everything else that it says stays."""
    node.attributes.pop("auto_pad", None)
    for name, sizes in (
        ("kernel_shape", window.kernel),
        ("strides", window.strides),
        ("pads", window.pads),
        ("dilations", window.dilations),
    ):
        # Poolings of old opsets have no dilations.
        if name == "dilations" and all(size == 1 for size in sizes):
            node.attributes.pop(name, None)
        else:
            node.attributes.add(ir.AttrInt64s(name, sizes))
