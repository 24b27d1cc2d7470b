"""The choice of a run's tokenizer if a model directory has two, and notes for the user."""

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

# Two tokenizers are compared on the beginnings of the first documents of some files.
_SAMPLE_FILES = 16
_SAMPLE_DOCUMENTS = 16
_SAMPLE_CHARS = 10_000


def choose_tokenizer(
    config: MaskedExamplesConfig, tokenizer: Tokenizer, corpus_files: Sequence[CorpusFile]
) -> tuple[MaskedExamplesConfig, Tokenizer]:
    """Returns the settings with the tokenizer's path, and the tokenizer for the corpus.

    A directory may have both a `tokenizer.json` and a `vocab.txt`. If the two give different
    tokens for a sample of the corpus, `tokenizer.json` is used unless `do_lower_case` is set,
    because other programs use it first. The findings are printed, one line each.

    Args:
        config: the settings of the run.
        tokenizer: the tokenizer that `config.vocab_file` names.
        corpus_files: files of all corpora.

    Raises:
        InputError: the model in the tokenizer's directory has fewer rows than the tokenizer has
            tokens, or the `tokenizer.json` cannot be read.
    """
    directory, notes = config.vocab_file, []
    if all((directory / name).is_file() for name in (VOCAB_FILE, TOKENIZER_FILE)):
        path = directory / TOKENIZER_FILE
        other = loading.load_tokenizer(path, do_lower_case=None)
        difference = _difference(tokenizer, other, corpus_files)
        is_set = config.do_lower_case is not None
        if difference is not None:
            chosen = f"{VOCAB_FILE}, as `do_lower_case` is set" if is_set else TOKENIZER_FILE
            notes.append(f"{directory}: {difference}; the run uses {chosen}")
        if difference is not None and not is_set:
            config, tokenizer = dataclasses.replace(config, vocab_file=path), other
    notes += [*tokenizer.notes, *_describe_model(directory, tokenizer)]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return config, tokenizer


def _difference(
    tokenizer: Tokenizer, other: Tokenizer, corpus_files: Sequence[CorpusFile]
) -> str | None:
    """Returns the difference of `vocab.txt` and `tokenizer.json` in words; None if they agree."""
    names = f"{VOCAB_FILE} and {TOKENIZER_FILE}"
    # If a vocab.txt has a token twice, the tokenizer.json has it only once.
    pairs = itertools.zip_longest(tokenizer.vocab, other.vocab)
    if any(fast not in ("", token) for token, fast in pairs):
        sizes = f"{tokenizer.info.size} and {other.info.size} tokens"
        return f"{names} have different tokens or a different order of tokens ({sizes})"
    if tokenizer.special_ids != other.special_ids:
        return f"{names} have different special tokens"
    texts = corpus.sample_texts(corpus_files, _SAMPLE_FILES, _SAMPLE_DOCUMENTS)
    same = [_same_tokens(tokenizer, other, text[:_SAMPLE_CHARS]) for text in texts]
    if all(same):
        return None
    return f"{names} give different tokens for {same.count(False)} of {len(same)} documents"


def _same_tokens(tokenizer: Tokenizer, other: Tokenizer, text: str) -> bool:
    return np.array_equal(tokenizer.tokenize(text).ids, other.tokenize(text).ids)


def _describe_model(vocab_file: Location, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields notes on the model in the tokenizer's directory: unused rows and padding."""
    unused = loading.count_unused_rows(vocab_file, tokenizer.info.size)
    if unused:
        yield (
            f"{unused} rows of the model's embedding and output tables have no token and are not "
            "used"
        )
    padding = loading.find_other_padding(vocab_file, tokenizer)
    if padding is not None:
        pad_id = tokenizer.special_ids["pad"]
        pad_token = tokenizer.vocab[pad_id]
        yield (
            f"the model's pad_token_id is {padding}, but the tokenizer pads with {pad_token} "
            f"({pad_id}). Positions follow the model, and no token of the text counts as padding"
        )
