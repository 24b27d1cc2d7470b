"""The tokenizer that a file or a model directory names."""

import json
import pathlib
from collections.abc import Sequence

from pipeline.errors import InputError
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import VocabInfo, read_tokens, vocab_info
from pipeline.text import sentencepieces, tokenizer_json, wordpiece
from pipeline.text.tokens import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer

_SENTENCEPIECE_SUFFIXES = (".model", ".spm")
# What a model directory's tokenizer may be called, the first that is there taken.
_FILE_NAMES = (
    wordpiece.VOCAB_FILE,
    TOKENIZER_FILE,
    sentencepieces.MODEL_FILE,
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "spm.model",
)


def tokenizer_files(directory: str | pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the files of a model directory that describe its tokenizer, the best first."""
    paths = (pathlib.Path(directory) / name for name in _FILE_NAMES)
    return tuple(path for path in paths if path.is_file())


def find_vocab_file(path: str, *, flag: str) -> str:
    """Returns a tokenizer's file, where a model directory is given the best in it.

    Raises:
        InputError: the directory has none.
    """
    if not pathlib.Path(path).is_dir():
        return path
    found = tokenizer_files(path)
    if not found:
        raise InputError(
            f"{flag}: expected one of {', '.join(_FILE_NAMES)} in {path}, found none of them"
        )
    return str(found[0])


def load_tokenizer(vocab_file: str, *, do_lower_case: bool | None, flag: str) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        vocab_file: a SentencePiece model (`.model`, `.spm`), a `tokenizer.json`,
            a `vocab.txt`, or a model directory that has one of them.
        do_lower_case: whether to lower-case text; None for what the
            `tokenizer_config.json` beside it says, and without one, yes for
            WordPiece and no for SentencePiece.
        flag: the flag that named the file.

    Raises:
        InputError: it cannot be read, lacks a special token, or has a
            normaliser of its own that `do_lower_case` would contradict.
    """
    path = find_vocab_file(vocab_file, flag=flag)
    if path.endswith(".json"):
        if do_lower_case is not None:
            raise InputError(
                f"--do_lower_case: {path} has a normaliser of its own; "
                f"expected no --do_lower_case, received {do_lower_case}"
            )
        return tokenizer_json.load_tokenizer_json(path, flag=flag)
    is_sentencepiece = path.endswith(_SENTENCEPIECE_SUFFIXES)
    if do_lower_case is None:
        do_lower_case = _configured_lower_case(path, default=not is_sentencepiece)
    load = sentencepieces.load_sentencepiece if is_sentencepiece else wordpiece.load_wordpiece
    return load(path, do_lower_case=do_lower_case, flag=flag)


def load_cache_tokenizer(cache: CacheInput) -> Tokenizer:
    """Loads the tokenizer that a cache directory was made with, from its own files.

    Raises:
        InputError: it cannot be read, or has another vocabulary than the manifest says.
    """
    # Beside a SentencePiece model a tokenizer.json is its translation, which does
    # not know all of the model's special tokens.
    is_sentencepiece = sentencepieces.MODEL_FILE in cache.manifest.tokenizer_files
    path = cache.directory / sentencepieces.MODEL_FILE if is_sentencepiece else cache.directory
    tokenizer = load_tokenizer(str(path), do_lower_case=None, flag=cache.flag)
    if tokenizer.info != cache.manifest.vocab:
        raise InputError(
            f"{cache.flag}: expected in {cache.directory} the tokenizer that it was made with "
            f"(SHA-256 {cache.manifest.vocab.sha256}), received another ({tokenizer.info.sha256})"
        )
    return tokenizer


def _configured_lower_case(path: str, *, default: bool) -> bool:
    """Returns what the model's own settings say: a cased model must not lose its capitals."""
    config_file = pathlib.Path(path).with_name(TOKENIZER_CONFIG_FILE)
    try:
        value = json.loads(config_file.read_bytes()).get("do_lower_case")
    except (OSError, ValueError, AttributeError):
        # None there, or not one of a tokenizer: nothing is said.
        value = None
    return value if isinstance(value, bool) else default


def read_vocab_info(path: pathlib.Path, *, flag: str) -> VocabInfo:
    """Returns the identity of the vocabulary in a tokenizer's file.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix == ".json":
        return vocab_info(tokenizer_json.read_vocab(str(path), flag=flag)[0])
    if path.suffix in _SENTENCEPIECE_SUFFIXES:
        return vocab_info(sentencepieces.read_pieces(str(path), flag=flag)[0])
    return vocab_info(read_tokens(path, flag=flag))


def expect_vocab(
    cache: CacheInput, vocab_size: int, vocab_files: Sequence[pathlib.Path], flag: str
) -> None:
    """Checks that a model has the vocabulary that a cache was made with.

    Args:
        cache: the directory.
        vocab_size: the model's.
        vocab_files: the files of its tokenizer, compared token by token, of which
            one must agree; where there are none, the sizes alone are compared.
        flag: the flag that named the model.

    Raises:
        InputError: they differ; prints both.
    """
    expected = cache.manifest.vocab
    if vocab_size != expected.size:
        raise InputError(
            f"{flag}: expected a vocabulary of {expected.size} tokens, as in {cache.directory}, "
            f"received one of {vocab_size}"
        )
    found = []
    for path in vocab_files:
        received = read_vocab_info(path, flag=flag)
        if received == expected:
            return
        found.append(f"{path} (SHA-256 {received.sha256}, {received.size} tokens)")
    if found:
        raise InputError(
            f"{flag}: expected the vocabulary of {cache.directory} (SHA-256 {expected.sha256}), "
            f"received {', '.join(found)}"
        )
