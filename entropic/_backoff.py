"""How long to wait before looking again at what others have in their hands."""


def next_look(waited: float, jitter: float, *, shortest: float, longest: float) -> float:
    """Seconds until the next look: a tenth of what has been waited, within limits.

    So nobody comes later than by about a tenth. A delay that doubles would overshoot, and leave
    who has had bad luck behind all newcomers.

    Args:
        waited: Seconds since the wait began, or since something last happened.
        jitter: A random number between 0 and 1: many that wait should not all look together.
        shortest: Seconds, about half of which are waited at least.
        longest: Seconds, about one and a half times of which are waited at most.
    """
    return min(max(shortest, 0.1 * waited), longest) * (0.5 + jitter)
