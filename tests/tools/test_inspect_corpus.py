"""What a corpus holds, before it is prepared."""

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
    (found,) = corpus_sample.sample_corpora(sources, sample, tokenizer)
    return found


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
def test_a_wrong_text_field_is_replaced_by_the_right_one(tmp_path, kind: str, reader: str) -> None:
    path = _write_rows(tmp_path, kind)
    for wanted in (None, ("text",), ("body",)):
        found = _sample(path, text_fields=wanted)
        (layout,) = found.layouts
        assert layout.format == reader and layout.files == 1 and layout.example == path.name
        assert [field.name for field in layout.fields] == ["id", "note", "body"]
        assert layout.fields[2].example == " ".join(DOCUMENTS[0].split())[:40]
        assert layout.text_fields == ("body",)
        assert layout.missing == {None: ("title", "content")}.get(
            wanted, () if wanted == ("body",) else ("text",)
        )
        assert (found.documents, found.bad) == (40, 0) and not found.problems
        assert found.characters == sum(map(len, DOCUMENTS))


def test_an_archive_is_looked_into(tmp_path) -> None:
    _write_rows(tmp_path, "jsonl")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "rows.jsonl", "inside/rows.jsonl")
    found = _sample(tmp_path / "all.tar")
    (layout,) = found.layouts
    assert (layout.format, layout.text_fields) == ("rows", ("body",))
    assert "inside/rows.jsonl" in layout.example and found.documents == 40


def test_counts_of_a_text(tmp_path, examples_config) -> None:
    from pipeline.tokenizers.loading import load_tokenizer

    documents = [*DOCUMENTS, DOCUMENTS[3], DOCUMENTS[5], "短文", "螺" * 30]
    (tmp_path / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(DOCUMENTS[3].encode() + b"\n\n" + b"\xff" * 30)
    tokenizer = load_tokenizer(examples_config.vocab_file, do_lower_case=None)
    found = _sample(tmp_path, tokenizer=tokenizer)
    assert (found.files, found.sampled_files, len(found.layouts)) == (2, 2, 1)
    assert (found.documents, found.bad, found.short, found.duplicates) == (46, 1, 1, 3)
    assert found.sampled_bytes == found.bytes
    texts = [*documents, DOCUMENTS[3]]
    lengths = sorted(map(len, texts))
    assert found.characters == sum(lengths) == found.scaled(found.characters)
    assert found.quantiles[0] == 2 and found.quantiles[-1] == lengths[-1]
    assert found.quantiles[3] == lengths[len(lengths) // 2]
    tokens = [tokenizer.tokenize(text).ids for text in texts]
    unknown = sum(int((ids == tokenizer.special_ids["unk"]).sum()) for ids in tokens)
    assert found.tokens.tokens == sum(map(len, tokens))
    assert found.tokens.unknown == unknown > 30
    assert found.tokens.quantiles[-1] == max(map(len, tokens))
    letters = [c for text in texts for c in text if c.isalpha()]
    latin = sum(c.isascii() for c in letters) / len(letters)
    assert found.scripts == pytest.approx({"Han": 1 - latin, "Latin": latin})
    assert any("0xff" in problem for problem in found.problems)


@given(sample=st.integers(1, 60))
def test_a_part_of_a_file_stands_for_all_of_it(tmp_path_factory, sample: int) -> None:
    folder = tmp_path_factory.mktemp("part")
    (folder / "a.jsonl").write_text(
        "".join(
            json.dumps({"title": "", "content": "工程师检查了机器。" * 400}) + "\n"
            for _ in range(50)
        )
    )
    found = _sample(folder, sample=sample)
    assert found.documents == min(sample, 50)
    assert found.duplicates == found.documents - 1
    # The file is read in blocks of some kilobytes.
    assert found.scaled(found.documents) <= 50
    assert found.documents < 20 or found.scaled(found.documents) > 35


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "t", "content": "c"}\n')
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(40))
    found = _sample(tmp_path)
    assert found.documents == 1
    (problem,) = found.problems
    assert "b.parquet" in problem


def test_scripts_of_letters() -> None:
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


def test_the_table_and_the_report(tmp_path, capsys, vocab_file) -> None:
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
    assert "duplicates  0.00% of the 40 others" in lines
    # Also across corpora.
    assert "duplicates  100.00% of the 10 others" in lines
    one, two = json.loads(report.read_text(encoding="utf-8"))["corpora"]
    assert (one["documents"], two["documents"], two["duplicates"]) == (40, 10, 10)
    assert one["layouts"][0]["text_fields"] == ["body"]
    assert tool.main(["inspect_corpus", *arguments]) == 1


def test_the_table_names_the_right_field(tmp_path, capsys) -> None:
    path = _write_rows(tmp_path, "parquet")
    assert tool.main(["inspect_corpus", f"--input_dir={path}"]) == 0
    assert "no field title or content: set --text_fields=body" in capsys.readouterr().out
