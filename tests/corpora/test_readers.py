"""Tests that the table of readers is complete, and that each reader defines its methods."""

import pkgutil

import pytest

from data_specs.corpora import CorpusSpec
from pipeline.corpora import readers
from pipeline.corpora.documents import Corpus, CorpusFile
from pipeline.corpora.readers.base import Reader, stem


def test_table_has_the_reader_of_each_module() -> None:
    names = [module.name for module in pkgutil.iter_modules(readers.__path__)]
    modules = {f"{readers.__name__}.{name}" for name in names}
    all_readers = (*readers.READERS.values(), *readers.FORMATS.values())
    reader_modules = {type(reader).__module__ for reader in all_readers}
    assert reader_modules == modules - {Reader.__module__} | {readers.__name__}


def test_default_reader_of_a_declaration_is_in_the_table() -> None:
    assert CorpusSpec().reader == Corpus().reader == readers.AUTO in readers.READERS


def test_formats_have_distinct_suffixes() -> None:
    suffixes = [suffix for reader in readers.FORMATS.values() for suffix in reader.suffixes]
    assert len(set(suffixes)) == len(suffixes)


@pytest.mark.parametrize(
    ("name", "format_name"),
    [(name, "rows") for name in ("a.json", "a.jsonl.gz", "a.json.zst")]
    + [("a.csv.xz", "csv"), ("a.tsv", "tsv")]
    + [(name, "text") for name in ("a.txt", "json", "a.gz")],
)
def test_suffix_decides_the_format_of_a_file_without_a_magic(name: str, format_name: str) -> None:
    assert readers._with_format(CorpusFile(name, name, 0), b"text").format == format_name


def test_stem_removes_the_suffix_of_the_compression() -> None:
    assert [stem(name) for name in ("a.txt.gz", "a.gz.txt", "a")] == ["a.txt", "a.gz.txt", "a"]
    assert [stem(name) for name in ("a.tgz", "a.tar.zst")] == ["a.tar", "a.tar"]


def test_every_reader_defines_its_reading_methods() -> None:
    for reader in readers.FORMATS.values():
        assert type(reader).documents is not Reader.documents
    for reader in readers.READERS.values():
        assert type(reader).read is not Reader.read
