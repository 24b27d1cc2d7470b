"""Known corpora: typed declarations, one YAML file each in `corpora/`.

A declaration says where a corpus comes from and how its files become documents.
A mixture is a YAML file of one's own that names several corpora and how much
each counts.
"""

import dataclasses
import os
import pathlib
import re
from typing import Any

from data_specs import declarations

FOLDER = pathlib.Path(__file__).with_name("corpora")

# How a file is read. `auto`: as rows where its name ends in .json or .jsonl.
READERS = ("auto", "rows", "text")
# What separates the documents of a text.
DOCUMENTS = ("blank_lines", "lines", "starts", "files")
# Steps of cleaning, in `pipeline.corpora.cleaning`.
CLEANING = (
    "drop_first_line",
    "gutenberg",
    "html",
    "line_breaks",
    "mentions",
    "spaces",
    "subtitles",
    "wikitext",
)
SEGMENTERS = ("jieba", "whitespace", "none")

_METADATA = ("name", "title", "url", "licence", "language", "files")
_MIXTURE_KEY = "corpora"
# What a value must be where it is not text.
_CHECKS = {
    "input_dir": declarations.path_text,
    "files": declarations.words,
    "text_fields": declarations.words,
    "cleaning": declarations.words,
    "lines_per_document": declarations.whole_number,
    "weight": declarations.number,
}


@dataclasses.dataclass(frozen=True)
class CorpusSpec:
    """How a corpus becomes documents.

    Attributes:
        name: what `--corpus_spec` calls it.
        title: what it is, for people.
        url: where to get it.
        licence: what it may be used for.
        files: globs of the names of its files, `.gz` left out; all by default.
        reader: one of `READERS`.
        text_fields: the fields of a row that are its text.
        documents: one of `DOCUMENTS`, for text: blank lines separate them;
            every `lines_per_document` lines are one; a line that matches
            `document_start` begins one; each file is one.
        lines_per_document: lines of a document.
        document_start: a regular expression.
        cleaning: of `CLEANING`, in this order.
        language: a code such as `zh`.
        segmenter: one of `SEGMENTERS`.
    """

    name: str = ""
    title: str = ""
    url: str = ""
    licence: str = ""
    files: tuple[str, ...] = ("*",)
    reader: str = "auto"
    text_fields: tuple[str, ...] = ("title", "content")
    documents: str = "blank_lines"
    lines_per_document: int = 0
    document_start: str = ""
    cleaning: tuple[str, ...] = ()
    language: str = ""
    segmenter: str = "jieba"

    def __post_init__(self) -> None:
        declarations.expect_one_of("reader", self.reader, READERS)
        declarations.expect_one_of("documents", self.documents, DOCUMENTS)
        declarations.expect_one_of("segmenter", self.segmenter, SEGMENTERS)
        for step in self.cleaning:
            declarations.expect_one_of("cleaning", step, CLEANING)
        if not self.text_fields:
            raise ValueError("text_fields: expected the names of fields, received none")
        if (self.documents == "lines") != (self.lines_per_document > 0):
            raise ValueError(
                "lines_per_document: expected a number above 0 with documents: lines and only "
                f"there, received {self.lines_per_document} with documents: {self.documents}"
            )
        if (self.documents == "starts") != bool(self.document_start):
            raise ValueError(
                "document_start: expected a regular expression with documents: starts and only "
                f"there, received {self.document_start!r} with documents: {self.documents}"
            )
        try:
            # Of bytes, as lines are when they are looked for.
            re.compile(self.document_start.encode("utf-8"))
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"document_start: expected a regular expression, received "
                f"{declarations.shown(self.document_start)} ({error})"
            ) from error

    def reading(self) -> dict[str, Any]:
        """Returns what decides the documents, without what is said for people."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in _METADATA}


@dataclasses.dataclass(frozen=True)
class CorpusSource:
    """One corpus of a run: where it lies, how it is read and how much it counts.

    Attributes:
        input_dir: a file, a folder or a glob; for a TensorFlow dataset, where
            such datasets are kept.
        corpus_spec: the name of a declaration, or the path of one's own.
        tfds_name: a TensorFlow dataset, `name[/config][:version]`.
        text_fields: instead of the declaration's.
        segmenter: instead of the declaration's.
        weight: how much it counts: a document is masked `weight · dupe_factor`
            ways, on average where that is no whole number.
        name: what it is called in the manifest; by default after the declaration
            or the dataset.
    """

    input_dir: str | None = None
    corpus_spec: str | None = None
    tfds_name: str | None = None
    text_fields: tuple[str, ...] | None = None
    segmenter: str | None = None
    weight: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if self.input_dir is None and self.tfds_name is None:
            raise ValueError("input_dir: expected it or tfds_name, received neither")
        if self.corpus_spec is not None and self.tfds_name is not None:
            raise ValueError("tfds_name: expected it or corpus_spec, received both")
        if self.segmenter is not None:
            declarations.expect_one_of("segmenter", self.segmenter, SEGMENTERS)
        if not 0.0 < self.weight <= 1000.0:
            raise ValueError(f"weight: expected a number in (0, 1000], received {self.weight}")

    @property
    def label(self) -> str:
        """What it is called."""
        if self.name is not None:
            return self.name
        if self.corpus_spec is not None:
            return pathlib.PurePath(self.corpus_spec).stem
        return self.tfds_name or ""


def names() -> tuple[str, ...]:
    """Returns the names of the known corpora."""
    return declarations.known_names(FOLDER)


def load_spec(name: str) -> CorpusSpec:
    """Loads a declaration.

    Args:
        name: one of `names()`, or the path of a `.yaml` file of the same form.

    Raises:
        ValueError: there is none, or it is not as it must be; names the key.
    """
    path = declarations.find_declaration(FOLDER, name)
    values = declarations.load_mapping(path) | {"name": path.stem}
    return declarations.build(CorpusSpec, values, str(path), checks=_CHECKS)


def load_mixture(path: Any) -> tuple[CorpusSource, ...]:
    """Loads a mixture: `corpora:`, a list of `CorpusSource`s.

    A relative `input_dir` or `corpus_spec` file is meant beside the file; a URL is none.

    Args:
        path: the file: text, or whatever has `read_text` and `parent` as a `pathlib.Path`.

    Raises:
        ValueError: it is not as it must be; names the file and the key.
    """
    path = pathlib.Path(path) if isinstance(path, str) else path
    content = declarations.load_mapping(path)
    entries = content.get(_MIXTURE_KEY)
    if set(content) != {_MIXTURE_KEY} or not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected the one key {_MIXTURE_KEY} with a list of corpora")
    sources = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, corpus {number}"
        if not isinstance(entry, dict):
            raise ValueError(
                f"{where}: expected keys and values, received {declarations.shown(entry)}"
            )
        for key in ("input_dir", "corpus_spec"):
            value = entry.get(key)
            if isinstance(value, str) and (key == "input_dir" or value.endswith((".yaml", ".yml"))):
                entry[key] = _beside(path.parent, value)
        sources.append(declarations.build(CorpusSource, entry, where, checks=_CHECKS))
    return tuple(sources)


def _beside(folder: Any, value: str) -> str:
    """Returns a path that is relative to a folder; one that is not stays."""
    if "://" in value:
        return value
    # As it is where there is no such user.
    local = pathlib.Path(os.path.expanduser(value))
    return str(local if local.is_absolute() else folder / str(local))
