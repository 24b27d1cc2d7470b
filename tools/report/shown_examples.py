"""Examples of a directory of shards, decoded and put into words: what `inspect_cache` shows."""

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

# How a masked position's token was treated: 80%, 10% and 10% of them.
MASKED = "masked"
KEPT = "kept"
REPLACED = "replaced"
# Of the probabilities that are shown.
_TEMPERATURE = 1.0


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token of a sentence.

    Attributes:
        text: without marks of the tokenizer.
        space: whether a space stands before it.
        number: of the masked position, from 1 on; None elsewhere.
        new_word: whether a word begins here; of unmasked windows only.
    """

    text: str
    space: bool
    number: int | None = None
    new_word: bool = False


@dataclasses.dataclass(frozen=True)
class Guess:
    """One of the teacher's tokens, with its probability, and whether it is the true one."""

    text: str
    probability: float
    right: bool


@dataclasses.dataclass(frozen=True)
class TeacherPrediction:
    """The teacher's distribution at a masked position.

    Attributes:
        guesses: the first ones.
        rest: the mass of the other cached ids.
        tail: the mass outside the cached ids.
        num_ids: how many are cached here.
        label_probability: of the true token.
        label_rank: the true token's place among the cached ids, from 1 on; None
            where it is not among them.
    """

    guesses: tuple[Guess, ...]
    rest: float
    tail: float
    num_ids: int
    label_probability: float
    label_rank: int | None

    @property
    def right(self) -> bool:
        """Whether the first guess is the true token."""
        return self.guesses[0].right


@dataclasses.dataclass(frozen=True)
class MaskedPosition:
    """A masked position: its number from 1 on, its treatment, and its tokens.

    `format_value` is in the input, and `label` is true. Masked examples have no `teacher`.
    """

    number: int
    treatment: str
    shown: str
    label: str
    teacher: TeacherPrediction | None = None


@dataclasses.dataclass(frozen=True)
class ShownExample:
    """An example, put into words.

    Attributes:
        example_id: hexadecimal.
        file: of its shard.
        index: in its shard, from 0 on.
        num_tokens: `[CLS]` and `[SEP]` included.
        segments: the pieces of each.
        positions: the masked ones.
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
        """Returns how many masked positions were treated so."""
        return sum(position.treatment == treatment for position in self.positions)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The examples of a split to show: `count` at most from `first` on, or one by its id.

    `example_id` is the beginning of its id in hexadecimal.
    """

    split: str
    first: int = 0
    count: int = 5
    example_id: str | None = None


class ExampleReader:
    """Puts the records of a directory into words.

    Args:
        cache: masked examples, a teacher cache or unmasked windows.
        num_guesses: of the teacher, at a position.

    Raises:
        InputError: its tokenizer, or what its codec needs, is not there.
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
            # Of the shards only those that are read need to be there.
            self._codec = cache_input.open_codec(cache.directory, cache.manifest)

    def read(self, selection: Selection) -> list[ShownExample]:
        """Returns the examples that were selected.

        Raises:
            InputError: there are none, or a record is damaged.
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
        """Yields file, place in it, and bytes of the records from the first one on."""
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
        """Returns the pieces of each segment, without `[CLS]` and `[SEP]`.

        Spaces are those of the true tokens, that a masked piece may be known for one.
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
            words = self._teacher_words(example)
        positions = []
        for number, (token, label, word) in enumerate(
            zip(shown.tolist(), labels.tolist(), words, strict=True), 1
        ):
            treatment = KEPT if token == label else REPLACED
            treatment = MASKED if token == self._mask_id else treatment
            texts = self._text.alone(token), self._text.alone(label)
            positions.append(MaskedPosition(number, treatment, *texts, word))
        return tuple(positions)

    def _teacher_words(self, example: MaskedExample) -> list[TeacherPrediction]:
        info = self._cache.manifest.teacher_info
        targets = TeacherTargets.from_features(example.features, self._codec, info)
        p, tails = targets.probabilities(_TEMPERATURE)
        labels = np.exp(targets.label_log_probs.astype(np.float64)).tolist()
        columns = zip(targets.ids, p, tails, example.masked_lm_ids.tolist(), labels, strict=True)
        return [self._teacher_word(*column) for column in columns]

    def _teacher_word(
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
    """Returns the split to read: `eval`, where there is one, unless another is asked for.

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
