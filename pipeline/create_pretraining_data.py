"""Stage 1a: masks a corpus a fixed number of ways and writes masked examples.

create_pretraining_data --input_dir=CORPUS --vocab_file=vocab.txt --output_dir=EXAMPLES
"""

import sys
from collections.abc import Sequence

from absl import flags

from pipeline import command_line
from pipeline.runners import local


def define_flags() -> flags.FlagValues:
    """Returns this command's flags."""
    table = command_line.FlagTable()
    _define_places(table)
    table.boolean("do_lower_case", True, "Whether to lower-case and strip accents.")
    table.boolean("do_whole_word_mask", True, "Whether to mask whole words.")
    table.choice(
        "segmenter",
        "jieba",
        "What says where Chinese words begin.",
        of=["jieba", "whitespace", "none"],
    )
    table.choice(
        "segments",
        "pair",
        "Whether a window becomes [CLS] A [SEP] B [SEP] or [CLS] A [SEP].",
        of=["pair", "single"],
    )
    table.integer(
        "max_seq_length", 512, "The longest input, with special tokens.", low=1, high=65535
    )
    table.integer("max_predictions_per_seq", 20, "The most masked tokens of an input.", low=1)
    table.number("masked_lm_prob", 0.15, "The share of tokens to mask.", low=0.0, high=1.0)
    table.number(
        "short_seq_prob",
        0.1,
        "The probability that a document's windows get a shorter, random length.",
        low=0.0,
        high=1.0,
    )
    table.integer("doc_stride", 256, "Tokens between the beginnings of two windows.", low=1)
    table.integer("dupe_factor", 5, "Differently masked copies of each window.", low=1)
    table.integer("random_seed", 12345, "Decides every random choice.", low=0)
    table.boolean("random_next", None, "Accepted for old command lines; has no effect.")
    table.require("input_dir", "output_dir", "vocab_file")
    return table.values


def _define_places(table: command_line.FlagTable) -> None:
    table.string(
        "input_dir",
        None,
        "The corpus: a file, a folder or a glob. Files named .json or .jsonl hold JSON lines or "
        "one JSON array, others text with a blank line between documents; .gz is unpacked.",
    )
    table.string(
        "output_dir", None, "Where the masked examples go: an empty folder, or an unfinished one."
    )
    table.string("vocab_file", None, "The teacher's vocab.txt.")
    table.string("text_fields", "title,content", "The fields of a JSON row that are its text.")
    table.alias("params", "text_fields")
    table.integer("min_chars", 20, "Documents with fewer characters are skipped.", low=1)
    table.boolean(
        "skip_bad_lines", False, "Whether to count documents that cannot be read, and go on."
    )
    table.number(
        "eval_fraction", 0.05, "The share of documents kept for evaluation.", low=0.0, high=0.5
    )
    table.integer(
        "num_shards",
        None,
        "Train shards; by default so many that a teacher cache's stay below 128 MB.",
        low=1,
        high=99999,
    )
    table.integer("max_workers", local.num_cpus(), "How many processes to use.", low=1, high=512)


def _create(values: flags.FlagValues) -> None:
    from pipeline.text import masked_examples
    from pipeline.text.settings import MaskedExamplesConfig

    if values.random_next is not None:
        print("note: --random_next has no effect: segments are always consecutive", file=sys.stderr)
    settings = values.flag_values_dict()
    names = MaskedExamplesConfig.__dataclass_fields__
    fields = settings["text_fields"].split(",")
    settings["text_fields"] = tuple(name.strip() for name in fields if name.strip())
    config = MaskedExamplesConfig(**{name: settings[name] for name in names})
    manifest = masked_examples.create_masked_examples(config)
    print("\n".join(masked_examples.describe(manifest)))
    print(f"masked examples: {config.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return command_line.run(define_flags(), _create, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
