"""A student with only the tokens that a corpus needs, from a teacher.

python -m tools.reduce_vocabulary --input_dir=CACHE --teacher=TEACHER --coverage=0.999
    --student_layers=2 --output_dir=START
run_distill --input_dir=CACHE --student=START --output_dir=STUDENT

Counts the true tokens of the train split, keeps the special and the most frequent
ones, and writes a model directory: the teacher's layers, the rows of its word
embeddings that are kept, and the smaller tokenizer. The cache is read as it is.
"""

import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.base.location import Location
from pipeline.commands import running
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.models.initialization import layer_init
from pipeline.models.weight_names import count_parameters
from pipeline.storage import cache_input, cache_tokenizer
from pipeline.storage import manifest as manifests
from pipeline.tokenizers import loading
from pipeline.tokenizers.tokens import Tokenizer
from tools.vocabulary import cache_tokens, vocab_reduction
from tools.vocabulary.vocab_reduction import VocabLimit


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = running.FlagTable()
    table.string("input_dir", None, "Masked examples or a teacher cache, of the corpus.")
    table.string("teacher", None, "The model directory to take weights from.")
    table.string("output_dir", None, "Where the student goes: a new or empty directory.")
    table.integer("vocab_size", None, "Keep so many tokens, the special ones among them.", low=1)
    table.string(
        "coverage",
        None,
        "Instead: as few as stand for this share of the text's tokens, such as 0.9995.",
    )
    table.integer("min_count", None, "Instead: those that stand in the text so often.", low=1)
    table.string("keep_tokens", None, "A file of tokens to keep anyway, one a line.")
    table.integer("student_layers", None, "How many of the teacher's layers; all.", low=1)
    table.string("layer_map", None, "Which, such as 0,3; evenly spaced by default.")
    table.choice("verify", "full", "Check every byte first, or sizes.", of=["full", "sizes"])
    table.require("input_dir", "teacher", "output_dir")
    return table.values


def _limit(values: flags.FlagValues) -> VocabLimit:
    coverage = None
    if values.coverage is not None:
        (coverage, *more) = running.parse_numbers("coverage", values.coverage)
        if more or not 0.0 < coverage <= 1.0:
            raise InputError(Setting("coverage"), "a share in (0, 1]", values.coverage)
    return VocabLimit(values.vocab_size, coverage, values.min_count)


def _expect_empty(directory: str) -> None:
    path = directory
    present = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
    if present:
        raise InputError(
            Setting("output_dir"), "a new or empty directory", f"{path}, which holds {present[0]!r}"
        )


def _always_kept(tokenizer: Tokenizer, keep_tokens: str | None, pad_id: int) -> np.ndarray:
    """Returns the ids that are kept whatever their count; the model has a padding of its own."""
    always = np.union1d(vocab_reduction.always_kept(tokenizer), [pad_id])
    if keep_tokens is None:
        return always
    return np.union1d(always, vocab_reduction.read_keep_tokens(keep_tokens, tokenizer.vocab))


def table(teacher: EncoderConfig, student: EncoderConfig) -> str:
    """Returns, as text, what a reduction saves."""
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


def _reduce(values: flags.FlagValues) -> None:
    limit = _limit(values)
    _expect_empty(values.output_dir)
    source = model_directory.find_model(Location.parse(values.teacher, "teacher"))
    layer_map = layer_init.choose_layers(
        source.config.num_hidden_layers, values.student_layers, values.layer_map
    )
    cache = cache_input.open_cache(Location.parse(values.input_dir, "input_dir"), None)
    vocab_files = loading.tokenizer_files(source.directory)
    with naming_setting("teacher"):
        cache_tokenizer.expect_vocab(cache, source.config.vocab_size, vocab_files)
    tokenizer = cache_tokenizer.load_cache_tokenizer(cache)
    always = _always_kept(tokenizer, values.keep_tokens, source.config.pad_token_id)
    manifests.verify(cache.directory, cache.manifest, full=values.verify == "full")
    counts = vocab_reduction.text_counts(cache_tokens.count_tokens(cache), tokenizer)
    kept_ids = vocab_reduction.choose_tokens(counts, always, limit)
    config, weights = layer_init.student_weights(
        source.read_weights(), source.config, layer_map=layer_map
    )
    config, weights = layer_init.reduce_vocabulary(weights, config, kept_ids)
    folder = Location.parse(values.output_dir, "output_dir").make_directory()
    for name, content in vocab_reduction.reduce_tokenizer(tokenizer, kept_ids).files().items():
        (folder / name).write_whole(content)
    model_directory.save_hf_weights(folder, config, weights)
    print(table(source.config, config))
    print(
        f"covered: {counts[kept_ids].sum() / counts.sum():.3%} of the text's {counts.sum():,} "
        f"tokens, {np.count_nonzero(counts):,} different ones"
    )
    print(f"student: {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _reduce, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
