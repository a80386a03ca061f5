"""Rooms and doors: which package may import which, and through which module a library comes in."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": {"simulations", "client", "server", "common"},
}
# Where each library may be imported. A name that ends in / is a folder.
DOORS = {
    "flwr": (
        "common/runtime.py",
        "common/wire.py",
        "client/app.py",
        "client/supernode_loop.py",
        "client/worker.py",
        "server/answers.py",
        "server/app.py",
        "server/exchange.py",
        "server/control.py",
        "server/executor.py",
        "simulations/inprocess.py",
        "simulations/flower.py",
        "simulations/masks.py",
    ),
    "cryptography": ("common/crypto/",),
    "opacus": ("client/dp/", "common/accounting.py"),
    "pydicom": (
        "client/dicom.py",
        "client/dicom_pixels.py",
        "client/dicom_objects/",
        "client/pull/",
        "simulations/datasets/phantom.py",
    ),
    "torchvision": ("common/models/", "client/augment.py"),
    "pynetdicom": ("client/pull/",),
    "dicomweb_client": ("client/pull/",),
    "requests": ("client/pull/",),
    "highdicom": ("client/dicom_objects/",),
    "safetensors": ("common/params.py", "server/checkpoint.py"),
    "ray": (),
    "pickle": (),
}
# flwr's insides, which no release promises to keep.
INSIDES = (
    "common/runtime.py",
    "common/wire.py",
    "client/supernode_loop.py",
    "client/worker.py",
    "server/answers.py",
    "server/control.py",
    "server/executor.py",
)
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}


PEERS = ("simulations/benchmarks/", "simulations/attacks/")  # what measures or attacks a peer imports it


def opens(path: str, doors: tuple[str, ...]) -> bool:
    """Whether this module is one of the doors, or lies in a folder that is."""
    return any(path == door or (door[-1] == "/" and path.startswith(door)) for door in doors)


def faults(path: str, source: str) -> list[str]:
    """What this module's imports break."""
    room, found = path.split("/")[0], []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.append(f"{path}: relative import")
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            if top in ROOMS and top not in ROOMS[room]:
                found.append(f"{path}: {room} imports {top}")
            if top in DOORS and not path.startswith(PEERS) and not opens(path, DOORS[top]):
                found.append(f"{path}: {top} comes in by another door")
            if top == "flwr" and name not in PUBLIC and path not in INSIDES and not path.startswith(PEERS):
                found.append(f"{path}: {name} is inside flwr")
    return found


def modules() -> list[str]:
    return [str(path.relative_to(ROOT)) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_rooms_and_doors_are_kept() -> None:
    broken = [fault for path in modules() for fault in faults(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert broken == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("common/x.py", "import client.app"),
        ("client/x.py", "from server import rounds"),
        ("server/x.py", "from simulations.sites import prepare"),
        ("client/x.py", "def f():\n    import pydicom"),
        ("common/x.py", "from torchvision.ops import nms"),
        ("server/rounds.py", "from flwr.app import Message"),
        ("server/app.py", "from flwr.supercore.task_identity import TaskIdentity"),
        ("client/x.py", "import pickle"),
        ("client/x.py", "from . import app"),
    ],
)
def test_the_check_can_fail(path: str, line: str) -> None:
    assert faults(path, line)


def test_every_module_says_in_its_first_line_what_it_is_for() -> None:
    silent = [
        path for path in modules() if not (ast.get_docstring(ast.parse((ROOT / path).read_text("utf-8"))) or "").strip()
    ]
    assert silent == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_foreign_package_takes_a_rooms_name(room: str) -> None:
    found = importlib.util.find_spec(room)
    assert found is not None and found.origin is not None
    assert Path(found.origin).parent == ROOT / room
