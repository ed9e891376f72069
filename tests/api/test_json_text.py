"""Bodies are checked against the limits before they are built, and read by RFC 8259."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopack.api import json_text
from autopack.api.json_text import (
    SMALL_BYTES,
    JsonError,
    JsonLimits,
    Limit,
    TextTooLongError,
    TooManyItemsError,
    check_limits,
    read_json,
)

LIMITS = JsonLimits(
    depth=6,
    values=Limit(50, "VALUES"),
    items=Limit(3, "ITEMS"),
    text=Limit(100_000, "TEXT"),
    lists={"phases": Limit(5, "PHASES"), "refs": Limit(2, "REFS")},
)
WIDE = JsonLimits(
    depth=50,
    values=Limit(10_000_000, "VALUES"),
    items=Limit(10_000_000, "ITEMS"),
    text=Limit(10_000_000, "TEXT"),
)
LARGE = b" " * SMALL_BYTES

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.text(alphabet='"\\/\b\n\t\ud83d\ude00\U0001f600u0d8é'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("limit", [3, 5, 2])
@pytest.mark.parametrize("item", ["{}", "1", '"a,]"', "[]", '{"a": [1, 2]}', "-1e9", '"\\""'])
def test_a_list_may_be_as_long_as_its_limit_and_not_one_item_longer(limit: int, item: str) -> None:
    name = {3: "other", 5: "phases", 2: "refs"}[limit]
    fits, over = (f'{{"{name}": [{", ".join([item] * count)}]}}' for count in (limit, limit + 1))
    check_limits(fits.encode(), LIMITS)
    with pytest.raises(TooManyItemsError, match=f"more than {limit} items") as refusal:
        check_limits(over.encode(), LIMITS)
    assert refusal.value.path == (name,)


def test_the_place_of_a_long_list_is_named() -> None:
    body = {"phases": [1, {"deep": {"refs": [1, 2, 3]}}]}
    with pytest.raises(TooManyItemsError) as refusal:
        check_limits(json.dumps(body).encode(), LIMITS)
    assert refusal.value.path == ("phases", 1, "deep", "refs")


def test_a_name_that_is_written_with_escapes_has_its_limit() -> None:
    with pytest.raises(TooManyItemsError, match="more than 2 items"):
        check_limits(b'{"r\\u0065fs": [1, 2, 3]}', LIMITS)


def test_an_object_has_as_many_names_as_a_list_has_items() -> None:
    check_limits(b'{"a": 1, "b": 2, "c": 3}', LIMITS)
    with pytest.raises(TooManyItemsError, match="more than 3 names"):
        check_limits(b'{"a": 1, "b": 2, "c": 3, "d": 4}', LIMITS)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 7, "deeper than 6"),
        (json.dumps([[[1] * 3] * 3] * 3 + [0]).encode(), "more than 3 items"),
        (json.dumps([[[[1] * 3] * 3] * 3] * 3).encode(), "more than 50 values"),
        (b"9" * 4_301, "thousands of digits"),
        (b"-1." + b"9" * 100_000, "thousands of digits"),
        (b" " * 200_000 + b"1", "blanks in a row"),
        (b"[1" + b"\n" * 200_000 + b"]", "blanks in a row"),
        (b"1" + b" " * 200_000 + b"\x0c", "blanks in a row"),
        (b'{"%s": 1}' % (b"n" * 1_001), "name of more than 1000 bytes"),
        (b'{"a": 1, "\\u0061": 2}', "'a' twice"),
    ],
)
def test_other_limits_are_named(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_json(body, LIMITS)


@pytest.mark.parametrize("unit", ["a", "\\n", "\\ud83d\\ude00", "é"])
def test_a_text_that_is_longer_than_any_may_be_is_read_no_further(unit: str) -> None:
    pieces = LIMITS.text.count + 300_000
    with pytest.raises(TextTooLongError, match=r"more than 100000 bytes \(TEXT\)"):
        read_json(f'{{"a": "{unit * pieces}"}}'.encode(), LIMITS)
    fits = LIMITS.text.count // len(json.loads(f'"{unit}"').encode())
    read_json(f'"{unit * fits}"'.encode(), LIMITS)


def test_any_number_of_blanks_may_follow() -> None:
    for count in (0, 1, 65_535, 65_536, 65_537, 1_000_000):
        assert read_json(b"[1]" + b" \t\r\n" * count, LIMITS) == [1]


@given(JSON_VALUES, st.booleans(), st.sampled_from([None, 3]))
@settings(max_examples=30)
def test_small_and_large_bodies_are_read_alike(
    value: object, is_ascii: bool, indent: int | None
) -> None:
    try:
        body = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()
    except UnicodeEncodeError:  # half a character can only be written as an escape
        body = json.dumps(value, indent=indent).encode()
    assert read_json(body, WIDE) == read_json(body + LARGE, WIDE) == json.loads(body)


@pytest.mark.parametrize(
    "unit", ["a", "\\n", "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "é😀", '\\"', "\\\\"]
)
def test_a_long_string_is_the_same_read_in_pieces(unit: str) -> None:
    for lead in range(4):  # so that a piece ends at each place within an escape
        body = f'"{"x" * lead}{unit * 70_000}"'.encode()
        assert read_json(body, WIDE) == json.loads(body)


@pytest.mark.parametrize(
    "wrong", ['"\x01"', '"\\x"', '"\\u12', '"\\u12"', '"ab', "{'a': 1}", "[1,]", "1 2", "]"]
)
@pytest.mark.parametrize("lead", ["", "x" * 300_000, "\\n" * 100_000])
def test_what_is_wrong_is_found_at_the_same_place_in_small_and_large_bodies(
    wrong: str, lead: str
) -> None:
    body = f'["{lead}",\n {wrong}'
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(body)
    where = f"line {expected.value.lineno} column {expected.value.colno}"
    with pytest.raises(JsonError, match=where):
        read_json(body.encode(), WIDE)


class Counting(bytes):
    """Bytes that count how much of them is looked at."""

    looked_at = 0

    def find(self, *arguments: Any) -> int:
        found = super().find(*arguments)
        start = arguments[1]
        end = found if found >= 0 else (arguments[2] if len(arguments) > 2 else len(self))
        Counting.looked_at += end - start
        return found


@pytest.mark.parametrize("unit", [b"a", b"\\n", b'\\"', b"\\\\", b"a\\n"])
def test_the_search_for_the_end_of_a_string_is_linear(unit: bytes) -> None:
    seen = []
    for count in (20_000, 40_000):
        Counting.looked_at = 0
        check_limits(Counting(b'"' + unit * count + b'"'), WIDE)
        seen.append(Counting.looked_at)
    assert seen[1] <= 2.1 * seen[0] + 100


@pytest.mark.parametrize("unit", ["a", "\\n", "\\u00e9", "é"])
def test_no_step_reads_more_than_some_hundred_kilobytes(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 0
    step = json.decoder.scanstring  # type: ignore[attr-defined]  # not in the stubs

    def watched(text: str, start: int, strict: bool = True) -> tuple[str, int]:
        nonlocal longest
        piece, end = step(text, start, strict)
        longest = max(longest, end - start)
        return piece, end

    monkeypatch.setattr(json_text, "scanstring", watched)
    read_json(f'"{unit * 1_000_000}"'.encode(), WIDE)
    assert longest <= 300_000
