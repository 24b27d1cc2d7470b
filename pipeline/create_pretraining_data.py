"""Prepares a corpus: masks each document a fixed number of times and writes masked examples.

With --masking=dynamic it writes unmasked windows, which run_distill masks differently in each
epoch.

create_pretraining_data --input_dir=CORPUS --vocab_file=vocab.txt --output_dir=EXAMPLES
"""

import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from pipeline.base.errors import InputError, Setting
from pipeline.commands import flags, running
from pipeline.commands.settings import CorpusSettings, RunnerSettings
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.runners import local
from pipeline.runners.ray import RayConfig

FLAGS = flags.FlagSet(
    (CorpusSettings, MaskedExamplesConfig, RunnerSettings, RayConfig),
    leave_out=("gpus_per_job",),
    defaults={"max_workers": local.num_cpus()},
)
define_flags = FLAGS.define


def _create(values: absl_flags.FlagValues) -> None:
    sources = flags.read_config(values, CorpusSettings).sources()
    ray = running.choose_runner(values)
    if ray is not None and values["max_workers"].present:
        expected = "unset with `runner`=ray, which runs one job per `cpus_per_job` processors"
        raise InputError(Setting("max_workers"), expected, values.max_workers)
    config = flags.read_config(values, MaskedExamplesConfig, corpora=sources, ray=ray)
    if ray is None and config.max_workers > 1:
        # The server of worker processes imports these modules while this process imports its own.
        local.prepare("pipeline.commands.running", "pipeline.masking.masked_examples")
    if any(source.tfds_name is not None for source in sources):
        running.import_quietly("tensorflow_datasets", "tensorflow")

    from pipeline.masking import masked_examples

    if values.random_next is not None:
        print("note: --random_next has no effect: segments are always consecutive", file=sys.stderr)
    manifest = masked_examples.create_masked_examples(config)
    print("\n".join(masked_examples.describe(manifest)))
    print(f"{manifest.kind.replace('_', ' ')}: {config.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return running.run(define_flags(), _create, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
