"""A server for many rounds and many sites: memory of executor and SuperLink, open files, threads, what lies on disk.

The server is the real one: `server up` with SuperLink, executor and gate, over TLS. The sites are stand-ins in one
process (tests/stand_ins.py): 16 SuperNodes with their workers would need some 15 GB. What sites need is not measured
here.

FEDWARD_SOAK_ROUNDS=200 takes as many rounds; the figures are printed (pytest -s).
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from deployed import Federation, enrolled, wait
from small import tiny_study

from common.layout import layout_of
from common.study import Study

pytestmark = [pytest.mark.e2e, pytest.mark.soak]

MB = 2**20
ROUNDS = int(os.environ.get("FEDWARD_SOAK_ROUNDS", "30"))
STAND_INS = Path(__file__).parent / "stand_ins.py"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a process holds at a moment: bytes of memory now and at most, open files, threads."""

    memory: int
    peak: int
    files: int
    threads: int


def look(process: int) -> Seen:
    said = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return Seen(
        memory=int(said["VmRSS"].split()[0]) * 1024,
        peak=int(said["VmHWM"].split()[0]) * 1024,
        files=len(list(Path(f"/proc/{process}/fd").iterdir())),
        threads=int(said["Threads"]),
    )


def size(path: Path) -> int:
    """Bytes of a file, with its neighbours of the same beginning (SQLite's journal), or of all files in a folder."""
    files = path.iterdir() if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_size for file in files)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    base = tmp_path_factory.mktemp("soak")
    with enrolled(base, [base / f"site-{number:02d}" for number in range(16)], join=False) as made:
        made.start_server()
        yield made


def stand_in(server: Federation, count: int) -> None:
    """So many sites: the next ones besides those that are there. (One that came again at once would be refused: Flower
    has to notice first that it was away.)
    """
    there = server.online()
    address, root = f"localhost:{server.folder.port}", server.folder.root
    if there < count:
        more = (str(site) for site in server.sites[there:count])
        server.start(f"stand-ins-{count}", str(STAND_INS), address, str(root), *more)
    wait(f"{count} sites online", lambda: server.online() == count)


def parts(server: Federation) -> dict[str, int]:
    names = {"executor": "server.executor", "SuperLink": "flower-superlink", "gate": "server.gate"}
    return {name: server.child("server", command) for name, command in names.items()}


def test_nothing_grows_over_many_rounds(server: Federation, tmp_path: Path) -> None:
    stand_in(server, 3)
    study, out = tiny_study(study={"name": "long", "rounds": ROUNDS}), tmp_path / "out"
    processes, seen = parts(server), {}
    server.submit(study, out)

    def noted() -> bool:
        """Look once after each round; true at the end."""
        found = server.events(out)
        number = max((event["round"] for event in found if event["event"] == "round"), default=0)
        if number and number not in seen:
            on_disk = {
                "database": size(server.folder.path / "flower" / "state.sqlite"),
                "checkpoints": size(out / "checkpoints") if (out / "checkpoints").exists() else 0,
                "events": size(out / "events.jsonl"),
            }
            seen[number] = {name: asdict(look(process)) for name, process in processes.items()} | {"disk": on_disk}
        return found != [] and found[-1]["event"] in ("finished", "stopped")

    wait("the end of a long run", noted, seconds=120 + 20 * ROUNDS)
    assert server.events(out)[-1]["event"] == "finished"
    first = min(number for number in seen if number >= ROUNDS // 3)
    one, other = seen[first], seen[max(seen)]
    rounds = max(seen) - first
    for name in processes:
        more = {key: other[name][key] - one[name][key] for key in other[name]}
        print(f"{name}: after round {first} {one[name]}, {rounds} rounds later {more} more")
    print(f"on disk after round {first}: {one['disk']}, after round {max(seen)}: {other['disk']}")
    for name in processes:
        assert other[name]["files"] <= one[name]["files"] + 3 and other[name]["threads"] <= one[name]["threads"] + 3
        assert other[name]["memory"] - one[name]["memory"] < 4 * MB + rounds * MB // 5
    model = 4 * layout_of(study, "update").tensor_length
    assert other["disk"]["checkpoints"] < 2 * (2 * model + 4096) + model
    assert other["disk"]["events"] - one["disk"]["events"] < rounds * 2048
    assert other["disk"]["database"] - one["disk"]["database"] < rounds * 64 * 1024


PIECE = 5 * MB  # Flower sends arrays in pieces of this size


def large(name: str) -> Study:
    """A model of many pieces."""
    return tiny_study(
        study={"name": name, "rounds": 2, "round_deadline": 300},
        model={"name": "cnn", "image_size": [256, 256], "head": "dense"},
    )


def test_memory_does_not_grow_with_the_sites(server: Federation, tmp_path: Path) -> None:
    """The executor adds answers up as they come, one at a time. The SuperLink holds a piece in several copies while it
    writes it to the database or sends it; the gate gives it few at once, and keeps the others on disk.
    """
    peaks: dict[int, dict[str, int]] = {}
    for number, count in enumerate((3, 3, 8, 16)):  # at first, much is loaded
        stand_in(server, count)
        processes, study = parts(server), large(f"run-{number}")
        for process in processes.values():
            Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak begins anew
        server.submit(study, tmp_path / str(number))
        found = server.finished(tmp_path / str(number), seconds=600)
        assert [len(event["participants"]) for event in found if event["event"] == "round"] == [count] * 2
        peaks[count] = {name: look(process).peak for name, process in processes.items()}
        print(f"{count} sites: peak in MB", {name: peak // MB for name, peak in peaks[count].items()})
    model = 4 * layout_of(large("x"), "update").tensor_length
    print(f"model: {model / MB:.1f} MB")
    assert model > 10 * PIECE
    for name, times in (("executor", 1.15), ("SuperLink", 1.5)):  # it was at 1.2 to 1.3 for five times the sites
        assert peaks[16][name] < times * peaks[3][name], name
    assert peaks[16]["gate"] - peaks[3]["gate"] < 13 * PIECE  # connections, no bodies
