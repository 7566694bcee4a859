"""What a command works on: a database that is only read, its models, their results folders."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from entropic.artifacts import ResultsFolder
from entropic.cli.ending import UsageError
from entropic.database import Database
from entropic.database.urls import async_url, file_of, masked, reading_url
from entropic.identity import hint
from entropic.ledger import Ledger
from entropic.ledger.survey import Sample
from entropic.maintenance.folders import copies, is_named, named, results_of
from entropic.models import Base
from entropic.reflection import Reflected, Reflection, reflect


@dataclass(frozen=True, slots=True)
class Subject:
    """One model, as a command works on it.

    Attributes:
        reflected: The model.
        ledger: Its runs.
    """

    reflected: Reflected
    ledger: Ledger[Base]


@dataclass(frozen=True, slots=True)
class Session:
    """An open database, which is only read.

    Attributes:
        database: The database.
        reflection: What is in it.
        url: Its URL, as whoever writes to it needs it.
        named: What it is called where a user sees it; without a password.
    """

    database: Database
    reflection: Reflection
    url: sa.URL
    named: str

    def subjects(self, model: str | None) -> list[Subject]:
        """The model of a name, or all.

        Raises:
            UsageError: There is none.
        """
        known = self.reflection.models
        if not known:
            raise UsageError(f"{self.named} has no table of runs")
        if model is None:
            return [self._subject(one) for one in known.values()]
        if model not in known:
            raise UsageError(f"{self.named} has no model {model!r}: {hint(model, known)}")
        return [self._subject(known[model])]

    def subject(self, model: str | None) -> Subject:
        """The model of a name, or the only one.

        Raises:
            UsageError: There is none, or none is named of several.
        """
        found = self.subjects(model)
        if len(found) > 1:
            names = ", ".join(one.reflected.name for one in found)
            raise UsageError(f"{self.named} has several models: say --model, one of {names}")
        return found[0]

    @property
    def folder(self) -> str | None:
        """Where the database itself is; ``None`` on a server."""
        file = file_of(self.url)
        return None if file is None else os.path.dirname(file)

    async def results(self, subject: Subject, results_dir: Path | None) -> ResultsFolder:
        """The folder of a model's results, to look at.

        Raises:
            UsageError: It is not where the rows say, and not at hand; or no folder.
        """
        spelled = None if results_dir is None else str(results_dir)
        nonce = subject.reflected.nonce
        found = await results_of(subject.ledger, nonce, self.folder, spelled)
        if found is not None:
            return found
        if spelled is not None:
            raise UsageError(f"--results-dir {spelled!r} is no folder")
        samples = await subject.ledger.survey.samples()
        told = next((os.path.dirname(s.result_file) or "." for s in samples), None)
        said = f"not in {told!r}, where its rows have it" if told else "in none of its rows"
        raise UsageError(f"the results of {subject.reflected.name} are {said}: say --results-dir")

    async def results_to_change(
        self, subject: Subject, results_dir: Path | None, *, removes: bool = True
    ) -> ResultsFolder:
        """The same, where more than looking is to happen: it must be the one that rows mean.

        Args:
            subject: The model.
            results_dir: Where its results are; by default, where the rows say.
            removes: Whether a result may go.

        Raises:
            UsageError: As above; or the folder is not the one that rows name, or is in several
                places, as after a copy.
        """
        name, samples = subject.reflected.name, await subject.ledger.survey.samples()
        folder = await self.results(subject, results_dir)
        if results_dir is not None and not is_named(samples, folder.path):
            raise UsageError(_is_another(name, folder.spelled, samples))
        chosen = None if results_dir is None else folder.path
        if removes and (places := copies(samples, self.folder, chosen)):
            raise UsageError(
                f"the results of {name} are in {' and in '.join(map(repr, places))}, of which one"
                " is a copy: say --results-dir, or work in the database's folder"
            )
        return folder

    def _subject(self, reflected: Reflected) -> Subject:
        is_bare = not self.reflection.has_bookkeeping
        identity, name, model = reflected.identity, reflected.name, reflected.model
        return Subject(reflected, Ledger(self.database, identity, name, model, is_bare=is_bare))


@asynccontextmanager
async def session(
    db: str, lock_timeout: float, *, is_mended: bool = False
) -> AsyncIterator[Session]:
    """Open a database to read it.

    Args:
        db: A URL, or the path of a SQLite database.
        lock_timeout: Seconds to wait while others have it locked.
        is_mended: Whether what a crash has left in the middle of a transaction is undone, as by
            whoever writes: who only reads must not.

    Raises:
        SettingsError: It cannot be one, or there is none.
        DatabaseError: It cannot be opened.
    """
    given = db if "://" in db else Path(db)
    url = async_url(given)
    database = Database(reading_url(given, may_mend=is_mended), lock_timeout=lock_timeout)
    await database.open()
    try:
        yield Session(database, await reflect(database), url, _named(url))
    finally:
        await database.aclose()


def _is_another(name: str, spelled: str, samples: Sequence[Sample]) -> str:
    told = f"--results-dir {spelled!r} is not the folder of the results of {name}"
    home = named(samples)
    if home is None:
        return f"{told}, nor of any: it has no .entropic in it"
    return f"{told}, which its rows have in {home!r}: say where that one is now"


def _named(url: sa.URL) -> str:
    return file_of(url) or masked(url)
