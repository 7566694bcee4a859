"""How long to wait before looking again."""

import random

from hypothesis import given
from hypothesis import strategies as st

from entropic._backoff import next_look

seconds = st.floats(0, 1e6)


@given(waited=seconds, longer=seconds, jitter=st.floats(0, 1))
def test_who_has_waited_longer_looks_less_often(
    waited: float, longer: float, jitter: float
) -> None:
    """Within the limits, whatever the jitter."""
    limits = {"shortest": 0.002, "longest": 0.25}
    first, second = sorted((waited, longer))
    delay = next_look(first, jitter, **limits)
    assert 0.001 <= delay <= 0.375
    assert delay <= next_look(second, jitter, **limits)


@given(until=st.floats(0.1, 2.0), jitter=st.randoms(use_true_random=False))
def test_what_ends_is_seen_a_sixth_too_late_at_most(until: float, jitter: random.Random) -> None:
    """Whenever it ends, and with few looks."""
    waited, looks = 0.0, 0
    while waited < until:
        waited += next_look(waited, jitter.random(), shortest=0.002, longest=0.25)
        looks += 1
    assert waited <= until * 1.16
    assert looks < 120
