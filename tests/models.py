"""Models made on the spot: a table that changes from one opening to the next."""

from typing import Any

from entropic import Base, Mapped


def model(table: str = "sims", /, **columns: Any) -> type[Base]:
    """A model, of the same name each time, as if its class had been edited.

    Args:
        table: The name of its table.
        columns: For each parameter its annotation, or a pair of that and a ``mapped_column``, or
            what makes one.
    """
    annotations, values = {}, {}
    for name, column in columns.items():
        annotation, *value = column if isinstance(column, tuple) else (column,)
        annotations[name] = Mapped[annotation]  # type: ignore[valid-type]
        if value:
            values[name] = value[0]() if callable(value[0]) else value[0]
    namespace = {"__tablename__": table, "__module__": __name__, "__annotations__": annotations}
    return type("Sim", (Base,), {**namespace, **values})
