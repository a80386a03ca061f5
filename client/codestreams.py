"""One compressed frame's own words on its size, before a decoder allocates that much, and without a JP2 file around it.

Source: ISO/IEC 15444-1 A.5.1 and I.4 (JPEG 2000), ITU-T T.81 B.1 and B.2 (JPEG), T.87 C.2 (JPEG-LS).
"""

import struct

from client.drops import Drop, Unusable

_JP2 = b"\x00\x00\x00\x0cjP  "


def bare(stream: bytes) -> bytes:
    """The JPEG 2000 codestream of a JP2 file, which PS3.5 A.4.4 forbids and some write; anything else as it is.

    Raises Unusable for a JP2 file whose boxes hold none: pydicom's own search for it does not end over some of those.
    """
    if not stream.startswith(_JP2):
        return stream
    place = len(_JP2) + 4
    while place + 8 <= len(stream):
        length, kind = struct.unpack(">I4s", stream[place : place + 8])
        head = 8
        if length == 1 and place + 16 <= len(stream):
            head, length = 16, struct.unpack(">Q", stream[place + 8 : place + 16])[0]
        elif length == 0:  # to the end
            length = len(stream) - place
        if length < head:
            break
        if kind == b"jp2c":
            return stream[place + head : place + length]
        place += length
    raise Unusable(Drop.UNREADABLE, "a JP2 file inside the image holds no JPEG 2000 codestream")


def size(stream: bytes) -> tuple[int, int, int] | None:
    """Height, width and components that a bare JPEG, JPEG-LS or JPEG 2000 stream declares; None where it begins as no
    such stream.
    """
    if stream[:4] == b"\xff\x4f\xff\x51" and len(stream) >= 42:
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return bottom - top, right - left, struct.unpack(">H", stream[40:42])[0]
    if stream[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 10 <= len(stream):
        marker = stream[place + 1]
        if stream[place] != 0xFF or marker <= 0x01 or 0xD0 <= marker <= 0xDA:  # no segment, or pixels before a size
            return None
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return struct.unpack(">2HB", stream[place + 5 : place + 10])
        place += 1 if marker == 0xFF else 2 + struct.unpack(">H", stream[place + 2 : place + 4])[0]
    return None
