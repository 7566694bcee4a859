"""``AsyncQueries`` for scripts and notebooks: one delegating line a method."""

from abc import abstractmethod
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from entropic._portal import CallerItems, portal
from entropic.async_queries import AsyncQueries, R
from entropic.ledger import OrderBy, Where
from entropic.models import Records
from entropic.pipeline import Params

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import xarray as xr

    from entropic.outlook import Explanation, Plan


class Queries(Generic[R]):
    """The methods of ``Store`` on runs that are stored: find, export, explain, delete."""

    @abstractmethod
    def _behind(self) -> AsyncQueries[R]:
        """The asynchronous store."""

    def find(
        self,
        *where: Where,
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> Records[R]:
        """Return the stored records that meet all of some conditions.

        Arguments, result and errors are those of ``AsyncStore.find``.
        """
        return portal.call(
            self._behind().find, *where, order_by=order_by, limit=limit, offset=offset
        )

    def first(self, *where: Where, order_by: OrderBy = None) -> R | None:
        """Return the first stored record that meets all of some conditions.

        Arguments, result and errors are those of ``AsyncStore.first``.
        """
        return portal.call(self._behind().first, *where, order_by=order_by)

    def count(self, *where: Where) -> int:
        """Return how many stored records meet all of some conditions.

        Arguments, result and errors are those of ``AsyncStore.count``.
        """
        return portal.call(self._behind().count, *where)

    def iter_find(
        self,
        *where: Where,
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> Generator[R, None, None]:
        """Yield the stored records that meet all of some conditions, a few hundred at a time.

        Arguments, items and errors are those of ``AsyncStore.iter_find``.
        """
        return portal.stream(self._behind()._pages(where, order_by, limit, offset))

    @overload
    def delete_where(
        self, *where: Where, remove_file: bool = False, dry_run: Literal[False] = False
    ) -> int: ...

    @overload
    def delete_where(
        self, *where: Where, remove_file: bool = False, dry_run: Literal[True]
    ) -> Records[R]: ...

    @overload
    def delete_where(
        self, *where: Where, remove_file: bool = False, dry_run: bool
    ) -> int | Records[R]: ...

    def delete_where(
        self, *where: Where, remove_file: bool = False, dry_run: bool = False
    ) -> int | Records[R]:
        """Remove the stored runs that meet all of some conditions.

        Arguments, result and errors are those of ``AsyncStore.delete_where``.
        """
        delete: Any = self._behind().delete_where
        deleted: int | Records[R] = portal.call(
            delete, *where, remove_file=remove_file, dry_run=dry_run
        )
        return deleted

    def to_pandas(self, *where: Where, order_by: OrderBy = None) -> "pd.DataFrame":
        """Return the stored records that meet all of some conditions as a table of pandas.

        Arguments, result and errors are those of ``AsyncStore.to_pandas``.
        """
        return portal.call(self._behind().to_pandas, *where, order_by=order_by)

    def to_polars(self, *where: Where, order_by: OrderBy = None) -> "pl.DataFrame":
        """Return the stored records that meet all of some conditions as a table of polars.

        Arguments, result and errors are those of ``AsyncStore.to_polars``.
        """
        return portal.call(self._behind().to_polars, *where, order_by=order_by)

    def to_xarray(
        self,
        load: Callable[[R], Any],
        *where: Where,
        dims: str | Sequence[str] | None = None,
        max_missing_bytes: int = 1 << 30,
    ) -> "xr.Dataset":
        """Return results on a labelled grid of their parameters.

        Arguments, result and errors are those of ``AsyncStore.to_xarray``; ``load`` is called on
        the thread that calls.
        """
        from entropic.export import load_result

        grid = portal.call(self._behind()._grid, where, dims, max_missing_bytes)
        for record in grid.records:
            grid.fill(record, load_result(load, record))
        return grid.dataset()

    def explain(self, params: Params, /) -> "Explanation[R]":
        """Return why a parameter set would run, or would not; run nothing.

        Arguments, result and errors are those of ``AsyncStore.explain``.
        """
        return portal.call(self._behind().explain, params)

    def plan(
        self,
        params: Iterable[Params] | AsyncIterable[Params],
        client: Any = None,
        *,
        executor: Any = None,
        max_workers: int | None = None,
    ) -> "Plan":
        """Return what a sweep of these parameter sets would meet; run nothing.

        Arguments, result and errors are those of ``AsyncStore.plan``. An iterable is read on the
        thread that calls.
        """
        return portal.call(
            self._behind().plan,
            CallerItems.wrap(params),
            client,
            executor=executor,
            max_workers=max_workers,
        )
