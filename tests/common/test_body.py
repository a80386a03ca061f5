"""Bodies of signed messages: strict, whatever is sent."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import body
from common.errors import MessageError

MALFORMED = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "a key twice": b'{"a":1,"a":1}',
    "an inner key twice": b'{"a":1,"b":{"c":1,"c":2}}',
    "a key too many": b'{"a":1,"b":{},"c":1}',
    "a key missing": b'{"a":1}',
    "NaN": b'{"a":NaN,"b":{}}',
    "infinity": b'{"a":1,"b":{"c":-Infinity}}',
    "a truth for a number": b'{"a":true,"b":{}}',
    "a fraction": b'{"a":1.0,"b":{}}',
    "a byte order mark": b'\xef\xbb\xbf{"a":1,"b":{}}',
    "UTF-16": '{"a":1,"b":{}}'.encode("utf-16"),
    "not ASCII": '{"a":1,"b":{"é":1}}'.encode(),
    "a number without end": b'{"a":' + b"1" * 5000 + b',"b":{}}',
    "depth without end": b'{"a":1,"b":' + b"[" * 100_000,
    "too long": b'{"a":1,"b":{' + b" " * body.LIMIT + b"}}",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_bodies_are_refused(case: str) -> None:
    assert body.read(b'{"a":1,"b":{}}', {"a": int, "b": dict}) == {"a": 1, "b": {}}
    with pytest.raises(MessageError):
        body.read(MALFORMED[case], {"a": int, "b": dict})


@pytest.mark.parametrize("text", ["", "0", "0G", "AB", "abc", " ab", "ab ", "a b", "abcd", "ａｂ", 1, None, b"ab"])
def test_only_lower_case_hex_of_the_right_length_is_binary(text: object) -> None:
    assert body.binary("ab", 1) == b"\xab"
    with pytest.raises(MessageError, match="hex"):
        body.binary(text, 1)


@pytest.mark.parametrize("text", ["", "A", "a" * 33, "a/b", "a\n", "ä", 1, None])
def test_only_site_names_are_names(text: object) -> None:
    assert body.name("a-0") == "a-0"
    with pytest.raises(MessageError, match="site name"):
        body.name(text)


@pytest.mark.parametrize("values", [["b", "a"], ["a", "a"], "ab", {"a": 1}])
def test_lists_of_sites_ascend(values: object) -> None:
    assert body.names(["a", "b"]) == ("a", "b") and body.names([]) == ()
    with pytest.raises(MessageError, match="list of sites"):
        body.names(values)


@pytest.mark.parametrize("value", [True, 1.0, "1", -1, 11, None])
def test_whole_numbers_are_in_their_range(value: object) -> None:
    assert body.whole(0, most=10) == 0 and body.whole(10, most=10) == 10
    with pytest.raises(MessageError, match="whole number"):
        body.whole(value, most=10)


@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="ascii"), max_size=5), st.integers(-(2**53) + 1, 2**53 - 1)))
def test_what_is_written_is_the_json_of_rfc_8785(values: dict[str, int]) -> None:
    import rfc8785

    text = body.write(values)
    assert json.loads(text) == values
    if all(key.isprintable() for key in values):
        assert text == rfc8785.dumps(values)
