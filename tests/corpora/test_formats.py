"""Tests that every format and compression gives the same documents, and that errors name files."""

import csv
import dataclasses
import io
import json
import pathlib
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.corpora import archives, compressions, corpus
from pipeline.corpora.documents import Corpus
from pipeline.corpora.readers import FILES, delimited, rows
from pipeline.masking.masked_examples import create_masked_examples
from tests.corpora import written

DOCUMENTS = [f'第{n}篇 "small", model\nline {n}' for n in range(50)]
TEXT_FIELD = CorpusSpec(text_fields=("text",))


def _files(path: pathlib.Path, spec: CorpusSpec = TEXT_FIELD, reader: str = "auto") -> Any:
    source = CorpusSource(input_dir=str(path))
    return FILES.find(source, Corpus(spec=spec, reader=reader))


def _blocks(path: pathlib.Path, spec: CorpusSpec = TEXT_FIELD, **settings: Any) -> Any:
    return corpus.read_blocks(_files(path, spec, **settings))


def _texts(path: pathlib.Path, spec: CorpusSpec = TEXT_FIELD, **settings: Any) -> list[str]:
    blocks = _blocks(path, spec, **settings)
    return [corpus.document_text(document) for block in blocks for document in block.documents]


def _error(path: pathlib.Path, spec: CorpusSpec = TEXT_FIELD, **settings: Any) -> InputError:
    with pytest.raises(InputError) as error:
        _texts(path, spec, **settings)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    return error.value


def _write(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("suffix", written.COMPRESSORS)
@pytest.mark.parametrize("name", written.FORMATS)
def test_every_format_in_every_compression_gives_the_same_documents(
    tmp_path, name: str, suffix: str
) -> None:
    content = written.COMPRESSORS[suffix](written.FORMATS[name](DOCUMENTS))
    path = _write(tmp_path / f"docs.{name}{suffix}", content)
    assert _texts(path) == DOCUMENTS


@pytest.mark.parametrize("suffix", list(written.COMPRESSORS)[1:])
def test_compression_is_recognized_by_the_content(tmp_path, suffix: str) -> None:
    content = written.COMPRESSORS[suffix](written.json_lines(DOCUMENTS))
    assert _texts(_write(tmp_path / "docs.jsonl", content)) == DOCUMENTS


@pytest.mark.parametrize("name", ["parquet", "arrow", "feather"])
def test_table_is_recognized_by_its_content(tmp_path, name: str) -> None:
    path = _write(tmp_path / "docs.txt", written.FORMATS[name](DOCUMENTS))
    assert _texts(path) == _texts(path, reader="text") == DOCUMENTS


@pytest.mark.parametrize("suffix", list(written.COMPRESSORS)[1:])
def test_concatenated_compressed_files_are_both_read(tmp_path, suffix: str) -> None:
    compress = written.COMPRESSORS[suffix]
    content = compress(b"first\n\n") + compress(b"second\n") + bytes(512)
    assert _texts(_write(tmp_path / f"docs.txt{suffix}", content)) == ["first", "second"]


@pytest.mark.parametrize("suffix", list(written.COMPRESSORS)[1:])
@given(data=st.data())
def test_truncated_compressed_file_raises_an_error(
    tmp_path_factory, suffix: str, data: st.DataObject
) -> None:
    whole = written.COMPRESSORS[suffix](written.text(DOCUMENTS))
    size = data.draw(st.integers(8, len(whole) - 1))
    path = tmp_path_factory.mktemp("truncated") / f"docs.txt{suffix}"
    assert "not a valid" in _error(_write(path, whole[:size])).received


def test_file_with_a_compression_suffix_but_other_content_is_refused(tmp_path) -> None:
    assert "not a valid zstd" in _error(_write(tmp_path / "a.txt.zst", "plain text")).received


@pytest.mark.parametrize("suffix", list(written.COMPRESSORS)[1:])
def test_file_with_a_huge_compression_ratio_is_refused(tmp_path, monkeypatch, suffix: str) -> None:
    monkeypatch.setattr(compressions, "_MIN_CHECKED_BYTES", 2**20)
    content = written.COMPRESSORS[suffix](bytes(2**24))
    error = _error(_write(tmp_path / f"zeros.txt{suffix}", content))
    assert str(compressions._MAX_RATIO) in error.expected


@pytest.mark.parametrize(
    ("content", "description"),
    [
        (b"WARC/1.0\r\nWARC-Type: response\r\n", "WARC"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html>", "HTML"),
        (b"PK\x03\x04rest", "ZIP"),
        (b"%PDF-1.7", "PDF"),
        ("plain text of some length".encode("utf-16-le"), "utf-16-le"),
        ("plain text of some length".encode("utf-16-be"), "utf-16-be"),
    ],
)
def test_file_of_an_unsupported_format_is_refused_with_its_name(
    tmp_path, content: bytes, description: str
) -> None:
    error = _error(_write(tmp_path / "a.txt", content))
    assert description in error.received and error.hint


@pytest.mark.parametrize(
    "start", ["BZh9", "PAR1", "PAR1\n", "LZIP", "ORC\n", "FEA1", "WARC/", "PK"]
)
def test_text_that_begins_like_another_format_is_read_as_text(tmp_path, start: str) -> None:
    documents = [f"{start} is the name of a gene"]
    assert _texts(_write(tmp_path / "a.txt", documents[0])) == documents


def test_html_page_is_read_if_the_declaration_removes_tags(tmp_path) -> None:
    spec = CorpusSpec(cleaning=("html",))
    assert _texts(_write(tmp_path / "a.txt", "<html><p>一</p></html>"), spec) == ["一"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_text_with_a_byte_order_mark_is_read_and_checked(tmp_path, encoding: str) -> None:
    content = written.text(DOCUMENTS).decode().encode(encoding)
    assert _texts(_write(tmp_path / "a.txt", content)) == DOCUMENTS
    assert _error(_write(tmp_path / "b.txt", content[:-1])).expected.startswith(encoding)


def test_unpaired_surrogate_makes_only_its_document_invalid(tmp_path) -> None:
    content = "whole\n\nhalf \ud800\n".encode("utf-16", "surrogatepass")
    assert "line 3" in _error(_write(tmp_path / "a.txt", content)).subject


# Archives.


def test_members_of_an_archive_are_read_like_files(tmp_path) -> None:
    members = {
        f"./part/{name}.{name}{suffix}": compress(written.FORMATS[name](DOCUMENTS[:3]))
        for name in written.FORMATS
        for suffix, compress in written.COMPRESSORS.items()
    }
    members |= {"./._a.txt": b"\x00hidden", ".git/config": b"hidden"}
    for suffix, compress in written.COMPRESSORS.items():
        path = _write(tmp_path / f"all.tar{suffix}", compress(written.tar(members)))
        assert _texts(path) == DOCUMENTS[:3] * (len(members) - 2)


def test_declaration_selects_the_members_of_an_archive(tmp_path) -> None:
    members = {"a/wiki_00": b"yes", "README": b"no", "wiki_01.gz": written.COMPRESSORS[".gz"](b"2")}
    _write(tmp_path / "dump.tar", written.tar(members))
    assert _texts(tmp_path, CorpusSpec(files=("wiki_*",))) == ["yes", "2"]


def _special_tar(**attributes: Any) -> bytes:
    info = tarfile.TarInfo(attributes.pop("name", "a.txt"))
    for name, value in attributes.items():
        setattr(info, name, value)
    return info.tobuf() + bytes(1024)


@pytest.mark.parametrize(
    ("attributes", "received"),
    [
        ({"name": "/etc/passwd"}, "absolute"),
        ({"name": "a/../../b.txt"}, "parent path"),
        ({"type": tarfile.SYMTYPE, "linkname": "b.txt"}, "link"),
        ({"type": tarfile.LNKTYPE, "linkname": "b.txt"}, "link"),
        ({"type": tarfile.CHRTYPE}, "device"),
        ({"type": tarfile.FIFOTYPE}, "device"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "special"),
    ],
)
def test_archive_with_a_special_member_is_refused(
    tmp_path, attributes: dict[str, Any], received: str
) -> None:
    error = _error(_write(tmp_path / "a.tar", _special_tar(**attributes)))
    assert received in error.received and "member" in error.subject
    assert list(tmp_path.iterdir()) == [tmp_path / "a.tar"]


def test_large_headers_of_an_archive_are_refused_without_reading_them(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(archives, "_MAX_HEADER_BYTES", 2000)
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        content = _special_tar(type=kind, size=2001)
        error = _error(_write(tmp_path / "a.tar", content))
        assert error.received == "2,001 bytes" and "2,000" in error.expected


def _header(kind: bytes, name: str, size: int) -> bytes:
    """Returns a header of `size` bytes, at most 1,024, for the next member or the archive."""
    record = f"{size} {name}={'v' * (size - len(name) - 6)}\n".encode()
    return _special_tar(type=kind, size=size)[:512] + record.ljust(1024, b"\0")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [600, 900])
def test_total_size_of_the_headers_of_a_member_is_limited(
    tmp_path, monkeypatch, kind: bytes, size: int
) -> None:
    """Headers of other members do not count. Headers for the whole archive do."""
    monkeypatch.setattr(archives, "_MAX_HEADER_BYTES", 2000)
    headers = [_header(kind, f"SOME.{name}", size) for name in "abc"]
    member, end = written.tar({"a.txt": b"text"})[:1024], bytes(1024)
    one_member = _write(tmp_path / "a.tar", b"".join([*headers, member, end]))
    content = b"".join(header + member for header in headers) + end
    three_members = _write(tmp_path / "b.tar", content)
    if size == 600:
        assert _texts(one_member) == ["text"] and _texts(three_members) == ["text"] * 3
        return
    assert _error(one_member).received == "2,700 bytes"
    if kind == tarfile.XGLTYPE:
        assert _error(three_members).received == "2,700 bytes"
    else:
        assert _texts(three_members) == ["text"] * 3


def test_truncated_and_nested_archives_are_refused(tmp_path) -> None:
    whole = written.tar({"a.txt": b"text " * 1000})
    assert "tar archive" in _error(_write(tmp_path / "a.tar", whole[:2000])).received
    nested = written.tar({"inner.tar": whole})
    assert _error(_write(tmp_path / "b.tar", nested)).received == "a nested archive"


# Delimited rows.


def test_csv_is_read_as_in_rfc_4180(tmp_path) -> None:
    content = '\ufefftext,"n"\r\n"a ""b"", c\r\nd",1\r\n\r\n,2\r\nplain,3'
    assert _texts(_write(tmp_path / "a.csv", content)) == ['a "b", c\r\nd', "", "plain"]


@pytest.mark.parametrize(
    ("content", "subject", "received"),
    [
        ("text,n\na,1\nb\n", "line 3", "1"),
        ('text,n\n"a" b,1\n', "line 2", "a malformed row"),
        ('text,n\na,1\n"b,2\n', "line 3", "a malformed row"),
        ("content,n\na,1\n", "first row", "content,n"),
        ("text,text\na,1\n", "first row", "text,text"),
        (b"text,n\na\xff,1\n", "line 2", "byte 0xff"),
        (b"text,n\n\xed\xa0\x80,1\n", "line 2", "byte 0xed"),
    ],
)
def test_error_for_a_delimited_file_names_the_row(
    tmp_path, content: bytes | str, subject: str, received: str
) -> None:
    error = _error(_write(tmp_path / "a.csv", content))
    assert error.subject.endswith(subject) and received in str(error.received)


def test_error_for_a_missing_field_suggests_the_likely_one(tmp_path) -> None:
    error = _error(_write(tmp_path / "a.csv", "id,content\n1,a\n"))
    assert "`text_fields`=content" in error.hint
    error = _error(_write(tmp_path / "a.jsonl", '{"id": "1", "words": "some text"}\n'))
    assert "`text_fields`=words" in error.hint


def test_quoted_field_that_is_too_long_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 100)
    content = 'text\nok\n"' + "line\n" * 100
    assert _error(_write(tmp_path / "a.csv", content)).subject.endswith("line 3")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        # Quotation marks that do not open a quoted field.
        ('1\t"one\n0\ttwo\n', ['"one', "two"]),
        ('1\t"one\n0\ttwo"\n', ['"one', 'two"']),
        ('1\t"one" more\n0\ta "two"\n', ['"one" more', 'a "two"']),
        ('"1\tone"\n0\ttwo\n', ['one"', "two"]),
        ('1\t"one\n', ['"one']),
        ('1\t"one\n\n0\t"two" more', ['"one', '"two" more']),
        ('1\t"one\n0\ttwo\n1\tthree"\n', ['"one', "two", 'three"']),
        # Quoted fields.
        ('1\t"a ""one"""\r\n0\t"two"', ['a "one"', "two"]),
        ('1\t"one\n\nmore"\n0\ttwo\n', ["one\n\nmore", "two"]),
        ('1\t"one\tmore\nand more"\n0\t""\n', ["one\tmore\nand more", ""]),
        ('1\t"one:\n\tindented"\n0\t"two"\n', ["one:\n\tindented", "two"]),
        ('1\t"a\tb\nc\td"\n0\t"a\nb\tc\nd"\n', ["a\tb\nc\td", "a\nb\tc\nd"]),
        ('"1"\t"one"\n"0\n"\t"two\r\nmore"\r\n', ["one", "two\r\nmore"]),
    ],
)
def test_quotation_mark_opens_a_tsv_field_only_if_another_closes_it(
    tmp_path, content: str, texts: list[str]
) -> None:
    path = _write(tmp_path / "a.tsv", "label\ttext\n" + content)
    assert _texts(path) == texts
    assert _texts(_write(path, b"\xef\xbb\xbf" + path.read_bytes())) == texts


_CELLS = st.lists(st.text('a"\n\r', max_size=5), min_size=2, max_size=2)


@given(rows=st.lists(_CELLS, max_size=6), ending=st.sampled_from(["\n", "\r\n"]))
def test_quoted_tsv_is_read_as_it_was_written(
    tmp_path_factory, rows: list[list[str]], ending: str
) -> None:
    """A field with a line break is recognized as quoted because its lines have too few tabs."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", lineterminator=ending, quoting=csv.QUOTE_ALL)
    writer.writerows([["text", "n"], *rows])
    path = _write(tmp_path_factory.mktemp("tsv") / "a.tsv", stream.getvalue())
    blocks = [block.documents for block in _blocks(path)]
    contents = [document.content.decode() for documents in blocks for document in documents]
    assert contents == [text for text, _ in rows]


@given(
    rows=st.lists(st.lists(st.text('a" ', max_size=5), min_size=2, max_size=2), max_size=8),
    last=st.sampled_from(["", "\n"]),
)
def test_stray_quotation_marks_lose_no_tsv_rows(
    tmp_path_factory, rows: list[list[str]], last: str
) -> None:
    lines = ["text\tn", *("\t".join(row) for row in rows)]
    path = _write(tmp_path_factory.mktemp("tsv") / "a.tsv", "\n".join(lines) + last)
    documents = [document for block in _blocks(path) for document in block.documents]
    assert [document.position for document in documents] == [
        f"line {number}" for number in range(2, len(rows) + 2)
    ]
    for document, (text, _) in zip(documents, rows, strict=True):
        quoted = text[1:-1].replace('""', '"') if text[:1] == text[-1:] == '"' else text
        assert document.fault is None and document.content.decode() in (text, quoted)


def test_stray_quotation_mark_before_many_lines_is_read_as_text(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 100)
    content = 'text\n"a\n' + "one\n" * 60 + '"two"\n'
    texts = _texts(_write(tmp_path / "a.tsv", content))
    assert texts == ['"a', *["one"] * 60, "two"]
    error = _error(_write(tmp_path / "b.tsv", 'text\n"a\n' + "b" * 101))
    assert error.subject.endswith("line 3")


# Invalid rows.


def _bad_rows(path: pathlib.Path) -> tuple[list[str], list[InputError]]:
    texts, errors = [], []
    for block in _blocks(path):
        for document in block.documents:
            try:
                texts.append(corpus.document_text(document))
            except InputError as error:
                errors.append(error)
    return texts, errors


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.csv", 'text,n\na,1\nb\n"c"c,1\nd,2\n', ["line 3", "line 4"]),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text"\n[' + "1" * 200 + ']\n{"text": "d"}\n',
            ["line 2", "line 3"],
        ),
    ],
)
def test_invalid_row_does_not_affect_the_other_rows(
    tmp_path, monkeypatch, name: str, content: str, lines: list[str]
) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    texts, errors = _bad_rows(_write(tmp_path / name, content))
    assert texts == ["a", "d"]
    assert [error.subject.rsplit(", ", 1)[1] for error in errors] == lines


# Tables.


def _parquet(path: pathlib.Path, table: pa.Table, **settings: Any) -> pathlib.Path:
    pq.write_table(table, path, **settings)
    return path


def test_nulls_bytes_and_dictionaries_are_read_as_text(tmp_path) -> None:
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary()):
        table = pa.table({"text": pa.array(["a", None, ""], kind)})
        for format_name in ("parquet", "arrow"):
            path = tmp_path / f"a.{format_name}"
            if format_name == "parquet":
                _parquet(path, table)
            else:
                with pa.ipc.new_file(str(path), table.schema) as writer:
                    writer.write_table(table)
            assert _texts(path) == ["a", "", ""]
    table = pa.table({"text": pa.array(["a", None, "a"]).dictionary_encode()})
    assert _texts(_parquet(tmp_path / "b.parquet", table)) == ["a", "", "a"]


@pytest.mark.parametrize(
    ("values", "received"),
    [(pa.array([1, 2]), "int64"), (pa.array([["a"], ["b"]]), "list<")],
)
def test_error_for_a_column_without_text_suggests_one_with_text(
    tmp_path, values, received: str
) -> None:
    table = pa.table({"text": values, "words": ["a", "b"]})
    error = _error(_parquet(tmp_path / "a.parquet", table))
    assert error.received.startswith(received) and "`text_fields`=words" in error.hint
    error = _error(_parquet(tmp_path / "b.parquet", table), CorpusSpec())
    assert error.received == "text,words" and "`text_fields`=words" in error.hint


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"title": "short", "text": ["a", "b"]}, "lists are not supported"),
        ({"title": "short", "text": 5}, "to the fields that contain text"),
        ({"summary": "of more characters than a title", "text": ["a"]}, "`text_fields`=summary"),
    ],
)
def test_error_for_a_field_without_text_suggests_a_long_text(
    tmp_path, row: dict[str, object], hint: str
) -> None:
    error = _error(_write(tmp_path / "a.jsonl", json.dumps(row)))
    assert error.received == type(row["text"]).__name__
    assert hint in error.hint and "`skip_bad_lines`" in error.hint


def test_error_for_a_column_of_lists_says_that_they_are_not_supported(tmp_path) -> None:
    table = pa.table({"text": pa.array([["a"]], pa.large_list(pa.string()))})
    assert "lists are not supported" in _error(_parquet(tmp_path / "a.parquet", table)).hint


def test_bytes_that_are_not_utf_8_make_only_their_row_invalid(tmp_path) -> None:
    table = pa.table({"text": pa.array([b"a", b"\xff", b"c"], pa.binary())})
    texts, errors = _bad_rows(_parquet(tmp_path / "a.parquet", table))
    assert texts == ["a", "c"]
    assert errors[0].subject.endswith("row group 0, row 1")
    assert (errors[0].received, errors[0].hint) == ("byte 0xff", None)


@pytest.mark.parametrize("name", ["parquet", "arrow", "feather"])
@given(data=st.data())
def test_truncated_table_raises_an_error(tmp_path_factory, name: str, data: st.DataObject) -> None:
    whole = written.FORMATS[name](DOCUMENTS)
    end = len(whole) - (300 if name == "feather" else 1)
    size = data.draw(st.integers(10, end))
    path = tmp_path_factory.mktemp("truncated") / f"a.{name}"
    assert _error(_write(path, whole[:size])).received.startswith("not a valid")


def test_only_the_text_columns_of_a_table_are_read(tmp_path) -> None:
    table = pa.table({"text": ["a"] * 10, "image": [bytes(1000)] * 10})
    path = _parquet(tmp_path / "a.parquet", table, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    begin = content.index(bytes(500))
    content[begin - 10 : begin] = b"\xff" * 10
    assert _texts(_write(path, bytes(content))) == ["a"] * 10
    assert "not a valid Parquet" in _error(path, CorpusSpec(text_fields=("image",))).received


# Directories that the package `datasets` saved.


def test_only_the_data_files_of_a_dataset_directory_are_read(tmp_path) -> None:
    written.save_to_disk(tmp_path / "set", DOCUMENTS)
    _write(tmp_path / "set" / "cache-0.arrow", written.arrow_stream(["cached"]))
    assert _texts(tmp_path / "set") == DOCUMENTS
    (tmp_path / "set" / "data-00001-of-00002.arrow").unlink()
    assert "data-00001" in _dataset_error(tmp_path / "set").received


def _dataset_error(path: pathlib.Path) -> InputError:
    with pytest.raises(InputError) as error:
        _files(path)
    return error.value


@pytest.mark.parametrize(("splits", "expected"), [(("train", "test"), 1), (("a", "b"), 2)])
def test_only_train_is_read_if_a_dataset_has_that_split(
    tmp_path, splits: tuple[str, ...], expected: int
) -> None:
    for split in splits:
        written.save_to_disk(tmp_path / split, DOCUMENTS)
    _write(tmp_path / "dataset_dict.json", json.dumps({"splits": splits}))
    assert _texts(tmp_path) == DOCUMENTS * expected


def test_state_json_without_tables_in_its_folder_is_read_as_rows(tmp_path) -> None:
    _write(tmp_path / "state.json", '{"text": "a"}')
    assert _texts(tmp_path) == ["a"]


# Parts of large files.


def _run(function: Any, jobs: Iterable[Any]) -> Iterator[Any]:
    return map(function, jobs)


def _described(blocks: Iterable[corpus.DocumentBlock]) -> list[tuple[Any, ...]]:
    return [
        (document.ordinal, document.position, document.content, document.split_key)
        for block in blocks
        for document in block.loaded().documents
    ]


_LINES = st.lists(
    st.sampled_from(
        ["", " ", "\u3000", "\r", "a", "汉字", "= b", "\ufeff", "\ufeffx", "x" * 30, "x" * 70]
    ),
    min_size=1,
    max_size=40,
)
_SPECS = (
    CorpusSpec(),
    CorpusSpec(documents="lines", lines_per_document=1),
    CorpusSpec(documents="lines", lines_per_document=3),
    CorpusSpec(documents="starts", document_start="="),
    CorpusSpec(documents="files"),
)


@pytest.mark.parametrize("spec", _SPECS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@given(lines=_LINES, size=st.integers(3, 60), ends=st.booleans())
def test_parts_of_a_file_have_its_documents(
    tmp_path_factory, spec: CorpusSpec, name: str, lines: list[str], size: int, ends: bool
) -> None:
    from pipeline.corpora.readers import text

    path = tmp_path_factory.mktemp("parts") / name
    _write(path, "\n".join(lines) + "\n" * ends)
    if not path.stat().st_size:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "MAX_DOCUMENT_BYTES", 64)
        files = _files(path, spec)
        whole = _described(corpus.read_blocks(files))
        patch.setattr(corpus, "_MIN_BLOCK_BYTES", size)
        patch.setattr(corpus, "_MAX_BLOCK_BYTES", size)
        assert _described(corpus.read_blocks(files)) == whole
        assert _described(corpus.read_blocks(files, _run)) == whole


@given(groups=st.integers(1, 30), size=st.integers(20, 3000), batch=st.integers(1, 40))
def test_parts_of_a_parquet_file_have_its_rows(
    tmp_path_factory, groups: int, size: int, batch: int
) -> None:
    from pipeline.corpora.readers import parquet

    path = tmp_path_factory.mktemp("parts") / "a.parquet"
    _parquet(path, written.table(DOCUMENTS), row_group_size=groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_MAX_BATCH_ROWS", batch)
        files = _files(path)
        whole = _described(corpus.read_blocks(files))
        assert [content.decode() for _, _, content, _ in whole] == DOCUMENTS
        patch.setattr(corpus, "_MIN_BLOCK_BYTES", size)
        patch.setattr(corpus, "_MAX_BLOCK_BYTES", size)
        assert _described(corpus.read_blocks(files)) == whole
        assert _described(corpus.read_blocks(files, _run)) == whole


@pytest.mark.parametrize("name", ["txt", "jsonl", "parquet"])
def test_large_files_are_split_into_parts(tmp_path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(corpus, "_MIN_BLOCK_BYTES", 200)
    path = _write(tmp_path / f"a.{name}", written.FORMATS[name](DOCUMENTS))
    blocks = list(corpus.read_blocks(_files(path), _run))
    assert sum(block.part is not None for block in blocks) > 3
    assert [block.index for block in blocks] == list(range(len(blocks)))


@pytest.mark.parametrize("name", written.FORMATS)
def test_shards_do_not_depend_on_format_or_workers(
    tmp_path, monkeypatch, examples_config, name: str
) -> None:
    monkeypatch.setattr(corpus, "_MIN_BLOCK_BYTES", 500)
    documents = [f"the small model learns step {n} of 五" for n in range(60)]
    spec = _write(tmp_path / "spec.yaml", "title: t\nurl: u\ntext_fields: [text]\n")
    shards = []
    for format_name, workers in ((name, 1), (name, 2), ("txt", 1)):
        path = _write(tmp_path / format_name / "docs", written.FORMATS[format_name](documents))
        if format_name in ("jsonl", "json", "csv", "tsv"):
            reader = format_name if format_name in ("csv", "tsv") else "rows"
            spec.write_text(f"title: t\nurl: u\ntext_fields: [text]\nreader: {reader}\n")
        output = tmp_path / f"{format_name}-{workers}"
        config = dataclasses.replace(
            examples_config,
            corpora=(CorpusSource(input_dir=str(path), corpus_spec=str(spec), name=""),),
            output_dir=Location.parse(str(output)),
            max_workers=workers,
        )
        create_masked_examples(config)
        shards.append([file.read_bytes() for file in sorted(output.glob("*.tfrecord"))])
        spec.write_text("title: t\nurl: u\ntext_fields: [text]\n")
    assert shards[0] == shards[1] == shards[2] and any(shards[0])
