"""Faults planted into secure aggregation, at the sites, at the server and in what both share: each must be noticed."""

import pytest
from mutants import survives

IDENTITY, AGREEMENT = ("tests/common/test_crypto_identity.py",), ("tests/common/test_crypto_agreement.py",)
SEALED, SHARES = ("tests/common/test_crypto_sealed.py",), ("tests/common/test_crypto_shares.py",)
BODY, ROSTER, MESSAGES = (
    ("tests/common/test_body.py",),
    ("tests/common/test_roster.py",),
    ("tests/common/test_session.py",),
)
CLIENT, SERVER = ("tests/client/test_session.py",), ("tests/server/test_session.py",)

FAULTS = {
    "type not signed": (
        "common/crypto/identity.py",
        'b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)',
        "body",
        IDENTITY,
    ),
    "signature not looked at": (
        "common/crypto/identity.py",
        "from_public_bytes(public).verify(signature, pae(name, body))",
        "from_public_bytes(public)",
        IDENTITY,
    ),
    "all-zero secret": (
        "common/crypto/agreement.py",
        'raise MessageError(f"key {peer.hex()[:16]}… gives an all-zero secret: refused") from error',
        "return bytes(32)",
        AGREEMENT,
    ),
    "share key without direction": (
        "common/crypto/agreement.py",
        'b"fedward/1/share\\0", sender, receiver)',
        'b"fedward/1/share\\0", *sorted((sender, receiver)))',
        AGREEMENT,
    ),
    "keys without a transcript": ("common/crypto/agreement.py", "salt=transcript", "salt=bytes(32)", AGREEMENT),
    "keys without places": ("common/crypto/agreement.py", "info=info", "info=purpose", AGREEMENT),
    "pair key by direction": (
        "common/crypto/agreement.py",
        "min(one, other), max(one, other)",
        "one, other",
        AGREEMENT,
    ),
    "one purpose for two keys": ("common/crypto/agreement.py", "fedward/1/self", "fedward/1/pair", AGREEMENT),
    "private key is printed": ("common/crypto/agreement.py", "field(repr=False)", "field()", AGREEMENT),
    "nonce of zeros": ("common/crypto/sealed.py", "os.urandom(_NONCE)", "bytes(_NONCE)", SEALED),
    "places not authenticated": (
        "common/crypto/sealed.py",
        'transcript + sender.to_bytes(2, "big") + receiver.to_bytes(2, "big")',
        "transcript",
        SEALED,
    ),
    "no chance in a polynomial": ("common/crypto/shares.py", "secrets.randbelow(PRIME)", "1", SHARES),
    "coefficients of 256 bits": ("common/crypto/shares.py", "randbelow(PRIME)", "randbelow(2**256)", SHARES),
    "degree one less": ("common/crypto/shares.py", "range(threshold - 1)", "range(threshold - 2)", SHARES),
    "the first share is the secret": ("common/crypto/shares.py", "range(1, holders + 1)", "range(holders)", SHARES),
    "shares beyond the prime": ("common/crypto/shares.py", '"big") < PRIME', '"big") < 2**264', SHARES),
    "commitment to either kind": ("common/crypto/shares.py", " + _KINDS[kind]", "", SHARES),
    "commitment for anybody": (
        "common/crypto/shares.py",
        'dealer.to_bytes(2, "big") + holder.to_bytes(2, "big")',
        'dealer.to_bytes(2, "big")',
        SHARES,
    ),
    "t one less": ("common/roster.py", "(sites + colluding) // 2 + 1", "(sites + colluding) // 2", ROSTER),
    "t without c": ("common/roster.py", "(sites + colluding) // 2 + 1", "sites // 2 + 1", ROSTER),
    "one honest site": ("common/roster.py", "self.colluding >= LEAST_HONEST", "self.colluding >= 0", ROSTER),
    "a site that said nothing": (
        "common/roster.py",
        'identity.verify(self.identity, "site", body.write(_statement(self)), self.signature)',
        "pass",
        ROSTER,
    ),
    "a roster that adds": ("common/roster.py", "set(new.sites) < set(old.sites)", "new.sites != old.sites", ROSTER),
    "a roster after another": ("common/roster.py", "and new.previous == old.sha256", "", ROSTER),
    "an expired roster": ("common/roster.py", "now < new.expires <= old", "new.expires <= old", ROSTER),
    "a key with two holders": ("common/roster.py", "if len(keys) != len(self.sites) + 2:", "if not keys:", ROSTER),
    "a key twice in JSON": ("common/body.py", "if len(values) != len(pairs):", "if not pairs:", BODY),
    "a message in another's name": (
        "common/session.py",
        'if values.pop("site") != self.site:',
        'if not values.pop("site"):',
        MESSAGES,
    ),
    "T0 without the run": ("common/transcript.py", "self.layout, self.run, ", "self.layout, ", MESSAGES),
    "T1 without T0": (
        "common/transcript.py",
        "_hash(1, self.setting.transcript(self.session), ",
        "_hash(1, ",
        MESSAGES,
    ),
    "T2 without the order": ("common/transcript.py", "transcript, self.order, _list", "transcript, _list", MESSAGES),
    "T3 without T2": ("common/transcript.py", "_hash(3, self.senders.transcript, ", "_hash(3, ", MESSAGES),
    "a key twice in a list": ("common/transcript.py", "!= 2 * len(self.keys):", "== 0:", MESSAGES),
    "too few senders": (
        "common/transcript.py",
        "if len(self.shares) < self.key_list.needed:",
        "if not self.shares:",
        MESSAGES,
    ),
    "too few survivors": (
        "common/transcript.py",
        "if len(self.headers) < self.senders.key_list.needed:",
        "if not self.headers:",
        MESSAGES,
    ),
    "a header of another T2": (
        "common/transcript.py",
        "site not in senders.names or header.transcript != senders.transcript",
        "site not in senders.names",
        MESSAGES,
    ),
    "requests by anybody": (
        "common/requests.py",
        "identity.verify(setting.roster.server, name, text, signature)",
        "pass",
        MESSAGES,
    ),
    "requests of another run": ("common/requests.py", "!= setting.run:", "== b'':", MESSAGES),
    "own keys not compared": (
        "client/session_setup.py",
        "own is None or key_list.keys[own - 1].signed != self.keys.signed",
        "own is None",
        CLIENT,
    ),
    "shares dealt for a second list": (
        "client/session_setup.py",
        "if key_list.transcript != self.dealt.agreed.key_list.transcript:",
        "if not key_list.keys:",
        CLIENT,
    ),
    "private key kept": ("client/session_setup.py", "del self._masking, self._channel, self._seed", "pass", CLIENT),
    "both secrets in one's shares": (
        "client/session_setup.py",
        "split(self._seed, ",
        "split(self._masking.private, ",
        CLIENT,
    ),
    "own shares not compared": (
        "client/session_masked.py",
        "if not any(shares.signed == dealt.message.signed for shares in senders.shares):",
        "if not senders.shares:",
        CLIENT,
    ),
    "own header not compared": (
        "client/session_masked.py",
        "if self.header is None or not any(header.signed == self.header.signed for header in survivors.headers):",
        "if self.header is None:",
        CLIENT,
    ),
    "answers a second list": (
        "client/session_masked.py",
        "if self.closed or self.opened or self.confirmed is not None:",
        "if self.closed:",
        CLIENT,
    ),
    "masks a second vector": (
        "client/session_masked.py",
        "streams, self._streams = self._streams, None",
        "streams = self._streams",
        CLIENT,
    ),
    "all masks added": ("client/session_masked.py", "1 if agreed.own < place else -1", "1", CLIENT),
    "no mask of its own": (
        "client/session_masked.py",
        "streams = [(self_key(dealt.seed, transcript, index=agreed.own), 1)]",
        "streams = []",
        CLIENT,
    ),
    "commitments not compared": (
        "client/session_masked.py",
        "if commitments != shares.commitments[own - 1]:",
        "if not commitments:",
        CLIENT,
    ),
    "opens without confirmations": (
        "client/session_masked.py",
        "or len(signers) < self.senders.key_list.threshold",
        "",
        CLIENT,
    ),
    "one confirmation less": (
        "client/session_masked.py",
        "len(signers) < self.senders.key_list.threshold",
        "len(signers) < self.senders.key_list.threshold - 1",
        CLIENT,
    ),
    "one confirmation counted twice": (
        "client/session_masked.py",
        "len(signers) < self.senders",
        "len(confirms) < self.senders",
        CLIENT,
    ),
    "confirmed by the missing": ("client/session_masked.py", "not signers <= set(survivors.names) or ", "", CLIENT),
    "confirmations of another T3": (
        "client/session_masked.py",
        "if any(confirm.transcript != survivors.transcript for confirm in confirms):",
        "if not survivors:",
        CLIENT,
    ),
    "opens both kinds": (
        "client/session_masked.py",
        "for name in survivors.missing if",
        "for name in self._held if",
        CLIENT,
    ),
    "secrets kept": ("client/session_masked.py", "self._held.clear()", "pass", CLIENT),
    "another request answered": ("client/session.py", "if request != ask.sha256:", "if not request:", CLIENT),
    "a second order answered": ("client/session.py", "if self._invitation[0] != ask.sha256:", "if False:", CLIENT),
    "numbers used twice": ("client/session.py", "if session <= self._highest:", "if session < 0:", CLIENT),
    "an older session answered": (
        "client/session.py",
        'self._current.session != session:\n            raise MessageError(f"session {session}: is',
        'session < 0:\n            raise MessageError(f"session {session}: is',
        CLIENT,
    ),
    "closed in words only": ("client/session.py", "self._current.end(opened=False)", "pass", CLIENT),
    "opened and called closed": (
        "client/session.py",
        "if self._current is not None and not self._current.opened and not self._current.closed:",
        "if self._current is not None:",
        CLIENT,
    ),
    "closed by fewer": ("client/session.py", ">= earlier.threshold", ">= earlier.threshold - 1", CLIENT),
    "closed by strangers": ("client/session.py", "signers & set(earlier.sites)", "signers", CLIENT),
    "the ledger is not told": ("client/session.py", "        self._opened(\n", "        repr(\n", CLIENT),
    "no policy of one's own": ("client/session.py", "if sites < self._min_sites:", "if sites < 0:", CLIENT),
    "survivors change by one": ("client/session.py", "< self._min_change:", "< 0:", CLIENT),
    "a vector added twice": (
        "server/session.py",
        "self._same(self._headers[site].signed, signed)\n            return False",
        "self._same(self._headers[site].signed, signed)\n            return True",
        SERVER,
    ),
    "a vector without its header": ("server/session.py", "if header.vector != vector:", "if not vector:", SERVER),
    "shares not compared": (
        "server/session.py",
        "if committed != share_commitment(",
        "if b'' == share_commitment(",
        SERVER,
    ),
    "dealers not blamed": ("server/session.py", "            if not fits:\n", "            if not secret:\n", SERVER),
    "keys of low order taken": ("server/session.py", "        probe.agree(keys.masking)\n", "", SERVER),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str) -> None:
    file, old, new, tests = FAULTS[fault]
    assert not survives(file, old, new, tests)
