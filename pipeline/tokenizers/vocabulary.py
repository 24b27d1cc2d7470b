"""Vocabularies: lists of tokens and their identities."""

import hashlib
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from pipeline.base.errors import InputError
from pipeline.base.json_text import matching
from pipeline.base.location import Location
from pipeline.base.text_encoding import not_utf8_error

# The largest vocabularies of language models have about a million tokens.
MAX_VOCAB_SIZE = 2**24
# The largest public tokenizers are below 20 MB.
MAX_TOKENIZER_BYTES = 256 * 2**20


Sha256 = Annotated[str, matching("[0-9a-f]{64}", "a SHA-256")]


class VocabInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A vocabulary's size and the SHA-256 of its token list, joined by newlines."""

    size: Annotated[int, Meta(ge=1, le=MAX_VOCAB_SIZE)]
    sha256: Sha256


def vocab_info(tokens: Sequence[str]) -> VocabInfo:
    """Returns the identity of a token list."""
    return VocabInfo(len(tokens), hashlib.sha256("\n".join(tokens).encode("utf-8")).hexdigest())


def read_tokenizer_file(path: Location, *, what: str) -> bytes:
    """Returns the content of a tokenizer file; `what` is its expected kind, for messages.

    Raises:
        InputError: the file does not exist, or is larger than any tokenizer.
    """
    if not path.is_file():
        raise InputError(path, what, "no such file")
    return path.read_limited(MAX_TOKENIZER_BYTES)


def read_tokens(path: Location) -> tuple[str, ...]:
    """Returns the tokens of a `vocab.txt`, which has one token on each line, in order of ids.

    Raises:
        InputError: the file does not exist, is not UTF-8, or has too many lines.
    """
    content = read_tokenizer_file(path, what="a vocab.txt")
    # This is checked before splitting, because short lines take much more memory as strings.
    if (num_lines := content.count(b"\n")) > MAX_VOCAB_SIZE:
        raise InputError(path, f"at most {MAX_VOCAB_SIZE} tokens", num_lines)
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise not_utf8_error(content, error, path) from error
    tokens = [line.rstrip("\r") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    return tuple(tokens)
