"""Inspection of a corpus before it is prepared."""

import json
import pathlib
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.corpora import CorpusSource
from tests.conftest import make_text
from tools import inspect_corpus as tool
from tools.corpus_analysis import corpus_sample, scripts

DOCUMENTS = make_text(seed=8, num_documents=40)
ROWS = [{"id": n, "note": "短", "body": text} for n, text in enumerate(DOCUMENTS)]


def _sample(path: pathlib.Path, *, sample: int = 1000, tokenizer=None, **source):
    sources = (CorpusSource(input_dir=str(path), **source),)
    (summary,) = corpus_sample.sample_corpora(sources, sample, tokenizer)
    return summary


def _write_rows(folder: pathlib.Path, kind: str) -> pathlib.Path:
    path = folder / f"rows.{kind}"
    table = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    else:
        rows = [f'{row["id"]},{row["note"]},"{row["body"]}"' for row in ROWS]
        path.write_text("\n".join(["id,note,body", *rows]), encoding="utf-8")
    return path


KINDS = {"parquet": "parquet", "arrow": "arrow", "jsonl": "rows", "json": "rows", "csv": "csv"}


@pytest.mark.parametrize(("kind", "reader"), KINDS.items())
def test_missing_text_field_is_replaced_by_the_detected_one(
    tmp_path, kind: str, reader: str
) -> None:
    path = _write_rows(tmp_path, kind)
    for requested_fields in (None, ("text",), ("body",)):
        summary = _sample(path, text_fields=requested_fields)
        (layout,) = summary.layouts
        assert layout.format == reader and layout.files == 1 and layout.example == path.name
        assert [field.name for field in layout.fields] == ["id", "note", "body"]
        assert layout.fields[2].example == " ".join(DOCUMENTS[0].split())[:40]
        assert layout.text_fields == ("body",)
        assert layout.missing == {None: ("title", "content")}.get(
            requested_fields, () if requested_fields == ("body",) else ("text",)
        )
        assert (summary.documents, summary.bad) == (40, 0) and not summary.problems
        assert summary.characters == sum(map(len, DOCUMENTS))


def test_files_inside_an_archive_are_inspected(tmp_path) -> None:
    _write_rows(tmp_path, "jsonl")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "rows.jsonl", "inside/rows.jsonl")
    summary = _sample(tmp_path / "all.tar")
    (layout,) = summary.layouts
    assert (layout.format, layout.text_fields) == ("rows", ("body",))
    assert "inside/rows.jsonl" in layout.example and summary.documents == 40


def test_counts_equal_those_of_the_text(tmp_path, examples_config) -> None:
    from pipeline.tokenizers.loading import load_tokenizer

    documents = [*DOCUMENTS, DOCUMENTS[3], DOCUMENTS[5], "短文", "螺" * 30]
    (tmp_path / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(DOCUMENTS[3].encode() + b"\n\n" + b"\xff" * 30)
    tokenizer = load_tokenizer(examples_config.vocab_file, do_lower_case=None)
    summary = _sample(tmp_path, tokenizer=tokenizer)
    assert (summary.files, summary.sampled_files, len(summary.layouts)) == (2, 2, 1)
    assert (summary.documents, summary.bad, summary.short, summary.duplicates) == (46, 1, 1, 3)
    assert summary.sampled_bytes == summary.bytes
    texts = [*documents, DOCUMENTS[3]]
    lengths = sorted(map(len, texts))
    assert summary.characters == sum(lengths) == summary.scaled(summary.characters)
    assert summary.quantiles[0] == 2 and summary.quantiles[-1] == lengths[-1]
    assert summary.quantiles[3] == lengths[len(lengths) // 2]
    tokens = [tokenizer.tokenize(text).ids for text in texts]
    unknown = sum(int((ids == tokenizer.special_ids["unk"]).sum()) for ids in tokens)
    assert summary.tokens.tokens == sum(map(len, tokens))
    assert summary.tokens.unknown == unknown > 30
    assert summary.tokens.quantiles[-1] == max(map(len, tokens))
    letters = [c for text in texts for c in text if c.isalpha()]
    latin = sum(c.isascii() for c in letters) / len(letters)
    assert summary.scripts == pytest.approx({"Han": 1 - latin, "Latin": latin})
    assert any("0xff" in problem for problem in summary.problems)


@given(sample=st.integers(1, 60))
def test_counts_of_a_sample_are_scaled_to_the_file(tmp_path_factory, sample: int) -> None:
    folder = tmp_path_factory.mktemp("part")
    (folder / "a.jsonl").write_text(
        "".join(
            json.dumps({"title": "", "content": "工程师检查了机器。" * 400}) + "\n"
            for _ in range(50)
        )
    )
    summary = _sample(folder, sample=sample)
    assert summary.documents == min(sample, 50)
    assert summary.duplicates == summary.documents - 1
    # The file is read in blocks of a few kilobytes, so the scaled count is approximate.
    assert summary.scaled(summary.documents) <= 50
    assert summary.documents < 20 or summary.scaled(summary.documents) > 35


def test_unreadable_file_is_reported_as_a_problem(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "t", "content": "c"}\n')
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(40))
    summary = _sample(tmp_path)
    assert summary.documents == 1
    (problem,) = summary.problems
    assert "b.parquet" in problem


def test_script_of_each_letter_is_detected() -> None:
    letters = {
        "Latin": "aÉｚß",
        "Cyrillic": "яЁ",
        "Han": "字𠮷々",
        "Hiragana": "ひ",
        "Katakana": "カーｶ",
        "Hangul": "한ㄱᄀ",
        "Arabic": "بﻻـ",
        "Greek": "ω",
        "Devanagari": "अ",
        "Thai": "ก",
        "Hebrew": "א",
        scripts.OTHER: "𝐀ℂª",
    }
    assert {letter: scripts.script(letter) for text in letters.values() for letter in text} == {
        letter: name for name, text in letters.items() for letter in text
    }


def test_table_and_report_have_equal_counts(tmp_path, capsys, vocab_file) -> None:
    path = _write_rows(tmp_path, "csv")
    (tmp_path / "more.txt").write_text("\n\n".join(DOCUMENTS[:10]), encoding="utf-8")
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        "corpora:\n  - {name: one, input_dir: rows.csv, text_fields: [body]}\n"
        "  - {name: two, input_dir: more.txt}\n",
        encoding="utf-8",
    )
    report = tmp_path / "report.json"
    arguments = [f"--corpora={mixture}", f"--vocab_file={vocab_file}", f"--output={report}"]
    assert tool.main(["inspect_corpus", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"corpus      one: 1 file, {path.stat().st_size:,} bytes" in lines
    assert "duplicates  0.00% of the 40 documents that are not skipped" in lines
    # Duplicates are also counted across corpora.
    assert "duplicates  100.00% of the 10 documents that are not skipped" in lines
    first_corpus, second_corpus = json.loads(report.read_text(encoding="utf-8"))["corpora"]
    assert (first_corpus["documents"], second_corpus["documents"], second_corpus["duplicates"]) == (
        40,
        10,
        10,
    )
    assert first_corpus["layouts"][0]["text_fields"] == ["body"]
    assert tool.main(["inspect_corpus", *arguments]) == 1


def test_table_names_the_detected_field(tmp_path, capsys) -> None:
    path = _write_rows(tmp_path, "parquet")
    assert tool.main(["inspect_corpus", f"--input_dir={path}"]) == 0
    assert "no field title or content: set --text_fields=body" in capsys.readouterr().out
