"""Where a site's audit log stood when it answered: the site signs it, the coordinator keeps it.

A site that later cut or rewrote its log can't show the line any more that the coordinator holds; and the coordinator
can't claim a line that the site has not signed.
"""

import re

from common import body
from common.crypto import identity
from common.crypto.identity import SIGNATURE_BYTES, Identity
from common.errors import MessageError

_DIGITS = 9  # of a line's number, with zeros in front: a statement's length says nothing
_FORM = re.compile(rf"([0-9]{{{_DIGITS}}})-([0-9a-f]{{64}})\.([0-9a-f]{{{2 * SIGNATURE_BYTES}}})")
_TYPE = "audit-anchor"


def attest(key: Identity, *, site: str, order: str, sequence: int, hash: str) -> str:
    """The statement that the answer to this order (its digest, hex) is followed in the site's log by nothing but what
    comes after line `sequence`, whose digest is `hash`.
    """
    if not 0 <= sequence < 10**_DIGITS:
        raise ValueError(f"line {sequence}: a log of more than {10**_DIGITS} lines")
    line = f"{sequence:0{_DIGITS}}-{hash}"
    return f"{line}.{key.sign(_TYPE, _statement(site, order, line)).hex()}"


def well_formed(text: str) -> bool:
    """Whether it is a statement by its form, or "", which states nothing."""
    return not text or _FORM.fullmatch(text) is not None


def attested(text: str, *, public: bytes, site: str, order: str) -> str:
    """The line, as `client audit verify --anchor` takes it: number and whole digest. Raises MessageError unless this
    site signed it for this order.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise MessageError(f"a statement of {site} about its log that is none")
    line, signature = text.partition(".")[0], body.binary(found[3], SIGNATURE_BYTES)
    identity.verify(public, _TYPE, _statement(site, order, line), signature)
    return f"{int(found[1])}-{found[2]}"


def _statement(site: str, order: str, line: str) -> bytes:
    return body.write({"site": site, "order": order, "line": line})
