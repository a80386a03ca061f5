"""Faults planted into the server's rounds under secure aggregation: each is noticed."""

from mutants import noticed, placed, unharmed

FILE, TESTS = "server/secure.py", ["tests/server/test_secure.py"]

FAULTS = {
    "the blamed asked again": ("if site not in self._blamed}", "if site}"),
    "the blamed not remembered": ("            self._blamed |= set(error.blamed)\n", ""),
    "the blamed not named": ("attempt.replied(site, Reason.MALFORMED)", "pass"),
    "a number used twice": ("self._number += 1", "self._number += 0"),
    "numbers from the beginning": ("int(time.time() * 1000)", "0"),
    "a session used twice": ("session, self._ready = self._ready, None", "session = self._ready"),
    "an unready session used": ("if session is None or not session.ready:", "if session is None:"),
    "the next session thrown away": ("            self.take_up(following)\n", ""),
    "deadline ignored": ("min(self._study.study.round_deadline, most)", "most"),
    "re-entry waited for till the deadline": (
        "min(self._study.study.round_deadline, most)",
        "self._study.study.round_deadline",
    ),
    "openings beyond the last needed thrown away": ("grace=GRACE", "grace=0.0"),
    "garbage raises": (
        "except MessageError as error:\n            raise SessionFailed",
        "except KeyError as error:\n            raise SessionFailed",
    ),
    "a vector added twice": (
        'if session.take_header(messages["header"], vector=vector):',
        'if session.take_header(messages["header"], vector=vector) or True:',
    ),
    "a vector without its header": (
        'if session.take_header(messages["header"], vector=vector):',
        'if "header" not in messages or session.take_header(messages["header"], vector=vector):',
    ),
    "a vector not counted": ("            self.replied(site, Reason.OK)\n", ""),
    "an absent site counted as present": (
        "self.replied(site, Reason.LATE)  # was away",
        "self.replied(site, Reason.OK)  # was away",
    ),
    "keys of the next session not taken": (
        '            if "keys" in messages:\n                following.take_keys(messages["keys"])\n',
        "",
    ),
    "waiting for a lost round": (
        "words=self._run.words(self._kind), enough=lost)",
        "words=self._run.words(self._kind))",
    ),
    "words of another length": ("words=self._run.words(self._kind), enough", "words=0, enough"),
    "shares of everybody asked of the missing": (
        "asked = self._of(survivors.names)",
        "asked = self._of(session.holders)",
    ),
    "shares of the missing asked of all": ("self._of(session.confirmers)", "self._of(survivors.names)"),
    "shares of the missing not asked for": ("if survivors.missing:", "if False:"),
    "openings not taken": ('                session.take_opened(messages["opened"])\n', "                pass\n"),
    "waiting for every opening": (
        "self._exchange(orders, take, enough=lambda: session.openable or session.confirmed)",
        "self._exchange(orders, take)",
    ),
    "waiting for every confirmation": ("session.openable or session.confirmed", "session.openable"),
    "waiting for every share of the missing": (
        'session.take_opened(m["opened"]), enough=lambda: session.openable)',
        'session.take_opened(m["opened"]))',
    ),
    "masks left in the sum": ("        total.unmask(session.streams())\n", ""),
    "divided by those who were asked": (
        "self._kind, sites=len(survivors.names))",
        "self._kind, sites=len(session.holders))",
    ),
    "no way back for the missing": ("        self._re_enter(session, following)\n", ""),
    "re-entry without end": (", most=GRACE)", ")"),
    "a lost session not closed": ("            self._close(session, following, listed)\n", ""),
    "after closing all begins anew": ("        self._run.take_up(following)\n", ""),
    "closing asked of those who know nothing": (
        "self._of(session.masked)  # others",
        "self._of(session.holders)  # others",
    ),
    "opening asked where closing is meant": ("session.ask_closing(listed)", "session.ask_opening(listed)"),
    "shares not asked of the newcomers": ("        orders |= self._strays(following, listed, asked)\n", ""),
    "weights in every exchange": (
        'weights=None, weights_hash="", prior=(), heads=(), session=session',
        "session=session",
    ),
    "bytes of the last exchange alone": (
        "self.tally.add(site, received)",
        "self.tally = Tally()\n            self.tally.add(site, received)",
    ),
    "a refused answer without a verdict": (
        "                    reason = Reason.MALFORMED\n",
        "                    pass\n",
    ),
}
PLANTED = {name: (FILE, old, new, TESTS) for name, (old, new) in FAULTS.items()}

test_a_planted_fault_is_noticed = noticed(PLANTED)
test_each_fault_has_its_one_place = placed(PLANTED)
test_without_a_fault_the_tests_pass = unharmed(PLANTED)
