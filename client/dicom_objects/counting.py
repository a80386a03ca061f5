"""Counts a DICOM file's elements before a parser makes an object of each: eight bytes can become some hundred."""

import struct

from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

_VRS = frozenset(vr.value.encode() for vr in VR)
_LONG = frozenset(vr.value.encode() for vr in EXPLICIT_VR_LENGTH_32)
_ITEM = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"
_UNDEFINED = 0xFFFFFFFF


def elements(data: bytes, limit: int) -> int:
    """Elements, items and delimiters at all depths, of pixels none; no more than limit + 1 of them are counted.

    Nesting needs no stack: a sequence and an item are entered, anything else is passed over.
    Source: DICOM PS3.5 7.1, 7.5, A.4.
    """
    place, order, implicit = 132 if data[128:132] == b"DICM" else 0, "<", False
    in_meta, fragments, count = True, False, 0
    syntax: bytes | None = None
    while place + 8 <= len(data) and count <= limit:
        if in_meta and data[place : place + 2] != b"\x02\x00":
            in_meta = False
            # Where no syntax is named, a first group that is absurd otherwise: pydicom has the same rule.
            is_swapped = data[place + 1] >= 4 and data[place + 4 : place + 6] in _VRS
            if syntax is None:
                order = ">" if is_swapped else "<"
            else:
                order = ">" if syntax.rstrip(b"\0 ") == b"1.2.840.10008.1.2.2" else "<"
            implicit = not _is_vr(data[place + 4 : place + 6])
        group, number, length = struct.unpack_from(order + "HHI", data, place)
        vr = data[place + 4 : place + 6]
        count += 1
        if group == 0xFFFE:
            place += 8 + (length if fragments and number == 0xE000 else 0)
            fragments = fragments and number != 0xE0DD
            continue
        if implicit or not _is_vr(vr):
            vr, start = b"", place + 8
        elif vr in _LONG:
            (length,), start = struct.unpack_from(order + "I", data, place + 8), place + 12
        else:
            (length,), start = struct.unpack_from(order + "H", data, place + 6), place + 8
        if in_meta and number == 0x0010:
            syntax = data[start : start + length]
        if length == _UNDEFINED:
            fragments = group == 0x7FE0
            place = start
        elif vr == b"SQ" or (vr in (b"", b"UN") and data[start : start + 4] in _ITEM):
            place = start
        else:
            place = start + length
    return count


def _is_vr(vr: bytes) -> bool:
    return vr.isalpha() and vr.isupper()
