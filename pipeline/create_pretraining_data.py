"""Stage 1a: masks a corpus a fixed number of ways and writes masked examples.

With --masking=dynamic it writes unmasked windows, which run_distill masks anew each epoch.

create_pretraining_data --input_dir=CORPUS --vocab_file=vocab.txt --output_dir=EXAMPLES
"""

import sys
from collections.abc import Sequence

from absl import flags

from data_specs import corpora
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import running
from pipeline.runners import local


def define_flags() -> flags.FlagValues:
    """Returns this command's flags."""
    table = running.FlagTable()
    _define_places(table)
    _define_documents(table)
    table.boolean(
        "do_lower_case",
        None,
        "Whether to lower-case (WordPiece: and strip accents); by default what the "
        "tokenizer_config.json beside the vocabulary says, and without one, yes for a vocab.txt "
        "and no for a SentencePiece model.",
    )
    table.boolean("do_whole_word_mask", True, "Whether to mask whole words.")
    table.choice(
        "segmenter",
        None,
        "What says where Chinese words begin; by default what --corpus_spec says, else jieba.",
        of=corpora.SEGMENTERS,
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
    table.number(
        "short_seq_prob",
        0.1,
        "The probability that a document's windows get a shorter, random length.",
        low=0.0,
        high=1.0,
    )
    table.integer("doc_stride", 256, "Tokens between the beginnings of two windows.", low=1)
    _define_masking(table)
    table.integer("random_seed", 12345, "Decides every random choice.", low=0)
    table.boolean("random_next", None, "Accepted for old command lines; has no effect.")
    table.require("output_dir", "vocab_file")
    return table.values


def _define_masking(table: running.FlagTable) -> None:
    table.choice(
        "masking",
        "static",
        "Whether masks are drawn here, which a teacher cache needs, or by run_distill, anew each "
        "epoch.",
        of=["static", "dynamic"],
    )
    table.integer("max_predictions_per_seq", 20, "The most masked tokens of an input.", low=1)
    table.number("masked_lm_prob", 0.15, "The share of tokens to mask.", low=0.0, high=1.0)
    table.number(
        "mask_smoothing",
        0.0,
        "With --masking=dynamic: a word is drawn in proportion to count ** -mask_smoothing of its "
        "tokens, so that rare ones are masked more often; 0.7 is DistilBERT's.",
        low=0.0,
        high=10.0,
    )
    table.integer(
        "dupe_factor",
        None,
        "Differently masked copies of each window; by default 5. None with --masking=dynamic.",
        low=1,
    )


def _define_places(table: running.FlagTable) -> None:
    table.string(
        "input_dir",
        None,
        "The corpus: a file, a folder or a glob. Files named .json or .jsonl hold JSON lines or "
        "one JSON array, others text with a blank line between documents; .gz is unpacked. With "
        "--tfds_name, where TensorFlow datasets are kept.",
    )
    table.string(
        "corpus_spec",
        None,
        f"How the files of --input_dir are read: {', '.join(corpora.names())}, or a .yaml file "
        "of the form of those in data_specs/corpora.",
    )
    table.string(
        "tfds_name", None, "Instead of files: a TensorFlow dataset, name[/config][:version]."
    )
    table.string("corpora", None, "Instead of one corpus: a .yaml file with several, weighted.")


def _define_documents(table: running.FlagTable) -> None:
    table.string(
        "output_dir", None, "Where the masked examples go: an empty folder, or an unfinished one."
    )
    table.string(
        "vocab_file",
        None,
        "The teacher's vocab.txt, tokenizer.json or SentencePiece model, or its directory.",
    )
    table.string(
        "text_fields",
        None,
        "The fields of a row that are its text; by default what --corpus_spec says, the only text "
        "feature of --tfds_name, else title,content.",
    )
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
    table.integer(
        "max_workers",
        local.num_cpus(),
        "How many processes to use with --runner=local.",
        low=1,
        high=512,
    )
    table.runner(with_gpus=False)


def _find_corpora(values: flags.FlagValues) -> tuple[corpora.CorpusSource, ...]:
    """Returns the corpora that the flags name.

    Raises:
        InputError: none, or a mixture and one beside it, or a mixture that is not as it must be.
    """
    single = ("input_dir", "corpus_spec", "tfds_name", "text_fields", "segmenter")
    given = {name: values[name].value for name in single if values[name].value is not None}
    if values.corpora is not None and given:
        raise InputError(
            Setting("corpora"),
            "it alone",
            f"`{next(iter(given))}` beside it, which belongs into the file",
        )
    if values.corpora is None and "input_dir" not in given and "tfds_name" not in given:
        raise InputError(
            "missing", received="`input_dir`, or `tfds_name`, or `corpora` (see `help`)"
        )
    try:
        if values.corpora is not None:
            return corpora.load_mixture(Location.parse(values.corpora, "corpora"))
        if "text_fields" in given:
            names = (name.strip() for name in given["text_fields"].split(","))
            given["text_fields"] = tuple(name for name in names if name)
            if not given["text_fields"]:
                raise ValueError("text_fields: expected the names of fields, received none")
        return (corpora.CorpusSource(**given),)
    except ValueError as error:
        flag = "--corpora: " if values.corpora is not None else "--"
        raise InputError(f"{flag}{error}") from error


def _create(values: flags.FlagValues) -> None:
    sources = _find_corpora(values)
    ray = running.choose_runner(values)
    if ray is not None and values["max_workers"].present:
        raise InputError(
            Setting("max_workers"),
            "none with `runner`=ray, where a job is for each `cpus_per_job` of the "
            "nodes' processors",
            values.max_workers,
        )
    if ray is None and values.max_workers > 1:
        # Beside the imports of this process.
        local.prepare("pipeline.commands.running", "pipeline.masking.masked_examples")
    if any(source.tfds_name is not None for source in sources):
        running.import_quietly("tensorflow_datasets", "tensorflow")

    from pipeline.masking import masked_examples
    from pipeline.masking.settings import MaskedExamplesConfig

    if values.random_next is not None:
        print("note: --random_next has no effect: segments are always consecutive", file=sys.stderr)
    settings = values.flag_values_dict() | {"corpora": sources, "ray": ray}
    names = MaskedExamplesConfig.__dataclass_fields__
    config = MaskedExamplesConfig(**{name: settings[name] for name in names})
    manifest = masked_examples.create_masked_examples(config)
    print("\n".join(masked_examples.describe(manifest)))
    print(f"{manifest.kind.replace('_', ' ')}: {config.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return running.run(define_flags(), _create, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
