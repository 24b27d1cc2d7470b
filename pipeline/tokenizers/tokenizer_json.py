"""Tokenizers of the `tokenizers` library from a `tokenizer.json`, such as byte-level BPE."""

import dataclasses
import functools
import json
import re

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.tokenizers.settings import (
    BERT_CLASSES,
    LOWER_CASE,
    SPLIT_CHINESE,
    STRIP_ACCENTS,
    TOKENIZER_CONFIG_FILE,
    TokenizerSettings,
)
from pipeline.tokenizers.tokens import (
    TOKENIZER_FILE,
    WORD_MARK,
    Tokenizer,
    Tokens,
    as_input_error,
    find_special_ids,
    one_line,
    visible_spans,
    word_numbers,
)
from pipeline.tokenizers.vocabulary import MAX_VOCAB_SIZE, read_tokenizer_file

_CONVERT_HINT = (
    "to convert a vocab.json with merges.txt, use transformers' "
    "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
)
_BYTE_LEVEL_MARK = "Ġ"
_BERT_NORMALIZER = "BertNormalizer"
# Fields of BERT's normalizer, and the keys of the tokenizer's settings that change them.
_NORMALIZER_KEYS = {
    "lowercase": LOWER_CASE,
    "strip_accents": STRIP_ACCENTS,
    "handle_chinese_chars": SPLIT_CHINESE,
}
_WORDPIECE = re.compile(rb'"type":\s*"WordPiece"')


@dataclasses.dataclass(frozen=True)
class JsonTokenizer(Tokenizer):
    """A tokenizer whose file defines normalizer, splitting and vocabulary.

    Attributes:
        vocab: as in `Tokenizer`; an empty string for an id without a token.
        content: the file's bytes.
    """

    content: bytes = dataclasses.field(repr=False)

    @functools.cached_property
    def _tokenizer(self) -> FastTokenizer:
        tokenizer = FastTokenizer.from_buffer(self.content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Otherwise a literal "<mask>" in a text becomes the special token.
        tokenizer.encode_special_tokens = True
        return tokenizer

    @functools.cached_property
    def _mark(self) -> str | None:
        """The character that stands for a space before a token; None for WordPiece."""
        if _WORDPIECE.search(self.content):
            return None
        return _BYTE_LEVEL_MARK if b'"ByteLevel"' in self.content else WORD_MARK

    @functools.cached_property
    def _begins_word(self) -> np.ndarray:
        """A mask of the tokens that begin with the mark of a word, bool [V].

        Without a mark this is False everywhere: Ġ may be an ordinary letter.
        """
        mark = self._mark
        return np.array([mark is not None and token.startswith(mark) for token in self.vocab])

    def _further_special_ids(self) -> list[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        special = [index for index, token in added.items() if token.special]
        return special + [index for index, token in enumerate(self.vocab) if not token]

    def tokenize(self, text: str) -> Tokens:
        text = one_line(text)
        with as_input_error(TOKENIZER_FILE, "a tokenizer that accepts any text", "one that fails"):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        if "unk" in self.special_ids:
            # A unigram model has special tokens as pieces, which a text may contain literally.
            ids[self._is_special[ids]] = self.special_ids["unk"]
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        spaced = text.replace(WORD_MARK, " ") if self._mark == WORD_MARK else text
        starts, ends = visible_spans(spaced, offsets)
        new_word = np.diff(word_numbers(encoding.word_ids), prepend=-1) != 0
        word_ids = np.cumsum(new_word | self._begins_word[ids], dtype=np.int32)
        return Tokens(ids=ids, starts=starts, ends=ends, word_ids=word_ids)

    def files(self) -> dict[str, bytes]:
        return {
            TOKENIZER_FILE: self.content,
            TOKENIZER_CONFIG_FILE: self._config_file("PreTrainedTokenizerFast"),
        }


def read_vocab(path: Location) -> tuple[tuple[str, ...], bytes]:
    """Returns the tokens of a `tokenizer.json` in the order of their ids, and the file's bytes.

    Raises:
        InputError: the file does not exist, or is not a `tokenizer.json`.
    """
    content = read_tokenizer_file(path, what=f"a {TOKENIZER_FILE}")
    expected = f"a {TOKENIZER_FILE} of the tokenizers library"
    with as_input_error(path, expected, "another file", hint=_CONVERT_HINT):
        json_text.load(content)
        ids = FastTokenizer.from_buffer(content).get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1
    if not 0 < size <= MAX_VOCAB_SIZE:
        raise InputError(path, f"1 to {MAX_VOCAB_SIZE} tokens", f"a largest id of {size - 1}")
    tokens = [""] * size
    for token, index in ids.items():
        tokens[index] = token
    return tuple(tokens), content


def load_tokenizer_json(path: Location, settings: TokenizerSettings) -> JsonTokenizer:
    """Loads a `tokenizer.json`; `settings` are those next to it.

    Raises:
        InputError: the file cannot be read, or lacks a special or an added token.
    """
    tokens, content = read_vocab(path)
    settings.expect_listed(tokens)
    special_ids = find_special_ids(tokens, path, settings)
    return JsonTokenizer(tokens, special_ids, None, _with_settings(content, settings))


def _with_settings(content: bytes, settings: TokenizerSettings) -> bytes:
    """Returns a `tokenizer.json` in which the settings of BERT's tokenizer replace its own."""
    is_bert = settings.tokenizer_class in (None, *BERT_CLASSES)
    if not is_bert or _BERT_NORMALIZER.encode() not in content:
        return content
    value = json_text.load(content)
    normalizer = value.get("normalizer") or {}
    changes = {
        field: chosen
        for field, key in _NORMALIZER_KEYS.items()
        if (chosen := settings.boolean(key)) is not None and normalizer.get(field) != chosen
    }
    if normalizer.get("type") != _BERT_NORMALIZER or not changes:
        return content
    value["normalizer"] = normalizer | changes
    return json.dumps(value, ensure_ascii=False).encode("utf-8")
