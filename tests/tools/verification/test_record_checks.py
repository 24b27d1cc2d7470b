"""Invalid records are reported with their index and their problem, valid records are not."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from data_specs import records
from pipeline.storage import cache_input
from pipeline.storage import manifest as manifests
from pipeline.tokenizers.loading import load_tokenizer
from tests.conftest import make_cache
from tests.tools.conftest import Features, read_rows
from tools.verification.record_checks import RecordChecker

# Index of the first record that a test changes.
INDEX = 3


def _open(folder: pathlib.Path) -> tuple[RecordChecker, list[Features]]:
    """Returns the checker of a directory, and the records of its eval split."""
    manifest = manifests.load(folder)
    tokenizer = load_tokenizer(folder / "vocab.txt", do_lower_case=None)
    codec = manifest.teacher_info and cache_input.open_codec(folder, manifest)
    examples = read_rows(folder, "eval")
    return RecordChecker(manifest, tokenizer.is_special(), codec), examples


def _problems(checker: RecordChecker, examples: list[Features]) -> dict[str, list[int]]:
    return {finding.problem: finding.indices.tolist() for finding in checker.check(examples)}


def _edit(name: str, change: Callable[[np.ndarray], np.ndarray | None], dtype: str = "<u2"):
    """Returns a function that changes an array of a record, in place or to the result."""

    def edit(features: Features) -> None:
        values = np.frombuffer(features[name], dtype).copy()
        changed = change(values)
        features[name] = (values if changed is None else changed).tobytes()

    return edit


def _put(name: str, index: int, value: float, dtype: str = "<u2"):
    def change(values: np.ndarray) -> None:
        values[index] = value

    return _edit(name, change, dtype)


def _swap(values: np.ndarray) -> None:
    values[[0, 1]] = values[[1, 0]]


def _put_at_masked_position(token: int):
    """Returns a function that puts a token at the first masked position."""

    def edit(features: Features) -> None:
        (position, *_) = np.frombuffer(features[records.MASKED_LM_POSITIONS], "<u2")
        _put(records.INPUT_IDS, position, token)(features)

    return edit


def _length(features: Features) -> int:
    return len(features[records.INPUT_IDS]) // 2


INPUT, SEGMENTS = records.INPUT_IDS, records.SEGMENT_LENGTHS
POSITIONS, LABELS = records.MASKED_LM_POSITIONS, records.MASKED_LM_IDS
SPECIAL = "input_ids: expected [CLS] first and [SEP] at the end of each segment"
ON_SPECIAL = "expected positions of tokens, not of [CLS] or [SEP]"
MASKED_EXAMPLES = [
    (lambda row: row.pop(LABELS), "expected the features example_id, input_ids, masked_lm_ids, "),
    (lambda row: row.update(more=b""), "expected the features example_id, input_ids, "),
    (_edit("example_id", lambda v: v[:15], "|u1"), "example_id: expected 16 numbers, received 15"),
    (_edit(INPUT, lambda v: v[:-1], "|u1"), "input_ids: expected numbers of 2 bytes"),
    (_edit(INPUT, lambda v: v[:2]), "input_ids: expected 3 to 48 numbers"),
    (_edit(INPUT, lambda v: np.tile(v, 9)), "input_ids: expected 3 to 48 numbers"),
    (_edit(SEGMENTS, lambda v: np.tile(v, 2)), "segment_lengths: expected 1 to 2 numbers"),
    (_edit(POSITIONS, lambda v: v[:0]), "masked_lm_positions: expected 1 to 8 numbers"),
    (_edit(POSITIONS, lambda v: np.arange(1, 10, dtype="<u2")), "masked_lm_positions: expected 1"),
    (_edit(LABELS, lambda v: v[1:]), "masked_lm_ids: expected {P} numbers, received {P-1}"),
    (_put(INPUT, 1, 60_000), "input_ids: expected ids below {V}"),
    (_put(SEGMENTS, 0, 5), "segment_lengths: expected lengths that add up to the input's"),
    (_put(SEGMENTS, 0, 65_535), "segment_lengths: expected lengths that add up to the input's"),
    (_put(SEGMENTS, 0, 0), "segment_lengths: expected lengths that add up to the input's"),
    (_put(INPUT, 0, 7), SPECIAL),
    (_put(INPUT, -1, 7), SPECIAL),
    (_edit(POSITIONS, _swap), "masked_lm_positions: expected ascending positions"),
    (_edit(POSITIONS, lambda v: v[[0, 0, *range(2, len(v))]]), "masked_lm_positions: expected asc"),
    (_put(POSITIONS, -1, 48), "masked_lm_positions: expected positions inside the input"),
    (_put(POSITIONS, 0, 0), f"masked_lm_positions: {ON_SPECIAL}"),
    (lambda row: _put(POSITIONS, -1, _length(row) - 1)(row), f"masked_lm_positions: {ON_SPECIAL}"),
    (
        _put_at_masked_position(3),
        "input_ids: expected [MASK] or an ordinary token at masked positions",
    ),
    (
        _put_at_masked_position(1),
        "input_ids: expected [MASK] or an ordinary token at masked positions",
    ),
    (_put(LABELS, 0, 60_000), "masked_lm_ids: expected ids below {V}"),
    (_put(LABELS, 0, 4), "masked_lm_ids: expected ordinary tokens"),
]


def _expect(folder: pathlib.Path, edit: Callable, problem: str) -> None:
    """Changes two records in the same way, and checks that only these are reported."""
    checker, examples = _open(folder)
    assert _problems(checker, examples) == {}
    candidates = (INDEX, len(examples) - 2)
    changed = [index for index in candidates if _num_positions(examples[index]) > 1]
    assert changed
    for index in changed:
        edit(examples[index])
    first = _num_positions(examples[changed[0]])
    for mark, value in (("{P}", first), ("{V}", checker.manifest.vocab.size)):
        problem = problem.replace(mark, str(value))
    problem = problem.replace("{P-1}", str(first - 1))
    reported = _problems(checker, examples)
    (indices,) = [rows for text, rows in reported.items() if text.startswith(problem)] or [[]]
    assert indices and set(indices) <= set(changed), reported
    assert set().union(*reported.values()) <= set(changed), reported


def _num_positions(features: Features) -> int:
    return len(features.get(POSITIONS, features.get(records.WORD_STARTS, b""))) // 2


@pytest.mark.parametrize(("edit", "problem"), MASKED_EXAMPLES)
def test_invalid_masked_examples_are_reported(examples_dir, edit, problem: str) -> None:
    _expect(examples_dir, edit, problem)


def test_examples_with_too_many_masked_positions_are_reported(examples_dir) -> None:
    checker, examples = _open(examples_dir)
    lengths = np.array([_length(example) for example in examples])
    counts = np.array([_num_positions(example) for example in examples])
    flags = {**checker.manifest.flags, "masked_lm_prob": 0.1}
    stricter = dataclasses.replace(
        checker, manifest=dataclasses.replace(checker.manifest, flags=flags)
    )
    too_many = [i for i in range(len(examples)) if counts[i] > max(1, round(lengths[i] * 0.1))]
    problem = "masked_lm_positions: expected at most 0.1 of the tokens masked"
    assert _problems(stricter, examples) == {problem: too_many} and too_many


def _start_word_at_sep(features: Features) -> None:
    """Makes a word begin at the [SEP] between the segments."""
    first = int(np.frombuffer(features[SEGMENTS], "<u2")[0])
    starts = np.frombuffer(features[records.WORD_STARTS], "<u2")
    features[records.WORD_STARTS] = np.union1d(starts, [first - 1]).astype("<u2").tobytes()


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (_edit(records.WORD_STARTS, _swap), "word_starts: expected ascending positions"),
        (_put(records.WORD_STARTS, -1, 999), "word_starts: expected positions inside the input"),
        (_put(records.WORD_STARTS, 0, 0), f"word_starts: {ON_SPECIAL}"),
        (_start_word_at_sep, f"word_starts: {ON_SPECIAL}"),
        (_put(INPUT, 1, 60_000), "input_ids: expected ids below {V}"),
        (lambda row: row.pop(SEGMENTS), "expected the features example_id, input_ids, segment_"),
    ],
)
def test_invalid_unmasked_windows_are_reported(windows_dir, edit, problem: str) -> None:
    _expect(windows_dir, edit, problem)


TAILS, LABEL_LOG_PROBS = records.LOG_TAIL_MASSES, records.LABEL_LOG_PROBS
IDS, LOGITS = records.TOPK_IDS, records.TOPK_LOGITS


def _like_first(values: np.ndarray) -> None:
    values[1] = values[0]


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        *MASKED_EXAMPLES[2:],
        (lambda row: row.pop(TAILS), "expected the features example_id, input_ids, label_log_"),
        (_edit(IDS, lambda v: v[:-1]), "topk_ids: expected "),
        (_edit(LOGITS, lambda v: v[:-16]), "topk_logits: expected "),
        (_edit(TAILS, lambda v: v[:-1], "<f4"), "log_tail_masses: expected "),
        (
            _edit(LABEL_LOG_PROBS, lambda v: v[:-1]),
            "label_log_probs: expected {P} numbers, received {P-1}",
        ),
        (_put(IDS, 17, 60_000), "topk_ids: expected ids from 0 to "),
        (_edit(IDS, _like_first), "topk_ids: expected no id twice at a position"),
        (_put(LOGITS, 5, np.nan, "<f2"), "topk_logits: expected finite numbers"),
        (_put(LOGITS, 5, -np.inf, "<f2"), "topk_logits: expected finite numbers"),
        (_put(LOGITS, 0, -0.25, "<f2"), "topk_logits: expected 0 at the first id"),
        (_put(LOGITS, 5, -0.0, "<f2"), "topk_logits: expected descending numbers"),
        (_put(TAILS, 0, np.nan, "<f4"), "log_tail_masses: expected logarithms of masses"),
        (_put(TAILS, 1, 0.5, "<f4"), "log_tail_masses: expected logarithms of masses"),
        (_put(TAILS, 1, -90.0, "<f4"), "log_tail_masses: expected more mass in the tail at a"),
        (_put(TAILS, 1, -1e-3, "<f4"), "log_tail_masses: expected tokens in the tail that are l"),
        (
            _put(LABEL_LOG_PROBS, 0, 0.5, "<f2"),
            "label_log_probs: expected logarithms of probabilities",
        ),
        (_put(LABEL_LOG_PROBS, 0, -1e-3, "<f2"), "label_log_probs: expected "),
    ],
)
def test_invalid_records_of_a_teacher_cache_are_reported(cache_dir, edit, problem: str) -> None:
    _expect(cache_dir, edit, problem)


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory, examples_dir, teacher_dir) -> pathlib.Path:
    """A compact cache with a variable number of ids, hidden states and embeddings."""
    return make_cache(
        tmp_path_factory.mktemp("small") / "cache",
        examples_dir,
        teacher_dir,
        logit_encoding="compact",
        truncation_mass=0.9,
        cache_hidden_states="1-3",
        hidden_encoding="int8",
        cache_embedding="cls",
    )


COUNTS, RANGES = records.TOPK_COUNTS, records.TOPK_RANGES


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (_put(COUNTS, 0, 0), "topk_counts: expected "),
        (_put(COUNTS, 0, 17), "topk_counts: expected "),
        (_edit(COUNTS, lambda v: v[1:]), "topk_counts: expected {P} numbers, received {P-1}"),
        (_edit(IDS, lambda v: v[:-1], "|u1"), "expected a complete zlib stream of at most "),
        (_put(IDS, 0, 0, "|u1"), "broken zlib stream: "),
        (_put(RANGES, 0, np.nan, "<f2"), "expected {P} ranges of at least 0, received [nan"),
        (_edit(records.HIDDEN_STATES, lambda v: v[1:], "|i1"), "hidden_states: expected "),
        (_put(records.HIDDEN_SCALES, 0, np.inf, "<f4"), "hidden_states: expected finite numbers"),
        (_edit(records.EMBEDDING, lambda v: v[1:], "<f2"), "embedding: expected 32 numbers"),
        (_put(records.EMBEDDING, 3, np.nan, "<f2"), "embedding: expected finite numbers"),
    ],
)
def test_invalid_records_of_a_compact_cache_are_reported(small_dir, edit, problem: str) -> None:
    _expect(small_dir, edit, problem)


def test_a_record_with_ids_of_the_next_record_is_reported(tmp_path, examples_dir, teacher_dir):
    """The total number of ids of both records is correct."""
    settings = {"logit_encoding": "compact", "truncation_mass": 0.9}
    checker, examples = _open(make_cache(tmp_path / "c", examples_dir, teacher_dir, **settings))
    for name, size in ((IDS, 2), (LOGITS, 1)):
        examples[4][name] += examples[5][name][:size]
        examples[5][name] = examples[5][name][size:]
    problems = _problems(checker, examples)
    assert sorted(set().union(*problems.values())) == [4, 5]


def test_a_record_with_too_many_ids_is_not_unpacked(small_dir) -> None:
    """The arrays of many positions with millions of ids would take gigabytes."""
    checker, examples = _open(small_dir)
    info = dataclasses.replace(checker.manifest.teacher_info, truncation_factor=2**24)
    large = RecordChecker(
        dataclasses.replace(checker.manifest, teacher_info=info),
        checker.is_special,
        dataclasses.replace(checker.codec, truncation_factor=2**24),
    )
    long_examples = [example for example in examples if _num_positions(example) > 4][:3]
    problems = _problems(large, long_examples)
    assert problems["expected a top-k of at most 67108864 ids"] == [0, 1, 2]
