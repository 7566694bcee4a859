"""Who runs what: in this process, and among all that share a database.

``flights`` are the runs under way here, shared by all who wait for them; ``heartbeat`` keeps this
store's claims alive; ``owners`` tells whose claims are a dead process's.
"""

from entropic.leases.flights import Flight, Flights, Key, Waiter, waiting
from entropic.leases.heartbeat import Heartbeat, Renew
from entropic.leases.owners import described, is_alive, is_gone, new_owner

__all__ = [
    "Flight",
    "Flights",
    "Heartbeat",
    "Key",
    "Renew",
    "Waiter",
    "described",
    "is_alive",
    "is_gone",
    "new_owner",
    "waiting",
]
