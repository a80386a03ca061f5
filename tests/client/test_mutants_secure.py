"""Faults planted where orders meet sessions at a site: each is noticed."""

from mutants import noticed, placed, unharmed

FILE, TESTS = "client/secure.py", ["tests/client/test_secure.py"]
LOG = "        audit.sum_opened(site, study.sha256, opening)\n"
LEDGER = "        made.opened(made.orders[opening.order])\n"

FAULTS = {
    "order not tied to its session": ("if invitation.order != bytes.fromhex(order.sha256):", "if not order.sha256:"),
    "computed before the session is joined": (
        "    invitation = _joined(run, order)\n    if invitation.answer",
        "    compute(run.sessions._invitation)\n    invitation = _joined(run, order)\n    if invitation.answer",
    ),
    "computed a second time": ("if invitation.answer is not None and invitation.words is not None:", "if False:"),
    "the same rounding each time": ("key=os.urandom(32)", "key=bytes(32)"),
    "all orders kept": ("run.orders = {invitation.order: order}", "run.orders[invitation.order] = order"),
    "sessions of another run": (
        "key = _runs.setdefault(site.folder, {}), (order.run, ",
        'key = _runs.setdefault(site.folder, {}), ("", ',
    ),
    "sessions of another study": ("(order.run, study.sha256)", '(order.run, "")'),
    "sessions of another roster": (" and known.membership.roster.sha256 == place.roster.sha256:", ":"),
    "sessions of another site": ("_runs.setdefault(site.folder, {})", "_runs.setdefault(Path(), {})"),
    "an order without its run": ("if not order.run:", "if order.run is None:"),
    "a proposal answered": (
        'raise MessageError("a proposal is no part of a session")',
        "return run.sessions.keys(order.session), None",
    ),
    "an expired roster": ("now=int(time.time())", "now=0"),
    "the site's own c not asked for": ("colluding=own.colluding", "colluding=0"),
    "the site's own min_sites not asked for": ("min_sites=own.min_sites\n", "min_sites=0\n"),
    "the audit log is not told": (LOG, ""),
    "the ledger is not told": (LEDGER, ""),
    "the ledger before the audit log": (LOG + LEDGER, LEDGER + LOG),
    "the ledger of an earlier order": ("    run.opened = opened\n", ""),
    "survivors may change by one": ("min_change=own.min_change", "min_change=0"),
    "sums opened before a restart forgotten": (
        "audit.survivors(audit.entries_of(site.folder), study.sha256) if own.min_change else ()",
        "()",
    ),
    "sessions of every run kept": ("while len(runs) > RUNS:", "while len(runs) > 1000 * RUNS:"),
    "the newest run left": ("next(iter(runs))", "next(reversed(runs))"),
    "opened without confirmations": (
        "return run.sessions.reveal(order.session), None",
        "return run.sessions.open(order.session), None",
    ),
}
PLANTED = {name: (FILE, old, new, TESTS) for name, (old, new) in FAULTS.items()}

test_a_planted_fault_is_noticed = noticed(PLANTED)
test_each_fault_has_its_one_place = placed(PLANTED)
test_without_a_fault_the_tests_pass = unharmed(PLANTED)
