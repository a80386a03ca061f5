"""The researcher's command line, as a person calls it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHANTOM = ["--data", "phantom:40", "--set", "study.rounds=2", "--set", "training.local_epochs=1"]


def call(*arguments: str, room: str = "simulations", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", room, *arguments], capture_output=True, text=True, timeout=300, cwd=cwd, check=False
    )


@pytest.mark.e2e
def test_the_demo_study_runs_and_says_where_the_report_is(tmp_path: Path) -> None:
    done = call("run", "demo", *PHANTOM, "--sites", "3", "--compare", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "Federated auc" in done.stdout and "All data in one place" in done.stdout
    assert str(tmp_path / "out" / "report.html") in done.stdout
    assert "round 2 of 2" in done.stderr
    again = call("run", "demo", *PHANTOM, "--sites", "3", "--compare", "--out", str(tmp_path / "out"))
    assert again.returncode == 1 and "--resume" in again.stderr and "Traceback" not in again.stderr
    evaluated = call(
        *("evaluate", "--model", str(tmp_path / "out"), "--data", "phantom:12", "--out", str(tmp_path / "e"), "--json")
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["patients"] == 12


@pytest.mark.e2e
@pytest.mark.parametrize("task", ["phantom-masks", "phantom-boxes"])
def test_masks_and_boxes_of_the_phantom_train_too(tmp_path: Path, task: str) -> None:
    done = call("run", task, "--data", "phantom:24", "--sites", "2", "--out", str(tmp_path), "--set", "study.rounds=1")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final"]["test"]["images"] > 0


@pytest.mark.e2e
def test_interrupted_by_a_person_it_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations", "run", "demo", *PHANTOM, "--sites", "3", "--out", str(tmp_path)]
    command += ["--set", "study.rounds=40"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    log, limit = tmp_path / "events.jsonl", time.monotonic() + 120
    while time.monotonic() < limit and not (log.exists() and '"round":2' in log.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in errors and "Traceback" not in errors
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert resumed.returncode == 0, resumed.stderr
    rounds = [entry["round"] for entry in json.loads((tmp_path / "summary.json").read_text())["rounds"]]
    assert rounds == list(range(1, 41))


WRONG = {
    "no such study": (("run", "nothing", "--data", "phantom", "--out", "OUT"), "nothing"),
    "unknown key": (("run", "demo", "--data", "phantom", "--out", "OUT", "--set", "study.speed=3"), "study.speed"),
    "a model that does not exist": (
        ("run", "demo", "--data", "phantom", "--out", "OUT", "--set", "model.name=vgg"),
        "model.name = 'vgg'",
    ),
    "--set without =": (("plan", "demo", "--set", "rounds"), "KEY=VALUE"),
    "missing data": (("run", "demo", "--data", "dicom:/absent", "--out", "OUT"), "/absent does not exist"),
    "empty folder": (("run", "demo", "--data", "dicom:EMPTY", "--out", "OUT"), "an empty folder"),
    "unknown data": (("partition", "demo", "--data", "mri:x", "--out", "OUT"), "mri"),
    "unknown partition": (
        ("partition", "demo", "--data", "phantom:12", "--partition", "fair", "--out", "OUT"),
        "'fair'",
    ),
    "an OUT that can't be": (("partition", "demo", "--data", "phantom:12", "--out", "FILE/x"), "file/x"),
    "too few sites": (("run", "demo", "--data", "phantom", "--sites", "1", "--out", "OUT"), "min_sites"),
    "no model there": (("evaluate", "--model", "EMPTY", "--data", "phantom:12", "--out", "OUT"), "model.json"),
    "an image too small for the model": (("plan", "demo", "--set", "model.image_size=[8, 8]"), "image_size"),
}


@pytest.mark.e2e
@pytest.mark.parametrize("fault", WRONG)
def test_wrong_input_is_one_line_and_no_traceback(tmp_path: Path, fault: str) -> None:
    arguments, says = WRONG[fault]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    swap = {
        "FILE/x": str(tmp_path / "file" / "x"),
        "OUT": str(tmp_path / "out"),
        "EMPTY": str(tmp_path / "empty"),
        "dicom:EMPTY": f"dicom:{tmp_path / 'empty'}",
    }
    done = call(*(swap.get(argument, argument) for argument in arguments))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1 and says in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.e2e
def test_partition_prints_a_table_and_leaves_a_picture(tmp_path: Path) -> None:
    arguments = ("--data", "phantom:30", "--sites", "3", "--partition", "dirichlet:0.5", "--out", str(tmp_path))
    done = call("partition", "demo", *arguments)
    assert done.returncode == 0 and "site-2" in done.stdout
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")
    counted = json.loads(call("partition", "demo", *arguments, "--json").stdout)
    assert sum(site["patients"] for site in counted["sites"].values()) == 30


@pytest.mark.e2e
def test_plan_prints_what_a_study_costs() -> None:
    found = json.loads(call("plan", "demo", "--images", "100", "--json").stdout)
    assert found["parameters"] > 10_000 and found["bytes_total"] > 0 and found["seconds"] > 0


@pytest.mark.e2e
@pytest.mark.parametrize("command", [(), ("run",), ("plan",), ("partition",), ("evaluate",), ("studies",)])
def test_help_explains_every_argument_without_importing_torch(command: tuple[str, ...]) -> None:
    start = time.perf_counter()
    done = call(*command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout
    assert time.perf_counter() - start < 10
    loaded = subprocess.run(
        [sys.executable, "-c", "import simulations.__main__, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert loaded.stdout.strip() == "False"


@pytest.mark.e2e
def test_a_site_folder_comes_from_a_folder_of_images(tmp_path: Path) -> None:
    from simulations.datasets import materialise, parse_spec

    _, images = materialise(parse_spec("phantom:10"), tmp_path / "data", seed=1)
    done = call("index", str(images), "--out", str(tmp_path / "site"), "--json", room="client")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    files = sum(1 for path in images.rglob("*") if path.is_file())
    assert counts["used"] + sum(counts["dropped"].values()) == files
    assert (tmp_path / "site" / "keys" / "patient.key").stat().st_mode & 0o777 == 0o600


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.e2e
@pytest.mark.skipif(BROWSER is None, reason="no chromium: pages are opened in a real browser only where there is one")
def test_the_report_opens_offline_in_a_browser(tmp_path: Path) -> None:
    assert call("run", "demo", *PHANTOM, "--sites", "3", "--out", str(tmp_path / "out")).returncode == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"),
    ]
    done = subprocess.run(
        [str(BROWSER), *flags, "--dump-dom", f"file://{tmp_path / 'out' / 'report.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
        check=False,
    )
    assert "Example images" in done.stdout and "Who took part" in done.stdout and "<svg" in done.stdout
