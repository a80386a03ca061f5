"""Indexing 50,000 made-up DICOM files: the first run, one without changes, one with 1 % of the files changed.

python -m simulations.benchmarks.index [--files N] [--folder DIR]
"""

import argparse
import csv
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from client import index
from client.memory import YOUNG, remembered
from simulations.datasets.phantom import write_phantom

FILES, PATIENTS, PER_FOLDER = 50_000, 12, 500
_KEY = bytes(range(32))


def make(folder: Path, files: int) -> None:
    """`files` small DICOM files: copies of a phantom's, in all its vendors' manners, each with a SOPInstanceUID of its
    own, as long as the other, so that no element moves; and `labels.csv`.
    """
    with tempfile.TemporaryDirectory() as name:
        write_phantom(Path(name), patients=PATIENTS, seed=1, image_size=64, images_per_patient=(1, 1))
        with (Path(name) / "labels.csv").open(encoding="utf-8", newline="") as table:
            uids = [row["key"].encode() for row in csv.DictReader(table)]
        paths = [path for path in Path(name).rglob("*") if path.is_file()]
        paths = [path for path in paths if path.suffix not in (".png", ".csv", ".json")]
        originals = [(uid, data) for data in map(Path.read_bytes, paths) for uid in uids if data[:4096].count(uid)]
    with (folder / "labels.csv").open("w", encoding="utf-8") as table:
        table.write("key,label\n")
        for number in range(files):
            uid, data = originals[number % len(originals)]
            own = b"2.25.1" + str(number).zfill(len(uid) - 6).encode()
            place = folder / f"{number // PER_FOLDER:03d}" / f"{number}.dcm"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(data.replace(uid, own))
            table.write(f"{own.decode()},{'sick' if number % 3 else 'well'}\n")


def touched(folder: Path, files: int) -> Iterator[Path]:
    """Every hundredth file, with a byte more."""
    for number in range(0, files, 100):
        place = folder / f"{number // PER_FOLDER:03d}" / f"{number}.dcm"
        place.write_bytes(place.read_bytes() + b"\0")
        yield place


def measure(images: Path, site: Path) -> dict[str, float | str]:
    """Seconds of one run and of its processor's time, files read by it, and a digest of the rows that it made."""
    memory = remembered(site, patient_key=_KEY)
    started, busy = time.perf_counter(), time.process_time()
    counts = index.build("dicom", images, site, patient_key=_KEY, image_is_patient=True, memory=memory)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    rows = hashlib.sha256("".join(row.image for row in index.read(site)).encode()).hexdigest()
    files = {"read": memory.read, "used": counts.used, "files": counts.files}
    return {"seconds": seconds, "cpu": busy, **files, "rows": rows}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--folder", type=Path, help="where the files are made; default the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        images, site = Path(name) / "images", Path(name) / "site"
        images.mkdir()
        site.mkdir()
        make(images, options.files)
        os.sync()
        time.sleep(YOUNG / 1e9)
        runs = {"first": measure(images, site), "unchanged": measure(images, site)}
        changed = len(list(touched(images, options.files)))
        runs[f"{changed} changed"] = measure(images, site)
        runs["from nothing"] = measure(images, Path(tempfile.mkdtemp(dir=name)))
    print(f"{'run':<16}{'seconds':>10}{'CPU s':>10}{'files read':>12}{'used':>10}{'of':>10}{'files/s':>10}")
    for what, run in runs.items():
        print(
            f"{what:<16}{run['seconds']:>10.1f}{run['cpu']:>10.1f}{run['read']:>12}{run['used']:>10}{run['files']:>10}"
            f"{float(run['files']) / float(run['seconds']):>10.0f}"
        )
    first, second, third, fourth = runs.values()
    ratio = float(first["seconds"]) / float(second["seconds"])
    same = third["rows"] == fourth["rows"]
    print(
        f"first over unchanged: {ratio:.1f} x; after changes the same rows as from nothing: {'yes' if same else 'NO'}"
    )
    print(json.dumps({"benchmark": "index", "ratio": ratio, "same": same, "runs": runs}))


if __name__ == "__main__":
    main()
