"""Readable text of tokens: pieces are joined, with spaces between words."""

import codecs
import dataclasses
import enum
import functools
import json
from collections.abc import Collection, Sequence

from pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from pipeline.tokenizers.tokenizer_json import JsonTokenizer
from pipeline.tokenizers.tokens import WORD_MARK, Tokenizer
from tools.report.text_width import escape_unprintable

_PIECE_MARK = "##"
# There is no space before closing letters, after opening letters, and around joining letters.
_CLOSING = set(".,!?;:%)]}»”…")
_OPENING = set("([{«“#$")
_JOINING = set("'’-/_@")
# Ranges of Chinese and Japanese letters, which are written without spaces.
_WITHOUT_SPACES = (
    (0x2E80, 0x303F),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFE30, 0xFE4F),
    (0xFF00, 0xFF65),
    (0x20000, 0x323AF),
)


class Marks(enum.Enum):
    """Marks of a vocabulary for the beginnings of words."""

    PIECE = "##"
    SPACE = "▁"
    BYTES = "Ġ"


def find_marks(tokenizer: Tokenizer) -> Marks:
    """Returns the marks of a tokenizer's vocabulary."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return Marks.SPACE
    if not isinstance(tokenizer, JsonTokenizer):
        return Marks.PIECE
    value = json.loads(tokenizer.content)
    if value.get("model", {}).get("type") == "WordPiece":
        return Marks.PIECE
    return Marks.BYTES if b'"ByteLevel"' in tokenizer.content else Marks.SPACE


@functools.cache
def byte_letters() -> dict[str, int]:
    """Returns the byte that each letter of a byte-level token represents.

    The letters are those of GPT-2 (Radford et al., 2019). Printable bytes represent themselves,
    and the others are numbered from 256; `Ġ` is the space.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(shown)]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def space_between(before: str, after: str) -> bool:
    """Returns whether there is a space between a text and the next WordPiece token.

    Example: there is one between `small` and `model`, but not before `,` nor between Chinese
    characters. Around a hyphen, where texts have both, there is none.
    """
    if not before or not after:
        return False
    last, first = before[-1], after[0]
    if any(low <= ord(letter) <= high for letter in (last, first) for low, high in _WITHOUT_SPACES):
        return False
    if first in _CLOSING or last in _OPENING:
        return False
    return first not in _JOINING and last not in _JOINING


@dataclasses.dataclass(frozen=True)
class Word:
    """A token in a sentence: its text, and whether a space comes before it."""

    space: bool
    text: str


class TokenText:
    """The texts of the tokens of a tokenizer's vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocab = tokenizer.vocab
        self._marks = find_marks(tokenizer)
        self._special = frozenset(tokenizer.special_ids.values())

    def alone(self, token_id: int) -> str:
        """Returns the text of a single token, for example of a prediction.

        Pieces within a word of a WordPiece vocabulary keep their `##`. Bytes of a byte-level
        token that are only a part of a letter are written as bytes, for example `\\xe6`.
        """
        token = self._vocab[token_id]
        if token_id in self._special or self._marks is Marks.PIECE:
            return escape_unprintable(token)
        if self._marks is Marks.SPACE:
            text = token.replace(WORD_MARK, " ")
        else:
            text = _token_bytes(token).decode("utf-8", "backslashreplace")
        return escape_unprintable(text.strip(" ")) or "␣"

    def spaced(self, token_ids: Sequence[int], apart: Collection[int] = ()) -> list[Word]:
        """Returns a word for each token of a sentence.

        If the bytes of a letter are in several tokens, the last of them has the letter, and the
        others are empty. Tokens whose index is in `apart` are decoded separately.
        """
        if self._marks is Marks.PIECE:
            return self._pieces(token_ids)
        words, decoder = [], _DECODER("backslashreplace")
        for place, token_id in enumerate(token_ids):
            ends = place + 1 in apart or place + 1 == len(token_ids)
            if place in apart or token_id in self._special:
                space = self._vocab[token_id].startswith(self._marks.value)
                words.append(Word(space, self.alone(token_id)))
                decoder.reset()
                continue
            if self._marks is Marks.SPACE:
                text = self._vocab[token_id].replace(WORD_MARK, " ")
            else:
                text = decoder.decode(_token_bytes(self._vocab[token_id]), final=ends)
            words.append(Word(text.startswith(" "), escape_unprintable(text.removeprefix(" "))))
        return words

    def _pieces(self, token_ids: Sequence[int]) -> list[Word]:
        words, before = [], ""
        for token_id in token_ids:
            token = self._vocab[token_id]
            within = token.startswith(_PIECE_MARK) and len(token) > len(_PIECE_MARK)
            text = escape_unprintable(token[len(_PIECE_MARK) :] if within else token)
            words.append(Word(not within and space_between(before, text), text))
            before = text
        return words


_DECODER = codecs.getincrementaldecoder("utf-8")


def _token_bytes(token: str) -> bytes:
    """Returns the bytes of a byte-level token; an added token is plain text."""
    letters = byte_letters()
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode("utf-8", "replace")
