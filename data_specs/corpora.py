"""Known corpora: typed declarations, one YAML file each in `corpora/`.

A declaration says where a corpus comes from and how its files become documents.
A mixture is a YAML file of the user that names several corpora and their weights.
"""

import os
import pathlib
import re
from typing import Annotated, Any

import msgspec

from data_specs import declarations
from data_specs.declarations import Words, shown

FOLDER = pathlib.Path(__file__).with_name("corpora")

# What separates the documents of a text.
DOCUMENTS = ("blank_lines", "lines", "starts", "files")
# Those that need no more to be said.
SEPARATIONS = ("blank_lines", "lines")

_METADATA = ("name", "title", "url", "licence", "language", "files")
_MIXTURE_KEY = "corpora"


class CorpusSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a corpus becomes documents.

    Readers, cleaning steps and segmenters are names in tables of `pipeline`, which checks them.

    Attributes:
        name: its name for `corpus_spec`.
        title: a description, for people.
        url: its source.
        licence: its licence.
        files: globs of the names of its files, endings of compressions left out; all by default.
        reader: one of `pipeline.corpora.readers.READERS`, for files whose content does not tell.
        text_fields: the fields of a row that are its text.
        documents: one of `DOCUMENTS`, for text: blank lines separate them;
            every `lines_per_document` lines are one; a line that matches
            `document_start` begins one; each file is one.
        lines_per_document: lines of a document.
        document_start: a regular expression.
        cleaning: steps of `pipeline.corpora.cleaning.STEPS`, in this order.
        language: a code such as `zh`.
        segmenter: one of `pipeline.tokenizers.segmenters.SEGMENTERS`.
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
        for key, expected, documents in (
            ("lines_per_document", "a number above 0 with documents: lines", "lines"),
            ("document_start", "a regular expression with documents: starts", "starts"),
        ):
            value = getattr(self, key)
            if bool(value) != (self.documents == documents):
                received = shown(value)
                raise ValueError(f"{key}: expected {expected} and only there, received {received}")
        try:
            # Of bytes, as lines are when they are looked for.
            re.compile(self.document_start.encode("utf-8"))
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            received = f"{shown(self.document_start)} ({error})"
            message = f"document_start: expected a regular expression, received {received}"
            raise ValueError(message) from error

    def with_documents(self, separation: str) -> "CorpusSpec":
        """Returns the declaration with one of `SEPARATIONS`."""
        return msgspec.structs.replace(
            self,
            documents=separation,
            lines_per_document=int(separation == "lines"),
            document_start="",
        )

    def reading(self) -> dict[str, Any]:
        """Returns the settings that decide the documents."""
        values = msgspec.structs.asdict(self)
        return {name: value for name, value in values.items() if name not in _METADATA}


class CorpusSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One corpus of a run: its location, its declaration and its weight.

    Attributes:
        input_dir: a file, a directory or a glob; or the directory of TensorFlow datasets; or
            a dataset of the Hugging Face hub.
        corpus_spec: the name of a declaration, or the path of a `.yaml` file.
        hf_split: the split of a dataset of the hub; `input_dir` may then be its id alone.
        tfds_name: a TensorFlow dataset, `name[/config][:version]`.
        tfds_split: its split; `train` by default.
        text_fields: instead of the declaration's.
        segmenter: instead of the declaration's.
        documents: instead of the declaration's; `lines` are documents of one line each.
        weight: a document has `weight · dupe_factor` masked copies, on average.
        name: its name in the manifest; by default that of the declaration or the dataset.
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
            raise ValueError("input_dir: expected it or tfds_name, received neither")
        if self.corpus_spec is not None and self.tfds_name is not None:
            raise ValueError("tfds_name: expected it or corpus_spec, received both")
        if self.hf_split is not None and self.tfds_name is not None:
            raise ValueError("hf_split: expected it or tfds_name, received both")
        if self.tfds_split is not None and self.tfds_name is None:
            raise ValueError("tfds_split: expected tfds_name with it, received none")
        if self.documents is not None:
            declarations.expect_one_of("documents", self.documents, SEPARATIONS)
            if self.tfds_name is not None:
                raise ValueError(
                    "documents: expected none with tfds_name, whose rows are documents"
                )
        if self.input_dir is not None:
            declarations.expect_path("input_dir", self.input_dir)

    @property
    def files(self) -> str | None:
        """The file, folder or glob that is read; None for a dataset of TensorFlow or the hub."""
        return None if self.tfds_name is not None or self.is_hub else self.input_dir

    @property
    def is_hub(self) -> bool:
        """Whether it is a dataset of the Hugging Face hub."""
        return self.hf_split is not None or (self.input_dir or "").startswith("hf://")

    @property
    def label(self) -> str:
        """Its name."""
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
        ValueError: it does not exist, or is invalid; names the key.
    """
    path = declarations.find_declaration(FOLDER, name)
    values = declarations.load_mapping(path) | {"name": path.stem}
    return declarations.build(CorpusSpec, values, str(path))


def load_mixture(path: Any) -> tuple[CorpusSource, ...]:
    """Loads a mixture: `corpora:`, a list of `CorpusSource`s.

    A relative `input_dir` or `corpus_spec` file is relative to the mixture's directory.

    Args:
        path: the file: text, or whatever has `read_text` and `parent` as a `pathlib.Path`.

    Raises:
        ValueError: it is invalid; names the file and the key.
    """
    path = pathlib.Path(path) if isinstance(path, str) else path
    content = declarations.load_mapping(path)
    entries = content.get(_MIXTURE_KEY)
    if set(content) != {_MIXTURE_KEY} or not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected the one key {_MIXTURE_KEY} with a list of corpora")
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
                entry[key] = _beside(path.parent, value)
        sources.append(declarations.build(CorpusSource, entry, f"{path}, corpus {number}"))
    return tuple(sources)


def _beside(folder: Any, value: str) -> str:
    """Returns a path that is relative to a folder; one that is not stays."""
    if "://" in value:
        return value
    # Unchanged if there is no such user.
    local = pathlib.Path(os.path.expanduser(value))
    return str(local if local.is_absolute() else folder / str(local))
