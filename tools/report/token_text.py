"""Tokens as people read them: pieces joined, spaces where a text has them."""

import codecs
import dataclasses
import enum
import functools
import json
from collections.abc import Collection, Sequence

from pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from pipeline.tokenizers.tokenizer_json import JsonTokenizer
from pipeline.tokenizers.tokens import WORD_MARK, Tokenizer
from tools.report.text_width import visible

_PIECE_MARK = "##"
# No space stands before the first of these, nor after the second; neither at the third.
_CLOSING = set(".,!?;:%)]}»”…")
_OPENING = set("([{«“#$")
_JOINING = set("'’-/_@")
# Where Chinese and Japanese are written without spaces.
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
    """Returns how a tokenizer's tokens are marked."""
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
    """Returns the byte that each letter of a byte-level token stands for.

    As GPT-2's (Radford et al., 2019): bytes that print stand for themselves, the
    others are numbered from 256 on; `Ġ` is the space.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(shown)]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def space_between(before: str, after: str) -> bool:
    """Returns whether a space stands between a text so far and the next token of WordPiece.

    Example: between `small` and `model`, but not before `,` nor between Chinese
    characters. Where both occur in texts, as around a hyphen, there is none.
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
    """A token in a sentence: whether a space stands before it, and its text."""

    space: bool
    text: str


class TokenText:
    """The texts of the tokens of a tokenizer's vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocab = tokenizer.vocab
        self._marks = find_marks(tokenizer)
        self._special = frozenset(tokenizer.special_ids.values())

    def alone(self, token_id: int) -> str:
        """Returns a token by itself, as a guess is shown.

        Pieces within a word of a WordPiece vocabulary keep their `##`; bytes of a
        byte-level one that are no whole letters are written as such, `\\xe6`.
        """
        token = self._vocab[token_id]
        if token_id in self._special or self._marks is Marks.PIECE:
            return visible(token)
        if self._marks is Marks.SPACE:
            text = token.replace(WORD_MARK, " ")
        else:
            text = _token_bytes(token).decode("utf-8", "backslashreplace")
        return visible(text.strip(" ")) or "␣"

    def spaced(self, token_ids: Sequence[int], apart: Collection[int] = ()) -> list[Word]:
        """Returns a word for each token of a sentence.

        A letter whose bytes are in several tokens stands at the last of them, and the others
        are empty. Places in `apart` are shown by themselves: no letter is put together across
        them.
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
            words.append(Word(text.startswith(" "), visible(text.removeprefix(" "))))
        return words

    def _pieces(self, token_ids: Sequence[int]) -> list[Word]:
        words, before = [], ""
        for token_id in token_ids:
            token = self._vocab[token_id]
            within = token.startswith(_PIECE_MARK) and len(token) > len(_PIECE_MARK)
            text = visible(token[len(_PIECE_MARK) :] if within else token)
            words.append(Word(not within and space_between(before, text), text))
            before = text
        return words


_DECODER = codecs.getincrementaldecoder("utf-8")


def _token_bytes(token: str) -> bytes:
    """Returns the bytes of a byte-level token; an added one is text as it is."""
    letters = byte_letters()
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode("utf-8", "replace")
