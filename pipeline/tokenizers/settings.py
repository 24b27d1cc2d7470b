"""The settings next to a vocabulary, in the files of Hugging Face's tokenizers.

`tokenizer_config.json` has most of them. Older models keep the names of special tokens in
`special_tokens_map.json`, tokens after those of the vocabulary in `added_tokens.json`, and the
tokenizer's class in the model's `config.json`. If a key changes tokens, the tokenizer that the
key belongs to either applies it or raises an error.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_ADDED_TOKENS_FILE = "added_tokens.json"
# The settings of the model in the same directory.
MODEL_CONFIG_FILE = "config.json"
SETTINGS_FILES = (
    TOKENIZER_CONFIG_FILE,
    _SPECIAL_TOKENS_FILE,
    _ADDED_TOKENS_FILE,
    MODEL_CONFIG_FILE,
)
ADDED_TOKENS_KEY = "added_tokens_decoder"
# Keys of BERT's tokenizer.
LOWER_CASE = "do_lower_case"
STRIP_ACCENTS = "strip_accents"
SPLIT_CHINESE = "tokenize_chinese_chars"
# Keys of additional special tokens, in older and in newer files.
_FURTHER_SPECIAL = ("additional_special_tokens", "extra_special_tokens")
_SPECIAL_NAMES = ("pad", "unk", "cls", "sep", "mask")
# Tokenizer classes by the `model_type` of the model, for files that name no class.
MPNET_CLASS = "MPNetTokenizer"
_MODEL_CLASSES = {"mpnet": MPNET_CLASS}
# MPNet's vocabulary also has BERT's special tokens, but its model was not trained with them.
_MPNET_TOKENS = {
    "pad": "<pad>",
    "unk": "[UNK]",
    "cls": "<s>",
    "sep": "</s>",
    "mask": "<mask>",
}
# Classes that split text as BERT's tokenizer does; without the suffix "Fast".
BERT_CLASSES = (
    *("BertTokenizer", "BertTokenizerLegacy", "DistilBertTokenizer", "ElectraTokenizer"),
    *("ErnieTokenizer", "MobileBertTokenizer", "ConvBertTokenizer", "SqueezeBertTokenizer"),
    *(MPNET_CLASS, "LayoutLMTokenizer", "LxmertTokenizer", "FunnelTokenizer"),
    "RetriBertTokenizer",
)


class UnsplitToken(msgspec.Struct, frozen=True):
    """A token that is never split in a text, with the fields of `tokenizers.AddedToken`.

    Attributes:
        content: the text of the token.
        single_word: whether it must not be part of a word.
        lstrip: whether spaces before it belong to it.
        rstrip: whether spaces after it belong to it.
        normalized: whether it is searched in the normalized text.
        special: whether it is a special token, which is never masked.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def __post_init__(self) -> None:
        if not self.content:
            raise ValueError("content must not be empty")
        self.content.encode("utf-8")


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """The content of the files next to a vocabulary.

    Attributes:
        vocab_file: the vocabulary.
        path: the `tokenizer_config.json`; it need not exist.
        values: content of that file.
        special_tokens: spellings of special tokens by `pad`, `unk`, `cls`, `sep` and `mask`; only
            those that a file names.
        added: tokens that a file lists with their ids.
        model: content of the model's `config.json`.
    """

    vocab_file: Location
    path: Location
    values: Mapping[str, Any]
    special_tokens: Mapping[str, str]
    added: Mapping[int, UnsplitToken]
    model: Mapping[str, Any]

    @property
    def tokenizer_class(self) -> str | None:
        """The name of the tokenizer's class, without the suffix "Fast"."""
        name = self.values.get("tokenizer_class") or self.model.get("tokenizer_class")
        if name is None:
            return _MODEL_CLASSES.get(str(self.model.get("model_type")))
        return str(name).removesuffix("Fast")

    @property
    def class_tokens(self) -> Mapping[str, str]:
        """Spellings of special tokens that are particular to the tokenizer's class."""
        return _MPNET_TOKENS if self.tokenizer_class == MPNET_CLASS else {}

    def unsupported_value(self, key: str, expected: str, hint: str | None = None) -> InputError:
        """Returns the error about the value of a key."""
        value, where = self.values.get(key), self.path
        if value is None:
            value, where = self.model.get(key), self.path.with_name(MODEL_CONFIG_FILE)
        return InputError(f"{where}: {key}", expected, format_value(value), hint)

    def boolean(self, key: str) -> bool | None:
        """Returns a value that is true or false, also as a string; None if it is not set.

        Raises:
            InputError: the value is neither true nor false.
        """
        value = self.values.get(key)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if value is None or isinstance(value, bool):
            return value
        raise self.unsupported_value(key, "true or false")

    def expect_values(self, supported: Mapping[str, Any]) -> None:
        """Raises InputError if a key has another value than the one that is supported."""
        for key, value in supported.items():
            if self.values.get(key, value) not in (value, None):
                raise self.unsupported_value(key, f"{json_text.format_value(value)}, or none")

    def expect_listed(self, vocab: Sequence[str]) -> None:
        """Raises InputError unless a vocabulary has every added token at its id."""
        for index, token in sorted(self.added.items()):
            if not (index < len(vocab) and vocab[index] == token.content):
                received = f"a vocabulary of {len(vocab)} tokens without it"
                if index < len(vocab):
                    received = format_value(vocab[index])
                hint = (
                    "save the tokenizer again with transformers' "
                    "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
                )
                expected = f"the token {format_value(token.content)} with id {index}"
                raise InputError(self.vocab_file, expected, received, hint)

    def extend(self, tokens: Sequence[str]) -> tuple[str, ...]:
        """Returns the tokens of a `vocab.txt`, followed by the added tokens.

        Raises:
            InputError: the ids have a gap, or a token occurs twice.
        """
        added = {index: token for index, token in self.added.items() if index >= len(tokens)}
        expected = range(len(tokens), len(tokens) + len(added))
        if sorted(added) != list(expected):
            ids = f"ids of added tokens from {expected.start} to {expected.stop - 1}"
            missing = next(index for index in expected if index not in added)
            received = f"no token with id {missing}, but one with id {max(added)}"
            raise InputError(self.vocab_file, ids, received)
        vocab = (*tokens, *(added[index].content for index in expected))
        last_ids = {token: index for index, token in enumerate(vocab)}
        for index in expected:
            token = vocab[index]
            if last_ids[token] != index or token in tokens:
                received = f"{format_value(token)} (id {index}) twice"
                raise InputError(self.vocab_file, "each added token once", received)
        self.expect_listed(vocab)
        return vocab


def read_settings(vocab_file: Location) -> TokenizerSettings:
    """Reads the files next to a vocabulary.

    Raises:
        InputError: a file is malformed, or two tokens have the same id.
    """
    path = vocab_file.with_name(TOKENIZER_CONFIG_FILE)
    values, spelled, model = (
        _read(path.with_name(name))
        for name in (TOKENIZER_CONFIG_FILE, _SPECIAL_TOKENS_FILE, MODEL_CONFIG_FILE)
    )
    names = dict(_special_tokens(path.with_name(_SPECIAL_TOKENS_FILE), spelled))
    names |= dict(_special_tokens(path, values))
    added = _added_tokens(path, values, set(names.values()))
    return TokenizerSettings(vocab_file, path, values, names, added, model)


def _read(path: Location) -> Mapping[str, Any]:
    return path.read_json() if path.is_file() else {}


def _content(path: Location, key: str, value: Any) -> str:
    """Returns the text of a token that is written as a string or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str):
        raise InputError(f"{path}: {key}", "a token", format_value(value))
    return value


def _special_tokens(path: Location, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _SPECIAL_NAMES:
        key = f"{name}_token"
        if values.get(key) is not None:
            yield name, _content(path, key, values[key])


def _added_tokens(
    path: Location, values: Mapping[str, Any], special: set[str]
) -> dict[int, UnsplitToken]:
    """Returns the tokens of `added_tokens_decoder` and `added_tokens.json`, by their ids."""
    listed = values.get(ADDED_TOKENS_KEY) or {}
    if not isinstance(listed, dict):
        raise InputError(f"{path}: {ADDED_TOKENS_KEY}", "an object", format_value(listed))
    added = {
        _index(f"{path}: {ADDED_TOKENS_KEY}", index): json_text.convert(
            token, UnsplitToken, f"{path}: {ADDED_TOKENS_KEY}: {index}"
        )
        for index, token in listed.items()
    }
    file = path.with_name(_ADDED_TOKENS_FILE)
    for key in _FURTHER_SPECIAL:
        further = values.get(key)
        if isinstance(further, list):
            special = special | {_content(path, key, token) for token in further}
    for content, number in _read(file).items():
        index, is_special = _index(file, number), content in special
        flags = {"normalized": not is_special, "special": is_special}
        token = json_text.convert({"content": content, **flags}, UnsplitToken, file)
        if added.setdefault(index, token).content != content:
            tokens = f"{format_value(content)} and {format_value(added[index].content)}"
            raise InputError(file, "one token for each id", f"{tokens} for {index}")
    return added


def _index(where: object, value: Any) -> int:
    """Returns an id; a file has it as a number or, in a key, as digits."""
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputError(where, "token ids", format_value(value))
    return int(text)
