"""BERT's own tokenizer, from a `vocab.txt`."""

import dataclasses
import functools
import itertools

import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.tokenizers.tokens import TOKENIZER_CONFIG_FILE, Tokenizer, Tokens, find_special_ids
from pipeline.tokenizers.vocabulary import read_tokens

VOCAB_FILE = "vocab.txt"
# The longest word that WordPiece splits, as in BERT's own tokenizer.
_MAX_WORD_CHARS = 100


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer(Tokenizer):
    """Clean, split at spaces, punctuation and Chinese characters, then WordPiece."""

    @functools.cached_property
    def _tokenizer(self) -> FastTokenizer:
        ids = {token: index for index, token in enumerate(self.vocab)}
        unknown = self.vocab[self.special_ids["unk"]]
        tokenizer = FastTokenizer(
            WordPiece(ids, unk_token=unknown, max_input_chars_per_word=_MAX_WORD_CHARS)
        )
        # No special token is registered, so that a literal "[MASK]" in a text
        # is five ordinary characters and never the special token.
        tokenizer.normalizer = BertNormalizer(lowercase=self.do_lower_case)
        tokenizer.pre_tokenizer = BertPreTokenizer()
        return tokenizer

    def tokenize(self, text: str) -> Tokens:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        # A list of pairs becomes an array in half the time when it is flat.
        flat = itertools.chain.from_iterable(encoding.offsets)
        offsets = np.fromiter(flat, np.int32, 2 * len(encoding)).reshape(-1, 2)
        ids, word_ids = np.array(encoding.ids, np.int32), np.array(encoding.word_ids, np.int32)
        return Tokens(ids, offsets[:, 0], offsets[:, 1], word_ids)

    def files(self) -> dict[str, bytes]:
        config = self._config_file("BertTokenizer", do_lower_case=self.do_lower_case)
        content = ("\n".join(self.vocab) + "\n").encode("utf-8")
        return {VOCAB_FILE: content, TOKENIZER_CONFIG_FILE: config}


def load_wordpiece(path: Location, *, do_lower_case: bool) -> WordPieceTokenizer:
    """Loads the tokenizer of a `vocab.txt`.

    Raises:
        InputError: the file does not exist, is not UTF-8, or lacks a special token.
    """
    tokens = read_tokens(path)
    special_ids = find_special_ids(tokens, path)
    if "unk" not in special_ids:
        raise InputError(path, "a vocabulary with [UNK]", "one without")
    return WordPieceTokenizer(tokens, special_ids, do_lower_case)
