"""``Base``, and what makes a model: its parameters and their defaults.

A model is the user's ``Base`` subclass: its columns other than the four reserved ones are the
parameters. What may be asked of their values is left to ``identity``; making the tables, to
``schema``.
"""

import copy
import enum
import inspect
import threading
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import (
    DeclarativeBase,
    InstanceState,
    Mapped,
    Mapper,
    TypeResolve,
    class_mapper,
    mapped_column,
)
from sqlalchemy.orm.exc import UnmappedClassError

from entropic.errors import ModelError
from entropic.models.records import NotLoaded, Records, html_of, line_of
from entropic.models.side_tables import columns_table, models_table, runs_table, side_tables
from entropic.models.types import (
    EnumValue,
    ExactDecimal,
    JsonText,
    LiteralText,
    NumpyArray,
    PathText,
    PlainJson,
    UtcDateTime,
    as_utc,
    load_json,
)

if TYPE_CHECKING:
    from entropic.models.custom import CustomValue

__all__ = [
    "RESERVED",
    "Base",
    "EnumValue",
    "ExactDecimal",
    "JsonText",
    "NumpyArray",
    "Parameter",
    "PathText",
    "PlainJson",
    "Records",
    "UtcDateTime",
    "as_utc",
    "columns_of",
    "columns_table",
    "copied",
    "detached",
    "load_json",
    "models_table",
    "parameters",
    "runs_table",
    "side_tables",
]

RESERVED: Final = ("id", "result_file", "created_at", "custom_data")
"""The columns that ``Base`` brings; a parameter cannot have one of these names."""

R = TypeVar("R", bound="Base")


class _LateState:
    """SQLAlchemy's bookkeeping of a record, made when it is first asked for: of most, never.

    To make it takes 11 µs, and all else of a record one.
    """

    def __get__(self, record: "Base | None", owner: type["Base"]) -> InstanceState[Any]:
        # One without an id is about to be made by its constructor, which begins with its state.
        if record is None or "id" not in record.__dict__:
            raise AttributeError("_sa_instance_state")
        mapper, values = class_mapper(owner), record.__dict__
        with _state_lock:  # two threads may touch a record at once, and are to have one state
            state: InstanceState[Any] | None = values.get("_sa_instance_state")
            if state is None:
                # What make_transient_to_detached does, which wants a state that all can see.
                state = InstanceState(record, mapper.class_manager)
                state.key = mapper.identity_key_from_primary_key((values["id"],))
                state._expire_attributes(values, state.unloaded)
                values["_sa_instance_state"] = state
        return state


_state_lock: Final = threading.Lock()


class Base(DeclarativeBase):
    """The base of every model; each of its columns beside these four is a parameter.

    Attributes:
        id: The run id: 16 hexadecimal characters, or the caller's own.
        result_file: The path of the result, through the store's ``results_dir`` as it was spelled.
        created_at: When the row was inserted, in UTC; a re-run leaves it.
        custom_data: What the caller kept with the run, and ``elapsed_seconds`` of the runner.
    """

    type_annotation_map: typing.ClassVar[dict[Any, Any]] = {
        int: sa.BigInteger(),
        float: sa.Double(),
        datetime: UtcDateTime(),
        Decimal: ExactDecimal(),
        Path: PathText(),
    }

    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True, sort_order=-40)
    result_file: Mapped[str] = mapped_column(sa.String, sort_order=-30)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), sort_order=-20)
    custom_data: Mapped[dict[str, Any]] = mapped_column(PlainJson(), sort_order=-10)

    _redefined: typing.ClassVar[tuple[str, ...]] = ()
    _sa_instance_state: typing.ClassVar[Any] = _LateState()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Afterwards each class has all columns as its own.
        cls._redefined = _redefined(cls)
        _forget_predecessor(cls)
        with warnings.catch_warnings():
            # The predecessor stays usable for those who still hold it, so both share a name.
            warnings.filterwarnings("ignore", "This declarative base already contains a class")
            super().__init_subclass__(**kwargs)
        for column in _columns(sa.inspect(cls)).values() if _is_mapped(cls) else ():
            # A record must say the same whether it was just run or read from SQLite.
            kind = column.type
            if isinstance(kind, sa.DateTime) and kind.timezone and not hasattr(kind, "precision"):
                column.type = UtcDateTime()

    @staticmethod
    def custom(key: str) -> "CustomValue":
        """What ``custom_data`` has under a key, for a condition of ``find``.

        It can be compared with a text, a number, a bool or ``None``, by the operators and by
        ``in_``, ``not_in``, ``is_``, ``is_not``, ``startswith`` and ``contains``; and ordered by.
        What is of another kind than the value that it is compared with does not match.

        Args:
            key: The key, taken literally.

        Returns:
            It, as an expression of any model's rows: ``Base.custom("git_sha") == "abc123"``.

        Raises:
            ParamsError: The key is no text; or, where it is compared, the value is none of these.
        """
        from entropic.models.custom import CustomValue  # which most programs do without

        return CustomValue(key)

    def __repr__(self) -> str:
        return line_of(type(self).__name__, self._fields())

    def _repr_html_(self) -> str:
        return html_of(type(self).__name__, self._fields())

    def _fields(self) -> dict[str, Any]:
        """What is shown of it."""
        columns = _columns(sa.inspect(type(self)))
        names = ("id", *(name for name in columns if name not in RESERVED), "result_file")
        return {name: self._loaded(name) for name in names}

    def _loaded(self, name: str) -> Any:
        # Not by getattr: it would ask the database for what was not loaded, or raise.
        if name not in self.__dict__ and sa.inspect(self).has_identity:
            return NotLoaded()
        return self.__dict__.get(name)


@sa.event.listens_for(Base, "resolve_type_annotation")
def _resolve_annotation(resolve: TypeResolve) -> sa.types.TypeEngine[Any] | None:
    """Containers become JSON; arrays, enums and literals their own types, however parametrised."""
    annotation = resolve.resolved_type
    origin = typing.get_origin(annotation) or annotation
    if origin in _CONTAINERS or typing.is_typeddict(origin):
        return PlainJson()
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return EnumValue(origin)
    if origin is Literal and all(isinstance(text, str) for text in typing.get_args(annotation)):
        return LiteralText(*typing.get_args(annotation), native_enum=False)
    if isinstance(origin, type) and (origin.__module__, origin.__name__) == ("numpy", "ndarray"):
        return NumpyArray(_dtype_name(annotation))
    return None


_CONTAINERS: Final = (dict, list, tuple, set, frozenset, Mapping, Sequence, Set)


def _dtype_name(annotation: Any) -> str | None:
    """The name of the ``dtype`` in ``numpy.ndarray[shape, numpy.dtype[scalar]]``.

    ``None`` for those that stand for many: ``Any``, ``numpy.floating``, a union.
    """
    import numpy as np

    for argument in typing.get_args(annotation)[1:]:
        for scalar in typing.get_args(argument):
            if isinstance(scalar, type) and issubclass(scalar, np.generic):
                return None if scalar.__name__ in _ABSTRACT_SCALARS else scalar.__name__
    return None


_ABSTRACT_SCALARS: Final = {
    *("generic", "number", "integer", "signedinteger", "unsignedinteger", "inexact", "floating"),
    *("complexfloating", "flexible", "character"),
}


def _redefined(cls: type[Base]) -> tuple[str, ...]:
    """The reserved columns that a class about to be mapped, or a mixin of it, defines again."""
    own = [c for c in cls.__mro__ if c is cls or not issubclass(c, Base | DeclarativeBase)]
    names = {name for c in own for name in (*c.__dict__, *inspect.get_annotations(c))}
    inherited = {name for c in cls.__bases__ for name in getattr(c, "_redefined", ())}
    return tuple(name for name in RESERVED if name in names | inherited)


def _forget_predecessor(cls: type[Base]) -> None:
    """Make room for a model that is defined again: a notebook's cell run twice, a reload.

    The same name, or another module, counts as again; two names in one module that claim one
    table are a slip of the pen, and SQLAlchemy's own error says so.
    """
    home = next(c for c in cls.__mro__ if "__tablename__" in c.__dict__ or c is Base)
    name = getattr(cls, "__tablename__", None)
    if not isinstance(name, str) or (home is not cls and _is_mapped(home)):
        return  # without a table of its own
    arguments = getattr(cls, "__table_args__", None)
    options = arguments[-1] if isinstance(arguments, tuple) and arguments else arguments
    schema = options.get("schema") if isinstance(options, dict) else None
    schema = schema or cls.metadata.schema
    table = cls.metadata.tables.get(f"{schema}.{name}" if schema else name)
    if table is None:
        return
    owners = [
        c
        for c in _subclasses(Base)
        if _is_mapped(c) and class_mapper(c, configure=False).local_table is table
    ]
    # No class is left where it was collected as garbage, or could not be mapped.
    if not owners and not any(name in table.columns for name in RESERVED[1:]):
        return  # a table of the user's own, with an id perhaps
    if all(o.__name__ == cls.__name__ or o.__module__ != cls.__module__ for o in owners):
        cls.metadata.remove(table)


def _subclasses(cls: type[Base]) -> Iterator[type[Base]]:
    # Not registry.mappers: after a definition that failed, it raises.
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _is_mapped(cls: type) -> bool:
    return sa.inspect(cls, raiseerr=False) is not None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a model.

    Attributes:
        name: The attribute's name: the key in params. The column may be named otherwise.
        column: The column that keeps it.
    """

    name: str
    column: sa.Column[Any]

    @property
    def has_literal_default(self) -> bool:
        """Whether its default is a value, and not something that makes one."""
        default = self.column.default
        return isinstance(default, sa.ColumnDefault) and default.is_scalar

    @property
    def literal_default(self) -> Any:
        """The literal default; ``None`` for a nullable column without any default."""
        default = self.column.default
        return default.arg if self.has_literal_default else None  # type: ignore[union-attr]

    @property
    def is_optional(self) -> bool:
        """Whether a parameter set may leave it out: its model knows what it then is."""
        if self.has_literal_default or self.default_function is not None:
            return True
        return bool(self.column.nullable) and not self.has_database_default

    @property
    def default_function(self) -> Callable[[], Any] | None:
        """The callable default, if there is one; each run that leaves it out calls it once."""
        default = self.column.default
        if isinstance(default, sa.ColumnDefault) and default.is_callable:
            # SQLAlchemy wraps every callable into one that takes the execution context.
            return lambda: default.arg(None)
        return None

    @property
    def has_database_default(self) -> bool:
        """Whether the database computes the default, so that nobody knows it beforehand."""
        default = self.column.default
        computed = default is not None and not (
            isinstance(default, sa.ColumnDefault) and (default.is_scalar or default.is_callable)
        )
        return computed or self.column.server_default is not None


def parameters(model: type[Base]) -> tuple[Parameter, ...]:
    """A model's parameters, in the order of its columns.

    Raises:
        ModelError: The model cannot hold runs; says why.
    """
    mapper = _mapper(model)
    table = mapper.local_table
    if not isinstance(table, sa.Table) or mapper.inherits is not None:
        raise ModelError(f"{model.__name__} must have one table of its own, directly under Base")
    for name in RESERVED:
        _check_reserved(model, mapper, name)
    keys = [column.name for column in table.primary_key.columns]
    if keys != ["id"]:
        raise ModelError(
            f"{model.__name__} must have id as its only primary key, not {', '.join(keys)};"
            " drop primary_key=True from its parameters"
        )
    _check_constraints(model, table)
    _check_spelling(model, table)
    columns = _columns(mapper)
    found = tuple(Parameter(name, columns[name]) for name in columns if name not in RESERVED)
    for parameter in found:
        if parameter.column.computed is not None:
            raise ModelError(
                f"{model.__name__}.{parameter.name} cannot be a parameter: the database computes it"
            )
    if not found:
        raise ModelError(
            f"{model.__name__} has no parameters: add a column for each parameter of the"
            " simulation, such as  n: Mapped[int]"
        )
    return found


def detached(model: type[R], values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> R:
    """A plain detached instance: usable, picklable and unchanged without any session.

    Not made by its constructor, which is the user's.
    """
    record = model.__new__(model)
    record.__dict__.update(values)
    return record


def copied(record: R) -> R:
    """A record like another one, and independent of it."""
    return detached(type(record), copy.deepcopy(columns_of(record)))


def columns_of(record: Base) -> dict[str, Any]:
    """What a record holds of its row, by the names of its attributes."""
    return {k: v for k, v in record.__dict__.items() if k != "_sa_instance_state"}


def _mapper(model: Any) -> Mapper[Any]:
    if not (isinstance(model, type) and issubclass(model, Base)) or model is Base:
        raise ModelError(f"result_cls must be a subclass of entropic.Base, not {model!r}")
    try:
        return class_mapper(model)
    except UnmappedClassError:
        raise ModelError(f"{model.__name__} has no table: give it a __tablename__") from None


def _columns(mapper: Mapper[Any]) -> dict[str, sa.Column[Any]]:
    """The columns by the names of their attributes; SQL expressions are none."""
    found = {attribute.key: attribute.columns[0] for attribute in mapper.column_attrs}
    return {name: column for name, column in found.items() if isinstance(column, sa.Column)}


def _check_spelling(model: type[Base], table: sa.Table) -> None:
    """Refuse columns that are one to SQLite, which knows no case in the letters of ASCII."""
    found: dict[bytes, str] = {}
    for column in table.columns:
        twin = found.setdefault(column.name.encode().lower(), column.name)
        if twin != column.name:
            raise ModelError(
                f"{model.__name__} has columns {twin!r} and {column.name!r}, which are one name to"
                " the database: give one another name (mapped_column('another', ...))"
            )


def _check_constraints(model: type[Base], table: sa.Table) -> None:
    """Refuse what the database would check: after a run, when there is a result to lose."""
    for constraint in (*table.constraints, *table.indexes):
        match constraint:
            case sa.UniqueConstraint() | sa.ForeignKeyConstraint():
                kind = type(constraint).__name__
            case sa.Index(unique=True):
                kind = "unique Index"
            case sa.CheckConstraint() if not getattr(constraint, "_type_bound", False):
                kind = "CheckConstraint"
            case _:
                continue
        names = ", ".join(column.name for column in constraint.columns) or constraint.name
        raise ModelError(
            f"{model.__name__} has a {kind} ({names}), by which the database could refuse a"
            " finished run: drop it, and check parameters before they are asked for"
        )


def _check_reserved(model: type[Base], mapper: Mapper[Any], name: str) -> None:
    expected = _RESERVED_TYPES[name]
    column = mapper.columns.get(name)
    is_base = column is not None and repr(column.type) == expected and column.name == name
    if not is_base or name in model._redefined:
        raise ModelError(
            f"{model.__name__}.{name} is redefined; {', '.join(RESERVED)} belong to entropic.Base:"
            " call the parameter something else"
        )


_RESERVED_TYPES: Final = {name: repr(Base.__dict__[name].column.type) for name in RESERVED}
