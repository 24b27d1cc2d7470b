"""Tests of the choice of tokens for a reduced vocabulary, and of reduced tokenizers."""

import dataclasses
import json

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from pipeline.base.errors import InputError
from pipeline.tokenizers.loading import load_tokenizer
from pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from tests.conftest import LINES
from tools.vocabulary import vocab_reduction
from tools.vocabulary.vocab_reduction import VocabLimit, choose_tokens, reduce_tokenizer

COUNTS = np.array([0, 0, 5, 9, 5, 1, 0])
ALWAYS = np.array([0, 1])


def _load(path):
    return load_tokenizer(path, do_lower_case=None)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (VocabLimit(vocab_size=3), [0, 1, 3]),
        # The ids 2 and 4 have equal counts, so that the smaller is kept.
        (VocabLimit(vocab_size=4), [0, 1, 2, 3]),
        (VocabLimit(vocab_size=7), [0, 1, 2, 3, 4, 5, 6]),
        (VocabLimit(coverage=0.45), [0, 1, 3]),
        (VocabLimit(coverage=0.7), [0, 1, 2, 3]),
        (VocabLimit(coverage=0.71), [0, 1, 2, 3, 4]),
        (VocabLimit(coverage=1.0), [0, 1, 2, 3, 4, 5]),
        (VocabLimit(min_count=5), [0, 1, 2, 3, 4]),
        (VocabLimit(min_count=1), [0, 1, 2, 3, 4, 5]),
        # At least one ordinary token is kept.
        (VocabLimit(min_count=100), [0, 1, 3]),
    ],
)
def test_each_limit_keeps_the_most_frequent_tokens(limit: VocabLimit, expected: list[int]) -> None:
    assert choose_tokens(COUNTS, ALWAYS, limit).tolist() == expected


@given(
    st.lists(st.integers(0, 50), min_size=5, max_size=40).filter(lambda counts: sum(counts) > 0),
    st.floats(0.01, 1.0),
)
def test_coverage_chooses_the_smallest_vocabulary(counts: list[int], coverage: float) -> None:
    counts = np.array(counts)
    chosen = choose_tokens(counts, ALWAYS, VocabLimit(coverage=coverage))
    assert counts[chosen].sum() >= coverage * counts.sum()
    ordinary = [i for i in chosen if i > 1]
    rest = sum(sorted(counts[ordinary])[1:]) + counts[:2].sum()
    assert len(ordinary) == 1 or rest < coverage * counts.sum()


@pytest.mark.parametrize(
    ("limits", "received"),
    [({}, "none"), ({"vocab_size": 5, "coverage": 0.9}, "`vocab_size` and `coverage`")],
)
def test_exactly_one_limit_is_required(limits, received: str) -> None:
    with pytest.raises(InputError) as error:
        VocabLimit(**limits)
    assert (error.value.subject, error.value.received) == ("vocab_size", received)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(InputError) as error:
        choose_tokens(COUNTS, ALWAYS, VocabLimit(vocab_size=size))
    assert (error.value.subject, error.value.received) == ("vocab_size", size)
    assert error.value.expected.startswith("3 to 7: ")


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="input_dir: .*train examples with text"):
        choose_tokens(np.zeros(5, np.int64), ALWAYS, VocabLimit(coverage=0.5))


def test_error_about_an_unknown_listed_token_names_its_line(tmp_path) -> None:
    path = tmp_path / "listed.txt"
    path.write_text("c\n##a\n", encoding="utf-8")
    vocab = ["[PAD]", "c", "b", "##a"]
    assert vocab_reduction.read_keep_tokens(path, vocab).tolist() == [1, 3]
    path.write_text("c\nz\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        vocab_reduction.read_keep_tokens(path, vocab)
    assert error.value.subject == f"{path}, line 2"
    assert (error.value.setting, error.value.received) == ("keep_tokens", "'z'")
    with pytest.raises(InputError) as error:
        vocab_reduction.read_keep_tokens(tmp_path / "none.txt", vocab)
    assert error.value.subject == str(tmp_path / "none.txt")


def test_text_counts_leave_special_tokens_out(vocab_file) -> None:
    tokenizer = _load(vocab_file)
    counts = np.arange(len(tokenizer.vocab)) + 1
    text = vocab_reduction.text_counts(counts, tokenizer)
    # Of [PAD], [UNK], [CLS], [SEP] and [MASK], only [UNK] can be in a text.
    assert text[:6].tolist() == [0, 2, 0, 0, 0, 6]
    assert counts[0] == 1


def test_a_reduced_wordpiece_reads_removed_tokens_as_unknown(vocab_file) -> None:
    tokenizer = _load(vocab_file)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "春", "天", "be", "##rt"]
    kept_ids = np.array([tokenizer.vocab.index(token) for token in tokens])
    reduced = reduce_tokenizer(tokenizer, kept_ids)
    assert reduced.vocab == tuple(tokens)
    assert reduced.do_lower_case == tokenizer.do_lower_case
    # 来 was removed; "bert" is split as before.
    assert reduced.tokenize("春天来BERT").ids.tolist() == [5, 6, 1, 7, 8]
    assert vocab_reduction.always_kept(tokenizer).tolist() == [0, 1, 2, 3, 4]


def test_a_reduced_wordpiece_keeps_settings_and_added_tokens(tmp_path) -> None:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "é"]
    (tmp_path / "vocab.txt").write_bytes("\n".join(vocab).encode())
    settings = {"strip_accents": False, "never_split": ["b"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text('{"covid": 8, "virus": 9}')
    tokenizer = _load(tmp_path)
    reduced = reduce_tokenizer(tokenizer, np.array([0, 1, 2, 3, 4, 7, 9]))
    assert reduced.tokenize("é a virus covid").ids.tolist() == [5, 1, 6, 1]
    folder = tmp_path / "student"
    folder.mkdir()
    for name, content in reduced.files().items():
        (folder / name).write_bytes(content)
    loaded = _load(folder)
    assert (loaded.vocab, loaded.options) == (reduced.vocab, reduced.options)
    assert loaded.tokenize("é a virus covid").ids.tolist() == [5, 1, 6, 1]


def _pieces(tokenizer: SentencePieceTokenizer, text: str) -> list[str]:
    return [tokenizer.vocab[index] for index in tokenizer.tokenize(text).ids]


@given(st.data())
def test_a_reduced_sentencepiece_splits_text_of_kept_pieces_as_before(spiece_file, data) -> None:
    """Other texts are split into kept pieces only."""
    tokenizer = _load(spiece_file)
    always = vocab_reduction.always_kept(tokenizer)
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    is_kept = rng.random(len(tokenizer.vocab)) < data.draw(st.sampled_from([0.3, 0.7, 0.95]))
    is_kept[always] = True
    line = data.draw(st.sampled_from(LINES))
    is_kept[tokenizer.tokenize(line).ids] = True
    kept_ids = np.flatnonzero(is_kept)
    reduced = reduce_tokenizer(tokenizer, kept_ids)
    assert _pieces(reduced, line) == _pieces(tokenizer, line)
    for other in LINES:
        before, after = tokenizer.tokenize(other), reduced.tokenize(other)
        if is_kept[before.ids].all():
            assert kept_ids[after.ids].tolist() == before.ids.tolist()
        assert set(_pieces(reduced, other)) <= {tokenizer.vocab[index] for index in kept_ids}


def test_a_removed_piece_is_split_into_kept_pieces(spiece_file) -> None:
    tokenizer = _load(spiece_file)
    text = "unbelievable"
    before = _pieces(tokenizer, text)
    removed = max(before, key=len)
    assert len(removed.strip("▁")) > 1
    kept_ids = np.array([i for i, piece in enumerate(tokenizer.vocab) if piece != removed])
    after = _pieces(reduce_tokenizer(tokenizer, kept_ids), text)
    assert removed not in after and len(after) > len(before)
    assert "".join(after) == "".join(before)


def test_a_reduced_sentencepiece_keeps_scores_and_special_pieces(spiece_file) -> None:
    tokenizer = _load(spiece_file)
    always = vocab_reduction.always_kept(tokenizer)
    names = [tokenizer.vocab[index] for index in always]
    assert names == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!"]
    kept_ids = np.union1d(always, [20, 40, 60])
    reduced = reduce_tokenizer(tokenizer, kept_ids)
    parse = sentencepiece_model_pb2.ModelProto.FromString
    old, new = parse(tokenizer.model), parse(reduced.model)
    assert list(new.pieces) == [old.pieces[index] for index in kept_ids]
    assert new.normalizer_spec == old.normalizer_spec
    assert new.trainer_spec.vocab_size == len(kept_ids)
    processor = sentencepiece.SentencePieceProcessor(model_proto=reduced.model)
    assert (processor.unk_id(), processor.pad_id(), processor.bos_id()) == (1, 0, -1)
    assert set(reduced.files()) == set(tokenizer.files())


def test_reduction_moves_special_ids_of_the_model(spiece_file) -> None:
    """The padding and the unknown piece are not at the beginning of the vocabulary."""
    tokenizer = _load(spiece_file)
    parse = sentencepiece_model_pb2.ModelProto.FromString
    proto = parse(tokenizer.model)
    pieces = list(proto.pieces)
    # Two ordinary pieces are moved to the beginning.
    moved = [*pieces[30:32], *pieces[:30], *pieces[32:]]
    del proto.pieces[:]
    proto.pieces.extend(moved)
    proto.trainer_spec.unk_id = 3
    special_ids = {name: index + 2 for name, index in tokenizer.special_ids.items()}
    changed = dataclasses.replace(
        tokenizer,
        vocab=tuple(piece.piece for piece in moved),
        special_ids=special_ids,
        model=proto.SerializeToString(),
    )
    reduced = reduce_tokenizer(changed, np.arange(2, len(moved)))
    assert reduced.special_ids == tokenizer.special_ids
    assert parse(reduced.model).trainer_spec.unk_id == 1


def test_unsupported_tokenizers_are_refused(bpe_file, tmp_path) -> None:
    with pytest.raises(InputError) as error:
        vocab_reduction.always_kept(_load(bpe_file))
    assert (error.value.subject, error.value.received) == ("input_dir", "a tokenizer.json")
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "vocab_size": 260}
    names = {"pad_piece": "[PAD]", "unk_piece": "[UNK]", "model_type": "bpe", "minloglevel": 2}
    names |= {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "sentence_iterator": iter(LINES)}
    sentencepiece.SentencePieceTrainer.train(model_prefix=str(tmp_path / "bpe"), **ids, **names)
    with pytest.raises(InputError) as error:
        vocab_reduction.always_kept(_load(tmp_path / "bpe.model"))
    assert error.value.received == "a SentencePiece model of type BPE"
