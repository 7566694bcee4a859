"""The parameters as coordinates: their labels, in order, and each record's place among them.

Two values are one label exactly when they are one to the run ids: 0.1 + 0.2 and 0.3 are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from entropic.export.columns import Column, Kind, declared, kind_of, parameter_column
from entropic.export.missing import are_exact_in_float
from entropic.identity.canonical import Unfit, canonical
from entropic.identity.coercion import Rule, rule_for
from entropic.models import Base, Parameter


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter, as a coordinate.

    Attributes:
        name: The parameter's name, or ``id``.
        labels: A numpy array of its distinct values, in order, those of ``None`` last.
        places: For each record, the index of its label.
    """

    name: str
    labels: Any
    places: list[int]


def parameter_axis(parameter: Parameter, records: Sequence[Base]) -> Axis:
    """A parameter's labels.

    Numbers, bools, texts, dates and decimals are themselves, and sorted; enums their values, as
    declared unless they are numbers; datetimes are in UTC, without a zone, as xarray has none.
    UUIDs and paths are text; arrays and JSON their canonical JSON text, as they are first seen.
    """
    rule = rule_for(parameter)
    column = parameter_column(parameter, records)
    fits = column.kind is kind_of(parameter)
    keys = _keys(rule if fits else _ANY, [getattr(record, parameter.name) for record in records])
    found = _distinct(keys, column)
    ranks = {rule.canonical(member): rank for rank, member in enumerate(declared(parameter))}
    labels = _ordered(column.kind, found, ranks)
    index = {key: place for place, key in enumerate(labels)}
    array = label_array(column.kind, labels.values())
    return Axis(parameter.name, array, [index[key] for key in keys])


def id_axis(records: Sequence[Base]) -> Axis:
    """The run ids, in the order of the records."""
    labels = label_array(Kind.TEXT, [record.id for record in records])
    return Axis("id", labels, list(range(len(records))))


_Key = str | None


def _any_text(value: Any) -> str:
    try:
        return canonical(value)
    except Unfit:
        return repr(value)


# For values that are not of their column's type, which its own rule would take for what they
# are not: 5.5 in a column of ints is not 5.
_ANY: Final = Rule("anything", lambda value: value, _any_text)


def _keys(rule: Rule, values: Sequence[Any]) -> list[_Key]:
    if not rule.is_scalar:
        return [None if value is None else rule.canonical(value) for value in values]
    known: dict[Any, _Key] = {None: None}
    for value in values:
        if value not in known:
            known[value] = rule.canonical(value)
    return [known[value] for value in values]


def _distinct(keys: Sequence[_Key], column: Column) -> dict[_Key, Any]:
    """The label of each key, in first-seen order."""
    found: dict[_Key, Any] = {}
    if column.kind is Kind.OBJECT:
        for key, value in zip(keys, column.values, strict=True):
            if key not in found:
                found[key] = _label(key, value)
        return found
    for key, value in zip(keys, column.values, strict=True):
        # Of floats that are one to 15 digits, none is better than the other; those digits are.
        if found.setdefault(key, value) != value and key is not None:
            found[key] = float(key)
    return found


def _label(key: _Key, value: Any) -> Any:
    if value is None or isinstance(value, Decimal):
        return value
    return str(value) if isinstance(value, UUID | PurePath) else key


def _ordered(kind: Kind, found: dict[_Key, Any], ranks: dict[str, int]) -> dict[_Key, Any]:
    present = {key: label for key, label in found.items() if key is not None}
    if ranks and kind not in (Kind.INT, Kind.FLOAT):
        keys = sorted(present, key=lambda key: ranks.get(key, len(ranks)))
    elif kind is not Kind.OBJECT or _is_sortable(present):
        keys = sorted(present, key=present.__getitem__)
    else:
        keys = list(present)
    ordered: dict[_Key, Any] = {key: present[key] for key in keys}
    return ordered | ({None: None} if None in found else {})


def _is_sortable(labels: dict[str, Any]) -> bool:
    # A text that is not its own key is a UUID's or a path's, rather than JSON.
    return all(isinstance(label, Decimal) for label in labels.values()) or all(
        isinstance(label, str) and label != key for key, label in labels.items()
    )


_DTYPES: Final = {
    Kind.INT: "int64",
    Kind.FLOAT: "float64",
    Kind.BOOL: "bool",
    Kind.TEXT: "str",
    Kind.UTC: "datetime64[us]",
    Kind.NAIVE: "datetime64[us]",
    Kind.DAY: "datetime64[us]",
    Kind.OBJECT: "object",
}
_DTYPES_WITH_NONE: Final = {
    **_DTYPES,
    Kind.INT: "float64",
    Kind.BOOL: "object",
    Kind.TEXT: "object",
}


def label_array(kind: Kind, labels: Iterable[Any]) -> Any:
    """Labels as a numpy array; ``None`` is NaN, and NaT among dates.

    Ints beside ``None`` are floats where those hold them, and else objects: labels that differ
    stay different.
    """
    import numpy as np

    values = list(labels)
    if kind is Kind.UTC:
        values = [None if value is None else value.replace(tzinfo=None) for value in values]
    dtype = _dtype(kind, values)
    if dtype != "object":
        return np.array(values, dtype=dtype)
    array = np.empty(len(values), dtype=object)
    array[:] = [np.nan if value is None else value for value in values]
    return array


def _dtype(kind: Kind, values: list[Any]) -> str:
    if None not in values:
        return _DTYPES[kind]
    if kind is Kind.INT and not are_exact_in_float(v for v in values if v is not None):
        return "object"
    return _DTYPES_WITH_NONE[kind]
