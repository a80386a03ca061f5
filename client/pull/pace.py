"""How fast and when the archive is asked, and how long one question may take."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from common.errors import DataError

Hours = tuple[int, int]


class Late(TimeoutError):
    """The time that one question or image may take is over."""


@dataclass(kw_only=True)
class Pace:
    """At most `rate` questions and images a second together, between these hours of the local day alone.

    `hours` = (19, 6): from 19:00 to 06:00; None: always. `on_wait` is told when the hours close.
    """

    rate: float
    hours: Hours | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = datetime.now
    on_wait: Callable[[Hours], None] | None = None
    _next: float = field(default=-1e18, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1000:
            raise DataError(f"--rate {self.rate}: more than 0, at most 1000 a second")

    def wait(self) -> None:
        """Return when the next question may be asked."""
        closed = False
        while self.hours and not is_open(self.hours, self.now()):
            if not closed and self.on_wait:
                self.on_wait(self.hours)
            closed = True
            self.sleep(20)
        if (pause := self._next - self.clock()) > 0:
            self.sleep(pause)
        self._next = max(self._next, self.clock()) + 1 / self.rate

    def pause(self, seconds: float) -> None:
        """Leave an archive in peace that said it can't."""
        self.sleep(seconds)


def read_hours(text: str) -> Hours:
    """(19, 6) from "19-6". Raises DataError."""
    found = re.fullmatch("([0-9]{1,2})-([0-9]{1,2})", text)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if first == last or max(first, last) > 24:
        raise DataError(f"--hours {text!r}: two different hours of the day, such as 19-6")
    return first % 24, last % 24


def is_open(hours: Hours, now: datetime) -> bool:
    """Whether the hour lies between the two, over midnight where the first is the later one."""
    first, last = hours
    return first <= now.hour < last if first < last else now.hour >= first or now.hour < last


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises Late inside the block when it takes longer, wherever it waits: a name server, a handshake, a byte.

    A library's own timeouts start anew with every byte, so that a slow enough peer holds it for ever. The alarm is
    repeated each second, in case a library takes it for an ordinary failure. Main thread only, and not nested.
    """

    def ring(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), 1.0)  # zero would be no alarm at all
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
