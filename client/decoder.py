"""A process of its own for decoders in C++: GDCM ends the whole process on some damaged files, libjpeg may."""

import atexit
import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from client.drops import Drop, Unusable

_CHILD = "from client import decoder, dicom_pixels; decoder.serve(dicom_pixels.decoded_apart)"
_PATIENCE = 120  # seconds for one frame


class Decoder:
    """A child process that decodes one frame after the other. A damaged frame may end it: the next gets a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def decoded(self, syntax: str, form: Mapping[str, Any], stream: bytes) -> NDArray[Any]:
        """The frame as stored, [H, W] or [H, W, 3]; `form` holds the DICOM elements that describe its pixels.

        Raises Unusable when it can't be decoded or ends the child.
        """
        with self._lock:
            pipes = self._started()
            watch = threading.Timer(_PATIENCE, pipes.kill)
            watch.start()
            try:
                _send(pipes.stdin, json.dumps([syntax, form]).encode())
                _send(pipes.stdin, stream)
                kind, data = _receive(pipes.stdout), _receive(pipes.stdout)
            except (OSError, EOFError):
                self.close()
                raise Unusable(Drop.UNREADABLE, "the compressed pixels are damaged: their decoder broke down") from None
            finally:
                watch.cancel()
        if kind not in (b"|u1", b"|i1", b"<u2", b"<i2"):
            raise Unusable(Drop.UNREADABLE, "the compressed pixels can't be decoded")
        size = (form["Rows"], form["Columns"], form["SamplesPerPixel"])
        return np.frombuffer(data, kind.decode()).reshape(size[:2] if size[2] == 1 else size)

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
            self._child = subprocess.Popen(  # noqa: S603  # our own decoder
                [sys.executable, "-P", "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
            )
        return self._child


def serve(decode: Callable[[str, dict[str, Any], bytes], NDArray[Any]]) -> None:
    """The child: frames in, arrays out, until the parent is gone."""
    orders, answers = sys.stdin.buffer, sys.stdout.buffer
    warnings.simplefilter("ignore")
    with contextlib.suppress(EOFError):
        while True:
            (syntax, form), stream = json.loads(_receive(orders)), _receive(orders)
            try:
                frame = np.ascontiguousarray(decode(syntax, form, stream))
                kind, data = frame.dtype.str.encode(), frame.tobytes()
            except Exception:
                kind, data = b"", b""
            _send(answers, kind)
            _send(answers, data)


def _send(pipe: IO[bytes] | None, data: bytes) -> None:
    if pipe is not None:
        pipe.write(struct.pack("<Q", len(data)) + data)
        pipe.flush()


def _receive(pipe: IO[bytes] | None) -> bytes:
    head = b"" if pipe is None else pipe.read(8)
    data = b"" if pipe is None or len(head) < 8 else pipe.read(struct.unpack("<Q", head)[0])
    if len(head) < 8 or len(data) < struct.unpack("<Q", head)[0]:
        raise EOFError
    return data
