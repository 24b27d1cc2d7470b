"""Tests of converting, refusing and recognizing text encodings."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.text_encoding import guess_encoding, utf8_stream

CHINESE = "渔民在河边补一件大衣。邮差在阁楼上数零钱，\n"
RUSSIAN = "Старый мост через реку ещё помнит тёплый июль.\n"
ENGLISH = "The old clock near the river.\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "gb18030"),
        ("漁民在河邊補一件大衣。郵差在閣樓上數零錢，\n", "big5"),
        (RUSSIAN, "windows-1251"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "cp866"),
        ("これは日本語のテキストです。\n", "shift_jis"),
        ("これは日本語のテキストです。\n", "euc-jp"),
        ("서울에서 부산까지 갑니다.\n", "euc-kr"),
        ("élève à l'école\n" + ENGLISH, "windows-1252"),
    ],
)
def test_common_encodings_are_recognized(text: str, encoding: str) -> None:
    assert guess_encoding(text.encode(encoding)) == encoding


@pytest.mark.parametrize("text", [CHINESE, RUSSIAN])
def test_damaged_utf8_is_not_taken_for_another_encoding(text: str) -> None:
    assert guess_encoding(3 * text.encode() + b"\xff" + text.encode()) is None


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [CHINESE, RUSSIAN, ENGLISH])
def test_utf16_without_a_mark_is_refused_by_name(text: str, encoding: str) -> None:
    with pytest.raises(InputError) as raised:
        utf8_stream(io.BytesIO(text.encode(encoding)), "file.txt")
    assert raised.value.subject == "file.txt"
    assert encoding in raised.value.received and encoding in raised.value.hint


@pytest.mark.parametrize(
    "content",
    [
        CHINESE.encode() + b"\0" * 4096,
        ENGLISH.encode() + b"\0" * 4096,
        CHINESE.encode("gb18030"),
        RUSSIAN.encode("koi8-r"),
        bytes(range(256)) * 9,
        b"",
    ],
)
def test_stream_of_other_bytes_is_returned_unchanged(content: bytes) -> None:
    stream = io.BytesIO(content)
    assert utf8_stream(stream, "file.txt") is stream
    assert stream.read() == content


@given(st.text(st.characters(), max_size=50), st.sampled_from(["utf-16-le", "utf-32-be"]))
def test_text_with_a_byte_order_mark_is_converted(text: str, encoding: str) -> None:
    marked = "\ufeffa\n" + text
    stream = utf8_stream(io.BytesIO(marked.encode(encoding, "surrogatepass")), "file.txt")
    assert stream.read().decode("utf-8", "surrogatepass") == "a\n" + text


def test_truncated_utf16_file_is_refused() -> None:
    content = "\ufeff渔民".encode("utf-16-le")[:-1]
    with pytest.raises(InputError) as raised:
        utf8_stream(io.BytesIO(content), "file.txt").read()
    assert raised.value.subject == "file.txt"
