"""The body of a signed message: strict JSON in, checked values out, and the one form in which bodies are written."""

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from common.errors import MessageError

LIMIT = 4 * 2**20  # bytes of one body

_NAME = re.compile(r"[a-z0-9-]{1,32}")
_HEX = re.compile(r"[0-9a-f]*")


def write(values: Mapping[str, Any]) -> bytes:
    """JSON in ASCII, keys sorted, no whitespace. For strings of ASCII and whole numbers below 2^53 that is the JSON of
    RFC 8785. Raises ValueError for what is no JSON.
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def read(data: bytes, expected: Mapping[str, type], *, limit: int = LIMIT) -> dict[str, Any]:
    """The values of a JSON object with exactly the expected keys, each of exactly its type. Raises MessageError."""
    return fields(parse(data, limit=limit), expected)


def parse(data: bytes, *, limit: int = LIMIT) -> object:
    """Raises MessageError for more than `limit` bytes, anything but JSON in ASCII, a key twice, NaN."""
    if len(data) > limit:
        raise MessageError(f"a message of {len(data)} bytes: at most {limit}")
    try:
        return json.loads(data.decode("ascii"), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MessageError("a message that is not JSON in ASCII, or has a key twice") from error


def fields(values: object, expected: Mapping[str, type]) -> dict[str, Any]:
    """The same object, checked: exactly these keys, exactly these types. Raises MessageError."""
    if not isinstance(values, dict) or values.keys() != expected.keys():
        raise MessageError(f"a message whose keys are not {', '.join(sorted(expected))}")
    for key, kind in expected.items():
        if type(values[key]) is not kind:
            raise MessageError(f"a message whose {key} is not {kind.__name__}")
    return values


def binary(value: object, length: int) -> bytes:
    """The bytes that lower-case hex says, exactly `length`. Raises MessageError."""
    if not isinstance(value, str) or len(value) != 2 * length or not _HEX.fullmatch(value):
        raise MessageError(f"a field that is not {length} bytes in lower-case hex")
    return bytes.fromhex(value)


def name(value: object) -> str:
    """A site's name. Raises MessageError unless it is [a-z0-9-]{1,32}."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise MessageError("a site name that is not [a-z0-9-]{1,32}")
    return value


def names(values: object) -> tuple[str, ...]:
    """Site names, ascending, none twice. Raises MessageError."""
    if not isinstance(values, list):
        raise MessageError("a list of sites that is no list")
    found = tuple(map(name, values))
    if not ascending(found):
        raise MessageError("a list of sites that is not in the order of their names, or has one twice")
    return found


def ascending(values: tuple[str, ...]) -> bool:
    """Whether each name comes after the one before, so that none is there twice."""
    return all(one < other for one, other in itertools.pairwise(values))


def whole(value: object, *, most: int, least: int = 0) -> int:
    """A whole number in the range. Raises MessageError."""
    if type(value) is not int or not least <= value <= most:
        raise MessageError(f"a field that is not a whole number from {least} to {most}")
    return value


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key twice")
    return values


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
