"""The tokenizer of a cache, and how the vocabulary of a model relates to it."""

import sys
from collections.abc import Sequence

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.formats.model_directory import ModelSource
from pipeline.storage import vocab_subset
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.vocab_subset import VocabSubset
from pipeline.tokenizers import loading
from pipeline.tokenizers.tokens import Tokenizer
from pipeline.tokenizers.vocabulary import vocab_info


def expect_vocab(cache: CacheInput, vocab_size: int, vocab_files: Sequence[Location]) -> None:
    """Checks that a model has the vocabulary that a cache was made with.

    Of the model's `vocab_files`, compared token by token, one must agree; its tables may then
    have more rows than tokens. Where there are no files, the sizes alone are compared.

    Raises:
        InputError: they differ; prints both.
    """
    expected = cache.manifest.vocab
    if vocab_size < expected.size or not vocab_files:
        if vocab_size != expected.size:
            size = f"a vocabulary of {expected.size} tokens, as in {cache.directory}"
            hint = "a table with more rows than tokens needs the tokenizer's files next to it"
            more = hint if vocab_size > expected.size else None
            raise InputError(None, size, f"one of {vocab_size}", more)
        return
    found = []
    for path in vocab_files:
        received = loading.read_vocab_info(path)
        if received == expected:
            return
        found.append(f"{path} (SHA-256 {received.sha256}, {received.size} tokens)")
    sha256 = f"SHA-256 {expected.sha256}, {expected.size} tokens"
    vocabulary = f"the vocabulary of {cache.directory} ({sha256})"
    raise InputError(None, vocabulary, ", ".join(found))


def fit_vocab(cache: CacheInput, source: ModelSource) -> ModelSource:
    """Returns a model with the vocabulary that a cache was made with.

    Rows of its tables that stand for no token are cut off, and a line says so.

    Raises:
        InputError: it has another vocabulary; prints both.
    """
    vocab_files = loading.tokenizer_files(source.directory)
    expect_vocab(cache, source.config.vocab_size, vocab_files)
    return _cut(cache, source, cache.manifest.vocab.size, vocab_files)


def _cut(
    cache: CacheInput, source: ModelSource, size: int, vocab_files: Sequence[Location]
) -> ModelSource:
    """Returns a model with its first tokens; prints what was left out, or is not known."""
    model = source.location or source.directory
    if not vocab_files and source.has_weights:
        taken = f"its {size} tokens are taken for those of {cache.directory}"
        print(f"note: {model} has no tokenizer: {taken}", file=sys.stderr)
    padding, own = source.config.pad_token_id, cache.manifest.special_ids.get("pad")
    if source.config.family.counts_positions_from_padding and own not in (None, padding):
        positions = f"its positions begin behind its pad_token_id {padding}"
        print(f"note: {model}: {positions}, though the tokenizer pads with {own}", file=sys.stderr)
    cut = source.with_vocab_size(size)
    if cut.unused_rows:
        rows = f"{cut.unused_rows} of {source.config.vocab_size} rows"
        print(f"note: {rows} of {model} stand for no token: they are left out", file=sys.stderr)
    return cut


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


def fit_student(cache: CacheInput, source: ModelSource) -> tuple[ModelSource, VocabSubset | None]:
    """Returns a student with its own tokens only, and how it reads a cache; see `find_subset`.

    Raises:
        InputError: the vocabulary is neither the cache's nor a part of it.
    """
    vocab_files = loading.tokenizer_files(source.directory)
    subset = find_subset(cache, source.config.vocab_size, vocab_files)
    size = cache.manifest.vocab.size if subset is None else subset.vocab.size
    return _cut(cache, source, size, vocab_files), subset


def find_subset(
    cache: CacheInput, vocab_size: int, vocab_files: Sequence[Location]
) -> VocabSubset | None:
    """Finds how a student reads a cache: as it is, or knowing only some of its tokens.

    Of the student's `vocab_files` the one with most tokens decides, of those with at most
    `vocab_size`. Returns None where its vocabulary is the cache's.

    Raises:
        InputError: the vocabulary is neither the cache's nor a part of it.
    """
    vocabs = {path: loading.read_vocab(path) for path in _own_files_first(vocab_files)}
    most = min(vocab_size, cache.manifest.vocab.size - 1)
    parts = [path for path, tokens in vocabs.items() if len(tokens) <= most]
    if not parts or cache.manifest.vocab in map(vocab_info, vocabs.values()):
        expect_vocab(cache, vocab_size, vocab_files)
        return None
    path = max(parts, key=lambda part: len(vocabs[part]))
    tokens, reference = vocabs[path], load_cache_tokenizer(cache)
    special_ids = reference.special_ids
    table = vocab_subset.id_table(reference.vocab, tokens, special_ids, where=str(path))
    unknown = special_ids.get("unk", special_ids["pad"])
    pieces = vocab_subset.cut_tokens(
        reference.vocab,
        tokens,
        table,
        unknown_id=int(table[unknown]),
        continuation=reference.continuation,
    )
    tokenizer = loading.load_tokenizer(path, do_lower_case=None)
    if type(tokenizer) is type(reference):
        # The student sees the cache's text, whatever its own settings say of capitals.
        tokenizer = tokenizer.with_options_of(reference)
    return VocabSubset(
        table=table,
        unknown_id=int(table[unknown]),
        unknown_token=reference.vocab[unknown],
        vocab=vocab_info(tokens),
        tokenizer_files=tokenizer.files(),
        pieces=pieces,
    )
