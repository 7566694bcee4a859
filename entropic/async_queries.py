"""What both stores can be asked of what is stored, and told to remove; nothing is run here."""

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, overload

from entropic._shield import in_own_thread
from entropic.errors import ParamsError
from entropic.executors import check_executor
from entropic.ledger import OrderBy, Where
from entropic.models import Base, Records
from entropic.opening import Opening
from entropic.pipeline import Params, as_source
from entropic.settings import RunSettings, check_count

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import xarray as xr

    from entropic.export import Grid, Package
    from entropic.outlook import Explanation, Plan

R = TypeVar("R", bound=Base)
T = TypeVar("T")


class AsyncQueries(Generic[R]):
    """The methods of ``AsyncStore`` on runs that are stored: find, export, explain, delete."""

    _EXECUTORS: ClassVar[tuple[str, ...]]
    _opening: Opening[R]

    async def find(
        self,
        *where: Where,
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> Records[R]:
        """Return the stored records that meet all of some conditions.

        They come as they are stored: nobody looks whether their results are there.

        Args:
            where: Expressions on the model (``SimResult.dt < 0.01``), on custom data
                (``Base.custom("git_sha") == "abc123"``), and dicts of values that are to be equal
                (``{"n": 100}``), as they are where a set is run. Without any, all records.
            order_by: A column of the model, its name (``"dt"``; ``"-dt"`` for the largest first),
                what ``asc()`` or ``desc()`` make of it or of custom data, or a list of these.
                By default the oldest come first. ``None`` comes before all other values.
            limit: How many at most.
            offset: How many of the first to leave out.

        Returns:
            A list of the records, detached, which shows itself as a table.

        Raises:
            ParamsError: A condition or the order speaks of what the model does not have.
            SettingsError: ``limit`` or ``offset`` is no whole number, 0 or more.
            DatabaseError: The database failed.
        """
        _check(limit, offset)
        async with self._opening.using() as opened:
            return await opened.pipeline.finder.find(where, order_by, limit, offset)

    async def first(self, *where: Where, order_by: OrderBy = None) -> R | None:
        """Return the first stored record that meets all of some conditions.

        Args:
            where: As of ``find``.
            order_by: As of ``find``.

        Returns:
            The record, detached; ``None`` where there is none.

        Raises:
            ParamsError: A condition or the order speaks of what the model does not have.
            DatabaseError: The database failed.
        """
        found = await self.find(*where, order_by=order_by, limit=1)
        return found[0] if found else None

    async def count(self, *where: Where) -> int:
        """Return how many stored records meet all of some conditions.

        Args:
            where: As of ``find``.

        Returns:
            Their number.

        Raises:
            ParamsError: A condition speaks of what the model does not have.
            DatabaseError: The database failed.
        """
        async with self._opening.using() as opened:
            return await opened.pipeline.finder.count(where)

    def iter_find(
        self,
        *where: Where,
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> AsyncGenerator[R, None]:
        """Yield the stored records that meet all of some conditions, a few hundred at a time.

        Of those to come, only the ids are kept in memory. What is stored meanwhile is not among
        them, and what is deleted meanwhile is left out.

        Args:
            where: As of ``find``.
            order_by: As of ``find``.
            limit: As of ``find``.
            offset: As of ``find``.

        Yields:
            The records, detached, in order.

        Raises:
            ParamsError: A condition or the order speaks of what the model does not have.
            SettingsError: ``limit`` or ``offset`` is no whole number, 0 or more.
            DatabaseError: The database failed.
        """
        return self._one_by_one(self._pages(where, order_by, limit, offset))

    @overload
    async def delete_where(
        self, *where: Where, remove_file: bool = False, dry_run: Literal[False] = False
    ) -> int: ...

    @overload
    async def delete_where(
        self, *where: Where, remove_file: bool = False, dry_run: Literal[True]
    ) -> Records[R]: ...

    @overload
    async def delete_where(
        self, *where: Where, remove_file: bool = False, dry_run: bool
    ) -> int | Records[R]: ...

    async def delete_where(
        self, *where: Where, remove_file: bool = False, dry_run: bool = False
    ) -> int | Records[R]:
        """Remove the stored runs that meet all of some conditions.

        They go a hundred at a time, each hundred in one step. One that is run again before its
        turn comes stays.

        Args:
            where: As of ``find``; at least one. ``sqlalchemy.true()`` is met by all.
            remove_file: Whether to remove the results from the disk, too, registered ones
                included. One that is gone already is no error.
            dry_run: Whether to remove nothing, and return what would go.

        Returns:
            How many rows were removed; the records, with ``dry_run``.

        Raises:
            ParamsError: There is no condition, or one speaks of what the model does not have;
                nothing was removed.
            ResultsDirError: A result could not be removed; it and its row stay.
            DatabaseError: The database failed; what was removed before stays so.
        """
        if not where:
            raise ParamsError(
                "delete_where needs a condition: which runs are to go? sqlalchemy.true() is all"
            )
        if dry_run:
            return await self.find(*where)
        async with self._opening.using() as opened:
            return await opened.pipeline.finder.delete(where, remove_file=remove_file)

    async def to_pandas(self, *where: Where, order_by: OrderBy = None) -> "pd.DataFrame":
        """Return the stored records that meet all of some conditions as a table of pandas.

        Args:
            where: As of ``find``.
            order_by: As of ``find``.

        Returns:
            A row for each record. Its columns: ``id``, the parameters, ``result_file``,
            ``created_at``, and one for each key of ``custom_data``, ``elapsed_seconds`` (in
            seconds) first; ``custom_data.<key>`` where another column has the key's name. The
            dtypes are those of the model, whatever the rows.

        Raises:
            SettingsError: pandas is not installed.
            ParamsError: A condition or the order speaks of what the model does not have.
            DatabaseError: The database failed.
        """
        from entropic.export import pandas_frame

        return await self._table("pandas", pandas_frame, where, order_by)

    async def to_polars(self, *where: Where, order_by: OrderBy = None) -> "pl.DataFrame":
        """Return the stored records that meet all of some conditions as a table of polars.

        Args:
            where: As of ``find``.
            order_by: As of ``find``.

        Returns:
            The table that ``to_pandas`` returns. What polars has no type for is text: decimals,
            UUIDs and paths; and dicts, lists and arrays, as JSON.

        Raises:
            SettingsError: polars is not installed.
            ParamsError: A condition or the order speaks of what the model does not have.
            DatabaseError: The database failed.
        """
        from entropic.export import polars_frame

        return await self._table("polars", polars_frame, where, order_by)

    async def to_xarray(
        self,
        load: Callable[[R], Any],
        *where: Where,
        dims: str | Sequence[str] | None = None,
        max_missing_bytes: int = 1 << 30,
    ) -> "xr.Dataset":
        """Return results on a labelled grid of their parameters.

        Args:
            load: Takes a record and returns its result: an array, a number, a dict of them, or
                what xarray has. ``AsyncStore`` awaits an ``async def``, and calls any other in
                threads, one record after another; ``Store`` calls it on the calling thread.
            where: As of ``find``.
            dims: The parameters that are the grid's dimensions, in this order, or ``"id"`` for
                one dimension of runs; by default all that differ among the records. The others
                are coordinates all the same.
            max_missing_bytes: How large the part of the grid may be that no run belongs to.

        Returns:
            A Dataset: a variable ``result``, or one for each key of what ``load`` returns. Its
            dimensions are parameters, and then those of the results. Points without a run have
            NaN, or what their dtype has for it.

        Raises:
            SettingsError: xarray is not installed, or ``dims`` names no parameter.
            ParamsError: A condition speaks of what the model does not have.
            ExportError: The results have no common grid, or one that is too large; says why,
                and what to do.
            DatabaseError: The database failed.
            Exception: What ``load`` raised, with a note that names the record.
        """
        grid = await self._grid(where, dims, max_missing_bytes)
        for record in grid.records:
            if inspect.iscoroutinefunction(load):
                await in_own_thread(grid.fill, record, await load(record))
            else:
                await in_own_thread(_fill, grid, load, record)
        return await in_own_thread(grid.dataset)

    async def explain(self, params: Params, /) -> "Explanation[R]":
        """Return why a parameter set would run, or would not; run nothing.

        Args:
            params: The parameters, as of ``run_or_retrieve``.

        Returns:
            The verdict, which prints as a few lines: that it is stored; who is running it; the
            failure on record; that its result is gone; or that it is new, with the stored sets
            that are nearest and the parameters in which they differ.

        Raises:
            ParamsError: The model cannot take the params.
            ResultsDirError: The record is there, and the whole folder of its result is not.
            DatabaseError: The database failed.
        """
        async with self._opening.using() as opened:
            return await opened.pipeline.planner.explain(params)

    async def plan(
        self,
        params: Iterable[Params] | AsyncIterable[Params],
        client: Any = None,
        *,
        executor: Any = None,
        max_workers: int | None = None,
    ) -> "Plan":
        """Return what a sweep of these parameter sets would meet; run nothing.

        Args:
            params: The parameter sets, as of ``sweep``.
            client: As of ``sweep``: where it would run, for an estimate of the time.
            executor: As of ``sweep``.
            max_workers: As of ``sweep``.

        Returns:
            How many distinct sets are stored, being run, on record as failed, and to be run, with
            an estimate in seconds by the durations on record. It prints as a few lines.

        Raises:
            SettingsError: An option cannot work.
            ParamsError: A set that the model cannot take, with its position in the input.
            ResultsDirError: The whole folder of a result is not there.
            DatabaseError: The database failed.
            Exception: What the iterable raised.
        """
        settings = RunSettings.of_call(client, executor, max_workers, None, None)
        if settings.executor is not None:
            check_executor(settings.executor, self._EXECUTORS)
        source = as_source(params)
        async with self._opening.using() as opened:
            ran_by = await opened.executors.acquire(
                settings.executor, settings.max_workers, timeout=None
            )
            try:
                return await opened.pipeline.planner.plan(source, ran_by.workers)
            finally:
                await opened.executors.release(ran_by)

    async def _table(
        self,
        package: "Package",
        make: Callable[[type[R], Records[R]], T],
        where: Sequence[Where],
        order_by: OrderBy,
    ) -> T:
        from entropic.export import needed

        await in_own_thread(needed, package)  # before anything is read
        records = await self.find(*where, order_by=order_by)
        return await in_own_thread(make, self._opening.settings.model, records)

    async def _grid(
        self,
        where: Sequence[Where],
        dims: str | Sequence[str] | None,
        max_missing_bytes: int,
    ) -> "Grid[R]":
        """What ``to_xarray`` fills."""
        from entropic.export import grid_layout, needed

        await in_own_thread(needed, "xarray")
        layout = functools.partial(
            grid_layout,
            self._opening.settings.model,
            await self.find(*where),
            dims=dims,
            max_missing_bytes=max_missing_bytes,
        )
        return await in_own_thread(layout)

    def _pages(
        self, where: Sequence[Where], order_by: OrderBy, limit: int | None, offset: int | None
    ) -> AsyncGenerator[list[R], None]:
        """What ``iter_find`` yields, as many at once as are read together."""
        _check(limit, offset)
        return self._found(where, order_by, limit, offset)

    async def _found(self, *asked: Any) -> AsyncGenerator[list[R], None]:
        # No call that a closing store waits for: nobody can tell when the next record is taken.
        opened = await self._opening.opened()
        async with aclosing(opened.pipeline.finder.pages(*asked)) as pages:
            async for page in pages:
                yield page

    @staticmethod
    async def _one_by_one(batches: AsyncGenerator[list[R], None]) -> AsyncGenerator[R, None]:
        async with aclosing(batches):
            async for batch in batches:
                for record in batch:
                    yield record


def _fill(grid: "Grid[R]", load: Callable[[R], Any], record: R) -> None:
    from entropic.export import load_result

    grid.fill(record, load_result(load, record))


def _check(limit: object, offset: object) -> None:
    check_count(limit, least=0, name="limit")
    check_count(offset, least=0, name="offset")
