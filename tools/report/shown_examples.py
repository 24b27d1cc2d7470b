"""Decoded examples of a shard directory, with readable tokens, for `inspect_cache`."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from data_specs import records
from pipeline.base.errors import InputError, Setting
from pipeline.storage import cache_input, cache_tokenizer, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs.base import NO_ID
from pipeline.storage.records import MaskedExample, TeacherTargets, Window
from tools.report.token_text import TokenText

# Treatments of the token at a masked position, used for 80%, 10% and 10% of the positions.
MASKED = "masked"
KEPT = "kept"
REPLACED = "replaced"
# Temperature of the probabilities that are shown.
_TEMPERATURE = 1.0


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token of a sentence.

    Attributes:
        text: text of the token, without the tokenizer's marks.
        space: whether a space comes before it.
        number: number of the masked position, from 1; None if the token is not masked.
        new_word: whether a word begins here; only in unmasked windows.
    """

    text: str
    space: bool
    number: int | None = None
    new_word: bool = False


@dataclasses.dataclass(frozen=True)
class Guess:
    """A predicted token of the teacher, its probability, and whether it is the label."""

    text: str
    probability: float
    right: bool


@dataclasses.dataclass(frozen=True)
class TeacherPrediction:
    """The teacher's distribution at a masked position.

    Attributes:
        guesses: the most probable tokens.
        rest: the mass of the other cached ids.
        tail: the mass outside the cached ids.
        num_ids: number of cached ids at this position.
        label_probability: probability of the label.
        label_rank: rank of the label among the cached ids, from 1; None if it is not cached.
    """

    guesses: tuple[Guess, ...]
    rest: float
    tail: float
    num_ids: int
    label_probability: float
    label_rank: int | None

    @property
    def right(self) -> bool:
        """Whether the most probable token is the label."""
        return self.guesses[0].right


@dataclasses.dataclass(frozen=True)
class MaskedPosition:
    """A masked position: its number from 1, its treatment, and its tokens.

    `shown` is the token in the input, and `label` the true token. `teacher` is None in masked
    examples.
    """

    number: int
    treatment: str
    shown: str
    label: str
    teacher: TeacherPrediction | None = None


@dataclasses.dataclass(frozen=True)
class ShownExample:
    """An example with readable tokens.

    Attributes:
        example_id: the example's id in hexadecimal.
        file: name of its shard.
        index: index in its shard, from 0.
        num_tokens: number of tokens, including `[CLS]` and `[SEP]`.
        segments: the tokens of each segment.
        positions: the masked positions.
    """

    example_id: str
    file: str
    index: int
    num_tokens: int
    segments: tuple[tuple[Piece, ...], ...]
    positions: tuple[MaskedPosition, ...] = ()

    @property
    def is_pair(self) -> bool:
        """Whether there are two segments."""
        return len(self.segments) > 1

    def count(self, treatment: str) -> int:
        """Returns the number of masked positions with a treatment."""
        return sum(position.treatment == treatment for position in self.positions)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The examples of a split to show: at most `count`, from index `first`, or one by its id.

    `example_id` is the beginning of the id in hexadecimal.
    """

    split: str
    first: int = 0
    count: int = 5
    example_id: str | None = None


class ExampleReader:
    """Decodes the records of a directory to readable examples.

    Args:
        cache: masked examples, a teacher cache or unmasked windows.
        num_guesses: number of the teacher's tokens at a position.

    Raises:
        InputError: the tokenizer, or a file that the codec needs, is missing.
    """

    def __init__(self, cache: CacheInput, *, num_guesses: int) -> None:
        self._cache = cache
        self._num_guesses = num_guesses
        tokenizer = cache_tokenizer.load_cache_tokenizer(cache)
        self._text = TokenText(tokenizer)
        special = tokenizer.special_ids
        self._mask_id = special["mask"]
        self._unseen = {special[name] for name in ("cls", "sep", "pad")}
        self._codec = None
        if cache.manifest.teacher_info is not None:
            # Only those shards that are read need to exist.
            self._codec = cache_input.open_codec(cache.directory, cache.manifest)

    def read(self, selection: Selection) -> list[ShownExample]:
        """Returns the selected examples.

        Raises:
            InputError: no example is selected, or a record is damaged.
        """
        manifest, shown = self._cache.manifest, []
        kind = Window if manifest.kind == records.UNMASKED_WINDOWS else MaskedExample
        for file, index, record in self._records(selection):
            try:
                example = kind.from_record(record, manifest)
                if example.example_id.hex().startswith(selection.example_id or ""):
                    shown.append(self._show(example, file, index))
            except (KeyError, ValueError) as error:
                path = self._cache.directory / file
                raise InputError(path, received=f"broken record {index} ({error})") from error
            if len(shown) == (1 if selection.example_id else selection.count):
                break
        if not shown:
            raise self._nothing(selection)
        return shown

    def _nothing(self, selection: Selection) -> InputError:
        place = f"the {selection.split} split of {self._cache.directory}"
        if selection.example_id:
            expected = f"the id of an example in {place}, or its beginning"
            return InputError(Setting("example_id"), expected, selection.example_id)
        count = self._cache.manifest.num_examples(selection.split)
        expected = f"a number below {count}, the examples of {place}"
        return InputError(Setting("first"), expected, selection.first)

    def _records(self, selection: Selection) -> Iterator[tuple[str, int, bytes]]:
        """Yields file, index in the file, and bytes of each record from the first selected one."""
        skip = 0 if selection.example_id else selection.first
        for shard in self._cache.manifest.splits[selection.split]:
            if skip >= shard.num_examples:
                skip -= shard.num_examples
                continue
            splits = {"": (shard,)}
            others = {"token_counts": None, "output_table": None}
            alone = dataclasses.replace(self._cache.manifest, splits=splits, **others)
            manifests.verify(self._cache.directory, alone, full=False)
            path = self._cache.directory / shard.file
            count = 0
            for index, record in enumerate(serialization.read_records(path)):
                count += 1
                if index >= skip:
                    yield shard.file, index, record
            if count != shard.num_examples:
                raise InputError(path, f"{shard.num_examples} records", count)
            skip = 0

    def _show(self, example: MaskedExample | Window, file: str, index: int) -> ShownExample:
        place = example.example_id.hex(), file, index, len(example.input_ids)
        if isinstance(example, Window):
            none = np.zeros(0, np.int64)
            starts = set(example.word_starts.tolist())
            return ShownExample(*place, self._segments(example, example.input_ids, none, starts))
        pieces = self._segments(example, example.true_ids(), example.masked_lm_positions, set())
        return ShownExample(*place, pieces, self._positions(example))

    def _segments(
        self,
        example: MaskedExample | Window,
        true: np.ndarray,
        masked: np.ndarray,
        starts: set[int],
    ) -> tuple[tuple[Piece, ...], ...]:
        """Returns the tokens of each segment, without `[CLS]` and `[SEP]`.

        Spaces are those of the true tokens, so that they show where a masked token begins a word.
        """
        inputs, lengths = example.input_ids, example.segment_lengths.astype(np.int64)
        numbers = {int(place): number for number, place in enumerate(masked, 1)}
        segments = []
        for begin, end in zip(np.cumsum(lengths) - lengths, np.cumsum(lengths), strict=True):
            seen = [
                place
                for place in range(begin, end)
                if place in numbers or int(true[place]) not in self._unseen
            ]
            apart = {at for at, place in enumerate(seen) if place in numbers}
            words = self._text.spaced([int(true[place]) for place in seen], apart)
            pieces = (
                Piece(
                    self._text.alone(int(inputs[place])) if place in numbers else word.text,
                    word.space,
                    numbers.get(place),
                    place in starts,
                )
                for place, word in zip(seen, words, strict=True)
            )
            segments.append(tuple(pieces))
        return tuple(segments)

    def _positions(self, example: MaskedExample) -> tuple[MaskedPosition, ...]:
        shown, labels = example.input_ids[example.masked_lm_positions], example.masked_lm_ids
        words: Sequence[TeacherPrediction | None] = [None] * len(labels)
        if self._codec is not None:
            words = self._predictions(example)
        positions = []
        for number, (token, label, word) in enumerate(
            zip(shown.tolist(), labels.tolist(), words, strict=True), 1
        ):
            treatment = KEPT if token == label else REPLACED
            treatment = MASKED if token == self._mask_id else treatment
            texts = self._text.alone(token), self._text.alone(label)
            positions.append(MaskedPosition(number, treatment, *texts, word))
        return tuple(positions)

    def _predictions(self, example: MaskedExample) -> list[TeacherPrediction]:
        info = self._cache.manifest.teacher_info
        targets = TeacherTargets.from_features(example.features, self._codec, info)
        p, tails = targets.probabilities(_TEMPERATURE)
        labels = np.exp(targets.label_log_probs.astype(np.float64)).tolist()
        columns = zip(targets.ids, p, tails, example.masked_lm_ids.tolist(), labels, strict=True)
        return [self._prediction(*column) for column in columns]

    def _prediction(
        self, ids: np.ndarray, p: np.ndarray, tail: float, label: int, label_probability: float
    ) -> TeacherPrediction:
        present = ids[ids != NO_ID]
        first = present[: self._num_guesses]
        ranks = np.flatnonzero(present == label)
        return TeacherPrediction(
            guesses=tuple(
                Guess(self._text.alone(int(token)), float(share), int(token) == label)
                for token, share in zip(first, p, strict=False)
            ),
            rest=float(p[len(first) :].sum()),
            tail=float(tail),
            num_ids=len(present),
            label_probability=label_probability,
            label_rank=int(ranks[0]) + 1 if len(ranks) else None,
        )


def choose_split(cache: CacheInput, split: str | None) -> str:
    """Returns the split to read: the given one; by default `eval`, if it exists.

    Raises:
        InputError: the directory has no such split.
    """
    splits = [name for name in manifests.SPLITS if cache.manifest.num_examples(name)]
    if split is None and splits:
        return manifests.EVAL if manifests.EVAL in splits else splits[0]
    if split not in splits:
        expected = f"one of {', '.join(splits) or 'none'}, which {cache.directory} has"
        raise InputError(Setting("split"), expected, split)
    return split
