"""Planted faults in what keeps the cohorts of one hospital apart: each must make a test fail."""

from mutants import noticed, placed, unharmed

COHORTS = ["tests/client/test_cohorts.py"]

_PUT = """        sync(temporary)
        os.replace(temporary, folder / NAME)
        temporary = None
        sync(folder)
"""
_ENTER = '            database.executemany("INSERT INTO meta VALUES (?, ?)", enter(patients).items())\n'
_ADD = "        own = known.add(self.site.folder, patients, patient_key=self.site.patient_key)\n"

FAULTS: dict[str, tuple[str, str, str]] = {
    "listed after the index": (
        "index.py",
        f'    {_ENTER}            database.execute("COMMIT")\n{_PUT}',
        (
            f'            database.execute("COMMIT")\n{_PUT}        if enter is not None:\n'
            f"            with closing(sqlite3.connect(folder / NAME, isolation_level=None)) as database:\n    {_ENTER}"
        ),
    ),
    "files of other cohorts used": (
        "sources.py",
        "        if elsewhere is not None and elsewhere(patient):\n            with suppress",
        "        if False:\n            with suppress",
    ),
    "arrays of other cohorts used": (
        "sources.py",
        "            if elsewhere is not None and elsewhere(patient):\n                yield Dropped(path=path.name",
        "            if False:\n                yield Dropped(path=path.name",
    ),
    "the index of before taken as compared": (
        "index.py",
        'others = {} if cohorts is None else {"cohorts": cohorts.fingerprint()}',
        "others = {}",
    ),
    "names not written where nothing else is": (
        "index.py",
        "                    cohorts.record()",
        "                    pass",
    ),
    "only one cohort compared": (
        "apart.py",
        "for o in self.others)",
        "for o in self.others[:1])",
    ),
    "another cohort's hash under this key": (
        "apart.py",
        'hashed(o.site.patient_key, "patient", patient)',
        'hashed(self.site.patient_key, "patient", patient)',
    ),
    "only one direction": (
        "apart.py",
        "        for folder in group:\n            name_cohorts",
        "        for folder in group[:1]:\n            name_cohorts",
    ),
    "named before anybody agreed": (
        "apart.py",
        "        if self._shared and not self.gives_up_shared:",
        "        self.record()\n        if self._shared and not self.gives_up_shared:",
    ),
    "listed before the names": (
        "apart.py",
        f"        self.record()\n{_ADD}",
        f"{_ADD}        self.record()\n",
    ),
    "patients in both lost unseen": (
        "apart.py",
        "if self._shared and not self.gives_up_shared:",
        "if False:",
    ),
    "the others not locked": (
        "apart.py",
        "sorted({folder.resolve(), *group})",
        "[folder.resolve()]",
    ),
    "locks in an order of one's own": (
        "apart.py",
        "sorted({folder.resolve(), *group})",
        "(folder.resolve(), *group)",
    ),
    "a copy of the folder for another cohort": (
        "apart.py",
        "if any(other.site.patient_key == site.patient_key for other in others):",
        "if False:",
    ),
    "unreadable other passed over": (
        "siblings.py",
        "            waiting += opened(folder, other).other_cohorts",
        (
            "            try:\n"
            "                waiting += opened(folder, other).other_cohorts\n"
            "            except DataError:\n"
            "                found.pop()"
        ),
    ),
    "the others' others not compared": (
        "siblings.py",
        "            waiting += opened(folder, other).other_cohorts",
        "            opened(folder, other)",
    ),
    "a ledger without a comparison": (
        "siblings.py",
        "is_compared = index is None or known.mark(other.patient_key) in index.compared",
        "is_compared = True",
    ),
    "a ledger is no matter of other cohorts": (
        "cohort.py",
        "            siblings.demand_apart(own)\n",
        "",
    ),
    "a ledger without a list": (
        "cohort.py",
        "            known.ensured(site, patient_key=own.patient_key, has_ledger=False)\n",
        "",
    ),
    "a new key beside an old list": (
        "cohort.py",
        "    if known.exists(site):",
        "    if False:",
    ),
    "nobody new is listed": (
        "known.py",
        "        if new:",
        "        if False:",
    ),
    "an empty list where one was lost": (
        "known.py",
        "        if not lost:",
        "        if True:",
    ),
    "a lost list begun from its index": (
        "known.py",
        "lost = has_ledger if index is None else index.listed is not None",
        "lost = has_ledger if index is None else False",
    ),
    "an empty list beside a ledger": (
        "known.py",
        "lost = has_ledger if index is None else index.listed is not None",
        "lost = False if index is None else index.listed is not None",
    ),
    "an earlier index forgotten": (
        "known.py",
        "sorted(index.patients) if index else []",
        "[]",
    ),
    "an older list": (
        "known.py",
        "if index.listed is not None and not chain.read(site / FOLDER, NAME).contains(index.listed):",
        "if False:",
    ),
    "another key's list": (
        "known.py",
        'if contents.entries[0].body.get("key") != mark(patient_key):',
        "if False:",
    ),
    "the list not copied": (
        "ledger_copy.py",
        "    if not known.exists(site):\n        return b",
        "    if True:\n        return b",
    ),
    "the list not restored": (
        "ledger_copy.py",
        "    if listed is not None:",
        "    if False:",
    ),
    "an older list is good enough": (
        "ledger_copy.py",
        "    elif not chain.read(site / known.FOLDER, known.NAME).contains(listed.entries[-1].anchor):",
        "    elif False:",
    ),
}
PLANTED = {name: (f"client/{file}", old, new, COHORTS) for name, (file, old, new) in FAULTS.items()}

test_a_planted_fault_is_noticed = noticed(PLANTED)
test_each_fault_has_its_one_place = placed(PLANTED)
test_without_a_fault_the_tests_pass = unharmed(PLANTED)
