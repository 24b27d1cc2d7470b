"""Reading a cache with a reduced vocabulary: known values, and properties of random caches."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.storage.vocab_subset import NO_ID, VocabSubset, cut_tokens, id_table, remap_batch
from pipeline.tokenizers.vocabulary import VocabInfo

TEMPERATURES = (1.0, 2.0)
TOKENS = ["[PAD]", "[UNK]", "a", "b", "c"]
SPECIAL = {"pad": 0, "unk": 1}
LOG = math.log


def _subset(table: list[int] | np.ndarray, unknown_id: int = 1) -> VocabSubset:
    table = np.asarray(table, np.int32)
    return VocabSubset(table, unknown_id, "[UNK]", VocabInfo(int((table >= 0).sum()), ""), {})


def _batch(
    topk_ids: np.ndarray, logits: np.ndarray, log_tails: np.ndarray, labels: np.ndarray
) -> dict[str, tf.Tensor]:
    """Returns a batch of one example with P masked positions."""
    count = len(labels)
    return {
        records.INPUT_IDS: tf.constant([[2, 5, 4, 0]], tf.int32),
        records.SEGMENT_LENGTHS: tf.constant([[3, 0]], tf.int32),
        records.MASKED_LM_POSITIONS: tf.ones([1, count], tf.int32),
        records.MASKED_LM_IDS: tf.constant(labels[None], tf.int32),
        records.MASKED_LM_WEIGHTS: tf.ones([1, count], tf.float32),
        records.TOPK_IDS: tf.constant(topk_ids[None], tf.int32),
        records.TOPK_LOGITS: tf.constant(logits[None], tf.float32),
        records.LOG_TAIL_MASSES: tf.constant(log_tails[None], tf.float32),
    }


def _remapped(batch, table, unknown_id: int = 1) -> dict[str, np.ndarray]:
    remapped = remap_batch(tf, batch, _subset(table, unknown_id), TEMPERATURES)
    for name, value in remapped.items():
        assert (value.shape, value.dtype) == (batch[name].shape, batch[name].dtype), name
    return {name: value.numpy() for name, value in remapped.items()}


def test_id_table_maps_tokens_and_ignores_unused_ids() -> None:
    table = id_table(TOKENS, ["[PAD]", "[UNK]", "c", "a"], SPECIAL, where="x")
    assert table.tolist() == [0, 1, 3, NO_ID, 2] and table.dtype == np.int32
    # A tokenizer.json may have ids without a token.
    table = id_table(["[PAD]", "[UNK]", "", "a"], ["[PAD]", "", "[UNK]"], SPECIAL, where="x")
    assert table.tolist() == [0, 2, NO_ID, NO_ID]
    # Of a repeated token, the last id counts in both vocabularies.
    repeated = ["[PAD]", "[UNK]", "a", "b", "a"]
    table = id_table(repeated, ["[PAD]", "[UNK]", "a", "a"], SPECIAL, where="x")
    assert table.tolist() == [0, 1, NO_ID, NO_ID, 3]


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            "[PAD] [UNK] a z",
            "--student: v.txt: expected only tokens of the cache's vocabulary, "
            "received 'z' (id 3), which is not in it; use a student with the teacher's vocabulary, "
            "or with a part of it",
        ),
        (
            "[PAD] a b",
            "--student: v.txt: expected the cache's special tokens, "
            "received a vocabulary without '[UNK]' (unk)",
        ),
    ],
)
def test_a_vocabulary_that_is_no_subset_is_refused(student: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        id_table(TOKENS, student.split(), SPECIAL, where="--student: v.txt")
    assert str(error.value) == message


def test_remapped_batch_has_known_ids_and_tails() -> None:
    """Tokens 3 and 4 of six are missing, so that 5 becomes 3.

    At T = 1, the first position's top-k has p = 0.4, 0.3, 0.2 and a tail of 0.1. At T = 2, the
    shares within the top-k are √0.4, √0.3, √0.2, divided by their sum.
    """
    p = np.array([0.4, 0.3, 0.2])
    logits = np.log(p) - LOG(0.4)
    batch = _batch(
        np.array([[3, 5, 2], [2, 5, 1], [3, 4, 3], [2, 3, 5]]),
        np.tile(logits, (4, 1)),
        np.tile([LOG(0.1), LOG(0.2)], (4, 1)),
        np.array([5, 2, 5, 4]),
    )
    got = _remapped(batch, [0, 1, 2, NO_ID, NO_ID, 3])
    assert got[records.INPUT_IDS].tolist() == [[2, 3, 1, 0]]
    # The third position has no remaining id, and the fourth has a missing label.
    assert got[records.MASKED_LM_WEIGHTS].tolist() == [[1, 1, 0, 0]]
    assert got[records.MASKED_LM_IDS].tolist() == [[3, 2, 3, 1]]
    ids = got[records.TOPK_IDS][0].tolist()
    assert ids == [[3, 2, NO_ID], [2, 3, 1], [0, 0, 0], [2, 3, NO_ID]]
    np.testing.assert_allclose(got[records.TOPK_LOGITS][0, 0, :2], logits[1:], rtol=1e-6)
    assert got[records.TOPK_LOGITS][0, 0, 2] < -1e4
    np.testing.assert_array_equal(got[records.TOPK_LOGITS][0, 2], 0.0)
    roots = np.sqrt(p) / np.sqrt(p).sum()
    expected = [
        [0.1 + 0.9 * 0.4 / 0.9, 0.2 + 0.8 * roots[0]],
        [0.1, 0.2],
        [0.0, 0.0],
        [0.1 + 0.9 * 0.3 / 0.9, 0.2 + 0.8 * roots[1]],
    ]
    np.testing.assert_allclose(np.exp(got[records.LOG_TAIL_MASSES][0]), expected, rtol=1e-6)


def test_a_missing_token_becomes_padding_without_unk() -> None:
    batch = _batch(np.array([[2]]), np.zeros((1, 1)), np.full((1, 2), -1.0), np.array([5]))
    got = _remapped(batch, [0, 1, 2, 3, 4, NO_ID], unknown_id=0)
    assert got[records.INPUT_IDS].tolist() == [[2, 0, 4, 0]]
    assert got[records.MASKED_LM_IDS].tolist() == [[0]]


def test_masked_examples_without_targets_are_remapped() -> None:
    with_targets = _batch(np.array([[2]]), np.zeros((1, 1)), np.full((1, 2), -1.0), np.array([4]))
    targets = (records.TOPK_IDS, records.TOPK_LOGITS, records.LOG_TAIL_MASSES)
    batch = {name: value for name, value in with_targets.items() if name not in targets}
    got = remap_batch(tf, batch, _subset([0, 1, 2, 3, NO_ID, 4]), ())
    assert got.keys() == batch.keys()
    assert got[records.INPUT_IDS].numpy().tolist() == [[2, 4, 1, 0]]
    assert got[records.MASKED_LM_WEIGHTS].numpy().tolist() == [[0.0]]


def test_a_position_with_nearly_all_mass_on_missing_tokens_gets_weight_zero() -> None:
    """The remaining ids have 1e-9 of the mass, so that 1 − tail is 0 in float32."""
    logits = np.array([[0.0, -20.7], [0.0, -5.0]])
    batch = _batch(np.array([[3, 2], [3, 2]]), logits, np.full((2, 2), -30.0), np.array([2, 2]))
    got = _remapped(batch, [0, 1, 2, NO_ID, NO_ID, 3])
    assert got[records.MASKED_LM_WEIGHTS].tolist() == [[0, 1]]
    assert got[records.TOPK_IDS].tolist() == [[[0, 0], [2, NO_ID]]]


def test_remapped_rows_of_fewer_ids_have_known_tails() -> None:
    """The first row has p = 0.6, 0.3 and a tail of 0.1, and token 4 is missing from it."""
    logits = np.array([[0.0, LOG(0.5), -1e30], [0.0, -1e30, -1e30], [0.0, -1e30, -1e30]])
    tails = np.array([[LOG(0.1), LOG(0.2)], [-1e-8, -1e-8], [LOG(0.1), LOG(0.1)]])
    ids = np.array([[2, 4, NO_ID], [2, NO_ID, NO_ID], [4, NO_ID, NO_ID]])
    got = _remapped(_batch(ids, logits, tails, np.array([2, 2, 2])), [0, 1, 2, NO_ID, NO_ID, 3])
    remaining = got[records.TOPK_IDS][0].tolist()
    assert remaining == [[2, NO_ID, NO_ID], [2, NO_ID, NO_ID], [0, 0, 0]]
    assert got[records.MASKED_LM_WEIGHTS].tolist() == [[1, 1, 0]]
    masses = np.exp(got[records.LOG_TAIL_MASSES][0])
    share = math.sqrt(0.5) / (1.0 + math.sqrt(0.5))
    np.testing.assert_allclose(masses[0], [0.1 + 0.9 / 3, 0.2 + 0.8 * share], rtol=1e-5)
    np.testing.assert_allclose(masses[1], [1.0, 1.0], rtol=1e-6)


def test_padding_and_a_tail_of_nearly_all_mass_are_unchanged() -> None:
    """Padding has no tail. The second tail is the teacher's, as no id is removed."""
    tails = np.array([[-np.inf, -np.inf], [-1e-7, -1e-7]])
    batch = _batch(np.array([[0, 0], [2, 5]]), np.zeros((2, 2)), tails, np.array([0, 2]))
    batch[records.MASKED_LM_WEIGHTS] = tf.constant([[0.0, 1.0]])
    got = _remapped(batch, [0, 1, 2, NO_ID, NO_ID, 3])
    np.testing.assert_array_equal(got[records.LOG_TAIL_MASSES][0], tails.astype("float32"))
    assert got[records.MASKED_LM_WEIGHTS].tolist() == [[0, 1]]
    assert got[records.TOPK_IDS].tolist() == [[[0, 0], [2, 3]]]


V, POSITIONS = 24, 5


@st.composite
def _caches(draw: st.DrawFn):
    """Draws dense logits [P, V], their ids, k, the student's table and labels."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([0.3, 2.0, 6.0]))
    k = draw(st.integers(1, V))
    share = draw(st.sampled_from([0.0, 0.2, 0.6, 0.9]))
    dense = np.sort(rng.normal(0.0, scale, (POSITIONS, V)))[:, ::-1].astype("float32")
    ids = np.argsort(rng.random((POSITIONS, V)), axis=-1)
    is_known = rng.random(V) >= share
    is_known[:2] = True
    table = np.where(is_known, np.cumsum(is_known) - 1, NO_ID)
    labels = rng.choice(np.flatnonzero(is_known), POSITIONS)
    return dense.astype(np.float64), ids, k, table, labels


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _cached(dense: np.ndarray, ids: np.ndarray, k: int, labels: np.ndarray):
    log_tails = np.zeros((len(dense), 2))
    with np.errstate(divide="ignore"):
        for index, temperature in enumerate(TEMPERATURES):
            log_tails[:, index] = np.log(_softmax(dense / temperature)[:, k:].sum(-1))
    logits = dense[:, :k] - dense[:, :1]
    return _batch(ids[:, :k], logits, log_tails, labels)


@given(_caches())
def test_each_remaining_token_keeps_its_probability(case) -> None:
    dense, ids, k, table, labels = case
    got = _remapped(_cached(dense, ids, k, labels), table)
    real = got[records.MASKED_LM_WEIGHTS][0] > 0
    for index, temperature in enumerate(TEMPERATURES):
        p = _softmax(dense / temperature)
        tail = np.exp(got[records.LOG_TAIL_MASSES][0, :, index])
        probabilities = _softmax(got[records.TOPK_LOGITS][0] / np.float32(temperature))
        probabilities *= 1.0 - tail[:, np.newaxis]
        np.testing.assert_allclose(probabilities.sum(-1) + tail, 1.0, atol=1e-6)
        for row in np.flatnonzero(real):
            remaining = [(table[i], x) for i, x in zip(ids[row, :k], p[row], strict=False)]
            remaining = [(i, x) for i, x in remaining if i != NO_ID]
            remapped = got[records.TOPK_IDS][0, row]
            # Remaining ids are in their old order, followed by padding.
            padding = [NO_ID] * (k - len(remaining))
            assert remapped.tolist() == [i for i, _ in remaining] + padding
            old = [x for _, x in remaining]
            np.testing.assert_allclose(probabilities[row, : len(remaining)], old, atol=1e-6)
            np.testing.assert_array_equal(probabilities[row, len(remaining) :], 0.0)
            np.testing.assert_allclose(tail[row], 1.0 - sum(old), atol=1e-6)
    has_no_id = [(table[ids[row, :k]] == NO_ID).all() for row in range(POSITIONS)]
    assert not (real & has_no_id).any()
    # A position with remaining ids has weight 0 only if nearly all mass is removed.
    for row in np.flatnonzero(~real & ~np.array(has_no_id)):
        removed = table[ids[row, :k]] == NO_ID
        assert (1 - _softmax(dense[row])[k:].sum() - _softmax(dense[row])[:k][removed].sum()) < 2e-6


@given(_caches())
def test_the_whole_vocabulary_changes_no_bit(case) -> None:
    dense, ids, k, _, labels = case
    batch = _cached(dense, ids, k, labels)
    got = _remapped(batch, np.arange(V))
    for name, value in batch.items():
        np.testing.assert_array_equal(got[name].view("int32"), value.numpy().view("int32"), name)


def test_remapped_logits_renormalize_at_uncached_temperatures() -> None:
    logits = np.array([[0.0, -1.0, -2.0]])
    batch = _batch(np.array([[3, 5, 2]]), logits, np.full((1, 2), -3.0), np.array([5]))
    got = _remapped(batch, [0, 1, 2, NO_ID, NO_ID, 3])
    for temperature in (0.05, 3.0, 1e4):
        p = _softmax(got[records.TOPK_LOGITS][0, 0] / np.float32(temperature))
        expected = [*_softmax(np.array([-1.0, -2.0]) / temperature), 0.0]
        np.testing.assert_allclose(p, expected, rtol=1e-5)


def _cut(cache: str, student: str, continuation: str | None = "##") -> list[list[str]]:
    """Returns the pieces of each of a cache's tokens, as text."""
    cache_tokens, student_tokens = cache.split(), student.split()
    ids = {token: index for index, token in enumerate(student_tokens)}
    table = np.array([ids.get(token, NO_ID) for token in cache_tokens], np.int32)
    pieces = cut_tokens(
        cache_tokens, student_tokens, table, unknown_id=1, continuation=continuation
    )
    assert pieces.dtype == np.int32
    return [[student_tokens[index] for index in row if index != NO_ID] for row in pieces]


def test_missing_word_pieces_are_split_longest_first() -> None:
    student = "[PAD] [UNK] un ##hap ##happy ##p ##y ##ness ##ne play p l a y"
    assert _cut("[PAD] [UNK] unhappy ##ness ##happyp ##ness", student) == [
        ["[PAD]"],
        ["[UNK]"],
        ["un", "##happy"],
        ["##ness"],
        ["##happy", "##p"],
        ["##ness"],
    ]
    # A token at the beginning of a word does not match one within a word, nor vice versa.
    assert _cut("[PAD] [UNK] playl ##play ##nes", student)[2:] == [["[UNK]"]] * 3


def test_missing_sentence_pieces_are_split_without_a_prefix() -> None:
    cut = _cut("[PAD] [UNK] \u2581word ords", "[PAD] [UNK] \u2581wo rd ord s r", "")
    assert cut[2:] == [["\u2581wo", "rd"], ["ord", "s"]]


def test_tokens_without_a_continuation_prefix_are_not_split() -> None:
    assert _cut("[PAD] [UNK] ab", "[PAD] [UNK] a b", None)[2] == ["[UNK]"]


# The pieces of tokens 0 to 9 of a cache: 6 has two pieces, 7 has three, 8 is [UNK].
_PIECES = [[0], [1], [2], [3], [4], [5], [6, 7], [8, 9, 10], [1], [11]]
_CLS, _SEP, _MASK = 2, 3, 4
_LENGTH = 12


def _piece_subset() -> VocabSubset:
    rows = np.full((10, 3), NO_ID, np.int32)
    for row, piece in zip(rows, _PIECES, strict=True):
        row[: len(piece)] = piece
    table = np.where((rows[:, 1] == NO_ID) & (np.arange(10) != 8), rows[:, 0], NO_ID)
    return VocabSubset(table, 1, "[UNK]", VocabInfo(12, ""), {}, rows)


def _input_batch(
    ids: list[int], lengths: tuple[int, int], positions: list[int], labels: list[int]
) -> dict[str, tf.Tensor]:
    padded = [*ids, *[0] * (_LENGTH - len(ids))]
    weights = np.ones(len(positions))
    return {
        records.INPUT_IDS: tf.constant([padded], tf.int32),
        records.SEGMENT_LENGTHS: tf.constant([lengths], tf.int32),
        records.MASKED_LM_POSITIONS: tf.constant([positions], tf.int32),
        records.MASKED_LM_IDS: tf.constant([labels], tf.int32),
        records.MASKED_LM_WEIGHTS: tf.constant([weights], tf.float32),
    }


def _cut_batch(*arguments) -> dict[str, list]:
    remapped = remap_batch(tf, _input_batch(*arguments), _piece_subset(), ())
    return {name: value.numpy()[0].tolist() for name, value in remapped.items()}


def test_splitting_lengthens_an_input_and_moves_positions() -> None:
    # The input is [CLS] 6 [MASK] 5 [SEP] 7 [MASK] 8 [SEP]. The labels are 5 and the missing 7.
    ids = [_CLS, 6, _MASK, 5, _SEP, 7, _MASK, 8, _SEP]
    got = _cut_batch(ids, (5, 4), [2, 6], [5, 7])
    expected = [_CLS, 6, 7, _MASK, 5, _SEP, 8, 9, 10, _MASK, 1, _SEP]
    assert got[records.INPUT_IDS] == expected
    assert got[records.SEGMENT_LENGTHS] == [6, 6]
    assert got[records.MASKED_LM_POSITIONS] == [3, 9]
    assert got[records.MASKED_LM_WEIGHTS] == [1.0, 1.0]
    # The label of a missing token is its first piece.
    assert got[records.MASKED_LM_IDS] == [5, 8]


def test_a_missing_token_at_a_predicted_position_becomes_one_piece() -> None:
    """Masking left the first token unchanged, and replaced the second by another token."""
    got = _cut_batch([_CLS, 7, 6, _SEP], (4, 0), [1, 2], [7, 5])
    assert got[records.INPUT_IDS][:5] == [_CLS, 8, 6, _SEP, 0]
    assert got[records.SEGMENT_LENGTHS] == [4, 0]
    assert got[records.MASKED_LM_POSITIONS] == [1, 2]
    assert got[records.MASKED_LM_IDS] == [8, 5]


def test_a_label_that_cannot_be_split_gets_weight_zero() -> None:
    got = _cut_batch([_CLS, _MASK, _SEP], (3, 0), [1], [8])
    assert got[records.MASKED_LM_WEIGHTS] == [0.0]
    assert got[records.MASKED_LM_IDS] == [1]


def test_an_input_beyond_the_length_is_cut_off_before_its_last_token() -> None:
    ids = [_CLS, 7, 7, 7, _MASK, 5, _MASK, _SEP]
    got = _cut_batch(ids, (8, 0), [4, 6], [5, 5])
    assert got[records.INPUT_IDS] == [_CLS, 8, 9, 10, 8, 9, 10, 8, 9, 10, _MASK, _SEP]
    assert got[records.SEGMENT_LENGTHS] == [12, 0]
    assert got[records.MASKED_LM_WEIGHTS] == [1.0, 0.0]
    assert got[records.MASKED_LM_POSITIONS] == [10, 0]


@st.composite
def _inputs(draw: st.DrawFn):
    first = draw(st.lists(st.integers(4, 9), max_size=6))
    second = draw(st.one_of(st.none(), st.lists(st.integers(4, 9), max_size=3)))
    ids = [_CLS, *first, _SEP]
    lengths = [len(ids), 0]
    if second is not None:
        ids += [*second, _SEP]
        lengths[1] = len(second) + 1
    positions = draw(st.sets(st.integers(0, len(ids) - 1), min_size=1, max_size=4))
    labels = [draw(st.integers(4, 9)) for _ in positions]
    return ids, tuple(lengths), sorted(positions), labels


@given(_inputs())
def test_inputs_are_split_token_by_token(case) -> None:
    ids, lengths, positions, labels = case
    got = _cut_batch(*case)
    has_label = [label != 8 for label in labels]
    predicted = {position for position, known in zip(positions, has_label, strict=True) if known}
    cut = [
        _PIECES[token][:1] if position in predicted else _PIECES[token]
        for position, token in enumerate(ids)
    ]
    assert got[records.MASKED_LM_IDS] == [_PIECES[label][0] for label in labels]
    starts = np.cumsum([0, *map(len, cut)])
    whole = [piece for pieces in cut for piece in pieces]
    ends = [min(int(starts[lengths[0]]), _LENGTH), min(len(whole), _LENGTH)]
    if len(whole) > _LENGTH:
        whole[_LENGTH - 1 :] = [_SEP]
        last = _LENGTH - 1
    else:
        last = len(whole)
    assert got[records.INPUT_IDS] == whole + [0] * (_LENGTH - len(whole))
    assert got[records.SEGMENT_LENGTHS] == [ends[0], ends[1] - ends[0]]
    fits = [
        known and starts[position] < last
        for position, known in zip(positions, has_label, strict=True)
    ]
    assert got[records.MASKED_LM_WEIGHTS] == [float(fit) for fit in fits]
    moved_positions = got[records.MASKED_LM_POSITIONS]
    for position, fit, moved in zip(positions, fits, moved_positions, strict=True):
        assert not fit or moved == starts[position]
