"""The tokenizer of a shard directory, and checks of a model's vocabulary against it."""

import shlex
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
    """Checks that a model has the vocabulary that a shard directory was made with.

    One of the model's `vocab_files` must have the same tokens; the model's tables may then have
    more rows than tokens. Without files, only the sizes are compared.

    Raises:
        InputError: the vocabularies differ; the message names both.
    """
    expected = cache.manifest.vocab
    vocabulary = f"a model with the vocabulary of {cache.directory}"
    if vocab_size < expected.size or not vocab_files:
        if vocab_size != expected.size:
            hint = "if its tables have more rows than tokens, put the tokenizer's files next to it"
            hint = hint if vocab_size > expected.size else _prepare_again(vocab_files)
            size = f"{vocabulary}, which has {expected.size} tokens"
            raise InputError(None, size, f"a model with {vocab_size} tokens", hint)
        return
    received_vocabs = []
    for path in vocab_files:
        tokens = loading.read_vocab(path)
        received = vocab_info(tokens)
        if received == expected:
            return
        difference = _first_difference(cache, tokens)
        sha256 = f"SHA-256 {received.sha256}, {received.size} tokens"
        received_vocabs.append(f"{path} ({sha256}{difference})")
    vocabulary += f" (SHA-256 {expected.sha256}, {expected.size} tokens)"
    hint = _prepare_again(vocab_files)
    raise InputError(None, vocabulary, ", ".join(received_vocabs), hint)


def _prepare_again(vocab_files: Sequence[Location]) -> str:
    vocab_file = shlex.quote(str(vocab_files[0].parent)) if vocab_files else "VOCABULARY"
    command = f"create_pretraining_data `vocab_file`={vocab_file}"
    return f"to use this model, prepare the examples again with {command}"


def _first_difference(cache: CacheInput, tokens: Sequence[str]) -> str:
    """Returns a phrase on the first token that differs from a cache's vocabulary of equal size.

    The phrase is empty if the sizes differ, or if no tokenizer file has the cache's vocabulary.
    """
    for path in loading.tokenizer_files(cache.directory):
        vocab = loading.read_vocab(path)
        if vocab_info(vocab) == cache.manifest.vocab and len(vocab) == len(tokens):
            pairs = enumerate(zip(tokens, vocab, strict=True))
            token_id, pair = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
            return f", token {token_id} is {pair[0]!r} and not {pair[1]!r}"
    return ""


def fit_vocab(cache: CacheInput, source: ModelSource) -> ModelSource:
    """Returns a model with the vocabulary that a shard directory was made with.

    Cuts off rows of its tables that belong to no token, and prints a line about it.

    Raises:
        InputError: the model has another vocabulary; the message names both.
    """
    vocab_files = loading.tokenizer_files(source.directory)
    expect_vocab(cache, source.config.vocab_size, vocab_files)
    return _cut(cache, source, cache.manifest.vocab.size, vocab_files)


def _cut(
    cache: CacheInput, source: ModelSource, size: int, vocab_files: Sequence[Location]
) -> ModelSource:
    """Returns a model cut to its first `size` tokens; prints notes on rows and special ids."""
    model = source.location or source.directory
    if not vocab_files and source.has_weights:
        assumption = f"assuming that its {size} tokens are those of {cache.directory}"
        print(f"note: {model} has no tokenizer: {assumption}", file=sys.stderr)
    model_pad_id, cache_pad_id = source.config.pad_token_id, cache.manifest.special_ids.get("pad")
    counts_from_padding = source.config.family.counts_positions_from_padding
    if counts_from_padding and cache_pad_id not in (None, model_pad_id):
        positions = f"its positions begin after its pad_token_id {model_pad_id}"
        padding = f"the tokenizer pads with {cache_pad_id}"
        print(f"note: {model}: {positions}, but {padding}", file=sys.stderr)
    cut = source.with_vocab_size(size)
    if cut.unused_rows:
        rows = f"{cut.unused_rows} of {source.config.vocab_size} rows"
        print(f"note: {rows} of {model} belong to no token and are cut off", file=sys.stderr)
    return cut


def load_cache_tokenizer(cache: CacheInput) -> Tokenizer:
    """Loads the tokenizer that a shard directory was made with, from its copy of the files.

    A SentencePiece model is loaded from its own file, not from the `tokenizer.json` made of it.

    Raises:
        InputError: no file has the manifest's vocabulary.
    """
    expected = cache.manifest.vocab
    for path in _json_files_last(loading.tokenizer_files(cache.directory)):
        if loading.read_vocab_info(path) == expected:
            return loading.load_tokenizer(path, do_lower_case=None)
    files = f"tokenizer files whose tokens have SHA-256 {expected.sha256}"
    raise InputError(cache.directory, files, "none of them")


def _json_files_last(paths: Sequence[Location]) -> list[Location]:
    return sorted(paths, key=lambda path: path.suffix == ".json")


def fit_student(cache: CacheInput, source: ModelSource) -> tuple[ModelSource, VocabSubset | None]:
    """Returns a student cut to its tokens, and its reduced vocabulary; see `find_subset`.

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
    """Returns a student's reduced vocabulary; None if its vocabulary is the cache's.

    Among the student's `vocab_files` with at most `vocab_size` tokens, the one with the most
    tokens decides.

    Raises:
        InputError: the vocabulary is neither the cache's nor a part of it.
    """
    vocabs = {path: loading.read_vocab(path) for path in _json_files_last(vocab_files)}
    max_size = min(vocab_size, cache.manifest.vocab.size - 1)
    reduced = [path for path, tokens in vocabs.items() if len(tokens) <= max_size]
    if not reduced or cache.manifest.vocab in map(vocab_info, vocabs.values()):
        expect_vocab(cache, vocab_size, vocab_files)
        return None
    path = max(reduced, key=lambda path: len(vocabs[path]))
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
        # The student reads the cache's text, so its own settings for case do not apply.
        tokenizer = tokenizer.with_options_of(reference)
    return VocabSubset(
        table=table,
        unknown_id=int(table[unknown]),
        unknown_token=reference.vocab[unknown],
        vocab=vocab_info(tokens),
        tokenizer_files=tokenizer.files(),
        pieces=pieces,
    )
