"""Faults planted into the gate, the worker and what is around them: each must be noticed by a test of its own room."""

from mutants import noticed, placed, unharmed

GATE, WORKER = ("tests/server/test_gate.py",), ("tests/client/test_worker.py",)
PROOF, LOOP = ("tests/server/test_proof.py",), ("tests/client/test_supernode_loop.py",)
ANSWERS, PROPOSALS = ("tests/server/test_answers.py",), ("tests/server/test_proposals.py",)
FOLDER, ENROLMENT = ("tests/server/test_folder.py",), ("tests/client/test_enrolment.py",)

FAULTS = {
    "any path": ("server/gate.py", "or request.target not in PATHS", "", GATE),
    "any method": ("server/gate.py", 'request.method != b"POST" or ', "", GATE),
    "any stranger": ("server/proof.py", "if line is None or not node_key.signed(", "if line is None and (", PROOF),
    "a known key without its signature": (
        "server/proof.py",
        "or not node_key.signed(line, said, signature)",
        "",
        PROOF,
    ),
    "a proof that isn't asked for": ("server/gate.py", "if fault is not None:", "if False:", GATE),
    "a time for ever": ("server/proof.py", "-AHEAD < now - signed < BEHIND", "-AHEAD < now - signed", PROOF),
    "a time far ahead": ("server/proof.py", "-AHEAD < now - signed", "-4000 < now - signed", PROOF),
    "a time without its zone": ("server/proof.py", " if moment.tzinfo is not None else None", "", PROOF),
    "a time twice": ("server/proof.py", "if used in self._used or", "if", PROOF),
    "a time of before": ("server/proof.py", " or signed < self._since", "", PROOF),
    "one site's time is another's": ("server/proof.py", "sha256(key + said)", "sha256(said)", PROOF),
    "forgotten too soon": ("server/proof.py", "now - AHEAD - BEHIND", "now - BEHIND + 1", PROOF),
    "never forgotten": ("server/proof.py", "< before:", "< -before:", PROOF),
    "all headers pass": ("server/gate.py", "if name in PASSED]", "if name not in (b'host', b'content-length')]", GATE),
    "a header twice": ("server/gate.py", "names.count(name) > 1", "names.count(name) > 2", GATE),
    "any length": ("server/gate.py", "> BODY_LIMIT", "> 10**12", GATE),
    "no limit for a peer": ("server/gate.py", "if self._peers[counted] > PER_ADDRESS:", "if False:", GATE),
    "no room for who comes": ("server/gate.py", "        oldest.cancel()\n", "", GATE),
    "who has proved who he is makes room": (
        "server/gate.py",
        "self._unproved.pop(own, None)\n            self._proved.add(own)",
        "pass",
        GATE,
    ),
    "each address of a network is a peer": ("server/gate.py", "(host, 64)", "(host, 128)", GATE),
    "idle for ever": ("server/gate.py", "asyncio.timeout(IDLE)", "asyncio.timeout(None)", GATE),
    "half a request for ever": ("server/gate.py", "asyncio.timeout(EXCHANGE)", "asyncio.timeout(None)", GATE),
    "flower's failures as they are": ("server/gate.py", "503 if answer.status_code >= 500 else", "", GATE),
    "an answer lost with its connection": ("server/gate.py", "while await reader.read(PIECE):", "while False:", GATE),
    "all large exchanges at once": ("server/upstream.py", "asyncio.Semaphore(AT_ONCE)", "asyncio.Semaphore(99)", GATE),
    "every exchange is a large one": ("server/upstream.py", "if target not in LARGE and", "if False and", GATE),
    "large by its path alone": ("server/upstream.py", " and request.seek(0, 2) <= _SMALL", "", GATE),
    "who has hung up is passed on": ("server/upstream.py", "if gone():", "if False:", GATE),
    "a time that has passed ends a site": ("server/gate.py", "if status == 401 and not", "if False and not", GATE),
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
    "a stale message is waited for": ("client/worker.py", "(other := another()).token", "False", WORKER),
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
    "any other task says that an order is lost": (
        "client/worker.py",
        " and other.task.pending_at > claim.since",
        "",
        WORKER,
    ),
    "a dropped order's answer passes for the next one's": (
        "client/supernode_loop.py",
        "while orders and orders[-1] in state.msg_store:",
        "while False:",
        LOOP,
    ),
    "a piece that never comes is waited for": ("client/supernode_loop.py", 'if content == b"":', "if False:", LOOP),
    "a refusal in another's name ends a run": (
        "server/proposals.py",
        "self._refused.pop(site, None)",
        "pass",
        PROPOSALS,
    ),
    "the first that speaks in a name is that site": (
        "server/proposals.py",
        "if self._sites_of is not None and site !=",
        "if False and site !=",
        PROPOSALS,
    ),
    "keys are forgotten with the SuperLink": (
        "server/proposals.py",
        "            with suppress(RunError):\n                self._known",
        "            self._known = {}\n            with suppress(RunError):\n                self._known",
        PROPOSALS,
    ),
    "a silent node is waited for in every round": (
        "server/proposals.py",
        " if self._silent[node] % PATIENT == 0}",
        "}",
        PROPOSALS,
    ),
    "too few sites are hurried": (
        "server/proposals.py",
        "not awaited and len(self._nodes) >= self._study.study.min_sites",
        "not awaited",
        PROPOSALS,
    ),
    "a site without an answer is offline": (
        "server/proposals.py",
        "received.answer.site if received.answer else own",
        "received.answer.site if received.answer else None",
        PROPOSALS,
    ),
    "another release is malformed": (
        "common/wire.py",
        "raise WireVersionError(",
        "raise MessageError(",
        ("tests/common/test_wire.py",),
    ),
    "half an answer is taken": ("server/answers.py", "if not found.object_available:", "if False:", ANSWERS),
    "a lost piece is waited for": ("server/answers.py", "return Reason.LATE", "return None", ANSWERS),
    "no limit of an answer": ("server/answers.py", "if sum(begun.sizes.values()) > self._limit:", "if False:", ANSWERS),
    "no limit of its pieces": (
        "server/answers.py",
        "if len(parts) > _PARTS + self._limit // _SMALLEST:",
        "if False:",
        ANSWERS,
    ),
    "what Flower can't read ends a run": (
        "server/answers.py",
        "except Exception as error:  # whatever",
        "except MessageError as error:  # whatever",
        ANSWERS,
    ),
    "a run that was stopped goes on": ("server/answers.py", "except httpx.HTTPError:", "except MemoryError:", ANSWERS),
    "an answer to any order": (
        "server/answers.py",
        "if header.metadata.reply_to_message_id == identifier:",
        "if True:",
        ANSWERS,
    ),
    "an array as long as its sender says": ("common/runtime.py", "if size > limit:", "if False:", ANSWERS),
    "flagged images of an older index are used": (
        "client/dataset.py",
        "if site.policy.drop_burned_in:",
        "if False:",
        ("tests/client/test_dataset.py",),
    ),
    "any request": (
        "server/folder.py",
        'signature=body.binary(values["signature"], 64),',
        "signature=bytes(64),",
        FOLDER,
    ),
    "keys for all to read": ("server/folder.py", "0o600 if private else 0o644", "0o644", FOLDER),
    "an older roster": ("client/enrolment.py", "new.version < old.version", "False", ENROLMENT),
    "pinned without a word": ("client/run_cli.py", "if not agreed:", "if False:", ENROLMENT),
}

test_a_planted_fault_is_noticed = noticed(FAULTS)
test_each_fault_has_its_one_place = placed(FAULTS)
test_without_a_fault_the_tests_pass = unharmed(FAULTS)
