"""Rules of answers as people write them, such as `label == person and score > 0.8`, read into records; never evaluated.

::

    rule       = part { "or" part }
    part       = condition { "and" condition }
    condition  = "not" condition | "(" rule ")" | property operator value
    property   = "label" | "score" | "width" | "height" | "area"
    operator   = "==" | "!=" | "<" | "<=" | ">" | ">="
    value      = a number | a word | "text in quotes"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from edge.formats.answers import MAX_RULE_DEPTH, AllOf, AnyOf, Compare, Not, Rule
from host.errors import PackageError

MAX_RULE_LETTERS = 4096

_TOKEN = re.compile(
    r"\s*(?:(?P<sign>==|!=|<=|>=|<|>|\(|\))|\"(?P<quoted>[^\"]*)\"|'(?P<single>[^']*)'|(?P<word>[^\s()<>=!\"']+))"
)
_JOINTS = ("and", "or", "not")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Token:
    """A sign, a word, or a text in quotes."""

    text: str
    kind: str
    at: int


def parse_rule(text: str) -> Rule:
    """Read a rule.

    Raises:
        PackageError: it is none; says what was expected, and where.
    """
    if len(text) > MAX_RULE_LETTERS:
        raise PackageError(f"a rule of {len(text)} letters; at most {MAX_RULE_LETTERS} are allowed")
    reader = _Reader(text)
    rule = reader.any_of(0)
    reader.end()
    return rule


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0

    def any_of(self, depth: int) -> Rule:
        rules = [self._all_of(depth)]
        while self._is_next("or"):
            rules.append(self._all_of(depth))
        return rules[0] if len(rules) == 1 else AnyOf(rules=tuple(rules))

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise self._fault("'and', 'or' or the end")

    def _all_of(self, depth: int) -> Rule:
        rules = [self._condition(depth)]
        while self._is_next("and"):
            rules.append(self._condition(depth))
        return rules[0] if len(rules) == 1 else AllOf(rules=tuple(rules))

    def _condition(self, depth: int) -> Rule:
        if depth > MAX_RULE_DEPTH:
            raise PackageError(f"rule {self._text[:80]!r}: more than {MAX_RULE_DEPTH} conditions within each other")
        if self._is_next("not"):
            return Not(inner=self._condition(depth + 1))
        if self._is_next("("):
            rule = self.any_of(depth + 1)
            if not self._is_next(")"):
                raise self._fault("')'")
            return rule
        compared: dict[str, Any] = {"rule": "compare"}
        compared["field"] = self._take("word", "a property (label, score, width, height, area)")
        compared["operator"] = self._take("sign", "an operator (==, !=, <, <=, >, >=)")
        compared["value"] = self._value(str(compared["field"]))
        try:
            return msgspec.convert(compared, Compare)
        except msgspec.ValidationError as error:
            raise PackageError(f"rule {self._text[:80]!r}: {error}") from error

    def _value(self, field: str) -> str | float:
        token = self._peek()
        if token is None or token.kind == "sign" or (token.kind == "word" and token.text in _JOINTS):
            raise self._fault("a value")
        self._at += 1
        # A class may be called 7: it is a number only beside a property that is one.
        if token.kind == "word" and field != "label":
            try:
                return float(token.text)
            except ValueError:
                self._at -= 1
                raise self._fault("a number") from None
        return token.text

    def _peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _is_next(self, text: str) -> bool:
        token = self._peek()
        found = token is not None and token.kind != "quoted" and token.text == text
        self._at += found
        return found

    def _take(self, kind: str, wanted: str) -> str:
        token = self._peek()
        if token is None or token.kind != kind or token.text in _JOINTS:
            raise self._fault(wanted)
        self._at += 1
        return token.text

    def _fault(self, wanted: str) -> PackageError:
        token = self._peek()
        found = f"{token.text[:40]!r} at letter {token.at + 1}" if token is not None else "its end"
        return PackageError(f"rule {self._text[:80]!r}: expected {wanted}, found {found}")


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    stripped = text.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if match is None:
            raise PackageError(
                f"rule {text[:80]!r}: cannot be read from letter {at + 1} on: {stripped[at : at + 20]!r}"
            )
        kind = match.lastgroup or ""
        start = match.start(kind)
        found.append(_Token(text=match[kind], kind="quoted" if kind == "single" else kind, at=start))
        at = match.end()
    return found
