"""Stage 1b: runs the teacher once over masked examples and caches what it says.

create_teacher_output_data --input_dir=EXAMPLES --teacher=MODEL --output_dir=CACHE
"""

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags

from data_specs.records import HIDDEN_FEATURES
from pipeline.base import compute_dtype
from pipeline.base.errors import InputError, Setting
from pipeline.commands import running
from pipeline.storage.codecs import CODECS
from pipeline.storage.manifest import SAMPLED, TOPK, TRUNCATIONS


def define_flags() -> flags.FlagValues:
    """Returns this command's flags."""
    table = running.FlagTable()
    table.string("input_dir", None, "The masked examples, from create_pretraining_data.")
    table.string("input_file", None, "Instead of --input_dir: a glob of its shards.")
    table.string("output_dir", None, "Where the cache goes: an empty folder, or an unfinished one.")
    table.string(
        "teacher", None, "A model directory: Hugging Face's (safetensors), or Google's BERT."
    )
    table.string("bert_config_file", None, "Instead of --teacher: a bert_config.json.")
    table.string("init_checkpoint", None, "With --bert_config_file: …/bert_model.ckpt.")
    _define_kept(table)
    table.compute_dtype("What the encoder computes in; logits are float32 in any case.")
    table.integer("predict_batch_size", 64, "Examples in a batch of the teacher.", low=1)
    table.integer("max_seq_length", None, "Checked against the masked examples.", low=1)
    table.integer("max_predictions_per_seq", None, "Checked against the masked examples.", low=1)
    table.choice("verify", "full", "Check every input byte first, or sizes.", of=["full", "sizes"])
    table.integer("num_tasks", 1, "How many processes, started by hand, share the shards.", low=1)
    table.integer(
        "task_index", 0, "With --num_tasks: which of the processes this is, from 0.", low=0
    )
    table.runner(with_gpus=True)
    table.backend()
    table.require("output_dir")
    return table.values


def _define_kept(table: running.FlagTable) -> None:
    """Defines what is kept of what the teacher says."""
    table.integer(
        "truncation_factor",
        128,
        "k: how many of the teacher's tokens are kept at a masked position.",
        low=1,
    )
    table.choice(
        "truncation",
        TOPK,
        "Keep the k most probable tokens, or those of k random draws from the teacher's "
        "distribution, which are right on average.",
        of=list(TRUNCATIONS),
    )
    table.number(
        "truncation_mass",
        None,
        "Keep no more tokens at a position than have this mass, such as 0.999; at most k.",
        low=0.0,
        high=1.0,
    )
    table.string(
        "temperatures",
        None,
        "Temperatures at which the mass outside the top-k is kept; 1 first. Without: 1,2, or 1 "
        "with --truncation=sampled.",
    )
    table.choice("logit_encoding", "float16", "How logits are packed.", of=list(CODECS))
    table.string(
        "cache_hidden_states",
        None,
        "Groups of teacher layers, such as 1-6,7-12, whose mean hidden state is kept too.",
    )
    table.choice(
        "hidden_encoding", "float16", "How hidden states are packed.", of=list(HIDDEN_FEATURES)
    )


def _expect_named_dtype(values: flags.FlagValues) -> None:
    if values.compute_dtype == compute_dtype.AUTO:
        raise InputError(
            Setting("compute_dtype"),
            f"{compute_dtype.FLOAT32} or {compute_dtype.BFLOAT16} with `runner`=ray, "
            "whose nodes may differ in what suits them",
            compute_dtype.AUTO,
        )


def _create(values: flags.FlagValues) -> None:
    from pipeline.teacher.settings import TeacherCacheConfig

    settings = values.flag_values_dict()
    temperatures = values.temperatures
    if temperatures is None:
        temperatures = "1" if values.truncation == SAMPLED else "1,2"
    settings["temperatures"] = running.parse_numbers("temperatures", temperatures)
    settings["ray"] = running.choose_runner(values)
    names = TeacherCacheConfig.__dataclass_fields__
    config = TeacherCacheConfig(**{name: settings[name] for name in names})
    if config.ray is None:
        devices = running.choose_backend(values)
        chosen = running.choose_compute_dtype(values, devices)
        config = dataclasses.replace(config, compute_dtype=chosen)
    else:
        _expect_named_dtype(values)
        # Its devices are for the jobs.
        running.import_backend(values)

    from pipeline.teacher import capture, summary

    manifest = capture.create_teacher_cache(config)
    if manifest is None:
        print(f"task {config.task_index} of {config.num_tasks} is done; others still have shards")
        return
    print("\n".join(summary.describe(manifest)))
    print(f"teacher cache: {config.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return running.run(define_flags(), _create, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
