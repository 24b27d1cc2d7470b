"""A SentencePiece unigram model as a `tokenizer.json`, so that `transformers` reads a student.

The same pieces and scores in the same algorithm, so the same tokens (Kudo, 2018),
but where two ways of cutting a text have exactly the same score.
"""

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


def tokenizer_json(
    model: bytes, vocab: Sequence[str], special_ids: Mapping[str, int], *, do_lower_case: bool
) -> bytes | None:
    """Converts a SentencePiece model.

    Args:
        model: the model file's bytes.
        vocab: its pieces.
        special_ids: the ids of pad, unk, cls, sep and mask.
        do_lower_case: whether text is lower-cased before.

    Returns:
        the `tokenizer.json`'s bytes; None for a model that is not of the unigram type.
    """
    proto = _ModelProto.FromString(model)
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        return None
    tokenizer = Tokenizer(
        Unigram(
            _scores(proto, set(special_ids.values())),
            unk_id=special_ids["unk"],
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    tokenizer.normalizer = _normalizer(proto, do_lower_case=do_lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE_MARK, "always")
    tokenizer.decoder = decoders.Metaspace(_SPACE_MARK, "always")
    tokenizer.add_special_tokens(
        [AddedToken(vocab[index], special=True) for index in special_ids.values()]
    )
    cls, sep = (vocab[special_ids[name]] for name in ("cls", "sep"))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, special_ids["cls"]), (sep, special_ids["sep"])],
    )
    return tokenizer.to_str(pretty=False).encode("utf-8")


def _scores(proto: _ModelProto, special: set[int]) -> list[tuple[str, float]]:
    kinds = _ModelProto.SentencePiece
    best = max(piece.score for piece in proto.pieces if piece.type == kinds.NORMAL)
    return [
        (piece.piece, best * len(piece.piece) - _SYMBOL_PENALTY)
        if piece.type == kinds.USER_DEFINED and index not in special
        else (piece.piece, piece.score)
        for index, piece in enumerate(proto.pieces)
    ]


def _normalizer(proto: _ModelProto, *, do_lower_case: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if do_lower_case else []
    charsmap = proto.normalizer_spec.precompiled_charsmap
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)
