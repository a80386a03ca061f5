"""Damaged copies of pydicom's own files: used or dropped with a reason, in bounded time and memory."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_cases import encapsulated, jp2
from pydicom.encaps import get_frame
from pydicom.uid import JPEG2000, JPEG2000Lossless

from client import dicom

FILES = Path(pydicom.data.__file__).parent / "test_files"
LARGEST = 3_000_000  # bytes: of larger files the same is tried less often elsewhere
SECONDS, MEBIBYTES = 20.0, 1536  # of one file; of the whole process, which holds at most one frame of 400 MB twice

# What a child does with each file of a folder: header, then the first frame's pixels, as index and cache do.
CHILD = """
import json, re, resource, sys, time
from pathlib import Path
import client.dicom as dicom
import client.dicom_pixels as dicom_pixels
from client.drops import Unusable
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
found = {}
with dicom.quiet():
    for path in sorted(Path(sys.argv[1]).iterdir()):
        started = time.process_time()
        try:
            tags = dicom.header(path)
            pixels = dicom_pixels.pixels(path, window="dicom")
            whole = pixels.shape[:2] == (tags.height, tags.width) and 0 <= pixels.min() <= pixels.max() <= 1
            said = "used" if whole else "wrong"
        except Unusable as error:
            said = str(error.reason)
        found[path.name] = [said, time.process_time() - started]
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss begins at the parent's
print(json.dumps([found, int(peak[1]) // 1024]))
"""


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bits turned, most of them in the header."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 12))):
        place = int(rng.integers(0, min(len(data), 4096) if rng.random() < 0.7 else len(data)))
        found[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(found)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def overwritten(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of noise, or of 0xFF: lengths become absurd."""
    place, size = int(rng.integers(0, len(data))), int(rng.integers(1, 64))
    noise = b"\xff" * size if rng.random() < 0.5 else rng.bytes(size)
    return data[:place] + noise + data[place + size :]


def swollen(data: bytes, rng: np.random.Generator) -> bytes:
    """Rows, columns, frames or bits that no file of this size can have, where they stand as explicit little endian."""
    for tag, length in ((b"\x28\x00\x10\x00US\x02\x00", 2), (b"\x28\x00\x11\x00US\x02\x00", 2)):
        place = data.find(tag)
        if place >= 0:
            start = place + len(tag)
            data = data[:start] + b"\xff" * length + data[start + length :]
    place = data.find(b"\x28\x00\x08\x00IS")
    if place >= 0:
        start, length = place + 8, int.from_bytes(data[place + 6 : place + 8], "little")
        data = data[:start] + b"9" * length + data[start + length :]
    return data


def boxed(data: bytes, rng: np.random.Generator) -> bytes:
    """Small numbers among the boxes of a JP2 file, where their lengths stand; bits of any other file."""
    start = data.find(b"jP  ")
    if start < 0:
        return flipped(data, rng)
    for _ in range(int(rng.integers(1, 4))):
        place = start + 8 + int(rng.integers(0, 40))
        data = data[:place] + int(rng.integers(0, 20)).to_bytes(4, "big") + data[place + 4 :]
    return data


def originals() -> Iterator[tuple[str, bytes]]:
    """pydicom's files, and those of JPEG 2000 once more with their streams as JP2 files."""
    for path in sorted(path for path in FILES.rglob("*") if path.is_file() and path.stat().st_size <= LARGEST):
        yield path.name, path.read_bytes()
        with dicom.quiet():
            dataset = pydicom.dcmread(path, force=True)
            syntax = str(dataset.file_meta.get("TransferSyntaxUID"))
            if syntax in (JPEG2000, JPEG2000Lossless):
                stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
                if stream.startswith(b"\xff\x4f"):
                    buffer = io.BytesIO()
                    encapsulated(dataset, [jp2(stream)], syntax).save_as(buffer)
                    yield f"jp2-{path.name}", buffer.getvalue()


DAMAGES: dict[str, tuple[Callable[[bytes, np.random.Generator], bytes], int]] = {
    "as it is": (lambda data, rng: data, 1),
    "bits": (flipped, 4),
    "cut off": (cut, 2),
    "overwritten": (overwritten, 3),
    "boxes": (boxed, 4),
    "absurd sizes": (swollen, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_used_or_dropped_with_a_reason_in_bounded_time_and_memory(name: str, tmp_path: Path) -> None:
    damage, copies = DAMAGES[name]
    rng = np.random.default_rng(7)
    files = list(originals())
    assert len(files) > 75 and sum(name.startswith("jp2-") for name, _ in files) > 4
    for file, data in files:
        for copy in range(copies):
            (tmp_path / f"{file}-{copy}").write_bytes(damage(data, rng))
    child = [sys.executable, "-P", "-c", CHILD, str(tmp_path)]
    done = subprocess.run(child, capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found: dict[str, Any]
    found, memory = json.loads(done.stdout)
    assert len(found) == len(list(tmp_path.iterdir()))
    assert not [one for one, (said, _) in found.items() if said == "wrong"]
    slow = {one: seconds for one, (_, seconds) in found.items() if seconds > SECONDS}
    assert not slow and memory < MEBIBYTES, (slow, memory)
    used = sum(said == "used" for said, _ in found.values())
    assert used > 60 if name == "as it is" else used < len(found)
