"""What goes through the steps of a recipe: a value with where it lies in the photo, and the items of an answer."""

from collections.abc import Callable
from dataclasses import dataclass, field

from edge.formats.shard import Blob
from edge.formats.tensor import Array

ReadBlob = Callable[[Blob], bytes]
"""Gives a file of the bundle."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where an image lies in the photo that it was made of: `photo = left + x · across`, `top + y · down`.

    Attributes:
        width, height: of the image, in its own pixels.
        left, top: of its corner in the photo, in pixels of the photo.
        across, down: pixels of the photo that one pixel of the image is wide and high.
    """

    width: int
    height: int
    left: float = 0.0
    top: float = 0.0
    across: float = 1.0
    down: float = 1.0

    def cut(self, left: float, top: float, width: int, height: int) -> "Placement":
        """Return the placement of a rectangle of the image; what lies outside of it is filling."""
        return Placement(
            width=width,
            height=height,
            left=self.left + left * self.across,
            top=self.top + top * self.down,
            across=self.across,
            down=self.down,
        )

    def resized(self, width: int, height: int) -> "Placement":
        """Return the placement of the same image with other pixels."""
        return Placement(
            width=width,
            height=height,
            left=self.left,
            top=self.top,
            across=self.across * self.width / width,
            down=self.down * self.height / height,
        )

    def in_photo(self, x: float, y: float) -> Point:
        """Return where a point lies in the photo, in pixels, from its place in shares of the image."""
        return self.left + x * self.width * self.across, self.top + y * self.height * self.down


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A value between two steps of an input recipe.

    Attributes:
        held: a file, a text, or an array; an image is uint8 `[H, W, C]`.
        placement: of an image.
        where: what it is made of, for messages.
        read: gives the files of the bundle.
    """

    held: bytes | str | Array | None
    where: str
    read: ReadBlob
    placement: Placement | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The inputs of one request, and where the image among them lies in the photo.

    Attributes:
        tensors: by input name.
        placement: None where no input is an image.
    """

    tensors: dict[str, Array]
    placement: Placement | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """A class and its score."""

    label: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A thing and where it is, first in shares of the image that the model sees, at last in pixels of the photo."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float
    points: tuple[Point, ...] = ()

    @property
    def width(self) -> float:
        """Never negative."""
        return max(0.0, self.right - self.left)

    @property
    def height(self) -> float:
        """Never negative."""
        return max(0.0, self.bottom - self.top)

    @property
    def area(self) -> float:
        """Width times height."""
        return self.width * self.height


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line of text; its score is the mean of its letters'."""

    label: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A region of an image.

    Attributes:
        label: its class.
        area: share of the image.
        outline: closed polygon, clockwise as seen.
        holes: closed polygons in it, counter-clockwise.
    """

    label: str
    area: float
    outline: tuple[Point, ...]
    holes: tuple[tuple[Point, ...], ...] = ()


Item = Labelled | Box | Line | Segment


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an answer recipe made.

    Attributes:
        name: of the recipe.
        items: the best first; none where `array` is the answer.
        array: of a recipe without items.
        in_pixels: whether boxes and segments are in pixels of the photo; else they are shares of the model's image.
    """

    name: str
    items: tuple[Item, ...] = ()
    array: Array | None = None
    in_pixels: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What is read between two steps of an answer recipe.

    Attributes:
        arrays: the outputs, as the steps so far changed them.
        inputs: of the request.
        items: None before a step made them.
        last: name of the array that was changed last.
    """

    arrays: dict[str, Array]
    inputs: dict[str, Array] = field(default_factory=dict)
    items: tuple[Item, ...] | None = None
    last: str = ""
