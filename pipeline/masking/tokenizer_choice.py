"""The tokenizer of a run, where a model directory has two, and what a user must know of it."""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.base.location import Location
from pipeline.corpora import corpus
from pipeline.corpora.documents import CorpusFile
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.tokenizers import loading
from pipeline.tokenizers.tokens import TOKENIZER_FILE, Tokenizer
from pipeline.tokenizers.wordpiece import VOCAB_FILE

# Documents that two tokenizers are compared on: the first of some files, cut.
_SAMPLE_FILES = 16
_SAMPLE_DOCUMENTS = 16
_SAMPLE_CHARS = 10_000


def choose_tokenizer(
    config: MaskedExamplesConfig, tokenizer: Tokenizer, corpus_files: Sequence[CorpusFile]
) -> tuple[MaskedExamplesConfig, Tokenizer]:
    """Returns the tokenizer that the corpus is made with, and the settings that name it.

    Where a directory has a `tokenizer.json` besides its `vocab.txt`, and the two give other
    tokens for a sample of the corpus, the first is taken unless `do_lower_case` is set: its
    users meet it first. What was found is printed, a line each.

    Args:
        tokenizer: the one that `config.vocab_file` names.
        corpus_files: of all corpora.

    Raises:
        InputError: the model of the tokenizer's directory has fewer rows than it has tokens,
            or the `tokenizer.json` cannot be read.
    """
    directory, notes = config.vocab_file, []
    if all((directory / name).is_file() for name in (VOCAB_FILE, TOKENIZER_FILE)):
        path = directory / TOKENIZER_FILE
        other = loading.load_tokenizer(path, do_lower_case=None)
        difference = _difference(tokenizer, other, corpus_files)
        is_set = config.do_lower_case is not None
        if difference is not None:
            chosen = f"{VOCAB_FILE}, as `do_lower_case` is set" if is_set else TOKENIZER_FILE
            notes.append(f"{directory}: {difference}; the run takes {chosen}")
        if difference is not None and not is_set:
            config, tokenizer = dataclasses.replace(config, vocab_file=path), other
    notes += [*tokenizer.notes, *_describe_model(directory, tokenizer)]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return config, tokenizer


def _difference(
    tokenizer: Tokenizer, other: Tokenizer, corpus_files: Sequence[CorpusFile]
) -> str | None:
    """Returns how the tokenizers of `vocab.txt` and `tokenizer.json` differ; None if they agree."""
    names = f"{VOCAB_FILE} and {TOKENIZER_FILE}"
    # A tokenizer.json has a token that stands twice in a vocab.txt only once.
    pairs = itertools.zip_longest(tokenizer.vocab, other.vocab)
    if any(fast not in ("", token) for token, fast in pairs):
        sizes = f"{tokenizer.info.size} and {other.info.size} tokens"
        return f"{names} have other tokens or another order of them ({sizes})"
    if tokenizer.special_ids != other.special_ids:
        return f"{names} have other special tokens"
    texts = corpus.sample_texts(corpus_files, _SAMPLE_FILES, _SAMPLE_DOCUMENTS)
    same = [_same_tokens(tokenizer, other, text[:_SAMPLE_CHARS]) for text in texts]
    if all(same):
        return None
    return f"{names} give other tokens for {same.count(False)} of {len(same)} documents"


def _same_tokens(tokenizer: Tokenizer, other: Tokenizer, text: str) -> bool:
    return np.array_equal(tokenizer.tokenize(text).ids, other.tokenize(text).ids)


def _describe_model(vocab_file: Location, tokenizer: Tokenizer) -> Iterator[str]:
    """Compares the tokens with the rows of the model in their directory."""
    unused = loading.count_unused_rows(vocab_file, tokenizer.info.size)
    if unused:
        yield f"{unused} rows of the model's tables stand for no token: they are never predicted"
    padding = loading.find_other_padding(vocab_file, tokenizer)
    if padding is not None:
        token, own = tokenizer.vocab[tokenizer.special_ids["pad"]], tokenizer.special_ids["pad"]
        yield (
            f"pad_token_id of the model is {padding}, but the tokenizer pads with {token} ({own}): "
            "positions follow the model, and no token of the text counts as padding"
        )
