"""Convert plain data into a record and name every fault of it, not only the first.

`msgspec.convert` stops at the first fault and does not show the value it met. Files that a person writes
(profiles, recipes) are read through `convert`, which walks the same types and collects all faults.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

Record = TypeVar("Record", bound=msgspec.Struct)

_SHOWN_CHARACTERS = 60
_SHOWN_FAULTS = 20


class Faults(Exception):
    """All faults of one piece of data.

    Attributes:
        lines: one sentence for each fault, beginning with the path of the key.
    """

    def __init__(self, lines: tuple[str, ...]) -> None:
        more = f"; and {len(lines) - _SHOWN_FAULTS} more" if len(lines) > _SHOWN_FAULTS else ""
        super().__init__("; ".join(lines[:_SHOWN_FAULTS]) + more)
        self.lines = lines


def convert(data: object, record: type[Record], *, drop_unknown: bool = False) -> Record:
    """Convert tables, lists and scalars into `record`.

    Args:
        data: what a TOML or JSON parser gave.
        record: a struct type; its fields may be scalars, literals, tuples, optional values, other structs, and unions
            of structs that a tag field tells apart.
        drop_unknown: ignore keys that the record does not have, as a file of a newer minor version may have.

    Raises:
        Faults: one or more values do not fit.
    """
    walk = _Walk(drop_unknown=drop_unknown)
    clean = walk.check(data, inspect.type_info(record), "")
    if walk.lines:
        raise Faults(tuple(walk.lines))
    return msgspec.convert(clean, record)


class _Walk:
    """One walk over data and type together; collects faults and returns the data without what it drops."""

    def __init__(self, *, drop_unknown: bool) -> None:
        self.lines: list[str] = []
        self._drop_unknown = drop_unknown
        self._checks: Mapping[type[inspect.Type], Callable[[Any, Any, str], Any]] = {
            inspect.StructType: self._struct,
            inspect.VarTupleType: self._tuple,
            inspect.UnionType: self._union,
            inspect.LiteralType: self._literal,
            inspect.StrType: self._text,
            inspect.IntType: self._number,
            inspect.FloatType: self._number,
            inspect.BoolType: self._boolean,
        }

    def check(self, value: Any, kind: inspect.Type, path: str) -> Any:
        while isinstance(kind, inspect.Metadata):
            kind = kind.type
        return self._checks[type(kind)](value, kind, path)

    def _expected(self, what: str, got: object, path: str) -> None:
        shown = repr(got)
        if len(shown) > _SHOWN_CHARACTERS:
            shown = shown[: _SHOWN_CHARACTERS - 3] + "..."
        self.lines.append(f"{path or 'the file'}: expected {what}, got {shown}")

    def _struct(self, value: Any, kind: inspect.StructType, path: str) -> Any:
        if not isinstance(value, dict):
            self._expected("table", value, path)
            return None
        prefix = f"{path}." if path else ""
        fields = {field.encode_name: field for field in kind.fields}
        clean: dict[str, Any] = {}
        if kind.tag_field is not None and kind.tag_field in value:
            clean[kind.tag_field] = value[kind.tag_field]
        for name, field in fields.items():
            if name in value:
                clean[name] = self.check(value[name], field.type, prefix + name)
            elif field.required:
                self.lines.append(f"{prefix}{name}: missing; expected {_describe(field.type)}")
        if not self._drop_unknown:
            for name in value:
                if name not in fields and name != kind.tag_field:
                    shown = name if name.isprintable() else repr(name)
                    self.lines.append(f"{prefix}{shown}: unknown key; allowed: {', '.join(fields)}")
        return clean

    def _tuple(self, value: Any, kind: inspect.VarTupleType, path: str) -> Any:
        if not isinstance(value, list):
            self._expected("list", value, path)
            return []
        least, most = kind.min_length or 0, kind.max_length
        if len(value) < least or (most is not None and len(value) > most):
            self._expected(f"{least} to {'any number of' if most is None else most} items", value, path)
            return []
        return [self.check(item, kind.item_type, f"{path}[{index}]") for index, item in enumerate(value)]

    def _union(self, value: Any, kind: inspect.UnionType, path: str) -> Any:
        tagged = {member.tag: member for member in kind.types if isinstance(member, inspect.StructType) and member.tag}
        if len(tagged) > 1:
            return self._tagged(value, tagged, path)
        others = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
        return None if value is None else self.check(value, others[0], path)

    def _tagged(self, value: Any, members: Mapping[Any, inspect.StructType], path: str) -> Any:
        field = str(next(iter(members.values())).tag_field)
        if not isinstance(value, dict):
            self._expected("table", value, path)
        elif not isinstance(value.get(field), str) or value[field] not in members:
            self._expected(f"one of {', '.join(map(str, members))}", value.get(field), f"{path}.{field}")
        else:
            return self._struct(value, members[value[field]], path)
        return None

    def _literal(self, value: Any, kind: inspect.LiteralType, path: str) -> Any:
        if value not in kind.values:
            self._expected(_describe(kind), value, path)
        return value

    def _text(self, value: Any, kind: inspect.StrType, path: str) -> Any:
        if not isinstance(value, str):
            self._expected("str", value, path)
        elif kind.pattern is not None and re.search(kind.pattern, value) is None:
            self._expected(f"text that matches {kind.pattern}", value, path)
        elif len(value) < (kind.min_length or 0) or len(value) > (kind.max_length or len(value)):
            self._expected(f"{kind.min_length or 0} to {kind.max_length} characters", value, path)
        return value

    def _number(self, value: Any, kind: inspect.IntType | inspect.FloatType, path: str) -> Any:
        whole = isinstance(kind, inspect.IntType)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            self._expected(_describe(kind), value, path)
        elif not math.isfinite(value) or not _within(value, kind):
            self._expected(f"{_describe(kind)} {_bounds(kind)}", value, path)
        return value

    def _boolean(self, value: Any, kind: inspect.BoolType, path: str) -> Any:
        if not isinstance(value, bool):
            self._expected(_describe(kind), value, path)
        return value


def _within(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.le is None or value <= kind.le)
        and (kind.gt is None or value > kind.gt)
        and (kind.lt is None or value < kind.lt)
    )


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    def shown(bound: float | None, otherwise: str) -> str:
        return otherwise if bound is None else str(bound) if isinstance(kind, inspect.IntType) else f"{bound:g}"

    least = f"above {shown(kind.gt, '')}" if kind.gt is not None else f"from {shown(kind.ge, '-inf')}"
    most = f"below {shown(kind.lt, '')}" if kind.lt is not None else f"to {shown(kind.le, 'inf')}"
    return f"{least} {most}"


def _describe(kind: inspect.Type) -> str:
    """Name what is allowed, in the words of TOML."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(str(value) for value in kind.values)}"
    return _WORDS[type(kind)]


_WORDS: Mapping[type[inspect.Type], str] = {
    inspect.StructType: "table",
    inspect.VarTupleType: "list",
    inspect.StrType: "str",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.BoolType: "bool",
}
