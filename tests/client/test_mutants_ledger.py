"""Planted faults in chain, ledger and store: each must make a test fail."""

from mutants import noticed, placed, unharmed

CHAIN, RELEASED = ["tests/client/test_chain.py"], ["tests/client/test_released.py"]
LEDGER = [f"tests/client/test_{name}.py" for name in ("ledger", "ledger_copies", "ledger_model")]
TESTS = {"chain.py": CHAIN, "chain_lines.py": CHAIN, "released.py": RELEASED}  # the others: LEDGER

FAULTS: dict[str, tuple[str, str, str]] = {
    "head not written": (
        "chain.py",
        (
            '            _replace(self._folder, f"{self._name}.head", head_of(entry.anchor), durable=self._durable)\n'
            "        except"
        ),
        "        except",
    ),
    "no lock": (
        "chain.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
    ),
    "no repair": (
        "chain.py",
        "if contents.tail:",
        "if contents.tail is None:",
    ),
    "group may read": (
        "chain.py",
        "if mode & 0o077:",
        "if mode & 0o007:",
    ),
    "short write unnoticed": (
        "chain.py",
        "if os.write(descriptor, line) != len(line):",
        "if os.write(descriptor, line) < 0:",
    ),
    "descriptor used again after a failure": (
        "chain.py",
        (
            "        except OSError as error:\n"
            "            self._forget_descriptor()\n"
            "            raise self._failed(error) from error\n"
            "        except BaseException:\n"
            "            self._forget_descriptor()\n"
            "            raise\n"
            "        self._size"
        ),
        ("        except OSError as error:\n            raise self._failed(error) from error\n        self._size"),
    ),
    "change while in use unnoticed": (
        "chain.py",
        "if self._entries and not contents.contains(self.anchor):",
        "if False:",
    ),
    "hash without the body": (
        "chain_lines.py",
        "hashlib.sha256(line)",
        "hashlib.sha256(line.split(b'\"body\"')[0])",
    ),
    "previous hash not compared": (
        "chain_lines.py",
        ' or values["previous"] != previous',
        "",
    ),
    "constant nonce": (
        "chain_lines.py",
        "secrets.token_hex(16)",
        '"0" * 32',
    ),
    "any head behind the last": (
        "chain_lines.py",
        "if named.sequence < len(entries) - 2:",
        "if False:",
    ),
    "damage taken for a torn line": (
        "chain_lines.py",
        "if tail and not _left_by_crash(",
        "if False and not _left_by_crash(",
    ),
    "short anchors": (
        "chain_lines.py",
        "if len(anchor.hash) < SHORT or not",
        "if not",
    ),
    "open allocations not held": (
        "ledger_state.py",
        "self.reserved[pool] - open_",
        "self.reserved[pool]",
    ),
    "plan compared with the limit alone": (
        "ledger_state.py",
        "if allocation.left > available:",
        "if allocation.left > state.genesis.limit:",
    ),
    "budget compared before the charge": (
        "ledger_state.py",
        "if record.amount > allocation.left or",
        "if allocation.left <= 0 or",
    ),
    "close returns what was reserved": (
        "ledger_state.py",
        "return replace(state, allocations=kept,",
        "return replace(state, reserved=dict.fromkeys(state.reserved, 0), allocations=kept,",
    ),
    "moved ledger goes on": (
        "ledger.py",
        "if self._state.moved:",
        "if False:",
    ),
    "a closed study comes back with a new budget": (
        "ledger_state.py",
        "reserved = state.closed.get((record.study, record.pool), 0)",
        "reserved=0",
    ),
    "a ledger without its kept anchor": (
        "ledger.py",
        "        if begun:",
        "        if False:",
    ),
    "unprotected study not told": (
        "ledger_state.py",
        "        if self.unprotected:",
        "        if not self.pending and False:",
    ),
    "larger delta": (
        "ledger_state.py",
        "if record.delta > state.genesis.delta:",
        "if False:",
    ),
    "cost rounded down": (
        "ledger_records.py",
        "math.ceil(Fraction",
        "math.floor(Fraction",
    ),
    "trained before the charge": (
        "ledger.py",
        ("reserve = self.reserve(query, event)\n            update = bytes(compute())"),
        ("update = bytes(compute())\n            reserve = self.reserve(query, event)"),
    ),
    "nothing committed": (
        "ledger.py",
        "            self.commit(reserve, update)\n",
        "",
    ),
    "any patient key": (
        "ledger.py",
        "or state.genesis.key != fingerprint(patient_key, state.genesis.cohort)",
        "",
    ),
    "anchor forgotten": (
        "ledger.py",
        ("            self._old = anchor\n            self._demand_newest()"),
        "            raise LedgerError('older copy')",
    ),
    "a reserve from before the crash": (
        "ledger.py",
        " or reserve not in self._waiting",
        "",
    ),
    "served again after open": (
        "ledger.py",
        ("            self._append(Forget(query=query.sha256))\n        self._released.forget(query)"),
        ("            pass\n        self._released.forget(query)"),
    ),
    "released for other weights": (
        "released.py",
        "self.round, self.weights]",
        "self.round]",
    ),
    "stored bytes not verified": (
        "released.py",
        "if hashlib.sha256(update).hexdigest() != digest:",
        "if False:",
    ),
    "older rounds kept": (
        "released.py",
        "< query.round]",
        "< 0]",
    ),
    "backup needs no anchor": (
        "ledger_copy.py",
        "if anchor is None and not state.moved:",
        "if False:",
    ),
    "cut backup accepted": (
        "ledger_copy.py",
        "if begun + line != _copy(contents):",
        "if False:",
    ),
}
PLANTED = {name: (f"client/{file}", old, new, TESTS.get(file, LEDGER)) for name, (file, old, new) in FAULTS.items()}

test_a_planted_fault_is_noticed = noticed(PLANTED)
test_each_fault_has_its_one_place = placed(PLANTED)
test_without_a_fault_the_tests_pass = unharmed(PLANTED)
