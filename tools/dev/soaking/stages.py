"""The three stages of a round, small enough to be run hundreds of times."""

import dataclasses
import pathlib
from collections.abc import Mapping

STUDENT = "run_distill"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command of a round.

    Attributes:
        name: for people.
        command: the module.
        input: the folder that it reads.
        output: the folder that it makes.
        settings: its flags.
    """

    name: str
    command: str
    input: pathlib.Path
    output: pathlib.Path
    settings: Mapping[str, object]


def make_stages(
    text: pathlib.Path, vocab_file: str, teacher: pathlib.Path, *, folder: pathlib.Path
) -> list[Stage]:
    """Returns the stages of a round, in order.

    Args:
        text: a folder of text.
        vocab_file: its vocabulary.
        teacher: a model directory.
        folder: where the round's outputs go.
    """
    examples, cache, student = folder / "examples", folder / "cache", folder / "student"
    masking = {
        "input_dir": text,
        "vocab_file": vocab_file,
        "output_dir": examples,
        "max_seq_length": 64,
        "segments": "single",
        "dupe_factor": 2,
        "num_shards": 6,
        "max_workers": 2,
    }
    capturing = {
        "input_dir": examples,
        "teacher": teacher,
        "output_dir": cache,
        "truncation_factor": 32,
        "verify": "sizes",
    }
    training = {
        "input_dir": cache,
        "output_dir": student,
        "init_from": teacher,
        "student_layers": 1,
        "num_train_steps": 120,
        "save_checkpoints_steps": 20,
        "log_steps": 20,
        "max_eval_steps": 4,
        "train_batch_size": 16,
        "verify": "sizes",
    }
    return [
        Stage("1a", "create_pretraining_data", text, examples, masking),
        Stage("1b", "create_teacher_output_data", examples, cache, capturing),
        Stage("2", STUDENT, cache, student, training),
    ]
