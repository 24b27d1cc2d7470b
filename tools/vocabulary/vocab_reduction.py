"""A smaller vocabulary: the tokens that a text needs, a tokenizer and weights of only these."""

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
# What a text is cut with; every other kind of piece has a task of its own.
_ORDINARY = (_Piece.NORMAL, _Piece.UNUSED)
_WORDS = "encoder/embeddings/word_embeddings"
_POSITIONS = "encoder/embeddings/position_embeddings"
_OUTPUT_BIAS = "head/bias"


@dataclasses.dataclass(frozen=True)
class VocabLimit:
    """How many tokens to keep, in one of three ways.

    They are `vocab_size` with those that are always kept, as few as stand for the share
    `coverage` of the text's tokens, or all that stand in the text `min_count` times.
    """

    vocab_size: int | None = None
    coverage: float | None = None
    min_count: int | None = None

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        given = [f"`{name}`" for name, value in values.items() if value is not None]
        if len(given) != 1:
            received = " and ".join(given) or "none"
            expected = "the only one set of `vocab_size`, `coverage` and `min_count`"
            raise InputError(Setting("vocab_size"), expected, received)


def text_counts(counts: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the counts without those of [PAD], [CLS], [SEP] and [MASK], which no text has."""
    counts = counts.copy()
    counts[[index for name, index in tokenizer.special_ids.items() if name != "unk"]] = 0
    return counts


def always_kept(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids that no smaller vocabulary may lack, ascending.

    The special tokens; of a SentencePiece model all pieces that are not ordinary
    ones: unknown, control and user-defined ones, and those of single bytes.

    Raises:
        InputError: a tokenizer whose vocabulary cannot be reduced.
    """
    kept = set(tokenizer.special_ids.values())
    if isinstance(tokenizer, SentencePieceTokenizer):
        proto = _unigram_proto(tokenizer)
        kept |= {i for i, piece in enumerate(proto.pieces) if piece.type not in _ORDINARY}
    elif not isinstance(tokenizer, WordPieceTokenizer):
        raise _unsupported("a tokenizer.json")
    return np.array(sorted(kept))


def _unsupported(received: str) -> InputError:
    known = "a WordPiece vocabulary (vocab.txt) or a SentencePiece unigram model (.model)"
    return InputError(Setting("input_dir"), f"{known}, whose tokens can be left out", received)


def _unigram_proto(tokenizer: SentencePieceTokenizer) -> _ModelProto:
    proto = _ModelProto.FromString(tokenizer.model)
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        kinds = proto.trainer_spec.ModelType
        kind = kinds.Name(proto.trainer_spec.model_type)
        raise _unsupported(f"a SentencePiece model of the type {kind}")
    return proto


def read_keep_tokens(path: Location, vocab: Sequence[str]) -> np.ndarray:
    """Reads the file of `keep_tokens`, one token of the vocabulary a line; returns their ids."""
    ids = {token: index for index, token in enumerate(vocab)}
    tokens = read_tokens(path)
    for number, token in enumerate(tokens, 1):
        if token not in ids:
            with naming_setting("keep_tokens"):
                expected = "a token of the vocabulary"
                raise InputError(f"{path}, line {number}", expected, f"{token!r}")
    return np.array([ids[token] for token in tokens], np.int64)


def choose_tokens(counts: np.ndarray, always: np.ndarray, limit: VocabLimit) -> np.ndarray:
    """Chooses the tokens of a smaller vocabulary, the most frequent first.

    Of tokens that are equally frequent the smaller id comes first.

    Args:
        counts: int [V], as `text_counts` returns it.
        always: ids that are kept whatever their count.
        limit: how many.

    Returns:
        int64 [n], ascending.

    Raises:
        InputError: no room beside those that are always kept, more tokens than there
            are, or a text without tokens.

    Example:
        with counts 0 0 5 9 5 and ids 0 and 1 always kept, a `vocab_size` of 4 keeps
        0, 1, 2 and 3, as does a `coverage` of 0.7: 14 of 19.
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
            needed = f"the {fixed} special and wanted tokens and at least one more"
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
    """Returns the tokenizer that knows only some of the tokens.

    A text whose tokens are all kept is cut as before; other tokens are cut into
    smaller ones that are kept, or become the unknown one.

    Args:
        tokenizer: WordPiece or SentencePiece.
        kept_ids: int [n], ascending, with all of `always_kept`.
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
    """Returns a SentencePiece model with only some pieces, their scores as they are.

    Made from its parts, for a model may hold samples to test itself with, and those
    may need pieces that are left out.
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
    """Keeps the word embeddings and output biases of some tokens.

    On inputs of kept tokens the logits at these are the old ones.

    Args:
        weights: all weights of a model by our names.
        config: its configuration.
        kept_ids: int [n], ascending, with the padding's.

    Returns:
        the configuration with n tokens, and all weights by our names.

    Example:
        with `kept_ids` 0, 1, 4 the embedding of token 4 becomes row 2. Where the
        padding of a RoBERTa moves from id 3 to id 1, its positions, which are counted
        from there, begin two rows earlier: the first two rows are left out.
    """
    pad_id = int(np.searchsorted(kept_ids, config.pad_token_id))
    if pad_id == len(kept_ids) or kept_ids[pad_id] != config.pad_token_id:
        raise ValueError(f"kept_ids: expected the padding's id {config.pad_token_id} among them")
    counted = config.family.counts_positions_from_padding
    moved = config.pad_token_id - pad_id if counted else 0
    reduced = dataclasses.replace(
        config,
        pad_token_id=pad_id,
        vocab_size=len(kept_ids),
        max_position_embeddings=config.max_position_embeddings - moved,
    )
    gathered = {name: weights[name][kept_ids] for name in (_WORDS, _OUTPUT_BIAS)}
    positions = {_POSITIONS: weights[_POSITIONS][moved:]} if counted else {}
    return reduced, {**weights, **gathered, **positions}
