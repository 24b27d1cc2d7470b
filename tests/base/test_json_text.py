"""Tests of reading JSON, of its limits for depth and length, and of showing values."""

import pytest

from pipeline.base import json_text
from pipeline.base.errors import InputError


def test_load_parses_all_types_of_values() -> None:
    content = '{"a": [1, -2.5, "é", null, true], "b": {"c": 1e3}}'
    expected = {"a": [1, -2.5, "é", None, True], "b": {"c": 1000.0}}
    assert json_text.load(content) == expected
    assert json_text.load(b"\xef\xbb\xbf" + content.encode("utf-8")) == expected


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_load_limits_the_nesting_of_brackets(opening: str, closing: str) -> None:
    def nested(depth: int) -> str:
        return opening * depth + "1" + closing * depth

    assert json_text.load(nested(64))
    for depth in (65, 900, 100_000):
        with pytest.raises(ValueError, match="at most 64 levels of brackets, received more"):
            json_text.load(nested(depth))


def test_load_limits_the_digits_of_integers() -> None:
    assert json_text.load("9" * 300) == 10**300 - 1
    for digits in (301, 5000):
        with pytest.raises(ValueError, match=f"at most 300 digits, received a number of {digits} "):
            json_text.load("9" * digits)


@pytest.mark.parametrize("content", [b'{"a"', b"\xff", b"", b'{"a": 1}}'])
def test_load_raises_value_error_for_malformed_json(content: bytes) -> None:
    with pytest.raises(ValueError):
        json_text.load(content)


def test_read_json_error_names_the_file(tmp_path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": ' + "[" * 5000)
    with pytest.raises(InputError, match=f"^{path}: not JSON .expected at most 64 levels"):
        path.read_json()


def test_shown_value_is_one_short_line() -> None:
    assert json_text.format_value("two\nlines") == r"'two\nlines'"
    assert json_text.format_value([1] * 1000) == repr([1] * 1000)[:200] + "…"


def test_read_limited_refuses_a_file_that_is_too_large(tmp_path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"12345")
    assert path.read_limited(5) == b"12345"
    with pytest.raises(InputError, match=f"^{path}: .*at most 4 bytes, .*5$"):
        path.read_limited(4)
