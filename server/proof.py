"""What a SuperNode proves with each request: that it holds a key of the roster, now, and that nobody repeats it.

Flower has each request carry a time, signed by the SuperNode's key. A signature that is the same as before was copied:
each signed time passes once.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime

from common.crypto import node_key

KEY, TIME, SIGNATURE = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
AHEAD, BEHIND = 5.0, 305.0  # seconds by which a signed time may differ from the server's: Flower's own limits

STRANGER = "not a SuperNode of the roster"
CLOCK = "a time that is too far from this server's"
AGAIN = "a signed time that has been used"


class Proofs:
    """Keys that may pass, and what they have signed of late.

    Guarantees: None is said at most once for a key's signed time, and only for one that the key signed and that lies
    between `since` and AHEAD seconds from now, BEHIND seconds old at most. So much is remembered as can still be
    believed, and no more.
    """

    def __init__(self, *, since: float) -> None:
        self._since, self._keys = since, dict[bytes, str]()
        self._used: dict[bytes, float] = {}  # digests of what was accepted, in its order, and when

    def allow(self, keys: Iterable[str]) -> None:
        """Exactly these keys, as lines in OpenSSH's form. Raises MessageError for one that is none."""
        self._keys = {node_key.public_pem(line): line for line in keys}

    def fault(self, headers: Mapping[bytes, bytes], *, now: float) -> str | None:
        """What is wrong with a request's proof: STRANGER, CLOCK or AGAIN; None where nothing is. `now` in seconds
        since 1970, never less than before.
        """
        said = headers.get(TIME, b"")
        try:
            key = base64.b64decode(headers.get(KEY, b""), validate=True)
            signature = base64.b64decode(headers.get(SIGNATURE, b""), validate=True)
        except ValueError:
            return STRANGER
        line = self._keys.get(key)
        if line is None or not node_key.signed(line, said, signature):
            return STRANGER
        signed = _seconds(said)
        if signed is None or not self.recent(headers, now=now):
            return CLOCK
        used = hashlib.sha256(key + said).digest()
        self._forget(before=now - AHEAD - BEHIND)
        if used in self._used or signed < self._since:  # what was used before `since` isn't known
            return AGAIN
        self._used[used] = now
        return None

    def recent(self, headers: Mapping[bytes, bytes], *, now: float) -> bool:
        """Whether a request's time is near enough to `now`, as Flower sees it."""
        signed = _seconds(headers.get(TIME, b""))
        return signed is not None and -AHEAD < now - signed < BEHIND

    def _forget(self, *, before: float) -> None:
        """What was accepted before this moment can't be believed again."""
        while self._used and next(iter(self._used.values())) < before:
            del self._used[next(iter(self._used))]


def _seconds(said: bytes) -> float | None:
    """Seconds since 1970 of a time in ISO 8601 with its zone; None for anything else."""
    try:
        moment = datetime.fromisoformat(said.decode("ascii"))
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None
