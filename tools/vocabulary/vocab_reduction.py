"""Reduction of a vocabulary, a tokenizer and weights to the tokens that a text needs."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from pipeline.tokenizers.tokens import Tokenizer
from pipeline.tokenizers.vocabulary import read_tokens
from pipeline.tokenizers.wordpiece import WordPieceTokenizer

_ModelProto = sentencepiece_model_pb2.ModelProto
_Piece = _ModelProto.SentencePiece
# Kinds of pieces that only serve to split text. Pieces of other kinds have special functions.
_ORDINARY = (_Piece.NORMAL, _Piece.UNUSED)
_WORDS = "encoder/embeddings/word_embeddings"
_POSITIONS = "encoder/embeddings/position_embeddings"
_OUTPUT_BIAS = "head/bias"


@dataclasses.dataclass(frozen=True)
class VocabLimit:
    """The limit of a reduced vocabulary; exactly one attribute is set.

    Attributes:
        vocab_size: number of tokens, including those that are always kept.
        coverage: minimum share of the text's tokens that the reduced vocabulary must cover.
        min_count: minimum count of a token in the text.
    """

    vocab_size: int | None = None
    coverage: float | None = None
    min_count: int | None = None

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        names = [f"`{name}`" for name, value in values.items() if value is not None]
        if len(names) != 1:
            received = " and ".join(names) or "none"
            expected = "set, or else exactly one of `coverage` and `min_count`"
            raise InputError(Setting("vocab_size"), expected, received)


def text_counts(counts: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the counts with 0 for [PAD], [CLS], [SEP] and [MASK], which are not in the text."""
    counts = counts.copy()
    counts[[index for name, index in tokenizer.special_ids.items() if name != "unk"]] = 0
    return counts


def always_kept(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids that each reduced vocabulary must have, ascending.

    They are the special tokens. In a SentencePiece model they are also all unknown, control,
    user-defined and byte pieces.

    Raises:
        InputError: the vocabulary of this kind of tokenizer cannot be reduced.
    """
    required_ids = set(tokenizer.special_ids.values())
    if isinstance(tokenizer, SentencePieceTokenizer):
        proto = _unigram_proto(tokenizer)
        required_ids |= {i for i, piece in enumerate(proto.pieces) if piece.type not in _ORDINARY}
    elif not isinstance(tokenizer, WordPieceTokenizer):
        raise _unsupported("a tokenizer.json")
    return np.array(sorted(required_ids))


def _unsupported(received: str) -> InputError:
    supported = "a WordPiece vocabulary (vocab.txt) or a SentencePiece unigram model (.model)"
    return InputError(Setting("input_dir"), f"examples with {supported}", received)


def _unigram_proto(tokenizer: SentencePieceTokenizer) -> _ModelProto:
    proto = _ModelProto.FromString(tokenizer.model)
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        kinds = proto.trainer_spec.ModelType
        kind = kinds.Name(proto.trainer_spec.model_type)
        raise _unsupported(f"a SentencePiece model of type {kind}")
    return proto


def read_keep_tokens(path: Location, vocab: Sequence[str]) -> np.ndarray:
    """Returns the ids of the tokens in the file of `keep_tokens`, which has one token per line."""
    ids = {token: index for index, token in enumerate(vocab)}
    tokens = read_tokens(path)
    for number, token in enumerate(tokens, 1):
        if token not in ids:
            with naming_setting("keep_tokens"):
                expected = "a token of the vocabulary"
                raise InputError(f"{path}, line {number}", expected, f"{token!r}")
    return np.array([ids[token] for token in tokens], np.int64)


def choose_tokens(counts: np.ndarray, always: np.ndarray, limit: VocabLimit) -> np.ndarray:
    """Chooses the most frequent tokens for a reduced vocabulary; ties by the smaller id.

    Args:
        counts: int [V], as `text_counts` returns it.
        always: ids that are kept whatever their count.
        limit: of the reduced vocabulary.

    Returns:
        int64 [n], ascending.

    Raises:
        InputError: the size leaves no room for another token or exceeds the vocabulary, or the
            text has no tokens.

    Example:
        the counts are 0 0 5 9 5, and the ids 0 and 1 are always kept. A `vocab_size` of 4 keeps
        the ids 0, 1, 2 and 3. So does a `coverage` of 0.7, as they cover 14 of 19 tokens.
    """
    is_kept = np.zeros(len(counts), bool)
    is_kept[always] = True
    order = np.argsort(-counts, kind="stable")
    others = order[~is_kept[order]]
    fixed = int(is_kept.sum())
    if not counts.sum():
        raise InputError(Setting("input_dir"), "train examples with text", "none")
    if limit.vocab_size is not None:
        if not fixed < limit.vocab_size <= len(counts):
            needed = f"the {fixed} special and listed tokens and at least one more"
            expected = f"{fixed + 1} to {len(counts)}: {needed}"
            raise InputError(Setting("vocab_size"), expected, limit.vocab_size)
        number = limit.vocab_size - fixed
    elif limit.coverage is not None:
        covered = counts[is_kept].sum() + np.cumsum(counts[others])
        number = 1 + int(np.searchsorted(covered, limit.coverage * counts.sum()))
    else:
        number = max(1, int((counts[others] >= limit.min_count).sum()))
    is_kept[others[:number]] = True
    return np.flatnonzero(is_kept)


def reduce_tokenizer(tokenizer: Tokenizer, kept_ids: np.ndarray) -> Tokenizer:
    """Returns a tokenizer with only some of the tokens.

    Text whose tokens are all kept is tokenized as before. Other tokens are split into smaller
    kept tokens, or become the unknown token.

    Args:
        tokenizer: WordPiece or SentencePiece.
        kept_ids: int [n], ascending, including all ids of `always_kept`.
    """
    vocab = tuple(tokenizer.vocab[index] for index in kept_ids)
    special_ids = {
        name: int(np.searchsorted(kept_ids, index)) for name, index in tokenizer.special_ids.items()
    }
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return dataclasses.replace(tokenizer, vocab=vocab, special_ids=special_ids)
    model = _reduce_model(_unigram_proto(tokenizer), kept_ids)
    return dataclasses.replace(tokenizer, vocab=vocab, special_ids=special_ids, model=model)


def _reduce_model(proto: _ModelProto, kept_ids: np.ndarray) -> bytes:
    """Returns a SentencePiece model with only some pieces and unchanged scores.

    Only the fields that are needed are copied. A model may hold test samples, which would fail
    without the removed pieces.
    """
    reduced = _ModelProto(
        pieces=[proto.pieces[index] for index in kept_ids],
        trainer_spec=proto.trainer_spec,
        normalizer_spec=proto.normalizer_spec,
    )
    if proto.HasField("denormalizer_spec"):
        reduced.denormalizer_spec.CopyFrom(proto.denormalizer_spec)
    spec = reduced.trainer_spec
    spec.vocab_size = len(kept_ids)
    new_ids = {int(old): new for new, old in enumerate(kept_ids)}
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        setattr(spec, name, new_ids.get(getattr(spec, name), -1))
    return reduced.SerializeToString()


def reduce_weights(
    weights: Mapping[str, np.ndarray], config: EncoderConfig, kept_ids: np.ndarray
) -> tuple[EncoderConfig, dict[str, np.ndarray]]:
    """Reduces a model to the word embeddings and output biases of some tokens.

    On inputs of kept tokens, the logits of kept tokens do not change.

    Args:
        weights: all weights of a model, by the project's names.
        config: its configuration.
        kept_ids: int [n], ascending, including the padding's id.

    Returns:
        the configuration with n tokens; all weights, by the project's names.

    Example:
        with the `kept_ids` 0, 1, 4, the embedding of token 4 becomes row 2. RoBERTa counts
        positions from the padding's id. If that id moves from 3 to 1, the first two rows of the
        position embeddings are removed.
    """
    pad_id = int(np.searchsorted(kept_ids, config.pad_token_id))
    if pad_id == len(kept_ids) or kept_ids[pad_id] != config.pad_token_id:
        raise ValueError(f"kept_ids: expected the padding's id {config.pad_token_id} among them")
    counts_from_padding = config.family.counts_positions_from_padding
    shift = config.pad_token_id - pad_id if counts_from_padding else 0
    reduced = dataclasses.replace(
        config,
        pad_token_id=pad_id,
        vocab_size=len(kept_ids),
        max_position_embeddings=config.max_position_embeddings - shift,
    )
    gathered = {name: weights[name][kept_ids] for name in (_WORDS, _OUTPUT_BIAS)}
    positions = {_POSITIONS: weights[_POSITIONS][shift:]} if counts_from_padding else {}
    return reduced, {**weights, **gathered, **positions}
