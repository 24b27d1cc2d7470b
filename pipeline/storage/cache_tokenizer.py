"""The tokenizer of a cache, and how the vocabulary of a model relates to it."""

from collections.abc import Sequence

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage import vocab_subset
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.vocab_subset import VocabSubset
from pipeline.tokenizers import loading
from pipeline.tokenizers.tokens import Tokenizer
from pipeline.tokenizers.vocabulary import vocab_info


def expect_vocab(cache: CacheInput, vocab_size: int, vocab_files: Sequence[Location]) -> None:
    """Checks that a model has the vocabulary that a cache was made with.

    Of the model's `vocab_files`, compared token by token, one must agree; where there are
    none, the sizes alone are compared.

    Raises:
        InputError: they differ; prints both.
    """
    expected = cache.manifest.vocab
    if vocab_size != expected.size:
        size = f"a vocabulary of {expected.size} tokens, as in {cache.directory}"
        raise InputError(None, size, f"one of {vocab_size}")
    found = []
    for path in vocab_files:
        received = loading.read_vocab_info(path)
        if received == expected:
            return
        found.append(f"{path} (SHA-256 {received.sha256}, {received.size} tokens)")
    if found:
        vocabulary = f"the vocabulary of {cache.directory} (SHA-256 {expected.sha256})"
        raise InputError(None, vocabulary, ", ".join(found))


def load_cache_tokenizer(cache: CacheInput) -> Tokenizer:
    """Loads the tokenizer that a cache was made with from the files in it.

    Of a SentencePiece model the model itself, not the `tokenizer.json` made of it.

    Raises:
        InputError: none of the files has the manifest's vocabulary.
    """
    expected = cache.manifest.vocab
    for path in _own_files_first(loading.tokenizer_files(cache.directory)):
        if loading.read_vocab_info(path) == expected:
            return loading.load_tokenizer(path, do_lower_case=None)
    files = f"the tokenizer's files (SHA-256 of the tokens {expected.sha256})"
    raise InputError(cache.directory, files, "none of them")


def _own_files_first(paths: Sequence[Location]) -> list[Location]:
    return sorted(paths, key=lambda path: path.suffix == ".json")


def find_subset(
    cache: CacheInput, vocab_size: int, vocab_files: Sequence[Location]
) -> VocabSubset | None:
    """Finds how a student reads a cache: as it is, or knowing only some of its tokens.

    Of the student's `vocab_files` the first that has as many tokens as it decides. Returns
    None where its vocabulary is the cache's.

    Raises:
        InputError: the vocabulary is neither the cache's nor a part of it.
    """
    paths = _own_files_first(vocab_files) if vocab_size < cache.manifest.vocab.size else []
    for path in paths:
        tokens = loading.read_vocab(path)
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
    tokenizer = loading.load_tokenizer(path, do_lower_case=lower)
    return VocabSubset(
        table=table,
        unknown_id=int(table[unknown]),
        unknown_token=reference.vocab[unknown],
        vocab=vocab_info(tokens),
        tokenizer_files=tokenizer.files(),
    )
