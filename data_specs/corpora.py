"""Declarations of known corpora, one YAML file each in `corpora/`.

A declaration states the source of a corpus, and how its files are divided into documents. A
mixture is a user's YAML file that lists several corpora with their weights.
"""

import os
import pathlib
import re
from typing import Annotated, Any

import msgspec

from data_specs import declarations
from data_specs.declarations import Words, format_value

FOLDER = pathlib.Path(__file__).with_name("corpora")

# Ways to separate the documents of a text file.
DOCUMENTS = ("blank_lines", "lines", "starts", "files")
# Ways that need no other key of a declaration.
SEPARATIONS = ("blank_lines", "lines")

_METADATA = ("name", "title", "url", "licence", "language", "files")
_MIXTURE_KEY = "corpora"


class CorpusSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The declaration of a corpus.

    Names of readers, cleaning steps and segmenters are keys of tables in `pipeline`, which checks
    them.

    Attributes:
        name: name of the declaration, for `corpus_spec`.
        title: description of the corpus.
        url: source of the corpus.
        licence: license of the corpus.
        files: globs of file names, without compression suffixes; all files by default.
        reader: reader of files whose content does not identify their format, one of
            `pipeline.corpora.readers.FILE_READERS`.
        text_fields: fields of a row that contain its text.
        documents: separation of the documents in text, one of `DOCUMENTS`. By default, blank lines
            separate documents. With `lines`, a document has `lines_per_document` lines. With
            `starts`, a line that matches `document_start` begins a document. With `files`, each
            file is a document.
        lines_per_document: number of lines of a document.
        document_start: regular expression that matches the beginning of a document's first line.
        cleaning: cleaning steps, in the order of their use: any of
            `pipeline.corpora.cleaning.STEPS`.
        language: language code, for example `zh`.
        segmenter: segmenter of Chinese words, one of `pipeline.tokenizers.segmenters.SEGMENTERS`.
    """

    name: str = ""
    title: str = ""
    url: str = ""
    licence: str = ""
    files: Words = ("*",)
    reader: str = "auto"
    text_fields: Words = ("title", "content")
    documents: str = "blank_lines"
    lines_per_document: Annotated[int, msgspec.Meta(ge=0)] = 0
    document_start: str = ""
    cleaning: Words = ()
    language: str = ""
    segmenter: str = "jieba"

    def __post_init__(self) -> None:
        declarations.expect_one_of("documents", self.documents, DOCUMENTS)
        for key, requirement, documents in (
            ("lines_per_document", "above 0", "lines"),
            ("document_start", "a regular expression", "starts"),
        ):
            value = getattr(self, key)
            if bool(value) != (self.documents == documents):
                raise ValueError(
                    f"{key}: must be {requirement} if documents is {documents}, and unset "
                    f"otherwise; got {format_value(value)} with documents {self.documents}"
                )
        try:
            # The reader matches the expression with lines of bytes.
            re.compile(self.document_start.encode("utf-8"))
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            received = f"{format_value(self.document_start)} ({error})"
            message = f"document_start: expected a regular expression, received {received}"
            raise ValueError(message) from error

    def with_documents(self, separation: str) -> "CorpusSpec":
        """Returns the declaration with another separation, one of `SEPARATIONS`."""
        return msgspec.structs.replace(
            self,
            documents=separation,
            lines_per_document=int(separation == "lines"),
            document_start="",
        )

    def reading(self) -> dict[str, Any]:
        """Returns the settings that determine how files are divided into documents."""
        values = msgspec.structs.asdict(self)
        return {name: value for name, value in values.items() if name not in _METADATA}


class CorpusSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A corpus of a run: its location, declaration and weight.

    Attributes:
        input_dir: a file, a directory, a glob or a dataset of the Hugging Face hub. With
            `tfds_name`, the directory of TensorFlow datasets.
        corpus_spec: name of a declaration, or path of a `.yaml` file.
        hf_split: split of a dataset of the hub. `input_dir` may then be the dataset's id.
        tfds_name: TensorFlow dataset, `name[/config][:version]`.
        tfds_split: split of the TensorFlow dataset; `train` by default.
        text_fields: replaces the declaration's text fields.
        segmenter: replaces the declaration's segmenter.
        documents: replaces the declaration's separation; with `lines`, each line is a document.
        weight: a document has `weight · dupe_factor` masked copies, on average.
        name: name in the manifest; by default that of the declaration or the dataset.
    """

    input_dir: str | None = None
    corpus_spec: str | None = None
    hf_split: str | None = None
    tfds_name: str | None = None
    tfds_split: str | None = None
    text_fields: Words | None = None
    segmenter: str | None = None
    documents: str | None = None
    weight: Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)] = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if self.input_dir is None and self.tfds_name is None:
            raise ValueError("input_dir: either input_dir or tfds_name is required")
        if self.corpus_spec is not None and self.tfds_name is not None:
            raise ValueError("tfds_name: cannot be combined with corpus_spec")
        if self.hf_split is not None and self.tfds_name is not None:
            raise ValueError("hf_split: cannot be combined with tfds_name")
        if self.tfds_split is not None and self.tfds_name is None:
            raise ValueError("tfds_split: requires tfds_name")
        if self.documents is not None:
            declarations.expect_one_of("documents", self.documents, SEPARATIONS)
            if self.tfds_name is not None:
                raise ValueError(
                    "documents: cannot be combined with tfds_name, whose examples are documents"
                )
        if self.input_dir is not None:
            declarations.expect_path("input_dir", self.input_dir)

    @property
    def files(self) -> str | None:
        """The file, folder or glob to read; None for a dataset of TensorFlow or the hub."""
        return None if self.tfds_name is not None or self.is_hub else self.input_dir

    @property
    def is_hub(self) -> bool:
        """Whether this is a dataset of the Hugging Face hub."""
        return self.hf_split is not None or (self.input_dir or "").startswith("hf://")

    @property
    def label(self) -> str:
        """The name of the corpus; empty if it has none."""
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
        name: one of `names()`, or the path of a `.yaml` file with the same keys.

    Raises:
        ValueError: the declaration does not exist, or is invalid. The message names the key.
    """
    path = declarations.find_declaration(FOLDER, name)
    values = declarations.load_mapping(path) | {"name": path.stem}
    return declarations.build(CorpusSpec, values, str(path))


def load_mixture(path: Any) -> tuple[CorpusSource, ...]:
    """Loads a mixture: a YAML file with the key `corpora`, a list of `CorpusSource`s.

    A relative path of `input_dir` or of a `corpus_spec` file is relative to the mixture's folder.

    Args:
        path: path of the file, as text or as an object with the interface of `pathlib.Path`.

    Raises:
        ValueError: the mixture is invalid. The message names the file and the key.
    """
    path = pathlib.Path(path) if isinstance(path, str) else path
    content = declarations.load_mapping(path)
    entries = content.get(_MIXTURE_KEY)
    if set(content) != {_MIXTURE_KEY} or not isinstance(entries, list) or not entries:
        received = f"the keys {format_value(list(content))}"
        if set(content) == {_MIXTURE_KEY}:
            received = format_value(entries)
        raise ValueError(
            f"{path}: must have only the key {_MIXTURE_KEY} with a list of corpora; got {received}"
        )
    sources = []
    for number, entry in enumerate(entries, 1):
        for key in ("input_dir", "corpus_spec") if isinstance(entry, dict) else ():
            value = entry.get(key)
            is_id = key == "input_dir" and entry.get("hf_split") is not None
            if (
                isinstance(value, str)
                and not is_id
                and (key == "input_dir" or value.endswith((".yaml", ".yml")))
            ):
                entry[key] = _resolve(path.parent, value)
        sources.append(declarations.build(CorpusSource, entry, f"{path}, corpus {number}"))
    return tuple(sources)


def _resolve(folder: Any, value: str) -> str:
    """Returns a path; a relative path is resolved against `folder`. URLs are not changed."""
    if "://" in value:
        return value
    # `~USER` is not changed if there is no such user.
    local = pathlib.Path(os.path.expanduser(value))
    return str(local if local.is_absolute() else folder / str(local))
