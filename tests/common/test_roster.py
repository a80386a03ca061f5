"""The roster: only what the coordinator and each site signed, and by itself a site takes only a removal."""

import json
from typing import Any

import pytest
from session_cases import COORDINATOR, NOW, SERVER, SUPERNODE, identity_of, names_of, roster_of

from common import body
from common.crypto.identity import Identity
from common.errors import MessageError
from common.roster import LIFE, Roster, RosterError, accepts, issue, member, parse, threshold, usable

NAMES = names_of(5)


def changed(roster: Roster, **changes: Any) -> bytes:
    """A roster's file with other values in its body, signed by the coordinator."""
    values = json.loads(json.loads(roster.to_bytes())["body"]) | changes
    text = body.write({key: value for key, value in values.items() if value is not None})
    signature = COORDINATOR.sign("roster", text).hex()
    return body.write({"coordinator": COORDINATOR.public.hex(), "body": text.decode(), "signature": signature})


def test_a_roster_comes_back_from_its_file() -> None:
    roster = roster_of(NAMES, colluding=1, min_sites=3)
    again = parse(roster.to_bytes())
    assert again == roster and again.sha256 == roster.sha256 and again.fingerprint == roster.fingerprint
    assert parse(changed(roster)) == roster
    assert roster.expires == NOW + 90 * 24 * 3600 == NOW + LIFE
    assert list(roster.identities) == NAMES


def test_every_byte_of_the_file_counts() -> None:
    data = roster_of(NAMES[:2]).to_bytes()
    for place in range(len(data)):
        with pytest.raises(MessageError):
            parse(data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :])
    for length in range(0, len(data), 97):
        with pytest.raises(MessageError):
            parse(data[:length])


def test_a_sites_entry_is_its_own_statement() -> None:
    roster = roster_of(NAMES)
    sites = json.loads(json.loads(roster.to_bytes())["body"])["sites"]
    for key, value in (
        ("name", "site-00"),
        ("identity", Identity.new().public.hex()),
        ("supernode", "another"),
        ("nominal_patients", 101),
        ("signature", sites[1]["signature"]),
    ):
        with pytest.raises(MessageError, match="site message"):
            parse(changed(roster, sites=[sites[0] | {key: value}, *sites[1:]]))


BAD: dict[str, dict[str, Any]] = {
    "version 0": {"version": 0},
    "version as text": {"version": "1"},
    "a key missing": {"expires": None},
    "a key too many": {"note": "hello"},
    "previous too short": {"previous": "00"},
    "one honest site": {"colluding": 2, "min_sites": 3},
    "more colluding than sites": {"colluding": 9},
    "negative colluding": {"colluding": -1},
    "more needed than there are": {"min_sites": 6},
    "no sites": {"sites": []},
    "a site that is no object": {"sites": [1, 2, 3]},
    "the server's key is a site's": {"server": identity_of(NAMES[0]).public.hex()},
    "the server's key is the coordinator's": {"server": COORDINATOR.public.hex()},
}


@pytest.mark.parametrize("case", BAD)
def test_a_roster_that_the_coordinator_signed_wrongly_is_refused(case: str) -> None:
    with pytest.raises(MessageError):
        parse(changed(roster_of(NAMES, min_sites=3), **BAD[case]))


def test_order_and_repetition_of_sites_are_refused() -> None:
    roster = roster_of(NAMES)
    sites = json.loads(json.loads(roster.to_bytes())["body"])["sites"]
    for wrong in (sites[::-1], [sites[0], *sites]):
        with pytest.raises(RosterError, match="order of their names"):
            parse(changed(roster, sites=wrong))
    twin = member(identity_of(NAMES[0]), name="twin", supernode=SUPERNODE, nominal_patients=1)
    with pytest.raises(RosterError, match="two holders"):
        issue(COORDINATOR, sites=[*roster.sites, twin], server=SERVER.public, colluding=0, min_sites=2, now=NOW)


def test_other_json_of_the_same_values_is_refused() -> None:
    roster = roster_of(NAMES)
    text = json.loads(roster.to_bytes())["body"].replace(":", ": ", 1).encode()
    signature = COORDINATOR.sign("roster", text).hex()
    with pytest.raises(MessageError, match="signature"):
        parse(body.write({"coordinator": COORDINATOR.public.hex(), "body": text.decode(), "signature": signature}))


@pytest.mark.parametrize("supernode", ["", "two\nlines", "ä", "x" * 1025])
def test_a_supernode_key_is_one_printable_line(supernode: str) -> None:
    with pytest.raises(RosterError, match="SuperNode key"):
        member(identity_of("a"), name="a", supernode=supernode, nominal_patients=1)


@pytest.mark.parametrize("patients", [0, -1, 10**9 + 1])
def test_nominal_patients_are_in_range(patients: int) -> None:
    with pytest.raises(RosterError, match="nominal_patients"):
        member(identity_of("a"), name="a", supernode="k", nominal_patients=patients)


def test_the_fingerprint_has_160_bits_and_knows_every_field_and_the_signer() -> None:
    roster = roster_of(NAMES, min_sites=3)
    groups = roster.fingerprint.split(" ")
    assert [len(group) for group in groups] == [4] * 10 and bytes.fromhex("".join(groups)) == roster.sha256[:20]
    other = Identity.new()
    rosters = [
        roster,
        roster_of(NAMES, min_sites=4),
        roster_of(NAMES, colluding=1, min_sites=3),
        roster_of(NAMES[:4], min_sites=3),
        parse(changed(roster, expires=roster.expires + 1)),
        parse(changed(roster, version=2)),
        parse(changed(roster, previous="11" * 32)),
        parse(changed(roster, server=other.public.hex())),
        issue(other, sites=roster.sites, server=SERVER.public, colluding=0, min_sites=3, now=NOW),
    ]
    assert len({each.fingerprint for each in rosters}) == len(rosters)


def test_by_itself_a_site_takes_a_removal() -> None:
    old = roster_of(NAMES, colluding=1, min_sites=3)
    for left in (NAMES[:4], NAMES[1:], NAMES[:3]):
        new = roster_of(left, colluding=1, min_sites=3, before=old)
        assert accepts(old, new, now=NOW) and not accepts(new, old, now=NOW)
        assert not accepts(old, new, now=old.expires)
        assert not accepts(new, new, now=NOW)


def removal(old: Roster, **changes: Any) -> Roster:
    new = roster_of(NAMES[:4], colluding=1, min_sites=3, before=old)
    return parse(changed(new, **changes))


def test_by_itself_a_site_takes_nothing_else() -> None:
    old = roster_of(NAMES, colluding=1, min_sites=3)
    sites = json.loads(json.loads(old.to_bytes())["body"])["sites"]
    moved = member(identity_of(NAMES[0]), name=NAMES[0], supernode="another", nominal_patients=100)
    swapped = json.loads(
        json.loads(
            issue(
                COORDINATOR,
                sites=[moved, *old.sites[1:4]],
                server=SERVER.public,
                colluding=1,
                min_sites=3,
                now=NOW,
            ).to_bytes()
        )["body"]
    )["sites"]
    others: dict[str, Roster] = {
        "nobody removed": removal(old, sites=sites),
        "a site added": roster_of([*NAMES, "new"], colluding=1, min_sites=3, before=old),
        "one removed, one added": roster_of([*NAMES[:4], "new"], colluding=1, min_sites=3, before=old),
        "an entry changed": removal(old, sites=swapped),
        "two versions up": removal(old, version=3),
        "the same version": removal(old, version=1),
        "after another version": removal(old, previous="11" * 32),
        "c lower": removal(old, colluding=0),
        "c higher": removal(old, colluding=1, min_sites=4),
        "another server": removal(old, server=Identity.new().public.hex()),
        "valid for longer": removal(old, expires=old.expires + 1),
        "another coordinator": issue(
            Identity.new(),
            sites=old.sites[:4],
            server=SERVER.public,
            colluding=1,
            min_sites=3,
            now=NOW,
            before=old,
            expires=old.expires,
        ),
    }
    assert accepts(old, removal(old), now=NOW) and accepts(old, removal(old, expires=old.expires - 1), now=NOW)
    for case, new in others.items():
        assert not accepts(old, new, now=NOW), case


def test_a_removal_below_min_sites_does_not_exist() -> None:
    old = roster_of(NAMES, colluding=1, min_sites=3)
    with pytest.raises(RosterError, match="2 sites"):
        roster_of(NAMES[:2], colluding=1, min_sites=3, before=old)


def test_a_site_works_under_no_roster_that_is_expired_or_below_its_own_limits() -> None:
    roster = roster_of(NAMES, colluding=1, min_sites=3)
    own = roster.sites[0]
    usable(roster, now=NOW, own=own, colluding=1, min_sites=3)
    for changes, text in (
        ({"now": roster.expires}, "expired"),
        ({"own": member(identity_of("x"), name="x", supernode="k", nominal_patients=1)}, "not in it"),
        ({"own": member(identity_of(own.name), name=own.name, supernode="k", nominal_patients=1)}, "not in it"),
        ({"colluding": 2}, "asks for at least"),
        ({"min_sites": 4}, "asks for at least"),
    ):
        values: dict[str, Any] = {"now": NOW, "own": own, "colluding": 1, "min_sites": 3, **changes}
        with pytest.raises(RosterError, match=text):
            usable(roster, **values)


def test_threshold_is_the_least_that_two_kinds_of_share_cannot_both_reach() -> None:
    for sites in range(2, 60):
        for colluding in range(sites - 1):
            t = threshold(sites, colluding)
            assert sites + colluding < 2 * t <= sites + colluding + 2
            assert t <= sites
