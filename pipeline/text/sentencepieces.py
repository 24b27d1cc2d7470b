"""SentencePiece models as tokenizers."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from sentencepiece import SentencePieceProcessor

from pipeline.errors import InputError
from pipeline.text import spiece_conversion
from pipeline.text.tokens import (
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Tokenizer,
    Tokens,
    find_special_ids,
    one_line,
    read_tokenizer_file,
    visible_spans,
)

MODEL_FILE = "spiece.model"
WORD_MARK = "▁"


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model whose pieces' ids are the tokens' ids.

    Attributes:
        model: the model file's bytes.
    """

    vocab: tuple[str, ...]
    special_ids: Mapping[str, int]
    do_lower_case: bool
    model: bytes = dataclasses.field(repr=False)

    @functools.cached_property
    def _processor(self) -> SentencePieceProcessor:
        return _open_model(self.model)

    @functools.cached_property
    def _is_special(self) -> np.ndarray:
        sp = self._processor
        special = np.fromiter(
            (
                sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i)
                for i in range(len(self.vocab))
            ),
            bool,
            len(self.vocab),
        )
        special[list(self.special_ids.values())] = True
        return special

    @functools.cached_property
    def _begins_word(self) -> np.ndarray:
        return np.fromiter(
            (piece.startswith(WORD_MARK) for piece in self.vocab), bool, len(self.vocab)
        )

    @functools.cached_property
    def _has_text(self) -> np.ndarray:
        return np.fromiter(
            (bool(piece.strip(WORD_MARK)) for piece in self.vocab), bool, len(self.vocab)
        )

    def is_special(self) -> np.ndarray:
        """See `Tokenizer`."""
        return self._is_special

    def tokenize(self, text: str) -> Tokens:
        """See `Tokenizer`."""
        text = one_line(text)
        lowered = _lower_in_place(text) if self.do_lower_case else text
        encoding = self._processor.encode(lowered, return_type="offset_mapping")
        ids = np.array(encoding["ids"], np.int32)
        # Some models have their special tokens as symbols that a text may spell out.
        ids[self._is_special[ids]] = self.special_ids["unk"]
        offsets = np.array(encoding["offsets"], np.int32).reshape(-1, 2)
        starts, ends = visible_spans(text, offsets)
        # Of the pieces of one character, such as 3, ⁄, 4 of ¾, only the last has it.
        without = (starts == ends) & self._has_text[ids]
        ends = np.where(without, np.minimum(starts + 1, len(text)), ends).astype(np.int32)
        word_ids = np.cumsum(self._begins_word[ids], dtype=np.int32)
        return Tokens(ids=ids, starts=starts, ends=ends, word_ids=word_ids)

    def files(self) -> dict[str, bytes]:
        """See `Tokenizer`; of a unigram model also what `transformers` reads."""
        converted = spiece_conversion.tokenizer_json(
            self.model, self.vocab, self.special_ids, do_lower_case=self.do_lower_case
        )
        kind = "LlamaTokenizer" if converted is None else "PreTrainedTokenizerFast"
        files = {
            MODEL_FILE: self.model,
            TOKENIZER_CONFIG_FILE: self._config_file(kind, do_lower_case=self.do_lower_case),
        }
        return files if converted is None else files | {TOKENIZER_FILE: converted}


def _lower_in_place(text: str) -> str:
    """Lower-cases the characters whose lower case is one character, so that places stay."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def _open_model(model: bytes) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=model)


def read_pieces(path: str, *, flag: str) -> tuple[tuple[str, ...], bytes]:
    """Reads a SentencePiece model.

    Returns:
        its pieces in the order of their ids, and the file's bytes.

    Raises:
        InputError: there is no such file, or it is no SentencePiece model.
    """
    model = read_tokenizer_file(path, what="a SentencePiece model", flag=flag)
    try:
        processor = _open_model(model)
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(
            f"{flag}: expected a SentencePiece model, received {path}, which cannot be read as one"
        ) from error
    pieces = (processor.id_to_piece(i) for i in range(processor.get_piece_size()))
    return tuple(pieces), model


def load_sentencepiece(path: str, *, do_lower_case: bool, flag: str) -> SentencePieceTokenizer:
    """Loads a SentencePiece model as a tokenizer.

    Raises:
        InputError: it cannot be read, or lacks a special token.
    """
    pieces, model = read_pieces(path, flag=flag)
    special_ids = find_special_ids(pieces, path, flag)
    # Whatever it is called, a model always has one.
    special_ids["unk"] = _open_model(model).unk_id()
    return SentencePieceTokenizer(pieces, special_ids, do_lower_case, model)
