"""Tokenizers: text to token ids, with offsets into the text and word ids."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from pipeline.errors import InputError
from pipeline.storage.manifest import VocabInfo, read_tokens, vocab_info

SPECIAL_TOKENS = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}
VOCAB_FILE = "vocab.txt"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
# The longest word that WordPiece splits, as in BERT's own tokenizer.
_MAX_WORD_CHARS = 100


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a text.

    Attributes:
        ids: int32 [n].
        starts: int32 [n], the character of the text at which each begins.
        word_ids: int32 [n], equal for the pieces of one word.
    """

    ids: np.ndarray
    starts: np.ndarray
    word_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer:
    """BERT's tokenizer: clean, split at spaces, punctuation and Chinese characters, WordPiece.

    Attributes:
        vocab: the tokens in the order of their ids.
        do_lower_case: whether to lower-case and strip accents.
    """

    vocab: tuple[str, ...]
    do_lower_case: bool

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        ids = {token: index for index, token in enumerate(self.vocab)}
        tokenizer = Tokenizer(
            WordPiece(
                vocab=ids,
                unk_token=SPECIAL_TOKENS["unk"],
                max_input_chars_per_word=_MAX_WORD_CHARS,
            )
        )
        # No special token is registered, so that a literal "[MASK]" in a text
        # is five ordinary characters and never the special token.
        tokenizer.normalizer = BertNormalizer(lowercase=self.do_lower_case)
        tokenizer.pre_tokenizer = BertPreTokenizer()
        return tokenizer

    @functools.cached_property
    def special_ids(self) -> Mapping[str, int]:
        """The ids of `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]`."""
        return {name: self.vocab.index(token) for name, token in SPECIAL_TOKENS.items()}

    @property
    def info(self) -> VocabInfo:
        """The vocabulary's identity."""
        return vocab_info(self.vocab)

    def tokenize(self, text: str) -> Tokens:
        """Tokenises a text, without special tokens."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        count = len(encoding.ids)
        return Tokens(
            ids=np.array(encoding.ids, np.int32),
            starts=np.fromiter((start for start, _ in encoding.offsets), np.int32, count),
            word_ids=np.array(encoding.word_ids, np.int32),
        )

    def files(self) -> dict[str, bytes]:
        """Returns the files that make a directory self-contained, by name."""
        config = {
            "do_lower_case": self.do_lower_case,
            "tokenizer_class": "BertTokenizer",
            **{f"{name}_token": token for name, token in SPECIAL_TOKENS.items()},
        }
        return {
            VOCAB_FILE: ("\n".join(self.vocab) + "\n").encode("utf-8"),
            TOKENIZER_CONFIG_FILE: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        }


def _expect_special_tokens(tokens: Sequence[str], path: str, flag: str) -> None:
    missing = [token for token in SPECIAL_TOKENS.values() if token not in tokens]
    if missing:
        raise InputError(
            f"{flag}: expected a vocabulary with {', '.join(SPECIAL_TOKENS.values())}, "
            f"received {path}, which has {len(tokens)} tokens and no {', '.join(missing)}"
        )


def load_tokenizer(vocab_file: str, *, do_lower_case: bool, flag: str) -> WordPieceTokenizer:
    """Loads the tokenizer of a `vocab.txt`.

    Raises:
        InputError: there is no such file, it is not UTF-8, or lacks a special token.
    """
    tokens = read_tokens(vocab_file, flag=flag)
    _expect_special_tokens(tokens, vocab_file, flag)
    return WordPieceTokenizer(tokens, do_lower_case)
