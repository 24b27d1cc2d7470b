"""A SentencePiece unigram model as a `tokenizer.json`, so that `transformers` reads a student.

The same pieces and scores in the same algorithm, so the same tokens (Kudo, 2018),
but where two ways of cutting a text have exactly the same score.
"""

import math
from collections.abc import Mapping, Sequence

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing

_SPACE_MARK = "▁"
# SentencePiece prefers a symbol that its user defined to any other way to cut: it
# scores as many times the best piece as it has characters, less this.
_SYMBOL_PENALTY = 0.1
_ModelProto = sentencepiece_model_pb2.ModelProto


# What stands around a pair of texts: BERT's way, and RoBERTa's, which has no segments.
_BERT_PAIR = "{cls} $A {sep} $B:1 {sep}:1"
_ROBERTA_PAIR = "{cls} $A {sep} {sep} $B {sep}"


def is_unigram(model: bytes) -> bool:
    """Returns whether a model file's bytes are of the unigram type."""
    trainer = _ModelProto.FromString(model).trainer_spec
    return trainer.model_type == trainer.UNIGRAM


def expect_convertible(model: bytes) -> None:
    """Checks that a model's own text and its tables can be read by other programs.

    Raises:
        Exception: of any kind, whatever the libraries raise.
    """
    proto = _ModelProto.FromString(model)
    _normalizer(proto, do_lower_case=False)
    if not all(math.isfinite(piece.score) for piece in proto.pieces):
        raise ValueError("expected scores that are numbers, received others")


def tokenizer_json(
    model: bytes,
    vocab: Sequence[str],
    special_ids: Mapping[str, int],
    *,
    token_ids: Sequence[int],
    do_lower_case: bool,
    has_segments: bool = True,
) -> bytes | None:
    """Converts a SentencePiece model.

    Args:
        model: the model file's bytes.
        vocab: the tokens.
        special_ids: the ids of pad, unk, cls, sep and mask.
        token_ids: of each of its pieces, in their order, the token's id.
        do_lower_case: whether text is lower-cased before.
        has_segments: whether the second text of a pair is segment 1.

    Returns:
        the `tokenizer.json`'s bytes; None for a model that is not of the unigram type.
    """
    if not is_unigram(model):
        return None
    proto = _ModelProto.FromString(model)
    scores = dict(zip(token_ids, _scores(proto, token_ids, special_ids), strict=True))
    pieces = [(token, scores.get(index, 0.0)) for index, token in enumerate(vocab)]
    byte_fallback = proto.trainer_spec.byte_fallback
    tokenizer = Tokenizer(Unigram(pieces, special_ids["unk"], byte_fallback))
    tokenizer.normalizer = _normalizer(proto, do_lower_case=do_lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE_MARK, "always")
    tokenizer.decoder = decoders.Metaspace(_SPACE_MARK, "always")
    tokenizer.add_special_tokens(
        [AddedToken(vocab[index], special=True) for index in special_ids.values()]
    )
    tokenizer.post_processor = _template(vocab, special_ids, has_segments=has_segments)
    return tokenizer.to_str(pretty=False).encode("utf-8")


def _template(
    vocab: Sequence[str], special_ids: Mapping[str, int], *, has_segments: bool
) -> TemplateProcessing:
    cls, sep = (vocab[special_ids[name]] for name in ("cls", "sep"))
    return TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=(_BERT_PAIR if has_segments else _ROBERTA_PAIR).format(cls=cls, sep=sep),
        special_tokens=[(cls, special_ids["cls"]), (sep, special_ids["sep"])],
    )


def _scores(
    proto: _ModelProto, token_ids: Sequence[int], special_ids: Mapping[str, int]
) -> list[float]:
    """Returns each piece's score."""
    kinds, special = _ModelProto.SentencePiece, set(special_ids.values())
    best = max((one.score for one in proto.pieces if one.type == kinds.NORMAL), default=0.0)
    return [
        best * len(piece.piece) - _SYMBOL_PENALTY
        if piece.type == kinds.USER_DEFINED and index not in special
        else piece.score
        for index, piece in zip(token_ids, proto.pieces, strict=True)
    ]


def _normalizer(proto: _ModelProto, *, do_lower_case: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if do_lower_case else []
    charsmap = proto.normalizer_spec.precompiled_charsmap
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)
