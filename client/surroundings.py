"""The preflight's part about the world beyond the site folder: executors, connection, certificates, clock."""

from collections.abc import Iterator
from dataclasses import dataclass

from client.finding import Finding, Level, finding, gathered
from common.crypto import certificates

AHEAD = 3.0  # seconds that this clock may be ahead of the server's: Flower refuses at 5
BEHIND = 60.0
DAY = 86400


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What is known of the world beyond the site folder; None or empty where nobody looked."""

    clock_ahead: float | None = None  # seconds by which this machine's clock is ahead of the server's
    certificates: tuple[tuple[str, bytes], ...] = ()  # what each is for, and its PEM
    connection: str | None = None  # "" where the server answered, else why not
    proxy: str = ""  # host:port through which it answered
    executors: tuple[int, ...] | None = None  # processes that hold the executor's secret and are not this site's worker


def judged(seen: Outside, *, now: float) -> list[Finding]:
    """A line for each thing that was looked at. Never raises."""
    return gathered(
        {
            "executor": lambda: _executors(seen),
            "connection": lambda: _connection(seen),
            "certificate": lambda: _certificates(seen, now),
            "clock": lambda: _clock(seen),
        }
    )


def _clock(seen: Outside) -> Iterator[Finding]:
    ahead = seen.clock_ahead
    if ahead is None:
        if seen.connection == "":
            yield finding(Level.WARN, "clock", "the server says no time: compare it with a clock that you trust")
        return
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if not ahead < AHEAD:
        yield finding(Level.FAIL, "clock", f"{text}: set it by NTP; answers are refused")
    else:
        yield finding(Level.PASS if ahead > -BEHIND else Level.WARN, "clock", text)


def _certificates(seen: Outside, now: float) -> Iterator[Finding]:
    for what, pem in seen.certificates:
        days = (certificates.expires(pem) - now) / DAY
        if not days > 0:
            yield finding(Level.FAIL, "certificate", f"{what}: expired {-days:.0f} days ago; ask for the new one")
        else:
            level = Level.PASS if days > 30 else Level.WARN
            yield finding(level, "certificate", f"{what}: good for {days:.0f} more days")


def _connection(seen: Outside) -> Iterator[Finding]:
    if seen.connection is not None:
        level = Level.FAIL if seen.connection else Level.PASS
        via = f", through the proxy {seen.proxy}" if seen.proxy else ""
        yield finding(level, "connection", seen.connection or f"the server answers{via}")


def _executors(seen: Outside) -> Iterator[Finding]:
    if seen.executors:
        text = f"another executor holds this site's secret: process {', '.join(map(str, seen.executors))}; end it"
        yield finding(Level.FAIL, "executor", f"{text}, or it answers orders in this site's name")
    elif seen.executors is not None:
        yield finding(Level.PASS, "executor", "no other process here holds the secret")
