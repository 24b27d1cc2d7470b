"""Samples a corpus: measures the first documents of some files, to estimate the whole corpus."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from data_specs.corpora import CorpusSource
from pipeline.base import seeding
from pipeline.base.errors import InputError
from pipeline.corpora import corpus, fields
from pipeline.corpora.documents import CorpusFile, RawDocument
from pipeline.corpora.readers import READERS
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.tokenizers.tokens import Tokenizer
from tools.corpus_analysis import scripts

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# Number of files in a sample, evenly spread over the corpus.
_MAX_FILES = 64
# Number of characters in a sample, of those that are tokenized, and of an example value.
_MAX_CHARS = 16 * 2**20
_MAX_TOKENIZED_CHARS = 2**20
_SHOWN_CHARS = 40
# By default, prepare skips documents with fewer characters.
MIN_CHARS = next(
    field.default for field in dataclasses.fields(MaskedExamplesConfig) if field.name == "min_chars"
)
_TYPES = {str: "text", bool: "boolean", int: "number", float: "number", dict: "object"}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of rows.

    Attributes:
        name: name of the field.
        type: type of its first value.
        example: the beginning of its first value.
    """

    name: str
    type: str
    example: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """Files of one format with the same fields.

    Attributes:
        format: name of the reader.
        example: name of one of the files.
        files: number of these files in the sample.
        fields: fields of a row; empty for text.
        text_fields: fields that contain the text of a document.
        missing: requested text fields that the files lack.
    """

    format: str
    example: str
    files: int
    fields: tuple[Field, ...]
    text_fields: tuple[str, ...]
    missing: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Counts of the tokens in a part of the sample.

    Attributes:
        documents: number of tokenized documents.
        tokens: number of their tokens.
        unknown: number of tokens for text that the vocabulary lacks.
        quantiles: quantiles of the number of tokens in a document, at `QUANTILES`.
    """

    documents: int
    tokens: int
    unknown: int
    quantiles: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class CorpusSample:
    """Measurements of a sample of a corpus.

    Attributes:
        name: name, location or dataset of the corpus.
        files: number of files in the corpus.
        bytes: total size of these files.
        sampled_files: number of files in the sample.
        sampled_bytes: approximate number of bytes that were read.
        layouts: layouts of the sampled files.
        documents: number of documents in the sample, including invalid ones.
        bad: number of invalid documents.
        short: number of documents with fewer characters than prepare requires.
        duplicates: number of valid documents whose text equals that of an earlier document in any
            corpus.
        problems: the first error of each file.
        characters: number of characters in the valid documents.
        quantiles: quantiles of the number of characters in a document, at `QUANTILES`.
        scripts: share of each script in the letters, the largest first.
        tokens: counts of tokens; None without a vocabulary.
        seconds: time that the sample took.
    """

    name: str
    files: int
    bytes: int
    sampled_files: int
    sampled_bytes: int
    layouts: tuple[Layout, ...]
    documents: int
    bad: int
    short: int
    duplicates: int
    problems: tuple[str, ...]
    characters: int
    quantiles: tuple[int, ...]
    scripts: Mapping[str, float]
    tokens: Tokens | None
    seconds: float

    def scaled(self, count: int) -> int:
        """Returns the estimated count in the corpus for a count in the sample."""
        return round(count * self.bytes / max(1, self.sampled_bytes))


class _Sampler:
    """Reads the first documents of files, and adds up their measurements.

    Args:
        tokenizer: tokenizer for counts of tokens; None without a vocabulary.
        seen_digests: digests of the earlier documents, to which those of the sample are added.
    """

    def __init__(self, tokenizer: Tokenizer | None, seen_digests: set[bytes]) -> None:
        self._tokenizer = tokenizer
        self._seen_digests = seen_digests
        self._characters: Counter[str] = Counter()
        self._token_lengths: list[int] = []
        self._unknown = 0
        self.lengths: list[int] = []
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.layouts: dict[tuple[object, ...], Layout] = {}

    def add_file(self, file: CorpusFile, share: float, sample: int) -> None:
        """Reads the first documents of a file.

        Args:
            file: the file.
            share: share of the file in the size of the sampled files, which limits the documents
                and characters that are read from it.
            sample: approximate number of documents in the whole sample.
        """
        bytes_read, num_problems, chars, tokenized_chars = 0, len(self.problems), 0, 0
        max_documents = max(1, round(share * sample))
        try:
            documents = READERS[file.corpus.reader].read(self._add_layout(file))
            for number, (document, document_end) in enumerate(documents):
                if number == max_documents or chars > share * _MAX_CHARS:
                    break
                bytes_read = document_end
                text = self._read(document, is_first=len(self.problems) == num_problems)
                chars += len(text)
                if self._tokenizer is not None and tokenized_chars < share * _MAX_TOKENIZED_CHARS:
                    tokenized_chars += len(text)
                    self._tokenize(text)
            else:
                bytes_read = file.bytes
        except InputError as error:
            self.problems.append(str(error))
        self.counts["bytes"] += min(bytes_read, file.bytes)

    def _add_layout(self, file: CorpusFile) -> CorpusFile:
        """Adds the layout of a file. Returns the file with text fields that exist in it."""
        example, row = READERS[file.corpus.reader].inspect_file(file)
        spec = file.corpus.spec
        missing = tuple(name for name in spec.text_fields if row and name not in row)
        likely = fields.likely_text(fields.text_names(row)) if missing else None
        if likely is not None:
            spec = msgspec.structs.replace(spec, text_fields=(likely,))
        layout = Layout(
            format=example.format,
            example=example.name,
            files=1,
            fields=tuple(_field(name, value) for name, value in row.items()),
            text_fields=spec.text_fields if row else (),
            missing=missing,
        )
        key = (layout.format, *row, *layout.text_fields)
        files = 1 + (self.layouts[key].files if key in self.layouts else 0)
        self.layouts[key] = dataclasses.replace(self.layouts.get(key, layout), files=files)
        return dataclasses.replace(file, corpus=dataclasses.replace(file.corpus, spec=spec))

    def _read(self, document: RawDocument, *, is_first: bool) -> str:
        """Adds a document and returns its text, which is empty for an invalid document.

        Args:
            document: the document.
            is_first: whether an error would be the first of its file, which is reported.
        """
        self.counts["documents"] += 1
        try:
            text = corpus.document_text(document)
        except InputError as error:
            self.counts["bad"] += 1
            if is_first:
                self.problems.append(str(error))
            return ""
        self.lengths.append(len(text))
        self._characters.update(text)
        if len(text) < MIN_CHARS:
            self.counts["short"] += 1
            return text
        digest = seeding.digest(text)
        self.counts["duplicates"] += digest in self._seen_digests
        self._seen_digests.add(digest)
        return text

    def _tokenize(self, text: str) -> None:
        ids = self._tokenizer.tokenize(text).ids
        self._token_lengths.append(len(ids))
        unknown = self._tokenizer.special_ids.get("unk", -1)
        self._unknown += int(np.count_nonzero(ids == unknown))

    def tokens(self) -> Tokens | None:
        """Returns the counts of tokens; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        lengths = self._token_lengths
        return Tokens(len(lengths), sum(lengths), self._unknown, _quantiles(lengths))

    def scripts(self) -> dict[str, float]:
        """Returns the share of each script in the letters of the sample, the largest first."""
        counts = scripts.count_scripts(self._characters)
        return {name: count / counts.total() for name, count in counts.most_common()}


def _field(name: str, value: object) -> Field:
    kind = "null" if value is None else _TYPES.get(type(value), type(value).__name__)
    return Field(name, kind, " ".join(str(value).split())[:_SHOWN_CHARS])


def _quantiles(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(np.quantile(lengths or [0], QUANTILES).round().astype(int).tolist())


def sample_corpora(
    sources: Sequence[CorpusSource], sample: int, tokenizer: Tokenizer | None
) -> Iterator[CorpusSample]:
    """Yields the measurements of each corpus.

    Args:
        sources: the corpora.
        sample: approximate number of documents to read of each corpus.
        tokenizer: tokenizer for counts of tokens; None without a vocabulary.

    Raises:
        InputError: a corpus has no files, or its declaration is invalid.
    """
    seen_digests: set[bytes] = set()
    for source, resolved in zip(sources, corpus.resolve(sources), strict=True):
        start = time.monotonic()
        files = corpus.open_corpora([source], [resolved])
        sampled = files[:: -(-len(files) // _MAX_FILES)]
        sampler = _Sampler(tokenizer, seen_digests)
        sampled_bytes = sum(file.bytes for file in sampled)
        for file in sampled:
            sampler.add_file(file, file.bytes / sampled_bytes, sample)
        counts = sampler.counts
        yield CorpusSample(
            name=resolved.label or source.input_dir,
            files=len(files),
            bytes=sum(file.bytes for file in files),
            sampled_files=len(sampled),
            sampled_bytes=counts["bytes"],
            layouts=tuple(sampler.layouts.values()),
            documents=counts["documents"],
            bad=counts["bad"],
            short=counts["short"],
            duplicates=counts["duplicates"],
            problems=tuple(sampler.problems),
            characters=sum(sampler.lengths),
            quantiles=_quantiles(sampler.lengths),
            scripts=sampler.scripts(),
            tokens=sampler.tokens(),
            seconds=time.monotonic() - start,
        )
