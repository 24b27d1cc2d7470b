"""The interface of tokenizers: token ids, their spans in the text, and words."""

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

# Spellings of BERT's five special tokens, as in BERT, XLNet, Gemma and RoBERTa. The first spelling
# that a vocabulary has is used.
SPECIAL_TOKENS: Mapping[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    # In Gemma's vocabulary, <s> and </s> are HTML tags, so <bos> and <eos> come first.
    "cls": ("[CLS]", "<cls>", "<bos>", "<s>"),
    "sep": ("[SEP]", "<sep>", "<eos>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
TOKENIZER_FILE = "tokenizer.json"
# SentencePiece's character for a space. It also treats this character in a text as a space.
WORD_MARK = "▁"
# Name of the Python exception for a panic in Rust code.
_PANIC = "PanicException"
_MAX_REASON = 200
_LINE_BREAKS = str.maketrans("\n\r\t", "   ")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a text.

    Attributes:
        ids: int32 [n], token ids.
        starts: int32 [n], index of each token's first character; leading spaces do not count.
        ends: int32 [n], index after each token's last character.
        word_ids: int32 [n], equal for the tokens of one word as the tokenizer marks it.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    word_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokenizer(abc.ABC):
    """A tokenizer for masked examples.

    Attributes:
        vocab: the tokens in the order of their ids.
        special_ids: the ids of pad, unk, cls, sep and mask; a byte-level tokenizer may have no unk.
        do_lower_case: whether text is lower-cased; None if the tokenizer's file decides.
        notes: notes for the user on the choice of the tokenizer, one line each.
        continuation: prefix of a token that continues a word; None if tokens do not consist of
            the characters of a word, as in byte-level vocabularies.
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
        """Other settings that change tokens and differ from the default, by their keys."""
        return {}

    def with_options_of(self, other: "Tokenizer") -> "Tokenizer":
        """Returns this tokenizer with the settings of another tokenizer of the same class."""
        return dataclasses.replace(self, do_lower_case=other.do_lower_case)

    @property
    def splits_at_lines(self) -> bool:
        """Whether the tokens of a line do not depend on the lines before and after it."""
        return False

    @functools.cached_property
    def _is_special(self) -> np.ndarray:
        special = np.zeros(len(self.vocab), bool)
        special[[*self.special_ids.values(), *self._further_special_ids()]] = True
        return special

    def _further_special_ids(self) -> list[int]:
        return []

    def is_special(self) -> np.ndarray:
        """Returns which tokens are never masked and never replace a masked token, bool [V]."""
        return self._is_special

    @abc.abstractmethod
    def tokenize(self, text: str) -> Tokens:
        """Returns the tokens of a text, without special tokens."""

    @abc.abstractmethod
    def files(self) -> dict[str, bytes]:
        """Returns the contents of the tokenizer's files, by name."""

    def _config_file(self, tokenizer_class: str, **settings: Any) -> bytes:
        """Returns a `tokenizer_config.json` for `transformers`."""
        tokens = {f"{name}_token": self.vocab[index] for name, index in self.special_ids.items()}
        return json_text.dump({"tokenizer_class": tokenizer_class, **tokens, **settings})


def find_special_ids(
    vocab: Sequence[str], path: Location, settings: TokenizerSettings
) -> dict[str, int]:
    """Returns the ids of the special tokens of a vocabulary that was read from `path`.

    Their spellings come from `settings`, the tokenizer's class or `SPECIAL_TOKENS`, in this order.

    Raises:
        InputError: the vocabulary lacks a special token that `settings` name, or one of those in
            `SPECIAL_TOKENS` except `unk`.
    """
    indices = {token: index for index, token in enumerate(vocab)}
    ids, missing = {}, []
    for name, spellings in SPECIAL_TOKENS.items():
        named = settings.special_tokens.get(name)
        candidates = (named, settings.class_tokens.get(name), *spellings)
        known = [indices[token] for token in candidates if token in indices]
        if named is not None and named not in indices:
            where, hint = f"{path}: {name}_token", "correct the token in the files next to it"
            raise InputError(
                where, "a token of the vocabulary", json_text.format_value(named), hint
            )
        if known:
            ids[name] = known[0]
        elif name != "unk":
            missing.append(" or ".join(spellings))
    if missing:
        expected = "a vocabulary with the special tokens of masked language models"
        received = f"a vocabulary of {len(vocab)} tokens without {', '.join(missing)}"
        raise InputError(path, expected, received)
    return ids


def word_numbers(word_ids: Sequence[int | None]) -> np.ndarray:
    """Returns the word of each token, int32 [n]; a token without a word gets its own number."""
    words = [-1 - index if word is None else word for index, word in enumerate(word_ids)]
    return np.array(words, np.int32)


@contextlib.contextmanager
def as_input_error(
    subject: object, expected: str, received: str, hint: str | None = None
) -> Iterator[None]:
    """Turns any error of a tokenizer library in the block into an InputError.

    The libraries raise various exceptions for invalid files. Panics in Rust code are not
    subclasses of `Exception`. The arguments are those of `InputError`; the library's message is
    added to `received`.
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
    """Returns a text with a space in place of each line break or tab; positions stay the same.

    WordPiece treats a line break as a space anyway. Byte-level tokenizers have a token for it that
    their models rarely saw in training.
    """
    return text.translate(_LINE_BREAKS)


def visible_spans(text: str, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Removes leading spaces from the spans of tokens.

    Args:
        text: the text.
        offsets: int [tokens, 2], begin and end of each token.

    Returns:
        starts and ends, int32 [tokens]; the span of a token of spaces only is empty.

    Example:
        in `"a  bc"` the span (1, 5) of a token `▁bc` becomes (3, 5).
    """
    spaces = np.fromiter(map(str.isspace, text), bool, len(text))
    visible = np.append(np.where(spaces, len(text), np.arange(len(text))), len(text))
    next_visible = np.minimum.accumulate(visible[::-1])[::-1]
    ends = offsets[:, 1]
    starts = np.minimum(next_visible[offsets[:, 0]], ends)
    return starts.astype(np.int32), ends.astype(np.int32)
