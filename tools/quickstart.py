"""The whole pipeline on real text; `bash tools/quickstart.sh` installs and runs it.

A small teacher is trained (unless --teacher names one) and runs once over masked
examples; a student of half its layers is trained from what it said, and once more
from the true tokens alone. Everything goes into --work; a run that was stopped
continues there.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence

from absl import flags as absl_flags

from data_specs import corpora
from pipeline.base import compute_dtype, hub_id
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.corpora.readers.base import find_files
from pipeline.models.formats import model_directory
from pipeline.storage import manifest as manifests
from pipeline.tokenizers import loading
from tools import local_teacher, quickstart_report, quickstart_text
from tools.commands import Step, claim_directory, make_steps, run_command, show_step
from tools.report.page import expect_packages

_MAX_SEQ_LENGTH = 64
# The teacher sees all train examples; what it says is kept of one shard in so many.
_NUM_SHARDS = 6
# What some four minutes are enough for on two cores, by what is computed in.
_TEACHER_STEPS = {compute_dtype.BFLOAT16: 1_000, compute_dtype.FLOAT32: 720}
# Few beside the teacher's: with many more, labels alone bring the student of a teacher
# that was trained for minutes as far as the teacher itself.
_STUDENT_STEPS = 120
_STUDENT_LOSSES = {
    "distilled": "soft_cross_entropy=1,probability_cosine=1",
    "undistilled": "masked_lm=1",
}
_SEED = 12345


@dataclasses.dataclass(frozen=True)
class QuickstartConfig(Settings):
    """The settings of the quickstart; its flags are generated from them."""

    work: Location = setting("quickstart", "Directory for everything.")
    teacher: Location | None = setting(
        None,
        "Your own teacher, a model directory or a model of the hub; one is trained by default.",
        hub_files=hub_id.MODEL,
    )
    corpus: Location | None = setting(None, "Your own text: a file, a directory or a glob.")


class Quickstart:
    """The steps in the folder `work`, with the user's own teacher and corpus or none."""

    def __init__(self, work: Location, teacher: Location | None, corpus: Location | None) -> None:
        self.work = work
        self.own_teacher = teacher
        self.own_corpus = corpus
        self.teacher = work / "teacher" if teacher is None else teacher
        self.compute_dtype, _ = compute_dtype.detect()

    def claim(self) -> None:
        """Makes the folder, or recognises it as that of the same run."""
        settings = {
            "teacher": str(self.own_teacher and self.own_teacher.resolve()),
            "corpus": str(self.own_corpus and self.own_corpus.resolve()),
        }
        contents = "a run with another teacher or corpus"
        claim_directory(self.work, settings, contents, "choose another with WORK=…")

    def steps(self) -> list[Step]:
        """Returns the steps, in order."""
        work = self.work
        steps = [Step("text", work / quickstart_text.CORPORA_FILE, self.make_corpora)]
        if self.own_teacher is None:
            steps.append(Step("a vocabulary", work / "vocab.txt", self.make_vocabulary))
        steps.append(Step("1a: masked examples", work / "examples/manifest.json", self.mask))
        if self.own_teacher is None:
            start = work / "start/config.json"
            steps.append(Step("a teacher's first weights", start, self.make_start))
            trained = work / "teacher/config.json"
            steps.append(Step("training the teacher", trained, self.train_teacher))
        distilled, undistilled = (work / f"{name}/config.json" for name in _STUDENT_LOSSES)
        return [
            *steps,
            Step("1b: the teacher runs once", work / "cache/manifest.json", self.run_teacher),
            Step("2: a student distilled", distilled, lambda: self.train_student("distilled")),
            Step(
                "the same student undistilled",
                undistilled,
                lambda: self.train_student("undistilled"),
            ),
        ]

    def make_corpora(self) -> None:
        """Writes the documents, or where the user's are."""
        if self.own_corpus is None:
            quickstart_text.write_package_corpora(self.work)
        else:
            quickstart_text.write_own_corpus(self.work, self.own_corpus)

    def make_vocabulary(self) -> None:
        """Learns a WordPiece vocabulary from the documents."""
        sources = corpora.load_mixture(str(self.work / quickstart_text.CORPORA_FILE))
        tokens = quickstart_text.train_vocabulary(quickstart_text.read_texts(sources))
        print(f"{len(tokens):,} tokens")
        (self.work / "vocab.txt").write_whole(("\n".join(tokens) + "\n").encode("utf-8"))

    def mask(self) -> None:
        """Stage 1a."""
        run_command(
            "create_pretraining_data",
            corpora=self.work / quickstart_text.CORPORA_FILE,
            vocab_file=self.own_teacher or self.work / "vocab.txt",
            output_dir=self.work / "examples",
            segments="single",
            max_seq_length=_MAX_SEQ_LENGTH,
            doc_stride=_MAX_SEQ_LENGTH - 2,
            max_predictions_per_seq=10,
            dupe_factor=1,
            eval_fraction=0.015,
            num_shards=_NUM_SHARDS,
        )

    def make_start(self) -> None:
        """Writes weights from which a small model learns within minutes."""
        manifest = manifests.load(self.work / "examples")
        config = local_teacher.local_config(manifest, num_hidden_layers=4, hidden_size=192)
        # Longer inputs than those of the examples.
        config = dataclasses.replace(config, max_position_embeddings=128)
        local_teacher.write_start(self.work / "examples", self.work / "start", config, seed=_SEED)

    def train_teacher(self) -> None:
        """Trains the teacher on the true tokens."""
        run_command(
            "run_distill",
            input_dir=self.work / "examples",
            student=self.work / "start",
            output_dir=self.work / "teacher",
            losses="masked_lm=1",
            num_train_steps=_TEACHER_STEPS[self.compute_dtype],
            num_warmup_steps=20,
            train_batch_size=64,
            learning_rate=2e-3,
            save_checkpoints_steps=250,
            max_eval_steps=20,
            compute_dtype=self.compute_dtype,
        )

    def run_teacher(self) -> None:
        """Stage 1b, over the first shard of each split."""
        run_command(
            "create_teacher_output_data",
            input_file=self.work / "examples/*-00000-of-*.tfrecord",
            teacher=self.teacher,
            output_dir=self.work / "cache",
            predict_batch_size=64,
        )

    def train_student(self, name: str) -> None:
        """Stage 2: the same start, data and steps for either student."""
        layers = model_directory.find_model(self.teacher).config.num_hidden_layers
        run_command(
            "run_distill",
            input_dir=self.work / "cache",
            init_from=self.teacher,
            student_layers=max(1, layers // 2),
            output_dir=self.work / name,
            losses=_STUDENT_LOSSES[name],
            tail="bucket",
            num_train_steps=_STUDENT_STEPS,
            train_batch_size=64,
            learning_rate=1e-3 if self.own_teacher is None else 2e-4,
            save_checkpoints_steps=_STUDENT_STEPS // 4,
            max_eval_steps=10_000,
            eval_batch_size=64,
            compute_dtype=self.compute_dtype,
        )


def _quickstart(values: absl_flags.FlagValues) -> None:
    begun = time.monotonic()
    config = flags.read_config(values, QuickstartConfig)
    expect_packages()
    # What the user may have got wrong first: a corrected command may then use the folder.
    if config.teacher is not None:
        model_directory.find_model(config.teacher)
        loading.find_vocab_file(config.teacher)
    if config.corpus is not None:
        find_files(config.corpus)
    run = Quickstart(config.work.expect_local(), config.teacher, config.corpus)
    run.claim()
    steps = run.steps()
    make_steps(steps, begun, num_more=1)
    show_step(len(steps) + 1, len(steps) + 1, "table and page", begun)
    running.import_quietly("tensorflow")
    students = quickstart_report.read_students(run.work)
    report = quickstart_report.measure(run.work, run.teacher, students)
    print(f"\n{quickstart_report.table(report)}\n")
    page = quickstart_report.write(report, students, run.work)
    print(f"page: {page}")
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes; everything is in {run.work}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(QuickstartConfig), _quickstart, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
