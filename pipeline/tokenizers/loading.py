"""The tokenizer that a file or a model directory names."""

from collections.abc import Sequence
from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.models.formats.model_directory import HF_CONFIG
from pipeline.storage import vocab_subset
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.vocab_subset import VocabSubset
from pipeline.tokenizers import sentencepiece_model, tokenizer_json, wordpiece
from pipeline.tokenizers.tokens import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from pipeline.tokenizers.vocabulary import VocabInfo, read_tokens, vocab_info

_SENTENCEPIECE_SUFFIXES = (".model", ".spm")
# What a model directory's tokenizer may be called, the first that is there taken.
_FILE_NAMES = (
    wordpiece.VOCAB_FILE,
    TOKENIZER_FILE,
    sentencepiece_model.MODEL_FILE,
    sentencepiece_model.XLM_ROBERTA_FILE,
    "tokenizer.model",
    "spm.model",
)


def tokenizer_files(directory: Location) -> tuple[Location, ...]:
    """Returns the files of a model directory that describe its tokenizer, the best first."""
    paths = (directory / name for name in _FILE_NAMES)
    return tuple(path for path in paths if path.is_file())


def find_vocab_file(path: Location) -> Location:
    """Returns a tokenizer's file, where a model directory is given the best in it.

    Raises:
        InputError: the directory has none.
    """
    if not path.is_dir():
        return path
    found = tokenizer_files(path)
    if not found:
        raise InputError(path, f"one of {', '.join(_FILE_NAMES)}", "none of them")
    return found[0]


def load_tokenizer(vocab_file: Location, *, do_lower_case: bool | None) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        vocab_file: a SentencePiece model (`.model`, `.spm`), a `tokenizer.json`,
            a `vocab.txt`, or a model directory that has one of them. Beside an
            XLM-RoBERTa's `config.json` a SentencePiece model is numbered as its.
        do_lower_case: whether to lower-case text; None for what the
            `tokenizer_config.json` beside it says, and without one, yes for
            WordPiece and no for SentencePiece.

    Raises:
        InputError: it cannot be read, lacks a special token, or has a
            normaliser of its own that `do_lower_case` would contradict.
    """
    path = find_vocab_file(vocab_file)
    if path.suffix == ".json":
        if do_lower_case is not None:
            raise InputError(
                Setting("do_lower_case"),
                f"none, as {path} has a normaliser of its own",
                do_lower_case,
            )
        return tokenizer_json.load_tokenizer_json(path)
    is_sentencepiece = path.suffix in _SENTENCEPIECE_SUFFIXES
    if do_lower_case is None:
        # A cased model must not lose its capitals.
        said = _setting_beside(path, TOKENIZER_CONFIG_FILE, "do_lower_case")
        do_lower_case = said if isinstance(said, bool) else not is_sentencepiece
    if not is_sentencepiece:
        return wordpiece.load_wordpiece(path, do_lower_case=do_lower_case)
    model_type = _setting_beside(path, HF_CONFIG, "model_type")
    return sentencepiece_model.load_sentencepiece(
        path, do_lower_case=do_lower_case, model_type=model_type
    )


def _setting_beside(path: Location, name: str, key: str) -> Any:
    """Returns what a file of settings beside a tokenizer says; None where it says nothing."""
    file = path.with_name(name)
    try:
        return file.read_json().get(key)
    except InputError:
        # No such file, or not one of settings.
        return None
    except OSError:
        # A store that does not answer says nothing.
        if not file.is_local:
            raise
        return None


def read_vocab(path: Location) -> tuple[str, ...]:
    """Returns the tokens of a tokenizer's file in the order of their ids.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix == ".json":
        return tokenizer_json.read_vocab(path)[0]
    if path.suffix in _SENTENCEPIECE_SUFFIXES:
        pieces, _ = sentencepiece_model.read_pieces(path)
        model_type = _setting_beside(path, HF_CONFIG, "model_type")
        return sentencepiece_model.number_tokens(pieces, model_type)[0]
    return read_tokens(path)


def read_vocab_info(path: Location) -> VocabInfo:
    """Returns the identity of the vocabulary in a tokenizer's file.

    Raises:
        InputError: it cannot be read.
    """
    return vocab_info(read_vocab(path))


def expect_vocab(cache: CacheInput, vocab_size: int, vocab_files: Sequence[Location]) -> None:
    """Checks that a model has the vocabulary that a cache was made with.

    Args:
        cache: the directory.
        vocab_size: the model's.
        vocab_files: the files of its tokenizer, compared token by token, of which
            one must agree; where there are none, the sizes alone are compared.

    Raises:
        InputError: they differ; prints both.
    """
    expected = cache.manifest.vocab
    if vocab_size != expected.size:
        raise InputError(
            None,
            f"a vocabulary of {expected.size} tokens, as in {cache.directory}",
            f"one of {vocab_size}",
        )
    found = []
    for path in vocab_files:
        received = read_vocab_info(path)
        if received == expected:
            return
        found.append(f"{path} (SHA-256 {received.sha256}, {received.size} tokens)")
    if found:
        raise InputError(
            None,
            f"the vocabulary of {cache.directory} (SHA-256 {expected.sha256})",
            ", ".join(found),
        )


def load_cache_tokenizer(cache: CacheInput) -> Tokenizer:
    """Loads the tokenizer that a cache was made with from the files in it.

    Of a SentencePiece model the model itself, not the `tokenizer.json` made of it.

    Raises:
        InputError: none of the files has the manifest's vocabulary.
    """
    expected = cache.manifest.vocab
    for path in _own_files_first(tokenizer_files(cache.directory)):
        if read_vocab_info(path) == expected:
            return load_tokenizer(path, do_lower_case=None)
    raise InputError(
        cache.directory,
        f"the tokenizer's files (SHA-256 of the tokens {expected.sha256})",
        "none of them",
    )


def _own_files_first(paths: Sequence[Location]) -> list[Location]:
    return sorted(paths, key=lambda path: path.suffix == ".json")


def find_subset(
    cache: CacheInput, vocab_size: int, vocab_files: Sequence[Location]
) -> VocabSubset | None:
    """Finds how a student reads a cache: as it is, or knowing only some of its tokens.

    Args:
        cache: the directory.
        vocab_size: the student's.
        vocab_files: the files of its tokenizer; the first that has as many tokens
            decides.

    Returns:
        the student's tokens; None where its vocabulary is the cache's.

    Raises:
        InputError: the vocabulary is neither the cache's nor a part of it.
    """
    paths = _own_files_first(vocab_files) if vocab_size < cache.manifest.vocab.size else []
    for path in paths:
        tokens = read_vocab(path)
        if len(tokens) == vocab_size:
            break
    else:
        expect_vocab(cache, vocab_size, vocab_files)
        return None
    reference = load_cache_tokenizer(cache)
    special_ids = reference.special_ids
    where = str(path)
    table = vocab_subset.id_table(reference.vocab, tokens, special_ids, where=where)
    unknown = special_ids.get("unk", special_ids["pad"])
    # The student sees the cache's text, whatever its own settings say of capitals.
    lower = None if path.suffix == ".json" else reference.do_lower_case
    tokenizer = load_tokenizer(path, do_lower_case=lower)
    return VocabSubset(
        table=table,
        unknown_id=int(table[unknown]),
        unknown_token=reference.vocab[unknown],
        vocab=vocab_info(tokens),
        tokenizer_files=tokenizer.files(),
    )
