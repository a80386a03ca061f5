"""Faults planted into the hospital's control: each must be noticed by a test of its own module."""

from mutants import noticed, placed, unharmed

POLICY, APPROVAL, AUDIT, DOCTOR, CHECK, OUTSIDE, SITE, UP = (
    (f"tests/client/test_{name}.py",)
    for name in ("policy", "approval", "audit", "doctor", "check", "outside", "site", "enrolment")
)

FAULTS = {
    "not a number passes": (
        "client/policy.py",
        "not privacy.epsilon <= policy.study_epsilon",
        "privacy.epsilon > 2 * policy.study_epsilon",
        POLICY,
    ),
    "spare rounds forgotten": (
        "client/policy.py",
        "rounds = study.study.rounds + study.spare_rounds",
        "rounds = study.study.rounds",
        POLICY,
    ),
    "any round": ("client/policy.py", "if not first <= round <= last:", "if not first <= round:", POLICY),
    "models without end": ("client/policy.py", "if not asked < (most :=", "if not asked < 999 + (most :=", POLICY),
    "a round that is done again counts": (
        "client/permit.py",
        " - {(order.round, order.asks)}",
        "",
        POLICY,
    ),
    "refused and yet counted": (
        "client/audit.py",
        '            elif body["reason"] == Reason.OK:',
        "            else:",
        POLICY,
    ),
    "hours of the next day forgotten": ("client/policy.py", "at >= start or at < end", "at >= start", POLICY),
    "a pattern fits the beginning of a name": ("client/policy.py", "re.fullmatch(", "re.match(", POLICY),
    "policy asked at proposals alone": (
        "client/permit.py",
        "    _both(site, study, entries)\n    moved",
        "    moved",
        POLICY,
    ),
    "lifetime limit without effect": (
        "client/allowance.py",
        "state.available(pool) - less",
        "state.available(pool)",
        POLICY,
    ),
    "answers at once": ("client/app.py", "    _wait(site)\n", "", POLICY),
    "denied and yet run": (
        "client/approval.py",
        'if found is not None and found.decision == "denied"',
        "if False",
        APPROVAL,
    ),
    "whatever waits makes room": ("client/approval.py", "if _denied(entries, file.stem)]", "]", APPROVAL),
    "the newest denial makes room": ("client/approval.py", "min(denied, key", "max(denied, key", APPROVAL),
    "the first decision counts": (
        "client/approval.py",
        "for entry in reversed(entries)",
        "for entry in entries",
        APPROVAL,
    ),
    "another study's approval counts": (
        "client/approval.py",
        ' and entry.body["study"] == study_hash',
        "",
        APPROVAL,
    ),
    "anybody may sign": ("client/approval.py", "if public not in policy.approvers:", "if False:", APPROVAL),
    "a signature for every site": ("client/approval.py", '"site": site, "study"', '"site": "", "study"', APPROVAL),
    "no signature needed": (
        "client/approval.py",
        '    if site.policy.approve == "signed":\n        try:',
        "    if False:\n        try:",
        APPROVAL,
    ),
    "answers although the log is full": (
        "client/app.py",
        "    return verdict(site, order, Reason.FAILED)  # nothing leaves",
        "    return answer  # nothing leaves",
        AUDIT,
    ),
    "texts of errors in the log": (
        "client/audit.py",
        "if isinstance(error, DataError) or not isinstance(error, FederationError):",
        "if False:",
        AUDIT,
    ),
    "foreign text in the log": (
        "client/audit.py",
        'return text if len(text) == 64 and set(text) <= _HEX else ""',
        "return text",
        AUDIT,
    ),
    "changes while paused unnoticed": (
        "client/chain.py",
        "if seen is None or self._status() != seen:",
        "if seen is None:",
        AUDIT,
    ),
    "times of change not looked at": ("client/chain.py", ", s.st_mtime_ns, s.st_ctime_ns", "", AUDIT),
    "paths in errors.log": (
        "client/site.py",
        "str(error) if isinstance(error, FederationError) else without_paths(_begun(str(error)))",
        "str(error)",
        AUDIT,
    ),
    "terminals steered by errors.log": ("client/site.py", "c if c.isprintable() else", "c or", SITE),
    "errors.log for all": ("client/site.py", "os.open(path, how, 0o600)", "os.open(path, how, 0o666)", SITE),
    "a roster below the policy passes": ("client/check.py", ", min_sites=own.min_sites", "", CHECK),
    "secrets that are a group's": (
        "client/halves.py",
        'folder / "runtime.key", 0o077',
        'folder / "runtime.key", 0o000',
        UP,
    ),
    "docstrings are vocabulary": ("client/redaction.py", " and node not in said", "", DOCTOR),
    "years are shown": ("client/redaction.py", "_DIGITS = 3", "_DIGITS = 4", DOCTOR),
    "approvers in the bundle": ("client/doctor.py", '_NEVER = ("approvers",)', "_NEVER = ()", DOCTOR),
    "exact counts in the bundle": ("client/site.py", 'return int(float(f"{number:.0e}"))', "return number", DOCTOR),
    "factor of two": ("client/check.py", "OFF = 1.5", "OFF = 2.0", CHECK),
    "clock of five seconds": ("client/surroundings.py", "AHEAD = 3.0", "AHEAD = 5.0", CHECK),
    "answers without their line": (
        "client/app.py",
        "return _attested(site, answer, audit.answered(site, answer, wrong))",
        "audit.answered(site, answer, wrong)\n        return answer",
        AUDIT,
    ),
    "any server is believed": (
        "client/outside.py",
        "trust = ssl.create_default_context(cafile=str(connection.server_root))",
        "trust = ssl._create_unverified_context()",
        OUTSIDE,
    ),
    "a copy of the secret is not seen": (
        "client/executors.py",
        "file == secret or (wanted and _content(file) == wanted)",
        "file == secret",
        OUTSIDE,
    ),
}

test_a_planted_fault_is_noticed = noticed(FAULTS)
test_each_fault_has_its_one_place = placed(FAULTS)
test_without_a_fault_the_tests_pass = unharmed(FAULTS)
