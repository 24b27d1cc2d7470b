"""Tests of reading text and rows, and of the errors for invalid ones."""

import gzip
import json
import os
import pathlib
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.corpora import corpus
from pipeline.corpora.documents import Corpus
from pipeline.corpora.readers import rows
from pipeline.corpora.readers import text as text_reader
from pipeline.corpora.readers.base import find_files

ROWS = [{"title": f"题目{n}", "content": f"内容 {n}", "other": n} for n in range(5)]
TEXTS = [f"题目{n}\n内容 {n}" for n in range(5)]


def _texts(pattern: pathlib.Path | str, **settings: Any) -> list[str]:
    opened = Corpus(spec=CorpusSpec(**settings))
    files = find_files(Location.parse(str(pattern)), corpus=opened)
    return [
        corpus.document_text(document)
        for block in corpus.read_blocks(files)
        for document in block.documents
    ]


def _write(path: pathlib.Path, content: str | bytes) -> pathlib.Path:
    content = content.encode("utf-8") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.json", LINES),
        ("rows.json", "\ufeff" + LINES.replace("\n", "\r\n\n")),
        ("rows.json", json.dumps(ROWS, indent=1)),
        ("rows.json", " [\n" + ",".join(map(json.dumps, ROWS)) + "]"),
        ("rows.jsonl.gz", LINES),
        ("rows.json.gz", json.dumps(ROWS, ensure_ascii=False)),
    ],
)
def test_json_lines_and_arrays_give_the_same_documents(
    tmp_path: pathlib.Path, name: str, content: str
) -> None:
    assert _texts(_write(tmp_path / name, content)) == TEXTS


def test_text_of_a_row_is_its_joined_text_fields(tmp_path: pathlib.Path) -> None:
    row = {"title": "", "content": None, "answer": "好", "q": "吗"}
    path = _write(tmp_path / "x.json", json.dumps(row))
    assert _texts(path, text_fields=("title", "content", "q", "answer")) == ["吗\n好"]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.txt.gz"])
def test_text_file_is_divided_at_blank_lines(tmp_path: pathlib.Path, name: str) -> None:
    content = "\ufeff\n\n第一行\n第二行\r\n \t \n\n\n另一篇"
    path = _write(tmp_path / name, content.removeprefix("\ufeff"))
    assert _texts(path) == ["第一行\n第二行", "另一篇"]


def test_folders_and_globs_are_searched_without_hidden_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden.txt", ".cache/d.txt"):
        _write(tmp_path / name, name)
    assert _texts(tmp_path) == ["a.txt", "b.txt", "sub/c.txt"]
    assert _texts(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert _texts(f"{tmp_path}/**/*.txt") == ["a.txt", "b.txt", "sub/c.txt"]
    names = [file.name for file in find_files(tmp_path)]
    assert names == ["a.txt", "b.txt", "sub/c.txt"]


def test_long_document_is_divided_at_lines_with_one_split_key(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(text_reader, "MAX_DOCUMENT_BYTES", 64)
    lines = [f"第{n}行的文字\n" for n in range(30)]
    path = _write(tmp_path / "long.txt", "".join(lines) + "\n短的文档\n")
    files = find_files(path)
    documents = [document for block in corpus.read_blocks(files) for document in block.documents]
    *divided, short = documents
    assert b"".join(document.content for document in divided).decode() == "".join(lines)
    assert all(len(document.content) <= 64 for document in divided)
    assert all(document.content.endswith(b"\n") for document in divided)
    assert len({document.split_key for document in divided}) == 1 and divided[0].split_key
    assert short.split_key is None
    assert [document.ordinal for document in documents] == list(range(len(documents)))


@given(st.text(alphabet="a汉😀é", min_size=1, max_size=200))
def test_long_line_is_divided_between_characters(tmp_path_factory, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_reader, "MAX_DOCUMENT_BYTES", 32)
        path = _write(tmp_path_factory.mktemp("line") / "x.txt", text)
        assert "".join(_texts(path)) == text


def test_json_array_is_read_in_blocks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rows, "_BLOCK_CHARS", 7)
    assert _texts(_write(tmp_path / "x.json", json.dumps(ROWS))) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"title": "a", "content": "b"}\n{"title": \n', "x.jsonl, line 2: not JSON"),
        ("x.json", '[{"title": "a", "content": "b"}, {"ti', "x.json, row 1: not JSON"),
        ("x.json", "[1]", "x.json, row 0: expected a JSON object, received int"),
        (
            "x.jsonl",
            '{"text": "a", "id": 3}',
            r"line 1: expected the fields title,content .*, received text,id",
        ),
        (
            "x.jsonl",
            '{"title": 3, "content": ""}',
            "expected text in the field title, received int",
        ),
        ("x.jsonl", '{"title": 0, "content": ""}', "text in the field title, received int"),
        ("x.txt", "好".encode("gb18030"), "line 1: expected UTF-8 text, received byte 0xba"),
        ("x.jsonl", b'{"title": "\xff"}', "line 1: expected UTF-8 text, received byte 0xff"),
        ("x.json", b'[{"title": "\xff"}]', "x.json: not UTF-8"),
        ("x.json", "[" * 100_000, "x.json, row 0: not JSON"),
        ("x.json", '[{"title": ' + "9" * 5000 + "}]", "x.json, row 0: not JSON .Exceeds"),
        ("x.jsonl", '{"title": ' + "[" * 100_000, "x.jsonl, line 1: not JSON"),
        ("x.jsonl", '{"title": ' + "9" * 5000 + "}", "x.jsonl, line 1: not JSON .Exceeds"),
        ("x.jsonl", '{"two\\nlines": 1}', "received two lines;"),
        ("x.jsonl", '{"title": "ab\\ud800", "content": ""}', "received an unpaired surrogate"),
        ("x.json", '[{"title": "", "content": "b"}]\n[{"title": "b"}]', "x.json"),
        ("x.json", '[{"title": "a", "content": "b"} {"title": "b"}]', "x.json"),
        ("x.json", '[,{"title": "a", "content": "b"}]', "x.json"),
    ],
)
def test_errors_name_the_invalid_row(
    tmp_path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _texts(_write(tmp_path / name, content))


def test_empty_json_array_has_no_documents(tmp_path) -> None:
    assert _texts(_write(tmp_path / "x.json", " [ ] \n")) == []


@pytest.mark.parametrize(
    "blank", ["\u3000\u3000", " \t\u00a0", "\u200b\ufeff", "\u2003\u2060", "\u0085", "\x1c", "\r"]
)
def test_line_without_a_visible_character_is_blank(tmp_path, blank: str) -> None:
    path = _write(tmp_path / "x.txt", f"第一行\n第\u200b二行\n{blank}\n另一篇")
    assert _texts(path) == ["第一行\n第\u200b二行", "另一篇"]


@pytest.mark.parametrize("end", ["", "\r", "\n", "\r\n"])
def test_carriage_returns_as_only_line_ends_are_converted(tmp_path, end: str) -> None:
    path = _write(tmp_path / "x.txt", "第一行\r第二行\r\r另一篇" + end)
    assert _texts(path) == ["第一行\n第二行", "另一篇"]
    path = _write(tmp_path / "x.jsonl", LINES.replace("\n", "\r"))
    assert _texts(path) == TEXTS


def test_carriage_return_among_newlines_does_not_end_a_line(tmp_path) -> None:
    path = _write(tmp_path / "x.txt", "第一行\r\r第二行\n第三行\r\r\n第四行")
    assert len(_texts(path)) == 1


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_byte_order_mark_decides_the_encoding(tmp_path, encoding: str) -> None:
    path = _write(tmp_path / "x.txt", "\ufeff第一行\r\n😀\r\n\r\n另一篇\r\n".encode(encoding))
    assert _texts(path) == ["第一行\r\n😀", "另一篇"]
    for name, content in (("x.json", json.dumps(ROWS)), ("x.jsonl.gz", LINES)):
        assert _texts(_write(tmp_path / name, ("\ufeff" + content).encode(encoding))) == TEXTS


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "windows-1251", "windows-1252"])
def test_error_for_another_encoding_names_it(tmp_path, encoding: str) -> None:
    text = {"gb18030": "邮差在阁楼上数零钱，听收音机。", "big5": "郵差在閣樓上數零錢，聽收音機。"}
    text = text.get(
        encoding, "Чайник на плите" if encoding == "windows-1251" else "the café is shut"
    )
    path = _write(tmp_path / "x.txt", text.encode(encoding))
    with pytest.raises(InputError) as raised:
        _texts(path)
    assert raised.value.subject == f"{path}, line 1"
    assert encoding in raised.value.received and encoding in raised.value.hint


def test_each_line_is_a_document_with_documents_lines(tmp_path) -> None:
    path = _write(tmp_path / "x.txt", "一篇\n\n二篇\n三篇\n")
    source = CorpusSource(input_dir=str(path), documents="lines")
    files = corpus.open_corpora([source], corpus.resolve([source]))
    documents = [document for block in corpus.read_blocks(files) for document in block.documents]
    assert [corpus.document_text(document) for document in documents] == ["一篇", "二篇", "三篇"]


def test_documents_setting_replaces_the_separation_of_the_declaration() -> None:
    declared = CorpusSpec(documents="starts", document_start="=")
    assert declared.with_documents("lines").reading()["lines_per_document"] == 1
    assert declared.with_documents("blank_lines") == CorpusSpec()
    with pytest.raises(ValueError, match="^documents: "):
        CorpusSource(input_dir="x", documents="files")
    with pytest.raises(ValueError, match="^documents: "):
        CorpusSource(tfds_name="x", documents="lines")


def test_existing_file_whose_name_looks_like_a_glob_is_read(tmp_path) -> None:
    assert _texts(_write(tmp_path / "wiki[zh]*.txt", "一")) == ["一"]


def test_many_small_files_share_a_block(tmp_path) -> None:
    for number in range(50):
        _write(tmp_path / f"{number}.txt", f"{number}")
    files = find_files(tmp_path)
    blocks = list(corpus.read_blocks(files))
    assert len(blocks) == 1 and len(blocks[0].documents) == 50
    assert blocks[0].bytes_read == sum(file.bytes for file in files)


def test_error_for_a_damaged_gzip_file_names_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.txt.gz"
    whole = bytearray(gzip.compress(b"text " * 1000))
    whole[15] ^= 0xFF
    path.write_bytes(bytes(whole))
    with pytest.raises(InputError, match="x.txt.gz: not a valid gzip file"):
        _texts(path)
    path.write_bytes(gzip.compress(b"text " * 1000)[:-9])
    with pytest.raises(InputError, match="x.txt.gz: not a valid gzip file"):
        _texts(path)


def test_row_that_is_too_long_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    for name, content in (("x.jsonl", LINES.replace("内容", "内容" * 50)), ("y.json", "[" + LINES)):
        path = _write(tmp_path / name, content)
        with pytest.raises(InputError, match=name):
            _texts(path)


def test_corpus_without_files_or_text_is_refused(tmp_path: pathlib.Path) -> None:
    for pattern, received in (
        (tmp_path, "an empty directory"),
        (tmp_path / "none", "no such file or directory"),
        (f"{tmp_path}/*.txt", "no files"),
    ):
        with pytest.raises(InputError) as error:
            find_files(Location.parse(str(pattern), "input_dir"))
        assert (error.value.setting, error.value.received) == ("input_dir", received)
    _write(tmp_path / "empty.txt", "")
    with pytest.raises(InputError, match="received only empty files"):
        find_files(tmp_path)


def test_long_blank_text_is_read_in_bounded_memory(tmp_path) -> None:
    """A small compressed file has 64 MiB of spaces, then one word."""
    path = tmp_path / "x.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b" " * 2**20)
        file.write(b"\nend\n")
    tracemalloc.start()
    try:
        assert _texts(path)[-1] == "end"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * 2**20


def test_many_small_documents_make_several_blocks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(corpus, "_MAX_BLOCK_DOCUMENTS", 3)
    path = _write(tmp_path / "x.txt", "a\n\n" * 8)
    files = find_files(path)
    assert [len(block.documents) for block in corpus.read_blocks(files)] == [3, 3, 2]


def test_named_pipes_are_left_out(tmp_path) -> None:
    _write(tmp_path / "a.txt", "一")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "a.txt")
    assert _texts(tmp_path) == ["一", "一"]
