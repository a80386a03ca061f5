"""Planted faults in who has said what: signed orders and answers, and ledgers' heads that everybody remembers."""

from mutants import Fault, noticed, placed, unharmed

WIRE, ANCHOR = ["tests/common/test_wire.py"], ["tests/common/test_anchor.py"]
RUNS, KEPT = ["tests/test_ledger_heads.py", "tests/test_bad_days.py"], ["tests/client/test_heads.py"]
TOLD = ["tests/server/test_heads.py"]

FAULTS: dict[str, Fault] = {
    "no order's signature is looked at": (
        "client/app.py",
        "    wire.demand_order_by(roster.server, message.content)\n",
        "",
        RUNS,
    ),
    "no order is asked for whose it is": (
        "client/app.py",
        "    demand_server(site, order, message)\n    if order.kind",
        "    if order.kind",
        RUNS,
    ),
    "no answer's signature is asked for": (
        "server/exchange.py",
        "length=length, identities=self._identities)",
        "length=length)",
        RUNS,
    ),
    "orders go out unsigned": (
        "server/exchange.py",
        "wire.order_record(order, self._key)",
        "wire.order_record(order)",
        RUNS,
    ),
    "answers go out unsigned": (
        "client/app.py",
        "wire.answer_record(answer, membership.speaks_as(site.folder))",
        "wire.answer_record(answer)",
        RUNS,
    ),
    "a site outside the roster is heard": ("common/wire.py", "if answer.site not in identities:", "if False:", WIRE),
    "any key may sign an answer": (
        "common/wire.py",
        "identities[answer.site])",
        "next(iter(identities.values())))",
        WIRE,
    ),
    "a signature is any 64 bytes": (
        "common/wire.py",
        "    identity.verify(public, name, _signed(record, name), signature)\n",
        "",
        WIRE,
    ),
    "an answer can stand for an order": (
        "common/wire.py",
        '_demand_signed(record, "order", public)',
        '_demand_signed(record, "answer", public)',
        WIRE,
    ),
    "the header is not signed": ("common/wire.py", '{"header": header, "session"', '{"header": b"", "session"', WIRE),
    "the protocol's message is not signed": (
        "common/wire.py",
        '"session": _session(record), "numbers"',
        '"session": b"", "numbers"',
        WIRE,
    ),
    "the numbers are not signed": ("common/wire.py", '"numbers": numbers}', '"numbers": b""}', WIRE),
    "a header may have any number of heads": ("common/wire.py", 'if len(header["heads"]) > MOST_HEADS or', "if", WIRE),
    "heads are left out of orders": ("server/federation.py", "            heads=self._heads.told(),\n", "", RUNS),
    "heads are left out of proposals": ("server/proposals.py", "            heads=heads(),\n", "", RUNS),
    "answers' heads are not heard": (
        "server/federation.py",
        "        self._heads.hear(answer.heads, site=answer.site, followed=followed)\n",
        "",
        RUNS,
    ),
    "a site does not say where its ledger stands": (
        "client/app.py",
        "if (head := audit.ledger_head(site)) is not None:",
        "if (head := audit.ledger_head(site)) is None:",
        RUNS,
    ),
    "a site does not tell what it remembers": (
        "client/app.py",
        'if answer.kind == "propose" or answer.reason is not Reason.OK:',
        "if False:",
        RUNS,
    ),
    "a site takes no heads": (
        "client/app.py",
        "        heads.take(site, order.heads, roster.identities)\n",
        "        pass\n",
        RUNS,
    ),
    "what others remember is not asked of the ledger": (
        "client/private.py",
        "told = () if key is None else heads.own(site, key.public)",
        "told = ()",
        RUNS,
    ),
    "an order may hide a site": ("client/heads.py", "in shown.get(name, ())):", "in shown.get(name, (old,))):", KEPT),
    "an order may show an older head": ("client/heads.py", "head.follows(old) for head", "True for head", KEPT),
    "anybody's heads are kept": (
        "client/heads.py",
        "map(Head.of, told) if head.said_by(identities.get(head.site))",
        "map(Head.of, told)",
        KEPT,
    ),
    "heads of keys that are gone are kept": (
        "client/heads.py",
        "for head in heads if head.said_by(identities.get(head.site))",
        "for head in heads",
        KEPT,
    ),
    "heads are not written down": ("client/heads.py", "    if shown != known:", "    if False:", KEPT),
    "another record of the same number follows": (
        "common/anchor.py",
        "or (self.sequence, self.hash) == (other.sequence, other.hash)",
        "or self.sequence == other.sequence",
        ANCHOR,
    ),
    "an older record follows": (
        "common/anchor.py",
        "return self.sequence > other.sequence or",
        "return self.sequence != other.sequence or",
        ANCHOR,
    ),
    "a head of any site": ("common/anchor.py", '{"site": site, "line": line}', '{"line": line}', ANCHOR),
    "a head of any record": ("common/anchor.py", '{"site": site, "line": line}', '{"site": site}', ANCHOR),
    "the server takes anybody's heads": (
        "server/heads.py",
        "if head.said_by(self._identities.get(head.site)):",
        "if True:",
        TOLD,
    ),
    "the server keeps heads of keys that are gone": ("server/heads.py", "if self._may_stay(head))", ")", TOLD),
    "the server forgets who left": (
        "server/heads.py",
        "return head.site not in self._identities or head.said_by(self._identities[head.site])",
        "return head.said_by(self._identities.get(head.site))",
        TOLD,
    ),
    "the server keeps nothing": (
        "server/heads.py",
        "            write_atomically(self._path",
        "            (self._path",
        TOLD,
    ),
    "who refused counts as having followed": (
        "server/federation.py",
        "followed = order.heads if answer.reason is Reason.OK else ()",
        "followed = order.heads",
        RUNS,
    ),
    "the newest alone is asked of the ledger": ("client/private.py", "*told],", "*told[:1]],", RUNS),
    "one of two heads is enough": (
        "client/heads.py",
        "        for old in heads:\n",
        "        for old in heads[:1]:\n",
        KEPT,
    ),
    "one head of a site is kept": (
        "common/anchor.py",
        "found.setdefault(head.site, {})[head] = None",
        "found[head.site] = {head: None}",
        ANCHOR,
    ),
    "a later head takes an earlier one's place": (
        "server/heads.py",
        "if head.site != site or str(head) not in done]",
        "if head.site != site]",
        TOLD,
    ),
    "another site's word drops a head": (
        "server/heads.py",
        "if head.site != site or str(head) not in done]",
        "if str(head) not in done]",
        TOLD,
    ),
    "no head is ever dropped": ("server/heads.py", "if head.site != site or str(head) not in done]", "]", TOLD),
    "heads without bound": ("server/heads.py", "heads[:MOST] for name", "heads for name", TOLD),
    "the last heads push out the first": ("server/heads.py", "heads[:MOST] for name", "heads[-MOST:] for name", TOLD),
    "a site without a roster follows anybody": (
        "client/app.py",
        "    if roster is None:\n        raise",
        "    if roster is None:\n        return\n        raise",
        RUNS,
    ),
    "an expired roster is good": ("client/app.py", "if not time.time() < roster.expires:", "if False:", RUNS),
    "the one who is there is asked for nothing": (
        "server/federation.py",
        'if state.outcome == "abandoned":  # what',
        "if False:  # what",
        RUNS,
    ),
}

test_a_planted_fault_is_noticed = noticed(FAULTS)
test_each_fault_has_its_one_place = placed(FAULTS)
test_without_a_fault_the_tests_pass = unharmed(FAULTS)
