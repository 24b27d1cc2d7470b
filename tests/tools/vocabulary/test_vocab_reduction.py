"""Which tokens a text needs, and tokenizers with only these."""

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
    ("limit", "kept"),
    [
        (VocabLimit(vocab_size=3), [0, 1, 3]),
        # Of 2 and 4, equally frequent, the smaller.
        (VocabLimit(vocab_size=4), [0, 1, 2, 3]),
        (VocabLimit(vocab_size=7), [0, 1, 2, 3, 4, 5, 6]),
        (VocabLimit(coverage=0.45), [0, 1, 3]),
        (VocabLimit(coverage=0.7), [0, 1, 2, 3]),
        (VocabLimit(coverage=0.71), [0, 1, 2, 3, 4]),
        (VocabLimit(coverage=1.0), [0, 1, 2, 3, 4, 5]),
        (VocabLimit(min_count=5), [0, 1, 2, 3, 4]),
        (VocabLimit(min_count=1), [0, 1, 2, 3, 4, 5]),
        # At least one token is no special one.
        (VocabLimit(min_count=100), [0, 1, 3]),
    ],
)
def test_choices_by_hand(limit: VocabLimit, kept: list[int]) -> None:
    assert choose_tokens(COUNTS, ALWAYS, limit).tolist() == kept


@given(
    st.lists(st.integers(0, 50), min_size=5, max_size=40).filter(lambda counts: sum(counts) > 0),
    st.floats(0.01, 1.0),
)
def test_no_smaller_choice_covers_as_much(counts: list[int], coverage: float) -> None:
    counts = np.array(counts)
    kept = choose_tokens(counts, ALWAYS, VocabLimit(coverage=coverage))
    assert counts[kept].sum() >= coverage * counts.sum()
    ordinary = [i for i in kept if i > 1]
    rest = sum(sorted(counts[ordinary])[1:]) + counts[:2].sum()
    assert len(ordinary) == 1 or rest < coverage * counts.sum()


@pytest.mark.parametrize(
    ("given_limits", "received"),
    [({}, "none"), ({"vocab_size": 5, "coverage": 0.9}, "`vocab_size` and `coverage`")],
)
def test_exactly_one_limit(given_limits, received: str) -> None:
    with pytest.raises(InputError) as error:
        VocabLimit(**given_limits)
    assert (error.value.subject, error.value.received) == ("vocab_size", received)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_size_that_does_not_fit(size: int) -> None:
    with pytest.raises(InputError) as error:
        choose_tokens(COUNTS, ALWAYS, VocabLimit(vocab_size=size))
    assert (error.value.subject, error.value.received) == ("vocab_size", size)
    assert error.value.expected.startswith("3 to 7: ")


def test_a_text_without_tokens() -> None:
    with pytest.raises(InputError, match="input_dir: .*train examples with text"):
        choose_tokens(np.zeros(5, np.int64), ALWAYS, VocabLimit(coverage=0.5))


def test_wanted_tokens(tmp_path) -> None:
    path = tmp_path / "wanted.txt"
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


def test_only_text_is_counted(vocab_file) -> None:
    tokenizer = _load(vocab_file)
    counts = np.arange(len(tokenizer.vocab)) + 1
    text = vocab_reduction.text_counts(counts, tokenizer)
    # [PAD], [UNK], [CLS], [SEP], [MASK]: a text has [UNK] only.
    assert text[:6].tolist() == [0, 2, 0, 0, 0, 6]
    assert counts[0] == 1


def test_a_smaller_wordpiece(vocab_file) -> None:
    tokenizer = _load(vocab_file)
    kept_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "春", "天", "be", "##rt"]
    kept = np.array([tokenizer.vocab.index(token) for token in kept_tokens])
    reduced = reduce_tokenizer(tokenizer, kept)
    assert reduced.vocab == tuple(kept_tokens)
    assert reduced.do_lower_case == tokenizer.do_lower_case
    # 来 is no longer there; "bert" is cut as before.
    assert reduced.tokenize("春天来BERT").ids.tolist() == [5, 6, 1, 7, 8]
    assert vocab_reduction.always_kept(tokenizer).tolist() == [0, 1, 2, 3, 4]


def test_a_smaller_wordpiece_keeps_settings_and_added_tokens(tmp_path) -> None:
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
    again = _load(folder)
    assert (again.vocab, again.options) == (reduced.vocab, reduced.options)
    assert again.tokenize("é a virus covid").ids.tolist() == [5, 1, 6, 1]


def _pieces(tokenizer: SentencePieceTokenizer, text: str) -> list[str]:
    return [tokenizer.vocab[index] for index in tokenizer.tokenize(text).ids]


@given(st.data())
def test_a_smaller_sentencepiece_cuts_kept_text_alike(spiece_file, data) -> None:
    """Whatever is kept: a text of kept pieces has the same ones, others only kept ones."""
    tokenizer = _load(spiece_file)
    always = vocab_reduction.always_kept(tokenizer)
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    is_kept = random.random(len(tokenizer.vocab)) < data.draw(st.sampled_from([0.3, 0.7, 0.95]))
    is_kept[always] = True
    line = data.draw(st.sampled_from(LINES))
    is_kept[tokenizer.tokenize(line).ids] = True
    kept = np.flatnonzero(is_kept)
    reduced = reduce_tokenizer(tokenizer, kept)
    assert _pieces(reduced, line) == _pieces(tokenizer, line)
    for other in LINES:
        before, after = tokenizer.tokenize(other), reduced.tokenize(other)
        if is_kept[before.ids].all():
            assert kept[after.ids].tolist() == before.ids.tolist()
        assert set(_pieces(reduced, other)) <= {tokenizer.vocab[index] for index in kept}


def test_a_dropped_piece_is_cut_into_kept_ones(spiece_file) -> None:
    tokenizer = _load(spiece_file)
    text = "unbelievable"
    before = _pieces(tokenizer, text)
    dropped = max(before, key=len)
    assert len(dropped.strip("▁")) > 1
    kept = np.array([i for i, piece in enumerate(tokenizer.vocab) if piece != dropped])
    after = _pieces(reduce_tokenizer(tokenizer, kept), text)
    assert dropped not in after and len(after) > len(before)
    assert "".join(after) == "".join(before)


def test_a_smaller_model_keeps_scores_and_what_is_no_ordinary_piece(spiece_file) -> None:
    tokenizer = _load(spiece_file)
    always = vocab_reduction.always_kept(tokenizer)
    names = [tokenizer.vocab[index] for index in always]
    assert names == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!"]
    kept = np.union1d(always, [20, 40, 60])
    reduced = reduce_tokenizer(tokenizer, kept)
    parse = sentencepiece_model_pb2.ModelProto.FromString
    old, new = parse(tokenizer.model), parse(reduced.model)
    assert list(new.pieces) == [old.pieces[index] for index in kept]
    assert new.normalizer_spec == old.normalizer_spec
    assert new.trainer_spec.vocab_size == len(kept)
    processor = sentencepiece.SentencePieceProcessor(model_proto=reduced.model)
    assert (processor.unk_id(), processor.pad_id(), processor.bos_id()) == (1, 0, -1)
    assert set(reduced.files()) == set(tokenizer.files())


def test_a_padding_in_the_middle_moves(spiece_file) -> None:
    """Ids that the model itself knows are renamed, too."""
    tokenizer = _load(spiece_file)
    parse = sentencepiece_model_pb2.ModelProto.FromString
    proto = parse(tokenizer.model)
    pieces = list(proto.pieces)
    # Two ordinary pieces come first now.
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


def test_others_are_refused(bpe_file, tmp_path) -> None:
    with pytest.raises(InputError) as error:
        vocab_reduction.always_kept(_load(bpe_file))
    assert (error.value.subject, error.value.received) == ("input_dir", "a tokenizer.json")
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "vocab_size": 260}
    names = {"pad_piece": "[PAD]", "unk_piece": "[UNK]", "model_type": "bpe", "minloglevel": 2}
    names |= {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "sentence_iterator": iter(LINES)}
    sentencepiece.SentencePieceTrainer.train(model_prefix=str(tmp_path / "bpe"), **ids, **names)
    with pytest.raises(InputError) as error:
        vocab_reduction.always_kept(_load(tmp_path / "bpe.model"))
    assert error.value.received == "a SentencePiece model of the type BPE"
