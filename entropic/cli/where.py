"""``--where``: a small language of conditions, read by hand and never executed.

    dt<0.01
    n>=10 and label='a b'
    custom.git_sha=abc123

What is on the right of a sign is a number, ``true``, ``false``, ``null`` or a text, with quotes
where it has blanks or looks like one of the others. What the names stand for is left to
``columns``.
"""

import re
from dataclasses import dataclass
from typing import Final

from entropic.cli.ending import UsageError

SIGNS: Final = ("<=", ">=", "!=", "<>", "==", "<", ">", "=")

Plain = str | float | int | bool | None


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison.

    Attributes:
        name: What is compared: a column, or ``custom.`` and a key.
        sign: How: one of ``= != < <= > >=``.
        text: What with, as it was written.
        is_quoted: Whether it was in quotes: then it is a text, whatever it looks like.
    """

    name: str
    sign: str
    text: str
    is_quoted: bool = False

    @property
    def value(self) -> Plain:
        """What it is compared with, as far as the text alone tells."""
        if self.is_quoted:
            return self.text
        word = self.text.lower()
        if word in _WORDS:
            return _WORDS[word]
        for kind in (int, float):
            try:
                return kind(self.text)
            except ValueError:
                continue
        return self.text


def parsed(expression: str) -> list[Condition]:
    """The conditions of an expression, which all have to hold.

    Raises:
        UsageError: It is none; says where it stops to be.
    """
    conditions = []
    position = 0
    while True:
        condition, position = _condition(expression, position)
        conditions.append(condition)
        joint = _AND.match(expression, position)
        if joint is None:
            break
        position = joint.end()
    if expression[position:].strip():
        raise _wrong(expression, position, "'and' and another condition, or the end")
    return conditions


_WORDS: Final[dict[str, Plain]] = {"true": True, "false": False, "null": None, "none": None}

_NAME: Final = re.compile(r"\s*([^\s<>=!'\"]+)\s*")
_SIGN: Final = re.compile("|".join(map(re.escape, SIGNS)))
_QUOTED: Final = re.compile(r"\s*(?:'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\")")
_BARE: Final = re.compile(r"\s*([^\s'\"<>=!]+)")
_AND: Final = re.compile(r"\s+and\s+", re.IGNORECASE)


def _condition(expression: str, position: int) -> tuple[Condition, int]:
    name = _NAME.match(expression, position)
    if name is None:
        raise _wrong(expression, position, "the name of a column")
    sign = _SIGN.match(expression, name.end())
    if sign is None:
        raise _wrong(expression, name.end(), f"one of {' '.join(SIGNS)}")
    plain = {"==": "=", "<>": "!="}.get(sign.group(), sign.group())
    if quoted := _QUOTED.match(expression, sign.end()):
        single, double = quoted.groups()
        text = single.replace("''", "'") if double is None else double.replace('""', '"')
        return Condition(name[1], plain, text, is_quoted=True), quoted.end()
    bare = _BARE.match(expression, sign.end())
    if bare is None:
        raise _wrong(expression, sign.end(), "a value (a text with blanks needs quotes)")
    return Condition(name[1], plain, bare[1]), bare.end()


def _wrong(expression: str, position: int, expected: str) -> UsageError:
    rest = expression[position:].strip()
    where = f"at {rest!r}" if rest else "at its end"
    return UsageError(f"--where {expression!r}: expected {expected}, {where}")
