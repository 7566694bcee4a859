"""Values as people are shown them: in few characters that do nothing but be seen."""

from typing import Final

_LONGEST: Final = 40  # characters of one value among others


def shown(value: object) -> str:
    """A value as it is shown among others: in few characters, whatever it is."""
    return cut(repr(value), _LONGEST)


def printable(text: str) -> str:
    """A text that does nothing to a terminal but be shown, in one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cut(text: str, most: int = _LONGEST) -> str:
    """A text, or its beginning."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
