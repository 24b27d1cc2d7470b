"""SentencePiece models as tokenizers, and their conversion to a `tokenizer.json`.

`transformers` reads the `tokenizer.json`. The conversion keeps pieces, scores and algorithm
(Kudo, 2018), so both give the same tokens. The only exception is a text that has two
segmentations with exactly the same score.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.tokenizers.settings import LOWER_CASE, TOKENIZER_CONFIG_FILE, TokenizerSettings
from pipeline.tokenizers.tokens import (
    TOKENIZER_FILE,
    WORD_MARK,
    Tokenizer,
    Tokens,
    as_input_error,
    find_special_ids,
    one_line,
    visible_spans,
)
from pipeline.tokenizers.vocabulary import read_tokenizer_file

if TYPE_CHECKING:
    # Functions import this package, so that processes with other tokenizers start sooner.
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

MODEL_FILE = "spiece.model"
XLM_ROBERTA_FILE = "sentencepiece.bpe.model"
# The first pieces of a model with fairseq's token ids, and the tokens that fairseq adds.
_PIECES_FIRST = ("<unk>", "<s>", "</s>")
_FAIRSEQ_PADDING, _FAIRSEQ_MASK = "<pad>", "<mask>"
# Tokenizers that split a text into words before they apply the SentencePiece model.
_WORD_CLASSES = ("BertJapaneseTokenizer",)
# Keys of tokenizers that change a text before the model reads it, with the values that leave the
# text unchanged.
_PLAIN_TEXT = {"keep_accents": True, "remove_space": True, "split_by_punct": False}
# SentencePiece always prefers user-defined symbols. The score of such a symbol is the score of the
# best piece times the number of the symbol's characters, minus this penalty.
_SYMBOL_PENALTY = 0.1
# Special tokens around a pair of texts, as in BERT and as in RoBERTa, which has no segments.
_BERT_PAIR = "{cls} $A {sep} $B:1 {sep}:1"
_ROBERTA_PAIR = "{cls} $A {sep} {sep} $B {sep}"


@dataclasses.dataclass(frozen=True)
class Numbering:
    """A numbering of tokens as in fairseq: its own tokens, then a model's pieces, then the mask.

    Attributes:
        first: the tokens with the first ids.
        num_replaced: number of the model's first pieces that are replaced by tokens in `first`.
        tokenizer_class: class of `transformers` with the same numbering.
    """

    first: tuple[str, ...]
    num_replaced: int
    tokenizer_class: str


# Numberings by the `model_type` in the `config.json` next to a model.
_NUMBERINGS = {
    # Conneau et al. (2020).
    "xlm-roberta": Numbering(("<s>", "<pad>", "</s>", "<unk>"), 3, "XLMRobertaTokenizer"),
    # Martin et al. (2020): <s> and </s> are the model's own pieces.
    "camembert": Numbering(
        ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"), 1, "CamembertTokenizer"
    ),
}


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model.

    Attributes:
        vocab: as in `Tokenizer`: the model's pieces, in the order of `numbering`.
        model: the model file's bytes.
        numbering: fairseq's numbering, see `number_tokens`; None for the order in the model file.
    """

    continuation = ""

    model: bytes = dataclasses.field(repr=False)
    numbering: Numbering | None = None

    @functools.cached_property
    def _processor(self) -> "SentencePieceProcessor":
        return _open_processor(self.model)

    @functools.cached_property
    def _token_ids(self) -> np.ndarray:
        """The token id of each of the model's pieces."""
        ids = np.arange(self._processor.get_piece_size(), dtype=np.int32)
        if self.numbering is not None:
            first, count = self.numbering.first, self.numbering.num_replaced
            ids += len(first) - count
            ids[:count] = [first.index(piece) for piece in _PIECES_FIRST[:count]]
        return ids

    def _further_special_ids(self) -> list[int]:
        sp = self._processor
        fairseq_ids = () if self.numbering is None else range(len(self.numbering.first))
        return [
            *fairseq_ids,
            *(
                index
                for piece, index in enumerate(self._token_ids.tolist())
                if sp.is_control(piece) or sp.is_unknown(piece) or sp.is_unused(piece)
            ),
        ]

    @functools.cached_property
    def _begins_word(self) -> np.ndarray:
        return np.array([piece.startswith(WORD_MARK) for piece in self.vocab])

    @functools.cached_property
    def _has_text(self) -> np.ndarray:
        return np.array([piece.strip(WORD_MARK) != "" for piece in self.vocab])

    def tokenize(self, text: str) -> Tokens:
        text = one_line(text)
        lowered = _lower_in_place(text) if self.do_lower_case else text
        encoding = self._processor.encode(lowered, return_type="offset_mapping")
        ids = self._token_ids[np.array(encoding["ids"], np.int32)]
        # In some models, special tokens are symbols that a text may contain literally.
        ids[self._is_special[ids]] = self.special_ids["unk"]
        offsets = np.array(encoding["offsets"], np.int32).reshape(-1, 2)
        starts, ends = visible_spans(text.replace(WORD_MARK, " "), offsets)
        # If one character has several pieces, such as 3, ⁄, 4 for ¾, only the last piece has a
        # span. The others get the same character.
        is_empty = (starts == ends) & self._has_text[ids]
        ends = np.where(is_empty, np.minimum(starts + 1, len(text)), ends).astype(np.int32)
        word_ids = np.cumsum(self._begins_word[ids], dtype=np.int32)
        return Tokens(ids=ids, starts=starts, ends=ends, word_ids=word_ids)

    def files(self) -> dict[str, bytes]:
        """See `Tokenizer`; a unigram model also gets the `tokenizer.json` of `transformers`."""
        converted = self._tokenizer_json() if _is_unigram(self.model) else None
        kind = "LlamaTokenizer" if converted is None else "PreTrainedTokenizerFast"
        # The class of the numbering gives the same tokens, but does not lower-case.
        if self.numbering is not None and not self.do_lower_case:
            kind = self.numbering.tokenizer_class
        files = {
            MODEL_FILE if self.numbering is None else XLM_ROBERTA_FILE: self.model,
            TOKENIZER_CONFIG_FILE: self._config_file(kind, do_lower_case=self.do_lower_case),
            TOKENIZER_FILE: converted,
        }
        return {name: content for name, content in files.items() if content is not None}

    def _tokenizer_json(self) -> bytes:
        proto = _parse(self.model)
        scores = dict(zip(self._token_ids.tolist(), self._scores(proto), strict=True))
        pieces = [(token, scores.get(index, 0.0)) for index, token in enumerate(self.vocab)]
        byte_fallback = proto.trainer_spec.byte_fallback
        tokenizer = FastTokenizer(Unigram(pieces, self.special_ids["unk"], byte_fallback))
        tokenizer.normalizer = _normalizer(proto, do_lower_case=self.do_lower_case)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD_MARK, "always")
        tokenizer.decoder = decoders.Metaspace(WORD_MARK, "always")
        fairseq_tokens = () if self.numbering is None else self.numbering.first
        named = map(self.vocab.__getitem__, self.special_ids.values())
        special = dict.fromkeys((*named, *fairseq_tokens))
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
        cls, sep = (self.vocab[self.special_ids[name]] for name in ("cls", "sep"))
        tokenizer.post_processor = TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=(_ROBERTA_PAIR if fairseq_tokens else _BERT_PAIR).format(cls=cls, sep=sep),
            special_tokens=[(cls, self.special_ids["cls"]), (sep, self.special_ids["sep"])],
        )
        return tokenizer.to_str(pretty=False).encode("utf-8")

    def _scores(self, proto: "ModelProto") -> list[float]:
        kinds, special = type(proto).SentencePiece, set(self.special_ids.values())
        normal = (piece.score for piece in proto.pieces if piece.type == kinds.NORMAL)
        best = max(normal, default=0.0)
        return [
            best * len(piece.piece) - _SYMBOL_PENALTY
            if piece.type == kinds.USER_DEFINED and index not in special
            else piece.score
            for index, piece in zip(self._token_ids.tolist(), proto.pieces, strict=True)
        ]


def _lower_in_place(text: str) -> str:
    """Lower-cases only characters whose lower case is one character, so that positions stay."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def number_tokens(
    pieces: Sequence[str], model_type: str | None
) -> tuple[tuple[str, ...], Numbering | None]:
    """Returns the tokens of a model's pieces in the order of their ids.

    Args:
        pieces: pieces in the order of the model file.
        model_type: `model_type` of the language model next to the file; None if there is none.

    Returns:
        the tokens, and the numbering of XLM-RoBERTa or CamemBERT. The numbering is None for
        another model type, and for a model that has its own padding or mask token.

    Example:
        For an XLM-RoBERTa, `<unk> <s> </s> ▁a b` becomes `<s> <pad> </s> <unk> ▁a b <mask>`.
        The id of each piece after the third is its index in the file plus 1.
    """
    numbering = _NUMBERINGS.get(str(model_type))
    has_own_tokens = bool({_FAIRSEQ_PADDING, _FAIRSEQ_MASK} & set(pieces))
    is_fairseq = numbering is not None and tuple(pieces[: len(_PIECES_FIRST)]) == _PIECES_FIRST
    if not is_fairseq or has_own_tokens:
        return tuple(pieces), None
    return (*numbering.first, *pieces[numbering.num_replaced :], _FAIRSEQ_MASK), numbering


def read_pieces(path: Location) -> tuple[tuple[str, ...], bytes]:
    """Returns the pieces of a SentencePiece model in the order of the file, and its bytes.

    Raises:
        InputError: the file does not exist, or is not a SentencePiece model.
    """
    model = read_tokenizer_file(path, what="a SentencePiece model")
    with as_input_error(path, "a SentencePiece model", "a file that cannot be read as one"):
        processor = _open_processor(model)
        pieces = tuple(processor.id_to_piece(i) for i in range(processor.get_piece_size()))
        # Other programs must be able to read the model's normalizer and its tables, too.
        proto = _parse(model)
        _normalizer(proto, do_lower_case=False)
        if not all(math.isfinite(piece.score) for piece in proto.pieces):
            raise ValueError("expected finite scores, received NaN or infinity")
    return pieces, model


def load_sentencepiece(
    path: Location, settings: TokenizerSettings, *, do_lower_case: bool | None
) -> SentencePieceTokenizer:
    """Loads a SentencePiece model as a tokenizer.

    Args:
        path: the model file.
        settings: the settings next to it.
        do_lower_case: whether to lower-case text; None for the value in `settings`. The default
            is no, because a cased model must keep capital letters.

    Raises:
        InputError: the file cannot be read, lacks a special or an added token, or has fairseq's
            numbering but is not a unigram model.
    """
    if settings.tokenizer_class in _WORD_CLASSES:
        hint = "this class needs a dictionary of words, which is not supported"
        raise settings.unsupported_value("tokenizer_class", "one of SentencePiece", hint)
    if do_lower_case is None:
        do_lower_case = bool(settings.boolean(LOWER_CASE))
    pieces, model = read_pieces(path)
    model_type = settings.model.get("model_type")
    vocab, numbering = number_tokens(pieces, model_type)
    if numbering is not None and not _is_unigram(model):
        expected = f"a SentencePiece model of the type unigram, because model_type is {model_type}"
        raise InputError(path, expected, f"a model of the type {_type_name(model)}")
    settings.expect_listed(vocab)
    special_ids = find_special_ids(vocab, path, settings)
    if numbering is None:
        # A model always has an unknown piece, whatever its name.
        special_ids["unk"] = _open_processor(model).unk_id()
    notes = tuple(_describe_ignored(settings))
    return SentencePieceTokenizer(vocab, special_ids, do_lower_case, model, numbering, notes=notes)


def _describe_ignored(settings: TokenizerSettings) -> Iterator[str]:
    """Yields a line for each setting that is ignored because the model alone reads the text."""
    for key, plain in _PLAIN_TEXT.items():
        value = settings.boolean(key)
        if value not in (None, plain):
            hint = "use the tokenizer.json that transformers writes to apply it"
            yield f"{settings.path}: {key}: {value} has no effect on a SentencePiece model; {hint}"


def _open_processor(model: bytes) -> "SentencePieceProcessor":
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=model)


def _parse(model: bytes) -> "ModelProto":
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    return ModelProto.FromString(model)


def _is_unigram(model: bytes) -> bool:
    trainer = _parse(model).trainer_spec
    return trainer.model_type == trainer.UNIGRAM


def _type_name(model: bytes) -> str:
    trainer = _parse(model).trainer_spec
    return trainer.ModelType.Name(trainer.model_type).lower()


def _normalizer(proto: "ModelProto", *, do_lower_case: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if do_lower_case else []
    charsmap = proto.normalizer_spec.precompiled_charsmap
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)
