"""Faults planted into the gate and the worker: each must be noticed by a test of its own room."""

import pytest
from mutants import survives

GATE, WORKER = ("tests/server/test_gate.py",), ("tests/client/test_worker.py",)
FOLDER, ENROLMENT = ("tests/server/test_folder.py",), ("tests/client/test_enrolment.py",)

FAULTS = {
    "any path": ("server/gate.py", "or request.target not in PATHS", "", GATE),
    "any method": ("server/gate.py", 'request.method != b"POST" or ', "", GATE),
    "any stranger": ("server/gate.py", "if line is None or not node_key.signed(", "if line is None and (", GATE),
    "a known key without its signature": (
        "server/gate.py",
        'or not node_key.signed(line, headers.get(TIME, b""), signature)',
        "",
        GATE,
    ),
    "all headers pass": ("server/gate.py", "if name in PASSED]", "if name not in (b'host', b'content-length')]", GATE),
    "a header twice": ("server/gate.py", "names.count(name) > 1", "names.count(name) > 2", GATE),
    "any length": ("server/gate.py", "> BODY_LIMIT", "> 10**12", GATE),
    "no limit for a peer": ("server/gate.py", "if self._peers[address] > PER_ADDRESS:", "if False:", GATE),
    "idle for ever": ("server/gate.py", "asyncio.timeout(IDLE)", "asyncio.timeout(None)", GATE),
    "half a request for ever": ("server/gate.py", "asyncio.timeout(EXCHANGE)", "asyncio.timeout(None)", GATE),
    "flower's failures as they are": ("server/gate.py", "503 if event.status_code >= 500 else", "", GATE),
    "old tls": ("server/gate.py", "ssl.TLSVersion.TLSv1_3", "ssl.TLSVersion.TLSv1_2", GATE),
    "other tasks are worked on": ("client/worker.py", "if kind != TaskType.CLIENT_APP:", "if False:", WORKER),
    "the text of an error leaves": (
        "client/worker.py",
        "Message(Error(0, str(reason)), reply_to=header)",
        "Message(Error(0, str(reason) + ' '), reply_to=header)",
        WORKER,
    ),
    "an order too late": ("client/worker.py", "header.metadata.ttl <= time.time()", "header.metadata.ttl <= 0", WORKER),
    "no limit of a message": ("client/worker.py", "if left < 0:", "if False:", WORKER),
    "a stale message is waited for": ("client/worker.py", "(other := acquire()).token", "False", WORKER),
    "a stale message is answered": (
        "client/worker.py",
        'client.PushTaskOutput(PushTaskOutputRequest(sub_status="failed", details=""))\n            raise',
        "_push(claim, _refusal(pulled[0], Reason.LATE))\n            raise",
        WORKER,
    ),
    "begun before the message is there": (
        "client/worker.py",
        "        pulled = _header(client)\n        given = client.PullTaskInput(PullTaskInputRequest())",
        "        given = client.PullTaskInput(PullTaskInputRequest())\n        pulled = _header(client)",
        WORKER,
    ),
    "any request": (
        "server/folder.py",
        'signature=body.binary(values["signature"], 64),',
        "signature=bytes(64),",
        FOLDER,
    ),
    "keys for all to read": ("server/folder.py", "0o600 if private else 0o644", "0o644", FOLDER),
    "an older roster": ("client/enrolment.py", "new.version < old.version", "False", ENROLMENT),
    "pinned without a word": ("client/run_cli.py", "if not (yes or by_itself or", "if not (True or", ENROLMENT),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str) -> None:
    file, old, new, tests = FAULTS[fault]
    assert not survives(file, old, new, tests)
