"""One cache, opened: what all that works on it shares."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from entropic.artifacts import ResultsFolder
from entropic.executors import Threads
from entropic.identity import Identity
from entropic.ledger import Ledger
from entropic.models import Base

R = TypeVar("R", bound=Base)


@dataclass(frozen=True, slots=True)
class Cache(Generic[R]):
    """The rows and the results of one model, in one database and one folder.

    Attributes:
        identity: The model's rules.
        ledger: The rows.
        folder: The results.
        threads: Where files are touched.
        nonce: Its name among the caches of the process, and of the folder.
    """

    identity: Identity
    ledger: Ledger[R]
    folder: ResultsFolder
    threads: Threads
    nonce: str
