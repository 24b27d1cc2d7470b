"""BERT's own tokenizer, from a `vocab.txt` and the settings next to it."""

import dataclasses
import functools
import itertools
import unicodedata
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from pipeline.base.errors import InputError, Setting
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.tokenizers.settings import (
    ADDED_TOKENS_KEY,
    BERT_CLASSES,
    LOWER_CASE,
    MPNET_CLASS,
    SPLIT_CHINESE,
    STRIP_ACCENTS,
    TOKENIZER_CONFIG_FILE,
    TokenizerSettings,
    UnsplitToken,
)
from pipeline.tokenizers.text_runs import TextRuns
from pipeline.tokenizers.tokenizer_json import JsonTokenizer
from pipeline.tokenizers.tokens import (
    Tokenizer,
    Tokens,
    as_input_error,
    find_special_ids,
    word_numbers,
)
from pipeline.tokenizers.vocabulary import read_tokens

VOCAB_FILE = "vocab.txt"
_CLASS = "BertTokenizer"
# Tokenizer classes that do not determine the tokenization. The tokenizer's file or the vocabulary
# determines it.
_GENERAL_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
# In BERT's own tokenizer, a range of ideographs begins at U+2B820. In `BertNormalizer` it begins
# at U+2B920, which misses these characters.
_MISSED_IDEOGRAPHS = "[\U0002b820-\U0002b91f]"
# Maximum length of a word that WordPiece splits, as in BERT's own tokenizer.
_MAX_WORD_CHARS = 100
# Keys that change tokens, with the only values that are supported: those of BERT's tokenizer.
_FIXED = {
    "clean_text": True,
    "do_subword_tokenize": True,
    "do_word_tokenize": True,
    "jumanpp_kwargs": None,
    "max_input_chars_per_word": _MAX_WORD_CHARS,
    "mecab_kwargs": None,
    "subword_tokenizer_type": "wordpiece",
    "sudachi_kwargs": None,
    "word_tokenizer_type": "basic",
    "wordpieces_prefix": "##",
}
# A vocabulary is cased if a larger fraction of its tokens has capital letters; the same fraction
# decides on accents. In public cased vocabularies, more than a sixth of the tokens have capital
# letters; in uncased ones, none.
_MIN_SHARE = 0.005


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer: cleans and splits a text, then applies WordPiece.

    A text is split at spaces, punctuation and Chinese characters.

    Attributes:
        strip_accents: whether letters lose their accents; None for the value of `do_lower_case`.
        tokenize_chinese_chars: whether each Chinese character is a word.
        unsplit_tokens: tokens that are not split; those that `vocab` lacks have no effect.
        added_tokens: tokens of `vocab` that are not in `vocab.txt`; they have the last ids.
        tokenizer_class: class of `transformers`; it decides the special tokens around texts.
    """

    continuation = "##"

    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    unsplit_tokens: tuple[UnsplitToken, ...] = ()
    added_tokens: frozenset[str] = frozenset()
    tokenizer_class: str = _CLASS

    @property
    def options(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        options: dict[str, Any] = {}
        if self.strip_accents is not None:
            options[STRIP_ACCENTS] = self.strip_accents
        if not self.tokenize_chinese_chars:
            options[SPLIT_CHINESE] = False
        if listed := self._listed_tokens():
            tokens = {str(index): msgspec.to_builtins(token) for index, token in listed.items()}
            options[ADDED_TOKENS_KEY] = tokens
        return options

    def with_options_of(self, other: "WordPieceTokenizer") -> "WordPieceTokenizer":
        """See `Tokenizer`."""
        names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "unsplit_tokens")
        return dataclasses.replace(self, **{name: getattr(other, name) for name in names})

    def _listed_tokens(self) -> dict[int, UnsplitToken]:
        """Returns the tokens that are not split by their ids, in the order of ids."""
        ids = {token: index for index, token in enumerate(self.vocab)}
        known = {ids[token.content]: token for token in self.unsplit_tokens if token.content in ids}
        return dict(sorted(known.items()))

    def _further_special_ids(self) -> list[int]:
        return [index for index, token in self._listed_tokens().items() if token.special]

    @functools.cached_property
    def _tokenizer(self) -> FastTokenizer:
        tokenizer = FastTokenizer(
            _wordpiece(self._file_tokens, self.vocab[self.special_ids["unk"]])
        )
        # No special token is registered. A literal "[MASK]" in a text is therefore ordinary
        # text and never the special token.
        tokenizer.normalizer = BertNormalizer(
            lowercase=self.do_lower_case,
            strip_accents=self.strip_accents,
            handle_chinese_chars=self.tokenize_chinese_chars,
        )
        tokenizer.pre_tokenizer = BertPreTokenizer()
        if self.tokenize_chinese_chars:
            missed = pre_tokenizers.Split(Regex(_MISSED_IDEOGRAPHS), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([missed, BertPreTokenizer()])
        for token in self._listed_tokens().values():
            flags = msgspec.structs.asdict(token) | {"special": False}
            tokenizer.add_tokens([AddedToken(**flags)])
        return tokenizer

    @property
    def _file_tokens(self) -> tuple[str, ...]:
        return tuple(token for token in self.vocab if token not in self.added_tokens)

    @functools.cached_property
    def _text_runs(self) -> TextRuns | None:
        """The tokenizer by characters and runs; None if a token may span several of them."""
        if self.tokenize_chinese_chars and not self._listed_tokens():
            return TextRuns(self._encode)
        return None

    @property
    def splits_at_lines(self) -> bool:
        """See `Tokenizer`."""
        return self._text_runs is not None

    def tokenize(self, text: str) -> Tokens:
        return self._encode(text) if self._text_runs is None else self._text_runs.tokenize(text)

    def _encode(self, text: str) -> Tokens:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        # Converting a flat iterable to an array takes half the time of a list of pairs.
        flat = itertools.chain.from_iterable(encoding.offsets)
        offsets = np.fromiter(flat, np.int32, 2 * len(encoding)).reshape(-1, 2)
        ids, words = np.array(encoding.ids, np.int32), encoding.word_ids
        # Only tokens that are never split have no word.
        word_ids = word_numbers(words) if self.unsplit_tokens else np.array(words, np.int32)
        return Tokens(ids, offsets[:, 0], offsets[:, 1], word_ids)

    def files(self) -> dict[str, bytes]:
        settings = {"do_lower_case": self.do_lower_case, **self.options}
        config = self._config_file(self.tokenizer_class, **settings)
        content = ("\n".join(self._file_tokens) + "\n").encode("utf-8")
        return {VOCAB_FILE: content, TOKENIZER_CONFIG_FILE: config}


def _wordpiece(tokens: Sequence[str], unknown: str) -> WordPiece:
    ids = {token: index for index, token in enumerate(tokens)}
    return WordPiece(ids, unk_token=unknown, max_input_chars_per_word=_MAX_WORD_CHARS)


def load_wordpiece(
    path: Location, settings: TokenizerSettings, *, do_lower_case: bool | None
) -> Tokenizer:
    """Loads the tokenizer of a `vocab.txt`.

    Args:
        path: the `vocab.txt`.
        settings: the settings next to it.
        do_lower_case: whether to lower-case text; None for the value in `settings`. Without such a
            value, the tokens of the vocabulary decide.

    Raises:
        InputError: the file does not exist, is not UTF-8, or lacks a token; or a setting is
            not supported.
    """
    classes = (*BERT_CLASSES, *_GENERAL_CLASSES)
    if settings.tokenizer_class not in (None, *classes):
        hint = "WordPiece gives other tokens than those that the model was trained with"
        raise settings.unsupported_value("tokenizer_class", f"one of {', '.join(classes)}", hint)
    settings.expect_values(_FIXED)
    tokens = read_tokens(path)
    vocab = settings.extend(tokens)
    special_ids = find_special_ids(vocab, path, settings)
    if "unk" not in special_ids:
        raise InputError(path, "a vocabulary with [UNK]", "one without [UNK]")
    if settings.boolean("do_basic_tokenize") is False:
        return _without_basic(vocab, special_ids, do_lower_case, settings)
    case = _choose_case(path, tokens, settings, do_lower_case)
    split_chinese = settings.boolean(SPLIT_CHINESE)
    tokenizer = WordPieceTokenizer(
        vocab=vocab,
        special_ids=special_ids,
        do_lower_case=case.lower,
        notes=case.notes,
        strip_accents=case.strip_accents,
        tokenize_chinese_chars=True if split_chinese is None else split_chinese,
        unsplit_tokens=_unsplit_tokens(vocab, special_ids, settings),
        added_tokens=frozenset(vocab[len(tokens) :]),
        tokenizer_class=MPNET_CLASS if settings.tokenizer_class == MPNET_CLASS else _CLASS,
    )
    _expect_ids(tokenizer, path)
    return tokenizer


def _expect_ids(tokenizer: WordPieceTokenizer, path: Location) -> None:
    """Raises an error if the `tokenizers` library gives an added token another id."""
    with as_input_error(path, "distinct tokens", "tokens that the tokenizers library rejects"):
        for index, token in tokenizer._listed_tokens().items():
            if tokenizer._tokenizer.token_to_id(token.content) != index:
                expected = "each token once, because tokens are added to the vocabulary"
                raise InputError(path, expected, "a token that occurs twice")


def _unsplit_tokens(
    vocab: Sequence[str], special_ids: dict[str, int], settings: TokenizerSettings
) -> tuple[UnsplitToken, ...]:
    """Returns the tokens that are not split, except pad, unk, cls, sep and mask."""
    never_split = settings.values.get("never_split") or []
    if not (isinstance(never_split, list) and all(isinstance(t, str) for t in never_split)):
        raise settings.unsupported_value("never_split", "a list of tokens")
    special_tokens = {vocab[index] for index in special_ids.values()}
    known = set(vocab)
    for token in never_split:
        if token not in known:
            expected = "tokens of the vocabulary"
            raise InputError(f"{settings.path}: never_split", expected, format_value(token))
    whole = {token: _unsplit(token) for token in never_split}
    whole |= {token.content: token for token in settings.added.values()}
    return tuple(token for content, token in sorted(whole.items()) if content not in special_tokens)


def _unsplit(content: str) -> UnsplitToken:
    """Returns an `UnsplitToken`.

    If it begins or ends with a letter, a digit or an underscore, it is matched only as a whole
    word.
    """
    is_word = any(char.isalnum() or char == "_" for char in (content[0], content[-1]))
    return UnsplitToken(content, single_word=is_word, normalized=False)


def _without_basic(
    vocab: Sequence[str],
    special_ids: dict[str, int],
    do_lower_case: bool | None,
    settings: TokenizerSettings,
) -> JsonTokenizer:
    """Returns a tokenizer that splits only at spaces, changes no letter, and applies WordPiece."""
    if do_lower_case:
        expected = f"unset, because {settings.path} has do_basic_tokenize: false"
        raise InputError(Setting("do_lower_case"), expected, do_lower_case)
    if settings.added:
        raise settings.unsupported_value(
            "do_basic_tokenize", f"true together with {ADDED_TOKENS_KEY}"
        )
    if len(set(vocab)) < len(vocab):
        expected = "true for a vocabulary in which a token occurs twice"
        raise settings.unsupported_value("do_basic_tokenize", expected)
    tokenizer = FastTokenizer(_wordpiece(vocab, vocab[special_ids["unk"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([vocab[index] for index in special_ids.values()])
    cls, sep = ((vocab[special_ids[name]], special_ids[name]) for name in ("cls", "sep"))
    tokenizer.post_processor = BertProcessing(sep, cls)
    content = tokenizer.to_str().encode("utf-8")
    return JsonTokenizer(tuple(vocab), special_ids, None, content)


@dataclasses.dataclass(frozen=True)
class _Case:
    """The treatment of capital letters and accents, and notes on it for the user."""

    lower: bool
    strip_accents: bool | None
    notes: tuple[str, ...] = ()


def _choose_case(
    path: Location,
    tokens: Sequence[str],
    settings: TokenizerSettings,
    do_lower_case: bool | None,
) -> _Case:
    """Chooses lower-casing by the user's setting, the files' settings or the vocabulary.

    A vocabulary is cased if it has tokens that lower-casing never gives.
    """
    strip_accents, configured = settings.boolean(STRIP_ACCENTS), settings.boolean(LOWER_CASE)
    has_capitals, has_accents = _has_capitals(tokens), _has_accents(tokens)
    lower = configured if do_lower_case is None else do_lower_case
    if lower is None:
        lower = not has_capitals
        if has_capitals:
            note = f"{path} has tokens with capital letters, so text is not lower-cased"
            return _Case(lower, strip_accents, (f"{note}; set `do_lower_case` to change this",))
    if lower and has_capitals:
        note = "is lower-cased; tokens of the vocabulary with capital letters are never used"
        return _Case(lower, strip_accents, (f"{path}: text {note}",))
    if not lower or strip_accents is not None or not has_accents:
        return _Case(lower, strip_accents)
    if configured is None:
        note = f"{path} has letters with accents: text is lower-cased but keeps accents"
        return _Case(lower, False, (note,))
    note = "loses accents; letters of the vocabulary with accents are never used"
    return _Case(lower, None, (f"{path}: text {note} ({TOKENIZER_CONFIG_FILE})",))


def _ordinary(tokens: Sequence[str]) -> list[str]:
    """Returns the tokens that stand for text, without tokens such as [UNK], [unused1] or <s>."""
    return [token for token in tokens if token and token[0] + token[-1] not in ("[]", "<>")]


def _has_capitals(tokens: Sequence[str]) -> bool:
    ordinary = _ordinary(tokens)
    return sum(token != token.lower() for token in ordinary) > _MIN_SHARE * len(ordinary)


def _has_accents(tokens: Sequence[str]) -> bool:
    ordinary = _ordinary(tokens)
    accented = set(filter(_has_accent, set("".join(ordinary))))
    return sum(not accented.isdisjoint(token) for token in ordinary) > _MIN_SHARE * len(ordinary)


def _has_accent(char: str) -> bool:
    """Returns whether BERT's tokenizer changes a character by stripping accents: й becomes и."""
    return unicodedata.normalize("NFD", char) != char or unicodedata.category(char) == "Mn"
