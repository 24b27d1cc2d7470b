"""Makes a student with only the tokens that a corpus needs.

offline_distill reduce_vocabulary --input_dir=CACHE --teacher=TEACHER --coverage=0.999
    --student_layers=2 --output_dir=START
run_distill --input_dir=CACHE --student=START --output_dir=STUDENT

Counts the true tokens of the train split, and keeps the special and the most frequent tokens.
Writes a model directory with the teacher's layers, the kept rows of its word embeddings and the
smaller tokenizer. The cache does not change: run_distill splits a missing token into tokens of
the student, or reads it as [UNK].
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags as absl_flags

from pipeline.base import hub_id
from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.models.initialization import from_teacher
from pipeline.models.weight_names import count_parameters
from pipeline.storage import cache_input, cache_tokenizer, vocab_subset
from pipeline.storage import manifest as manifests
from pipeline.storage.codecs.base import NO_ID
from pipeline.tokenizers.tokens import Tokenizer
from tools.vocabulary import cache_tokens, vocab_reduction
from tools.vocabulary.vocab_reduction import VocabLimit


@dataclasses.dataclass(frozen=True)
class ReduceConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    input_dir: Location = setting(
        dataclasses.MISSING, "Shard directory of masked examples or teacher cache of the corpus."
    )
    teacher: Location = setting(
        dataclasses.MISSING,
        "Model directory or model of the hub that the weights come from.",
        hub_files=hub_id.MODEL,
    )
    output_dir: Location = setting(dataclasses.MISSING, "Directory for the student: new or empty.")
    vocab_size: int | None = setting(
        None, "Number of tokens to keep, including the special tokens.", low=1
    )
    coverage: float | None = setting(
        None,
        "In place of `vocab_size`: minimum share of the text's tokens that the kept tokens cover; "
        "for example 0.9995.",
    )
    min_count: int | None = setting(
        None, "In place of `vocab_size`: minimum count of a token in the text to keep it.", low=1
    )
    keep_tokens: Location | None = setting(
        None, "Text file of tokens that are always kept, one per line."
    )
    student_layers: int | None = setting(
        None, "Number of the teacher's layers to keep; all by default.", low=1
    )
    layer_map: str | None = setting(
        None, "Layers to keep, for example 0,3; evenly spaced by default."
    )
    verify: str = setting(
        "full",
        "Check of the input before the run: full reads every byte, sizes compares file sizes.",
        choices=("full", "sizes"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coverage is not None and not 0.0 < self.coverage <= 1.0:
            expected = "a share above 0 and at most 1"
            raise InputError(Setting("coverage"), expected, self.coverage)


def table(teacher: EncoderConfig, student: EncoderConfig) -> str:
    """Returns a table of the sizes of teacher and student."""
    pair = (teacher, student)
    counts = [count_parameters(config) for config in pair]
    shares = [
        config.vocab_size * config.embedding_width / count
        for config, count in zip(pair, counts, strict=True)
    ]
    rows = (
        ("", ["teacher", "student"]),
        ("tokens", [f"{config.vocab_size:,}" for config in pair]),
        ("layers", [f"{config.num_hidden_layers}" for config in pair]),
        ("parameters", [f"{count:,}" for count in counts]),
        ("float32 MB", [f"{4e-6 * count:.1f}" for count in counts]),
        ("word embeddings", [f"{share:.1%}" for share in shares]),
    )
    return "\n".join(
        f"{name:<16}" + "".join(f"{cell:>14}" for cell in cells) for name, cells in rows
    )


def describe_coverage(
    counts: np.ndarray, kept_ids: np.ndarray, tokenizer: Tokenizer
) -> Iterator[str]:
    """Yields lines on the student's reading of the text.

    Args:
        counts: int [V], counts of the tokens in the text.
        kept_ids: of the student's tokens.
        tokenizer: of the teacher.
    """
    total = counts.sum()
    share = f"{counts[kept_ids].sum() / total:.3%} of the text's {total:,} tokens"
    yield f"covered: {share}, {np.count_nonzero(counts):,} of them distinct"
    table = np.full(len(counts), NO_ID, np.int32)
    table[kept_ids] = np.arange(len(kept_ids))
    pieces = vocab_subset.cut_tokens(
        tokenizer.vocab,
        [tokenizer.vocab[index] for index in kept_ids],
        table,
        unknown_id=NO_ID,
        continuation=tokenizer.continuation,
    )
    num_pieces = np.sum(pieces != NO_ID, axis=1)
    split_counts = counts[(table == NO_ID) & (num_pieces > 0)]
    unknown_counts = counts[num_pieces == 0]
    split, unknown = (f"{part.sum() / total:.3%}" for part in (split_counts, unknown_counts))
    yield f"missing: {split} split into covered tokens, {unknown} unknown"
    yield f"inputs become {counts @ np.maximum(num_pieces, 1) / total:.3f} times as long"


def _reduce(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, ReduceConfig)
    limit = VocabLimit(config.vocab_size, config.coverage, config.min_count)
    config.output_dir.expect_empty()
    source = model_directory.find_model(config.teacher)
    layer_map = from_teacher.choose_layers(source.config, config.student_layers, config.layer_map)
    cache = cache_input.open_cache(config.input_dir, None)
    with naming_setting("teacher"):
        from_teacher.expect_tied(source.config)
        source = cache_tokenizer.fit_vocab(cache, source)
    tokenizer = cache_tokenizer.load_cache_tokenizer(cache)
    # The model's padding token may differ from the tokenizer's.
    always = np.union1d(vocab_reduction.always_kept(tokenizer), [source.config.pad_token_id])
    if config.keep_tokens is not None:
        listed_ids = vocab_reduction.read_keep_tokens(config.keep_tokens, tokenizer.vocab)
        always = np.union1d(always, listed_ids)
    manifests.verify(cache.directory, cache.manifest, full=config.verify == "full")
    counts = vocab_reduction.text_counts(cache_tokens.count_tokens(cache), tokenizer)
    kept_ids = vocab_reduction.choose_tokens(counts, always, limit)
    student, weights = from_teacher.student_weights(
        source.read_weights(), source.config, layer_map=layer_map
    )
    student, weights = vocab_reduction.reduce_weights(weights, student, kept_ids)
    folder = config.output_dir.make_directory()
    for name, content in vocab_reduction.reduce_tokenizer(tokenizer, kept_ids).files().items():
        (folder / name).write_whole(content)
    model_directory.save_hf_weights(folder, student, weights)
    print(table(source.config, student))
    print("\n".join(describe_coverage(counts, kept_ids, tokenizer)))
    print(f"student: {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(ReduceConfig), _reduce, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
