"""A sample of a corpus: the first documents of some files, and what they say about all of it."""

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
# Files that are looked into, evenly spread.
_MAX_FILES = 64
# Characters of a sample, of those that are tokenised, and of an example value.
_MAX_CHARS = 16 * 2**20
_MAX_TOKENIZED_CHARS = 2**20
_SHOWN_CHARS = 40
# Documents with fewer are skipped by prepare unless it is told otherwise.
MIN_CHARS = next(
    field.default for field in dataclasses.fields(MaskedExamplesConfig) if field.name == "min_chars"
)
_TYPES = {str: "text", bool: "boolean", int: "number", float: "number", dict: "object"}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of rows: its name, the type of its first value, and the begin of that."""

    name: str
    type: str
    example: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """Files of one format with the same fields.

    Attributes:
        format: the name of their reader.
        example: one of them.
        files: how many of the sampled files these are.
        fields: of a row; none of text.
        text_fields: the fields that are the text of a document here.
        missing: fields that were asked for and are not there.
    """

    format: str
    example: str
    files: int
    fields: tuple[Field, ...]
    text_fields: tuple[str, ...]
    missing: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a part of the sample.

    Attributes:
        documents: how many were tokenised.
        tokens: of these.
        unknown: those that stand for text which the vocabulary lacks.
        quantiles: of the tokens of a document, at `QUANTILES`.
    """

    documents: int
    tokens: int
    unknown: int
    quantiles: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class CorpusSample:
    """A corpus by its sample.

    Attributes:
        name: its name, its location or its dataset.
        files: of the corpus.
        bytes: of these.
        sampled_files: how many were looked into.
        sampled_bytes: how much of them was read, roughly.
        layouts: of the sampled files.
        documents: of the sample, those that cannot be read included.
        bad: documents that cannot be read.
        short: documents with fewer characters than prepare takes.
        duplicates: other documents whose text is that of an earlier one, of any corpus.
        problems: errors, the first of each file.
        characters: of the readable documents.
        quantiles: of their characters, at `QUANTILES`.
        scripts: the share of each script in their letters, the largest first.
        tokens: None without a vocabulary.
        seconds: what the sample took.
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
        """Returns about how many of something the corpus has, if the sample has `count`."""
        return round(count * self.bytes / max(1, self.sampled_bytes))


class _Sampler:
    """Reads the first documents of files and adds up what they are."""

    def __init__(self, tokenizer: Tokenizer | None, seen: set[bytes]) -> None:
        self._tokenizer = tokenizer
        self._seen = seen
        self._characters: Counter[str] = Counter()
        self._token_lengths: list[int] = []
        self._unknown = 0
        self.lengths: list[int] = []
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.layouts: dict[tuple[object, ...], Layout] = {}

    def add_file(self, file: CorpusFile, share: float, sample: int) -> None:
        """Reads the first documents of a file: its share of `sample`, and of the characters."""
        position, before, chars, tokenized = 0, len(self.problems), 0, 0
        most = max(1, round(share * sample))
        try:
            documents = READERS[file.corpus.reader].read(self._look_into(file))
            for number, (document, place) in enumerate(documents):
                if number == most or chars > share * _MAX_CHARS:
                    break
                position = place
                text = self._read(document, is_first=len(self.problems) == before)
                chars += len(text)
                if self._tokenizer is not None and tokenized < share * _MAX_TOKENIZED_CHARS:
                    tokenized += len(text)
                    self._tokenize(text)
            else:
                position = file.bytes
        except InputError as error:
            self.problems.append(str(error))
        self.counts["bytes"] += min(position, file.bytes)

    def _look_into(self, file: CorpusFile) -> CorpusFile:
        """Adds the layout of a file; returns the file with the text fields that it has."""
        example, row = READERS[file.corpus.reader].look_into(file)
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
        """Adds a document and returns its text; nothing of one that cannot be read."""
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
        key = seeding.digest(text)
        self.counts["duplicates"] += key in self._seen
        self._seen.add(key)
        return text

    def _tokenize(self, text: str) -> None:
        ids = self._tokenizer.tokenize(text).ids
        self._token_lengths.append(len(ids))
        unknown = self._tokenizer.special_ids.get("unk", -1)
        self._unknown += int(np.count_nonzero(ids == unknown))

    def tokens(self) -> Tokens | None:
        """Returns the tokens of what was tokenised."""
        if self._tokenizer is None:
            return None
        lengths = self._token_lengths
        return Tokens(len(lengths), sum(lengths), self._unknown, _quantiles(lengths))

    def scripts(self) -> dict[str, float]:
        """Returns the share of each script in the letters, the largest first."""
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
    """Yields each corpus by its sample of up to about `sample` documents.

    Raises:
        InputError: a corpus has no files or is declared in a wrong way.
    """
    seen: set[bytes] = set()
    for source, resolved in zip(sources, corpus.resolve(sources), strict=True):
        begun = time.monotonic()
        files = corpus.open_corpora([source], [resolved])
        chosen = files[:: -(-len(files) // _MAX_FILES)]
        sampler = _Sampler(tokenizer, seen)
        for file in chosen:
            sampler.add_file(file, file.bytes / sum(file.bytes for file in chosen), sample)
        counts = sampler.counts
        yield CorpusSample(
            name=resolved.label or source.input_dir,
            files=len(files),
            bytes=sum(file.bytes for file in files),
            sampled_files=len(chosen),
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
            seconds=time.monotonic() - begun,
        )
