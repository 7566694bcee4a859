"""How far a sweep has come: counted, and shown as a bar or told to a function of the user's.

tqdm is imported only for a bar that is shown.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from entropic.errors import SettingsError

# Of the time that a run takes, what the last ones took counts so much more than those before.
_MEMORY: Final = 0.95
_SHOWN_EVERY_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sweep has come.

    Attributes:
        done: The parameter sets that are done, in whichever way.
        total: How many there are; ``None`` where the input has no length.
        hits: Those that were stored already, or were there before in the same input.
        runs: Those that were run, here or by whoever had begun already.
        failures: Those whose run has failed.
        elapsed_seconds: Since the call began.
        eta_seconds: Until it is done, by what the last runs took; ``None`` while that cannot be
            said. What is left is taken for runs: how many of them are hits nobody knows.
    """

    done: int
    total: int | None
    hits: int
    runs: int
    failures: int
    elapsed_seconds: float
    eta_seconds: float | None


ProgressOption = bool | Literal["always"] | Callable[[Progress], object]
"""What ``progress=`` takes."""


class Meter:
    """Counts what happens, and tells it.

    Args:
        show: Told each state that is worth it, and the last one in any case.
        total: How many parameter sets there are, where that is known.
        clock: Seconds, from any beginning.
    """

    def __init__(
        self, show: "_Show", total: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._show = show
        self._total = total
        self._clock = clock
        self._started = clock()
        self._hits = self._runs = self._failures = 0
        self._last_end = self._started
        self._seconds_per_run: float | None = None
        self._is_closed = False

    def hit(self, count: int = 1) -> None:
        """So many sets were stored already."""
        if count:
            self._hits += count
            if not self._runs + self._failures:  # until then no run can have begun
                self._last_end = self._clock()
            self._show.state(self.progress())

    def ran(self, count: int = 1) -> None:
        """So many sets have been run, by whomever."""
        if count:
            self._runs += count
            self._ended(count)

    def failed(self) -> None:
        """The run of a set has failed."""
        self._failures += 1
        self._ended(1)

    def close(self) -> None:
        """There is no more; the last state stays shown."""
        if not self._is_closed:
            self._is_closed = True
            self._show.end(self.progress())

    def progress(self) -> Progress:
        """The state now."""
        done = self._hits + self._runs + self._failures
        now = self._clock()
        return Progress(
            done,
            self._total,
            self._hits,
            self._runs,
            self._failures,
            now - self._started,
            self._eta(done, now),
        )

    def _ended(self, count: int) -> None:
        """How much time passes from one run's end to the next: workers side by side count."""
        now = self._clock()
        seconds, self._last_end = (now - self._last_end) / count, now
        mean = self._seconds_per_run
        memory = 0.0 if mean is None else _MEMORY**count
        self._seconds_per_run = memory * (mean or 0.0) + (1 - memory) * seconds
        self._show.state(self.progress())

    def _eta(self, done: int, now: float) -> float | None:
        if self._total is None:
            return None
        left = max(self._total - done, 0)
        if not left:
            return 0.0
        if self._seconds_per_run is None:
            return None
        return max(left * self._seconds_per_run - (now - self._last_end), 0.0)


class _Show:
    """Shows nothing."""

    def state(self, progress: Progress) -> None:
        """Something has happened."""

    def end(self, progress: Progress) -> None:
        """Nothing will happen any more."""


class _Told(_Show):
    """Tells a function of the user's."""

    def __init__(self, tell: Callable[[Progress], object]) -> None:
        self._tell = tell

    def state(self, progress: Progress) -> None:
        self._tell(progress)


class _Bar(_Show):
    """A bar of tqdm's, on standard error or in a notebook."""

    def __init__(self, total: int | None) -> None:
        self._bar = _tqdm(total)
        self._shown_at = -math.inf

    def state(self, progress: Progress) -> None:
        # tqdm, too, draws only so often; but its text is made anew each time that it is set.
        if progress.elapsed_seconds - self._shown_at >= _SHOWN_EVERY_SECONDS:
            self._shown_at = progress.elapsed_seconds
            self._draw(progress)

    def end(self, progress: Progress) -> None:
        self._draw(progress)
        self._bar.close()

    def _draw(self, progress: Progress) -> None:
        self._bar.set_postfix_str(_words(progress), refresh=False)
        self._bar.n = progress.done
        self._bar.refresh()


def _words(progress: Progress) -> str:
    words = [f"{progress.hits} hits", f"{progress.runs} runs", f"{progress.failures} failures"]
    if progress.eta_seconds:
        words.append(f"{_clock_time(progress.eta_seconds)} left")
    return ", ".join(words)


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def make_meter(
    option: ProgressOption, total: int | None, clock: Callable[[], float] = time.monotonic
) -> Meter:
    """The meter that ``progress=`` asks for.

    Args:
        option: ``True`` for a bar where there is a terminal or a notebook, ``"always"`` for one
            in any case, a function that takes a ``Progress``, or ``False``.
        total: How many parameter sets there are, where that is known.
        clock: Seconds, from any beginning.

    Raises:
        SettingsError: It is none of these, or tqdm is not installed.
    """
    if callable(option):
        return Meter(_Told(option), total, clock)
    if not isinstance(option, bool) and option != "always":
        raise SettingsError(
            f"progress must be True, False, 'always' or a function of a Progress, not"
            f" {option!r:.120}"
        )
    is_shown = option == "always" or (option and (sys.stderr.isatty() or _is_notebook()))
    return Meter(_Bar(total) if is_shown else _Show(), total, clock)


def _is_notebook() -> bool:
    """Whether a Jupyter kernel runs this: it alone has this class, and is not imported for it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _tqdm(total: int | None) -> Any:
    try:
        if _is_notebook():
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm
    except ImportError:
        raise SettingsError(
            "progress=True needs tqdm: pip install entropic[progress]; or pass a function"
        ) from None
    # What is left is told by the meter: tqdm would take a first batch of hits for the rate of runs.
    layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
    if total is None:
        layout = "{n_fmt} [{elapsed}, {rate_fmt}{postfix}]"
    return tqdm(total=total, unit="set", bar_format=layout, file=sys.stderr, dynamic_ncols=True)
