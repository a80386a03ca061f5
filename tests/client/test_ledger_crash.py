"""kill -9 at every write, fsync, rename and unlink of every operation: the reloaded ledger never says less than was
released.

The operations run in real processes: a small server forks one for each kill.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client import ledger_copy
from client.chain_lines import ChainError
from client.ledger import Ledger, create
from client.ledger_records import UNIT, BudgetError, LedgerError
from client.released import Query

KEY = bytes(range(32))
QUERY = Query(study="one", pool="train", round=1, weights="b" * 64)
ORDERS = 4

SERVER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from client import ledger_copy
from client.ledger import Ledger, create
from client.released import Query

KEY = bytes(range(32))
QUERY = Query(study="one", pool="train", round=1, weights="b" * 64)

def child(folder, action, kill_at):
    place, calls = Path(folder), iter(range(10**6))
    def point():
        if next(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    def before(name):
        real = getattr(os, name)
        def call(*arguments, **options):
            point()
            return real(*arguments, **options)
        setattr(os, name, call)
    def train():
        with open(place.parent / "trained", "ab") as file:
            file.write(b"x")
        point()
        return b"update of process %d" % os.getpid()
    def send(update):
        point()
        (place.parent / "sent").write_bytes(update)
    def arm():
        for name in ("write", "fsync", "replace", "unlink", "mkdir"):
            before(name)
    if action == "create":
        arm()
        create(place, patient_key=KEY, pools={"train": 1.0}, order=3.86, limit=4.0, epsilon=8.0, delta=1e-5,
               nominal_patients=300)
        return
    if action == "move":
        arm()
        ledger_copy.move(place, place.parent / "copy", patient_key=KEY)
        return
    if action == "open":
        arm()
    ledger = Ledger(place, patient_key=KEY, cost=lambda event, order: event["cost"])
    arm()
    if action == "release":
        send(ledger.release(QUERY, {"cost": 1.0}, train))
    elif action == "later":
        send(ledger.release(replace(QUERY, round=2), {"cost": 1.0}, train))
    elif action == "close":
        ledger.close_study("one")
    elif action == "forget":
        ledger.forget(QUERY)
    point()

for line in sys.stdin:
    folder, action, kill_at = line.rstrip("\\n").split("\\t")
    process = os.fork()
    if not process:
        try:
            child(folder, action, int(kill_at))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    print(os.waitpid(process, 0)[1], flush=True)
"""

Killed = Callable[[Path, str, int], bool]


@pytest.fixture(scope="module")
def killed() -> Iterator[Killed]:
    """Do something in a process that is killed at its n-th step; whether it came so far."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None

        def run(folder: Path, action: str, kill_at: int) -> bool:
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write(f"{folder}\t{action}\t{kill_at}\n")
            server.stdin.flush()
            status = int(server.stdout.readline())
            assert status in (0, 9), "the child failed: see its standard error"
            return status == 9

        yield run
        server.stdin.close()


def made(folder: Path) -> Path:
    values = {"pools": {"train": 1.0}, "order": 3.86, "limit": 4.0, "epsilon": 8.0, "delta": 1e-5}
    create(folder, patient_key=KEY, nominal_patients=300, **values)  # type: ignore[arg-type]
    with opened(folder) as ledger:
        ledger.allocate("one", {"train": [({"cost": 1.0}, ORDERS)]}, epsilons={"train": 3.0}, delta=1e-5)
    return folder


def opened(folder: Path) -> Ledger:
    return Ledger(folder, patient_key=KEY, cost=lambda event, order: float(event["cost"]))


def every_kill(tmp_path: Path, killed: Killed, action: str, prepare: Callable[[Path], object]) -> Iterator[Path]:
    """The ledger's folder after a kill at each step of an action, the last time after none."""
    for kill_at in range(200):
        folder = tmp_path / str(kill_at) / "state"
        folder.parent.mkdir()
        prepare(folder)
        hit = killed(folder, action, kill_at)
        yield folder
        if not hit:
            assert kill_at > 3, "the action was never killed"
            return
    raise AssertionError("the action has no end")


def marks(folder: Path, name: str) -> bytes:
    path = folder.parent / name
    return path.read_bytes() if path.exists() else b""


def test_a_release_killed_anywhere_is_never_charged_less_than_it_released(tmp_path: Path, killed: Killed) -> None:
    seen = set()
    for folder in every_kill(tmp_path, killed, "release", made):
        trained, sent = len(marks(folder, "trained")), marks(folder, "sent")
        with opened(folder) as ledger:
            charged = ledger.state.reserved["train"] // UNIT
            assert charged >= trained >= bool(sent)
            assert ledger.state.available("train") == 0  # a reserve stays within the allocation
            stored = ledger.stored(QUERY)
            assert stored is not None or not sent
            update = ledger.release(QUERY, {"cost": 1.0}, lambda: b"anew")
            assert update == (sent or stored or b"anew")
            after = ledger.state.reserved["train"] // UNIT
            assert after == charged + (stored is None)
            assert ledger.release(QUERY, {"cost": 1.0}, lambda: b"never") == update
            seen.add((charged, trained, stored is not None, bool(sent)))
    # Killed before the reserve, between reserve and training, between training and commit, before and after the reply.
    assert seen >= {
        (0, 0, False, False),
        (1, 0, False, False),
        (1, 1, False, False),
        (1, 1, True, False),
        (1, 1, True, True),
    }


def release_first(folder: Path) -> None:
    made(folder)
    with opened(folder) as ledger:
        (folder.parent / "first").write_bytes(ledger.release(QUERY, {"cost": 1.0}, lambda: b"first"))


def test_a_later_round_killed_anywhere_leaves_the_earlier_answer_or_none(tmp_path: Path, killed: Killed) -> None:
    for folder in every_kill(tmp_path, killed, "later", release_first):
        with opened(folder) as ledger:
            charged = ledger.state.reserved["train"] // UNIT
            assert charged >= 1 + len(marks(folder, "trained"))
            assert ledger.stored(QUERY) in (b"first", None)
            update = ledger.release(QUERY, {"cost": 1.0}, lambda: b"anew")
            assert update == b"first" or ledger.state.reserved["train"] // UNIT == charged + 1


def test_a_forget_killed_anywhere_is_done_or_not_begun_and_once_done_for_good(tmp_path: Path, killed: Killed) -> None:
    answers = []
    for folder in every_kill(tmp_path, killed, "forget", release_first):
        with opened(folder) as ledger:
            update = ledger.release(QUERY, {"cost": 1.0}, lambda: b"anew")
            assert ledger.state.reserved["train"] == (1 if update == b"first" else 2) * UNIT
            answers.append(update)
    assert answers == sorted(answers, reverse=True) and set(answers) == {b"first", b"anew"}


def test_a_close_killed_anywhere_returns_the_rest_once_or_not(tmp_path: Path, killed: Killed) -> None:
    for folder in every_kill(tmp_path, killed, "close", release_first):
        with opened(folder) as ledger:
            assert ledger.state.reserved["train"] == UNIT
            assert ledger.state.available("train") in (0, 3 * UNIT)
            if ledger.state.available("train"):
                with pytest.raises(BudgetError):
                    ledger.reserve(Query(study="one", pool="train", round=2, weights="b" * 64), {"cost": 1.0})


def tear(folder: Path) -> None:
    release_first(folder)
    with (folder / "ledger.jsonl").open("ab") as file:
        file.write(b'{"kind":"reserve","sequence":4,"previo')


def test_an_opening_that_repairs_killed_anywhere_is_repeated(tmp_path: Path, killed: Killed) -> None:
    for folder in every_kill(tmp_path, killed, "open", tear):
        for _ in range(2):
            with opened(folder) as ledger:
                assert ledger.state.reserved["train"] == UNIT
                assert ledger.release(QUERY, {"cost": 1.0}, lambda: b"never") == b"first"


def test_a_creation_killed_anywhere_is_repeated_or_done(tmp_path: Path, killed: Killed) -> None:
    for folder in every_kill(tmp_path, killed, "create", lambda folder: None):
        if not (folder / "ledger.jsonl").exists():
            with pytest.raises(ChainError, match="missing"):
                opened(folder)
            made(folder)
        opened(folder).close()


def test_a_move_killed_anywhere_is_repeated_or_was_not_begun(tmp_path: Path, killed: Killed) -> None:
    for folder in every_kill(tmp_path, killed, "move", made):
        copy = folder.parent / "copy"
        if copy.exists():
            with pytest.raises(LedgerError, match="moved"):
                opened(folder)
        else:
            ledger_copy.move(folder, copy, patient_key=KEY)
        ledger_copy.restore(folder.parent / "other", copy, patient_key=KEY, anchor=None)
        opened(folder.parent / "other").close()


def test_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    folder = made(tmp_path / "state")
    code = (
        "import sys; from pathlib import Path; from client.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), patient_key=bytes(range(32)), cost=lambda event, order: 1.0)\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(ChainError, match="another process has it open"):
            opened(folder)
        other.kill()
    opened(folder).close()
