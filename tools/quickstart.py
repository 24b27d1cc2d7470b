"""Runs the whole pipeline on real text; `bash tools/quickstart.sh` installs and runs it.

The teacher is a small model that comes with the project, --teacher, or a model that is trained
first. It runs once over masked examples. A student with half of its layers is trained from the
cache of teacher targets, and a baseline student from labels only. All results go into --work.
Re-run the command to resume.
"""

import dataclasses
import functools
import math
import shlex
import sys
import time
from collections.abc import Sequence

from absl import flags as absl_flags

from data_specs.corpora import SEPARATIONS, CorpusSource
from pipeline.base import compute_dtype, hub_id
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import LocalLocation, Location
from pipeline.base.settings import Settings, default_value, parse_words, setting
from pipeline.commands import flags, running
from pipeline.models.formats import model_directory
from pipeline.storage import manifest as manifests
from pipeline.tokenizers import loading
from tools import local_teacher, quickstart_forecast, quickstart_report, quickstart_text
from tools.commands import Step, print_step, reserve_directory, run_command, run_steps
from tools.local_teacher import LocalTraining
from tools.report.page import expect_packages

SHIPPED_TEACHER = LocalLocation(__file__).parent / "quickstart_teacher"
# The cache has about this number of training examples, in whole shards. The students read fewer
# in all their steps, so that no example is repeated.
_NUM_EXAMPLES = 5_000
# Number of training shards. Either all are captured, or up to 10, whose numbers a glob selects by
# one digit.
_NUM_SHARDS = 12
_DIGITS = "0123456789"
_VOCAB_SIZE = 8_000
# The steps that take about four minutes on two cores, by compute dtype.
_TEACHER_STEPS = {compute_dtype.BFLOAT16: 1_000, compute_dtype.FLOAT32: 720}
# Few steps: with many more, a student trained on labels only would match its small teacher.
_STUDENT_STEPS = 60
_STUDENT_LOSSES = {
    "distilled": "soft_cross_entropy=1,probability_cosine=1",
    "baseline": "masked_lm=1",
}
# The time of all work after a training, as a multiple of the training's time.
_REST = {"teacher": 1.0, "distilled": 1.4, "baseline": 0.4}
# The time of a training with its evaluations, as a multiple of the time of its steps.
_WITH_EVALUATION = {"teacher": 1.1, "distilled": 1.5, "baseline": 1.5}


@dataclasses.dataclass(frozen=True)
class QuickstartConfig(Settings):
    """The settings of the quickstart; its flags are generated from them."""

    work: Location = setting("quickstart", "Directory for all results.")
    teacher: Location | None = setting(
        None,
        "Your own teacher, a model directory or a model on the hub. By default the small Chinese "
        "teacher that comes with the project.",
        hub_files=hub_id.MODEL,
    )
    corpus: Location | None = setting(None, "Your own text: a file, a directory or a glob.")
    text_fields: tuple[str, ...] | None = setting(
        None,
        "Requires `corpus`. Fields of a row that contain its text; title,content by default.",
        parse=parse_words,
    )
    documents: str | None = setting(
        None,
        "Requires `corpus`. Separation of the documents in a text file: blank_lines by default, "
        "or lines if each line is a document.",
        choices=SEPARATIONS,
    )
    train_teacher: bool | None = setting(
        None,
        "Whether to train a teacher on the text first, in about five minutes. By default only for "
        "your own text without `teacher`.",
    )
    install_seconds: float = setting(
        0.0, "Seconds that the installation took, which are added to the total time.", low=0.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_teacher and self.teacher is not None:
            raise InputError(Setting("train_teacher"), received="cannot be combined with `teacher`")
        for name in quickstart_text.READING:
            if getattr(self, name) is not None and self.corpus is None:
                raise InputError(Setting(name), "unset without `corpus`", getattr(self, name))

    @property
    def trains_teacher(self) -> bool:
        """Whether a teacher is trained first."""
        if self.train_teacher is None:
            return self.corpus is not None and self.teacher is None
        return self.train_teacher

    def command_line(self) -> str:
        """Returns the command line with the settings that are not at their defaults."""
        arguments = ["offline_distill", "quickstart"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "install_seconds" and value != default_value(field):
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                arguments.append(f"--{field.name}={text}")
        return shlex.join(arguments)

    def own_corpus(self) -> CorpusSource | None:
        """Returns the user's corpus; None for the text of the package."""
        if self.corpus is None:
            return None
        reading = {name: getattr(self, name) for name in quickstart_text.READING}
        return quickstart_text.own_corpus(self.corpus, **reading)


def chosen_shards(num_examples: int) -> str:
    """Returns the digits of the training shards to capture; an empty string for all shards.

    Args:
        num_examples: number of training examples, which all shards share evenly.
    """
    count = math.ceil(_NUM_SHARDS * min(1.0, _NUM_EXAMPLES / max(1, num_examples)))
    return _DIGITS[:count] if count < min(_NUM_SHARDS, len(_DIGITS) + 1) else ""


class Quickstart:
    """The steps of the quickstart.

    Attributes:
        begun: start on the monotonic clock, before the installation.
        work: the directory of all results.
        teacher: the teacher's directory.
        compute_dtype: the dtype policy of training.
    """

    def __init__(self, config: QuickstartConfig) -> None:
        self.begun = time.monotonic() - config.install_seconds
        self._config, self._has_forecast = config, False
        self.work = config.work.expect_local()
        self.teacher = config.teacher or SHIPPED_TEACHER
        self._tokenizer = self.teacher
        if config.trains_teacher:
            self.teacher, self._tokenizer = self.work / "teacher", self.work / "vocab.txt"
        self.compute_dtype, _ = compute_dtype.detect()
        self._training = LocalTraining(
            examples=self.work / "examples",
            start=self.work / "start",
            teacher=self.work / "teacher",
            num_steps=_TEACHER_STEPS[self.compute_dtype],
            compute_dtype=self.compute_dtype,
        )

    def reserve(self) -> None:
        """Reserves the directory, or checks that it belongs to a run with the same settings."""
        teacher, corpus = self._config.teacher, self._config.corpus
        text_fields = self._config.text_fields
        default = "trained" if self._config.trains_teacher else "shipped"
        settings = {
            "teacher": default if teacher is None else str(teacher.resolve()),
            "corpus": str(corpus and corpus.resolve()),
            "text_fields": None if text_fields is None else list(text_fields),
            "documents": self._config.documents,
        }
        contents = "a run with another teacher or corpus"
        reserve_directory(self.work, settings, contents, "choose another with WORK=…")

    def steps(self) -> list[Step]:
        """Returns the ordered steps."""
        work, trains = self.work, self._config.trains_teacher
        steps = [Step("text", work / quickstart_text.CORPORA_FILE, self.make_corpora)]
        if trains:
            steps.append(Step("a vocabulary", work / "vocab.txt", self.make_vocabulary))
        steps.append(Step("prepare: masked examples", work / "examples/manifest.json", self.mask))
        if trains:
            start, training = self._training.steps()
            steps += [start, self._forecasting(training, self._training.num_steps)]
        steps.append(
            Step("capture: the teacher runs once", work / "cache/manifest.json", self.run_teacher)
        )
        titles = ("distill: a student of half the layers", "baseline: the same, on labels only")
        for name, title in zip(_STUDENT_LOSSES, titles, strict=True):
            make = functools.partial(self.train_student, name)
            step = Step(title, work / f"{name}/config.json", make, "student")
            steps.append(self._forecasting(step, _STUDENT_STEPS))
        return steps

    def make_corpora(self) -> None:
        """Writes the documents of the package, or a mixture with the path of the user's text."""
        source = self._config.own_corpus()
        if source is None:
            quickstart_text.write_package_corpora(self.work)
        else:
            quickstart_text.write_own_corpus(self.work, source)

    def make_vocabulary(self) -> None:
        """Learns a vocabulary from the documents."""
        quickstart_text.make_vocabulary(self.work, _VOCAB_SIZE)

    def mask(self) -> None:
        """Prepares the masked examples."""
        quickstart_text.make_examples(
            self.work, self._tokenizer, "examples", dupe_factor=1, num_shards=_NUM_SHARDS
        )

    def run_teacher(self) -> None:
        """Captures the teacher's targets for the eval split and for enough training shards."""
        examples = self.work / "examples"
        digits = chosen_shards(manifests.load(examples).num_examples(manifests.TRAIN))
        run_command(
            "create_teacher_output_data",
            input_file=examples / f"*-0000[{digits}]-of-*.tfrecord" if digits else None,
            input_dir=None if digits else examples,
            teacher=self.teacher,
            output_dir=self.work / "cache",
            # The students are trained at temperature 1.
            temperatures=1,
            predict_batch_size=64,
        )

    def train_student(self, name: str) -> None:
        """Trains a student; both students have the same start, data and steps."""
        layers = model_directory.find_model(self.teacher).config.num_hidden_layers
        is_small = self._config.teacher is None
        run_command(
            "run_distill",
            input_dir=self.work / "cache",
            init_from=self.teacher,
            student_layers=max(1, layers // 2),
            output_dir=self.work / name,
            losses=_STUDENT_LOSSES[name],
            tail="bucket",
            num_train_steps=_STUDENT_STEPS,
            train_batch_size=local_teacher.BATCH_SIZE,
            learning_rate=1e-3 if is_small else 2e-4,
            save_checkpoints_steps=_STUDENT_STEPS // 3,
            log_steps=local_teacher.LOG_STEPS,
            max_eval_steps=10_000,
            eval_batch_size=64,
            compute_dtype=self.compute_dtype,
        )

    def _forecasting(self, step: Step, num_steps: int) -> Step:
        """Returns a training step that prints a forecast of the total time after a few updates."""
        log = step.result.parent

        def remaining() -> float | None:
            batch_size = local_teacher.BATCH_SIZE
            seconds = quickstart_forecast.training_seconds(log, num_steps, batch_size)
            return None if seconds is None else seconds * _WITH_EVALUATION[log.name]

        def make() -> None:
            before = time.monotonic() - self.begun
            report = functools.partial(self._print_total_time, before, 1.0 + _REST[log.name])
            with quickstart_forecast.reporting_total_time(remaining, report):
                step.make()

        return dataclasses.replace(step, make=make)

    def _print_total_time(self, before: float, times: float, seconds: float) -> None:
        """Prints the expected total time once; `before` is the number of elapsed seconds."""
        if not self._has_forecast:
            self._has_forecast = True
            minutes = (before + times * seconds) / 60
            print(f"\nabout {minutes:.0f} min in all, estimated from these steps", flush=True)


def _quickstart(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, QuickstartConfig)
    expect_packages()
    # Invalid settings are reported before the directory is reserved, so that the corrected
    # command can use the same directory.
    if config.teacher is not None:
        model_directory.find_model(config.teacher)
        loading.find_vocab_file(config.teacher)
    if (source := config.own_corpus()) is not None:
        quickstart_text.check_corpus(source)
    run = Quickstart(config)
    run.reserve()
    steps = run.steps()
    run_steps(steps, run.begun, num_more=1)
    print_step(len(steps) + 1, len(steps) + 1, "table and page", run.begun)
    running.import_quietly("tensorflow")
    students = quickstart_report.read_students(run.work)
    report = quickstart_report.measure(run.work, run.teacher, students, config.command_line())
    print(f"\n{quickstart_report.table(report)}\n")
    page = quickstart_report.write(report, students, run.work)
    student = run.work / quickstart_report.STUDENTS[0]
    print(f"student: {student} (load it with transformers). To use your own data, see README.md")
    print(f"page: {page}")
    print(f"{(time.monotonic() - run.begun) / 60:.1f} minutes; everything is in {run.work}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(QuickstartConfig), _quickstart, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
