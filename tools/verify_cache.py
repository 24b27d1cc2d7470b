"""Checks a directory to the last byte, and repairs a teacher cache.

Of the tokenizer, only the vocabulary and the special tokens are checked. Changes to other
settings, for example lower-casing, are not detected.

offline_distill verify_cache --input_dir=CACHE
offline_distill verify_cache --input_dir=CACHE --repair --teacher=MODEL --examples=EXAMPLES
"""

import dataclasses
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import tqdm
from absl import flags as absl_flags

from data_specs import records
from pipeline.base import hub_id
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import Manifest
from tools.verification import directory_checks
from tools.verification.directory_checks import OLD_MANIFEST, TOKENIZER, DirectoryReport, Problems

if TYPE_CHECKING:
    import numpy as np

    from pipeline.models.formats.model_directory import ModelSource
    from pipeline.teacher.capture import Inputs
    from pipeline.teacher.settings import TeacherCacheConfig
    from tools.verification.sample_check import SampleReport

_BACKENDS = ("tensorflow", "jax")
_MAX_LINE = 2_000


@dataclasses.dataclass(frozen=True)
class VerifyConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    input_dir: Location = setting(
        dataclasses.MISSING, "Shard directory of any kind, with its manifest."
    )
    teacher: Location | None = setting(
        None,
        "The teacher of a teacher cache: a model directory or a model of the hub.",
        hub_files=hub_id.MODEL,
    )
    sample_examples: int = setting(
        256, "Requires `teacher`. Number of examples to compare with a run of the teacher.", low=0
    )
    repair: bool = setting(
        False,
        "Requires `teacher` and `examples`. Whether to repair the broken files of a teacher cache.",
    )
    examples: Location | None = setting(
        None, "Requires `repair`. The masked examples that the cache was made from."
    )
    backend: str | None = setting(
        None,
        "Backend of Keras; by default the one that the cache was made with.",
        choices=_BACKENDS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repair and (self.teacher is None or self.examples is None):
            missing = "teacher" if self.teacher is None else "examples"
            raise InputError(Setting("repair"), f"used together with `{missing}`")
        if self.examples is not None and not self.repair:
            raise InputError(Setting("examples"), "used together with `repair`")


class Verification(NamedTuple):
    """The result of a verification.

    Attributes:
        report: on the files.
        num_records: number of records that were read.
        seconds: time of reading them.
        sample: the comparison with the teacher; None without a teacher or if files are broken.
    """

    report: DirectoryReport
    num_records: int
    seconds: float
    sample: "SampleReport | None" = None

    @property
    def problems(self) -> Problems:
        """The problems of all checks, by the name of the file."""
        return self.report.problems | ({} if self.sample is None else self.sample.problems)


class Teacher(NamedTuple):
    """The teacher of a cache.

    Attributes:
        source: the model.
        config: the settings that the cache was made with.
        inputs: the inputs of a repair; None without one.
    """

    source: "ModelSource"
    config: "TeacherCacheConfig"
    inputs: "Inputs | None"


def load_manifest(directory: Location) -> Manifest:
    """Loads a directory's manifest.

    Raises:
        InputError: the manifest is missing or damaged; the hint states how to restore it.
    """
    try:
        return manifests.load(directory)
    except InputError as error:
        if not (directory / manifests.MANIFEST_FILE).is_file():
            # The error about an unfinished directory has its own hint.
            raise
        try:
            kind = (directory / manifests.RUN_CONFIG_FILE).read_json().get("kind")
        except InputError:
            raise error from None
        error.hint = _publish_again(manifests.MAKERS.get(str(kind), "the command that made it"))
        raise


def check_tokenizer(
    directory: Location, manifest: Manifest
) -> tuple[list[str], "np.ndarray | None"]:
    """Checks a directory's tokenizer.

    Returns:
        the problems of its files; its special tokens, bool [V], or None if it cannot be read.
    """
    from pipeline.storage import cache_tokenizer

    if manifest.kind == records.TASK_LOGITS:
        return [], None
    problems = [
        f"{name} is missing"
        for name in manifest.tokenizer_files
        if not (directory / name).is_file()
    ]
    try:
        tokenizer = cache_tokenizer.load_cache_tokenizer(CacheInput(directory, manifest))
    except InputError as error:
        return [*problems, directory_checks.problem_text(error)], None
    received = dict(tokenizer.special_ids)
    if received != dict(manifest.special_ids):
        problems.append(f"expected special_ids {dict(manifest.special_ids)}, received {received}")
    return problems, tokenizer.is_special()


def verify_directory(directory: Location, manifest: Manifest) -> Verification:
    """Runs all checks that need no teacher."""
    problems, is_special = check_tokenizer(directory, manifest)
    begun = time.perf_counter()
    total = directory_checks.total_records(directory, manifest)
    with tqdm.tqdm(total=total, unit=" examples", desc="verify", smoothing=0.1) as bar:
        report = directory_checks.check_directory(
            directory, manifest, is_special, on_records=bar.update
        )
        num_records = bar.n
    if problems:
        report = report._replace(problems={TOKENIZER: problems, **report.problems})
    return Verification(report, num_records, time.perf_counter() - begun)


def open_teacher(config: VerifyConfig, manifest: Manifest) -> Teacher:
    """Finds the teacher of a cache, and the masked examples for a repair."""
    from pipeline.teacher import capture
    from tools.verification import repair

    recorded = repair.recorded_config(
        config.input_dir, manifest, teacher=config.teacher, examples=config.examples
    )
    source = capture.find_teacher(recorded)
    repair.expect_recorded_teacher(config.input_dir, manifest, source)
    inputs = repair.open_inputs(recorded, manifest, source) if config.repair else None
    source = capture.fit_teacher(recorded, source, CacheInput(config.input_dir, manifest))
    return Teacher(source, recorded, inputs)


def verify_with_teacher(
    config: VerifyConfig, manifest: Manifest, teacher: Teacher | None
) -> Verification:
    """Checks a directory and, if it is valid, compares a sample of it with its teacher."""
    verification = verify_directory(config.input_dir, manifest)
    if teacher is None or verification.problems or not config.sample_examples:
        return verification
    from pipeline.models.formats import model_directory
    from tools.verification import sample_check

    model = model_directory.load_masked_lm(
        teacher.source, dtype=teacher.config.compute_dtype, logits_dtype="float32"
    )
    sample = sample_check.check_sample(
        model,
        CacheInput(config.input_dir, manifest),
        size=config.sample_examples,
        batch_size=teacher.config.predict_batch_size,
        compute_dtype=teacher.config.compute_dtype,
    )
    return verification._replace(sample=sample)


def _lines(manifest: Manifest, verification: Verification) -> Iterator[str]:
    """Yields the report on a directory without problems."""
    size = sum(shard.bytes for shard in manifest.shards)
    yield f"manifest   {manifest.kind}; run configuration, flags and sizes agree"
    if manifest.tokenizer_files:
        names = ", ".join(manifest.tokenizer_files)
        yield f"tokenizer  {names}; {manifest.vocab.size:,} tokens and special tokens as recorded"
    yield (
        f"shards     {len(manifest.shards):,} of {size:,} bytes; size, SHA-256, framing and "
        "sidecar of each as recorded"
    )
    num_records, seconds = verification.num_records, verification.seconds
    yield (
        f"records    {num_records:,} in {seconds:.1f} s "
        f"({num_records / max(seconds, 1e-9):,.0f} a second); {_checked(manifest)}"
    )
    if verification.report.shared_texts is not None:
        yield f"splits     {_shared(manifest, verification.report)}"
    if (sample := verification.sample) is not None:
        largest = ", ".join(f"{name} {value:.1e}" for name, value in sample.largest.items())
        yield (
            f"sample     {sample.num_examples:,} examples, {sample.num_positions:,} positions "
            f"agree with the teacher; largest differences of log-probabilities: {largest}"
        )


def _shared(manifest: Manifest, report: DirectoryReport) -> str:
    """Returns text on the eval examples whose text is also in the train split."""
    if not report.shared_texts:
        return "share no example and no text"
    share = f"{report.shared_texts:,} of {manifest.num_examples(manifests.EVAL):,} eval examples"
    reason = "short windows of different documents may be equal"
    return f"share no example; {share} have the text of a train example ({reason})"


def _checked(manifest: Manifest) -> str:
    """Returns text that names the checks of each record."""
    if manifest.kind == records.TASK_LOGITS:
        return "features and logits are valid"
    names = ["features", "lengths", "ids", "order"]
    names.append("words" if manifest.kind == records.UNMASKED_WINDOWS else "masks")
    if (info := manifest.teacher_info) is not None:
        names += ["head states"] if info.holds_states else ["top-k", "tails"]
        names.append("labels")
        if info.hidden_groups:
            names.append("hidden states")
        if manifest.teacher_info.embedding is not None:
            names.append("embeddings")
    return f"{', '.join(names[:-1])} and {names[-1]} are valid"


def _publish_again(maker: str) -> str:
    return (
        f"move {manifests.MANIFEST_FILE} out of the directory, then re-run {maker} with the same "
        "settings to write the manifest again"
    )


def _remedy(manifest: Manifest, problems: Problems) -> str:
    """Returns a hint on the repair of problems."""
    maker = manifest.maker()
    if manifests.MANIFEST_FILE in problems:
        return _publish_again(maker)
    if maker == manifests.MAKERS[records.TEACHER_CACHE]:
        return "set `repair`, `teacher` and `examples` to make only the broken files again"
    return manifests.describe_remaking(manifest)


def _repair(
    config: VerifyConfig, manifest: Manifest, teacher: Teacher, problems: Problems
) -> tuple[Manifest, Verification]:
    """Repairs a directory and verifies it again."""
    if manifests.MANIFEST_FILE in problems:
        expected = f"used with a valid {manifests.MANIFEST_FILE}"
        hint = _remedy(manifest, problems)
        raise InputError(Setting("repair"), expected, config.input_dir, hint)
    from tools.verification import repair

    for line in repair.repair(teacher.inputs, manifest, problems):
        print(line, flush=True)
    manifest = load_manifest(config.input_dir)
    return manifest, verify_with_teacher(config, manifest, teacher)


def _print_problems(problems: Problems) -> None:
    for file, texts in problems.items():
        line = " ".join(f"{file}: {'; '.join(texts)}".split())
        print(textwrap.shorten(line, _MAX_LINE, placeholder=" …"), flush=True)


def _verify(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, VerifyConfig)
    # Text from a damaged file may have characters that the terminal's encoding lacks.
    sys.stdout.reconfigure(errors="backslashreplace")
    directory, teacher = config.input_dir, None
    is_unfinished = config.repair and not (directory / manifests.MANIFEST_FILE).is_file()
    if is_unfinished and (directory / OLD_MANIFEST).is_file():
        # An interrupted repair has left the old manifest.
        manifest = manifests.load(directory, OLD_MANIFEST)
    else:
        manifest = load_manifest(directory)
    if config.teacher is not None:
        if manifest.kind != records.TEACHER_CACHE:
            subject = Setting("repair" if config.repair else "teacher")
            received = f"{directory}, which holds {manifest.kind}"
            hint = "leave out `teacher`, because only a teacher cache has teacher targets"
            if config.repair:
                hint = _remedy(manifest, {})
            raise InputError(subject, f"used with a {records.TEACHER_CACHE}", received, hint)
        if values.backend is None:
            recorded = manifest.flags.get("backend")
            values.backend = recorded if recorded in _BACKENDS else _BACKENDS[0]
        running.choose_backend(values)
        teacher = open_teacher(config, manifest)
    if is_unfinished:
        manifest, verification = _repair(config, manifest, teacher, {})
    else:
        verification = verify_with_teacher(config, manifest, teacher)
        if verification.problems and config.repair:
            _print_problems(verification.problems)
            manifest, verification = _repair(config, manifest, teacher, verification.problems)
    problems = verification.problems
    _print_problems(problems)
    if problems:
        files = "1 file is" if len(problems) == 1 else f"{len(problems):,} files are"
        received = f"{files} broken ({', '.join(problems)})"
        raise InputError(directory, received=received, hint=_remedy(manifest, problems))
    print("\n".join(_lines(manifest, verification)))
    print(f"no problems found: {directory}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(VerifyConfig), _verify, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
