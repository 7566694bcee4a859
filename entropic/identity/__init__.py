"""What a parameter set is: coercion, the canonical form, run ids. Pure; compiled once per model.

Two sets are the same run exactly when the model sees them as equal. Each value is first coerced,
without loss, to its column's type; the coerced values, as compact JSON with sorted keys and
without those that equal their identity default, are the canonical form; the run id is the first
16 hexadecimal characters of its SHA-256. Looking rows up and comparing them is left to others.
"""

import contextlib
import itertools
import json
import re
import reprlib
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from entropic.errors import ModelError, ParamsError
from entropic.identity.canonical import (
    Unfit,
    canonical,
    id_2x,
    json_pieces,
    plain,
    sha256,
    text_json,
)
from entropic.identity.coercion import hint, rule_for
from entropic.models import RESERVED, Base, JsonText, PlainJson, parameters

__all__ = [
    "ID_PATTERN",
    "Identity",
    "ParameterSet",
    "checked_custom_data",
    "checked_id",
    "hint",
    "is_heavy",
    "shortened",
]

ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What an id of the caller's own must match: it becomes a file's name."""

_LIGHT: Final = 256
_CHARACTERS: Final = 256
_SMALL: Final = frozenset((bool, int, float, type(None)))

# A parameter's name, its key in JSON, what writes its values, and its identity default.
_Writer = tuple[str, str, Callable[[Any], str | None], str | None]


@dataclass(slots=True)  # frozen, to make one of each row would take six times as long
class ParameterSet:
    """One request, as the model types it.

    Attributes:
        id: The run id: 16 hexadecimal characters, or the caller's own.
        values: The coerced value of each parameter.
        digest: SHA-256 of the canonical form, in hexadecimal: equal digests, equal sets.
        id_2x: The id that entropic 2 gave this set, in a table that it made.
        has_own_id: Whether the caller chose the id.
    """

    id: str
    values: dict[str, Any]
    digest: str
    id_2x: str | None = None
    has_own_id: bool = False


class Identity:
    """The rules of one model in one database: which values it takes, and which ids they have.

    Args:
        model: The model.
        defaults: For each parameter with an identity default, the canonical JSON of it.
        from_2x: Whether entropic 2 made the table, so that its ids are looked up, too.

    Raises:
        ModelError: The model cannot hold runs, or a column's type cannot be a parameter's.
    """

    def __init__(
        self, model: type[Base], defaults: Mapping[str, str] | None = None, *, from_2x: bool = False
    ) -> None:
        self.model = model
        self.parameters = {parameter.name: parameter for parameter in parameters(model)}
        self._rules = {name: rule_for(p) for name, p in self.parameters.items()}
        self._known = frozenset((*self.parameters, *RESERVED))
        # Equal values of these types have one canonical form.
        self._is_scalar = all(rule.is_scalar for rule in self._rules.values())
        self._defaults = dict(defaults or {})
        self._from_2x = from_2x
        self._json_names = [
            name for name, p in self.parameters.items() if isinstance(p.column.type, PlainJson)
        ]
        # Sorted, as the canonical form is.
        self._writers: list[_Writer] = [
            (name, f"{text_json(name)}:", self._rules[name].canonical, self._defaults.get(name))
            for name in sorted(self.parameters)
        ]
        # The same, for values of exactly these types.
        self._exact_types = [rule.exact for rule in self._rules.values()]
        self._exact_writers: list[_Writer] = [
            (name, key, self._rules[name].exact_json, default)
            for name, key, _, default in self._writers
        ]
        self._check_defaults()

    def resolve(self, params: Mapping[str, Any]) -> ParameterSet:
        """Coerce and check a parameter set, and give it its id.

        Args:
            params: What the user asks for. ``id`` is used instead of the computed id;
                ``result_file``, ``created_at`` and ``custom_data`` are ignored.

        Returns:
            The set with every parameter in it: what was left out has its default.

        Raises:
            ParamsError: An unknown key, a missing parameter, or a value that its column cannot
                take without loss; names the column, the value and the nearest valid name.
        """
        exact = self._exact(params)
        if exact is not None:
            return exact
        params = self._by_name(params)
        values = {
            name: self.coerce(name, params[name]) if name in params else self._default(name, params)
            for name in self.parameters
        }
        digest = self.digest(values)
        if "id" in params:
            return ParameterSet(checked_id(params["id"]), values, digest, has_own_id=True)
        older = self._id_2x(params, values) if self._from_2x else None
        return ParameterSet(digest[:16], values, digest, older)

    def _exact(self, params: Mapping[str, Any]) -> ParameterSet | None:
        """What ``resolve`` gives for plain values that need no coercion, in half the time.

        ``None`` where it cannot be seen at once that none of them does.
        """
        if type(params) is not dict or len(params) != len(self.parameters) or self._from_2x:
            return None
        try:
            values = {name: params[name] for name in self.parameters}
        except KeyError:
            return None
        if list(map(type, values.values())) != self._exact_types:
            return None
        text = _written(values, self._exact_writers)
        if text is None:
            return None
        digest = sha256(text)
        return ParameterSet(digest[:16], values, digest)

    def coerce_given(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The coerced values of those parameters that are given: for a request by id.

        Raises:
            ParamsError: As ``resolve``, except that nothing is missing.
        """
        params = self._by_name(params)
        return {name: self.coerce(name, params[name]) for name in self.parameters if name in params}

    def coerce(self, name: str, value: Any) -> Any:
        """One value, as its column types it.

        Raises:
            ParamsError: The column cannot take it without loss.
        """
        if value is None:
            if self.parameters[name].column.nullable:
                return None
            raise self._unfit(name, value, "the column is not nullable")
        try:
            return self._rules[name].coerce(value)
        except Unfit as reason:
            raise self._unfit(name, value, str(reason)) from None

    def digest(self, values: Mapping[str, Any]) -> str:
        """SHA-256, in hexadecimal, of the canonical form of coerced or stored values."""
        return sha256(self.canonical(values))

    def is_same(self, asked: ParameterSet, stored: Mapping[str, Any]) -> bool:
        """Whether a parameter set is that of stored values, among which may be other columns'.

        Raises:
            Exception: What is stored cannot be values of the model.
        """
        if self._is_scalar and asked.values.items() <= stored.items():
            return True
        return self.digest(stored) == asked.digest

    def canonical(self, values: Mapping[str, Any]) -> str:
        """The canonical form of coerced or stored values."""
        text = _written(values, self._writers)
        assert text is not None
        return text

    def differences(self, asked: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
        """The parameters in which the asked values differ from the stored ones."""
        return [
            name
            for name in asked
            if self._canonical_value(name, asked[name]) != self._canonical_value(name, stored[name])
        ]

    def model_default(self, name: str) -> str | None:
        """The canonical JSON of a parameter's default as the model has it now.

        It is the identity default where the database sees the column for the first time.

        Returns:
            ``None`` where it has none: callable and database defaults never count.

        """
        parameter = self.parameters[name]
        if not parameter.is_optional or parameter.default_function is not None:
            return None
        return self._canonical_value(name, self.coerce(name, parameter.literal_default))

    def stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Coerced values as they go to the database.

        JSON and arrays are text already: writing a large one there would hold up the loop.
        """
        stored = dict(values)
        for name in self._json_names:
            if stored[name] is not None:
                stored[name] = JsonText("".join(json_pieces(plain(stored[name]))))
        return stored

    def portable(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Coerced values in plain JSON with every digit; ``coerce`` takes each of them back.

        An infinite float stays one: Python's JSON has ``Infinity``.
        """
        return {name: _portable(value) for name, value in values.items()}

    def from_portable(self, text: str) -> dict[str, Any]:
        """Values from the JSON that ``portable`` made; as they are where the model has changed.

        None where it is another text, which ``portable`` did not make.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(values, dict):
            return {}
        for name in values.keys() & self.parameters.keys():
            with contextlib.suppress(ParamsError):
                values[name] = self.coerce(name, values[name])
        return values

    def _check_defaults(self) -> None:
        for name in self.parameters:
            try:
                self.model_default(name)
            except ParamsError as error:
                raise ModelError(f"its default cannot be: {error}") from None

    def _id_2x(self, params: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
        """The id under which entropic 2 may have stored this set: it knew no added parameters."""
        known = {
            name: value
            for name, value in params.items()
            if name not in self._defaults
            or self._canonical_value(name, values[name]) != self._defaults[name]
        }
        return id_2x(known)

    def _canonical_value(self, name: str, value: Any) -> str:
        return "null" if value is None else self._rules[name].canonical(value)

    def _by_name(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The params by the names of the parameters; raises where there is no such one."""
        if not isinstance(params, Mapping):
            raise ParamsError(
                f"params must be a dict of {self.model.__name__}'s parameters, not"
                f" {shortened(params)}"
            )
        if self._known.issuperset(params):
            return params
        found: dict[str, Any] = {}
        for key, value in params.items():
            name = self._name(key, value)
            if name in found:
                raise ParamsError(
                    f"params give {self.model.__name__}.{name} twice: {shortened(key)} is the same"
                    " name to Python",
                    column=name,
                    value=value,
                )
            found[name] = value
        return found

    def _name(self, key: object, value: Any) -> str:
        # Python normalises the names in source code, so no attribute is called µ (U+00B5).
        spellings = (key, unicodedata.normalize("NFKC", key)) if isinstance(key, str) else (key,)
        for name in spellings:
            if name in self.parameters or name in RESERVED:
                return name
        raise ParamsError(
            f"{self.model.__name__} has no parameter {shortened(key)} (its value:"
            f" {shortened(value)}): {hint(str(key), self.parameters)}",
            column=str(key),
            value=value,
        )

    def _default(self, name: str, params: Mapping[str, Any]) -> Any:
        parameter = self.parameters[name]
        if parameter.default_function is not None:
            return self.coerce(name, self._call_default(name, parameter.default_function))
        if parameter.is_optional:
            return self.coerce(name, parameter.literal_default)
        why = (
            "the database computes its default, which is too late for an id: pass the value, or"
            " give the column a literal default"
            if parameter.has_database_default
            else "it has no default"
        )
        given = ", ".join(str(key) for key in params) or "nothing"
        raise ParamsError(
            f"params lack {self.model.__name__}.{name}: {why}; given: {given}", column=name
        )

    def _call_default(self, name: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:
            # Also where it asks for SQLAlchemy's context, which there is none before a statement.
            raise ParamsError(
                f"params lack {self.model.__name__}.{name}, and its default function failed:"
                f" {shortened(error)}",
                column=name,
            ) from error

    def _unfit(self, name: str, value: Any, why: str) -> ParamsError:
        return ParamsError(
            f"{self.model.__name__}.{name} is {self._rules[name].type_name} and cannot take"
            f" {shortened(value)}, of type {type(value).__name__}: {why}",
            column=name,
            value=value,
        )


def _written(values: Mapping[str, Any], writers: Sequence[_Writer]) -> str | None:
    """The canonical form of values; ``None`` where one of the writers has none."""
    parts = []
    for name, key, write, default in writers:
        value = values[name]
        text = "null" if value is None else write(value)
        if text is None:
            return None
        if text != default:
            parts.append(key + text)
    return f"{{{','.join(parts)}}}"


def _portable(value: Any) -> Any:
    if isinstance(value, float):
        return value
    if isinstance(value, list) and value and isinstance(value[0], float | list):
        return [_portable(item) for item in value]
    return plain(value)


def is_heavy(*sets: object) -> bool:
    """Whether handling all their values would hold up a loop for longer than a hop to a thread."""
    # A batch of sets with little in each of them is worth some milliseconds of the loop.
    limit = _LIGHT + 10 * len(sets)
    weight = 0
    for params in sets:
        if type(params) is dict and _SMALL.issuperset(map(type, params.values())):
            weight += len(params)
        elif isinstance(params, Mapping):
            weight += _weight(params, limit - weight)
        if weight > limit:
            return True
    return False


def _weight(params: Mapping[Any, Any], limit: int) -> int:
    """How many values are in it, a large text counting as many; not counted beyond the limit."""
    values = list(params.values())
    weight = 0
    while values and weight <= limit:
        value = values.pop()
        if hasattr(value, "dtype"):
            # An array without dimensions cannot be walked, and none needs to be.
            size = getattr(value, "size", None)
            weight += size if isinstance(size, int) else 1
        elif isinstance(value, str | bytes):
            weight += 1 + len(value) // _CHARACTERS
        else:
            weight += 1
            if isinstance(value, Mapping):
                value = value.values()
            if isinstance(value, Collection):
                values.extend(itertools.islice(value, limit + 1))
    return weight


def checked_id(value: object) -> str:
    """An id of the caller's own.

    Raises:
        ParamsError: It does not match ``ID_PATTERN``: it could leave the results folder.
    """
    if isinstance(value, str) and ID_PATTERN.fullmatch(value):
        return str(value)
    raise ParamsError(
        f"the id {shortened(value)} must be 1 to 64 letters, digits, dots, dashes or underscores,"
        " beginning with a letter or digit: it becomes a file's name",
        column="id",
        value=value,
    )


def checked_custom_data(custom_data: Mapping[str, Any]) -> dict[str, Any]:
    """Custom data in plain JSON: numpy scalars are numbers, tuples are lists.

    Raises:
        ParamsError: A value has no JSON form; names its key.
    """
    checked = {}
    for key, value in custom_data.items():
        try:
            checked.update(plain({key: value}))
        except Unfit as reason:
            raise ParamsError(
                f"custom_data[{shortened(key)}] cannot be {shortened(value)}: {reason}",
                column="custom_data",
                value=value,
            ) from None
    return checked


def canonical_id(params: Mapping[str, Any]) -> str:
    """The id of params that no model types: of their canonical form alone.

    Raises:
        ParamsError: A value has no canonical form.
    """
    try:
        return sha256(canonical(plain(params)))[:16]
    except Unfit as reason:
        raise ParamsError(f"{shortened(params)} has no canonical form: {reason}") from None


def shortened(value: object, most: int = 120) -> str:
    """A value as an error message shows it; also one whose ``repr`` fails."""
    try:
        # A million numbers are not even written out first.
        text = _large.repr(value) if is_heavy({"": value}) else repr(value)
    except Exception:  # an int of 5,000 digits has no repr; nothing may hide the message itself
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else f"{text[: most - 3]}..."


_large: Final = reprlib.Repr()
_large.maxdict = 20
_large.maxstring = _large.maxother = 200
