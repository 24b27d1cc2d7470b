"""The interface of tokenizers: token ids, their spans of the text, and words."""

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.tokenizers.settings import TokenizerSettings
from pipeline.tokenizers.vocabulary import VocabInfo, vocab_info

# How BERT's five special tokens are spelled, the first that a vocabulary has
# taken: BERT's own way, then XLNet's, Gemma's and RoBERTa's.
SPECIAL_TOKENS: Mapping[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    # Of Gemma's tokens <s> and </s> are HTML.
    "cls": ("[CLS]", "<cls>", "<bos>", "<s>"),
    "sep": ("[SEP]", "<sep>", "<eos>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
TOKENIZER_FILE = "tokenizer.json"
# SentencePiece's space: one in a text is a space to it, too.
WORD_MARK = "▁"
# The name of Rust's panics in Python.
_PANIC = "PanicException"
_MAX_REASON = 200
_LINE_BREAKS = str.maketrans("\n\r\t", "   ")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a text.

    Attributes:
        ids: int32 [n].
        starts: int32 [n], the character at which each begins; spaces before it do not count.
        ends: int32 [n], the character after its last.
        word_ids: int32 [n], equal for the pieces of one word as the tokenizer marks it.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    word_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokenizer(abc.ABC):
    """A tokenizer that masked examples can be made with.

    Attributes:
        vocab: the tokens in the order of their ids.
        special_ids: the ids of pad, unk, cls, sep and mask; a byte-level tokenizer may have no unk.
        do_lower_case: whether text is lower-cased; None where the tokenizer's file says it.
        notes: what a user must know of how it was chosen, a line each.
        continuation: what begins a token within a word; None where tokens are not cut by their
            letters.
    """

    continuation: ClassVar[str | None] = None

    vocab: tuple[str, ...]
    special_ids: Mapping[str, int]
    do_lower_case: bool | None
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False, kw_only=True)

    @property
    def info(self) -> VocabInfo:
        """The vocabulary's identity."""
        return vocab_info(self.vocab)

    @property
    def options(self) -> dict[str, Any]:
        """Further settings that change tokens, by their keys; those that are not the default."""
        return {}

    def with_options_of(self, other: "Tokenizer") -> "Tokenizer":
        """Returns this vocabulary with the settings of another tokenizer of its kind."""
        return dataclasses.replace(self, do_lower_case=other.do_lower_case)

    @property
    def splits_at_lines(self) -> bool:
        """Whether a line's tokens are the same whatever lines are before and after it."""
        return False

    @functools.cached_property
    def _is_special(self) -> np.ndarray:
        special = np.zeros(len(self.vocab), bool)
        special[[*self.special_ids.values(), *self._further_special_ids()]] = True
        return special

    def _further_special_ids(self) -> list[int]:
        return []

    def is_special(self) -> np.ndarray:
        """Returns which tokens are never masked, nor stand in for a masked one: bool [V]."""
        return self._is_special

    @abc.abstractmethod
    def tokenize(self, text: str) -> Tokens:
        """Tokenises a text, without special tokens."""

    @abc.abstractmethod
    def files(self) -> dict[str, bytes]:
        """Returns the files that make a directory self-contained, by name."""

    def _config_file(self, tokenizer_class: str, **settings: Any) -> bytes:
        """Returns a `tokenizer_config.json` that `transformers` understands."""
        tokens = {f"{name}_token": self.vocab[index] for name, index in self.special_ids.items()}
        return json_text.dump({"tokenizer_class": tokenizer_class, **tokens, **settings})


def find_special_ids(
    vocab: Sequence[str], path: Location, settings: TokenizerSettings
) -> dict[str, int]:
    """Returns the ids of the special tokens of a vocabulary, which was read from `path`.

    They are spelled as `settings` say, as the tokenizer's class does, or as in `SPECIAL_TOKENS`.

    Raises:
        InputError: one that is named or needed is missing; `unk` is not needed.
    """
    indices = {token: index for index, token in enumerate(vocab)}
    ids, missing = {}, []
    for name, spellings in SPECIAL_TOKENS.items():
        named = settings.special_tokens.get(name)
        candidates = (named, settings.class_tokens.get(name), *spellings)
        known = [indices[token] for token in candidates if token in indices]
        if named is not None and named not in indices:
            where, hint = f"{path}: {name}_token", "the files next to it name the token"
            raise InputError(where, "a token of the vocabulary", json_text.shown(named), hint)
        if known:
            ids[name] = known[0]
        elif name != "unk":
            missing.append(" or ".join(spellings))
    if missing:
        expected = "a vocabulary with the special tokens of masked language models"
        raise InputError(path, expected, f"one of {len(vocab)} tokens without {', '.join(missing)}")
    return ids


def word_numbers(word_ids: Sequence[int | None]) -> np.ndarray:
    """Returns the word of each token, int32 [n]; a token of no word is one of its own."""
    words = [-1 - at if word is None else word for at, word in enumerate(word_ids)]
    return np.array(words, np.int32)


@contextlib.contextmanager
def refusing(
    subject: object, expected: str, received: str, hint: str | None = None
) -> Iterator[None]:
    """Turns whatever a tokenizer's library raises in the block into an InputError.

    Its own exceptions come from files that it does not understand. Rust's panics are no Exceptions.
    Arguments are those of `InputError`; the library's own message is added to `received`.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise InputError(subject, expected, f"{received} ({reason})", hint) from error


def one_line(text: str) -> str:
    """Returns a text with a space for each line break, so that all positions stay.

    WordPiece takes a line break for a space anyway; byte-level tokenizers would
    have a token for it, which their models hardly saw.
    """
    return text.translate(_LINE_BREAKS)


def visible_spans(text: str, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Takes the leading spaces out of the spans of tokens.

    Args:
        text: of n characters.
        offsets: int [tokens, 2], begin and end of each token.

    Returns:
        starts and ends, int32 [tokens]; a token of spaces only is empty.

    Example:
        in `"a  bc"` the span (1, 5) of a token `▁bc` becomes (3, 5).
    """
    spaces = np.fromiter(map(str.isspace, text), bool, len(text))
    visible = np.append(np.where(spaces, len(text), np.arange(len(text))), len(text))
    next_visible = np.minimum.accumulate(visible[::-1])[::-1]
    ends = offsets[:, 1]
    starts = np.minimum(next_visible[offsets[:, 0]], ends)
    return starts.astype(np.int32), ends.astype(np.int32)
