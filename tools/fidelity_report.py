"""Compares a finished teacher cache with its teacher, on a sample of its examples.

python -m tools.fidelity_report --input_dir=CACHE --teacher=MODEL
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from pipeline.base.location import Location
from pipeline.commands import running
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.cache_analysis.cache_report import CacheReport


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What was asked for; fields are named as the flags."""

    input_dir: str
    teacher: str
    sample: int = 512
    any_teacher: bool = False
    predict_batch_size: int = 64
    compute_dtype: str = "float32"


def report_fidelity(config: ReportConfig) -> tuple["CacheReport", dict[str, Any]]:
    """Measures how true a cache is to a teacher.

    Args:
        config: what was asked for.

    Returns:
        the report, and what it is of: the teacher's checksum, and what the cache
        says of itself.

    Raises:
        InputError: the cache or the teacher is not as it must be, or they do not
            belong together.
    """
    # Keras is imported only now that there is something to compute.
    from pipeline.models.formats import model_directory
    from pipeline.storage import cache_input
    from pipeline.storage import manifest as manifests
    from pipeline.teacher import capture
    from pipeline.teacher.settings import TeacherCacheConfig
    from tools.cache_analysis import cache_report

    named = TeacherCacheConfig(output_dir="", input_dir=config.input_dir, teacher=config.teacher)
    source = capture.find_teacher(named)
    cache = cache_input.open_cache(config.input_dir, None)
    cache_report.expect_comparable(cache)
    capture.expect_fitting(named, source, cache)
    sha256 = source.sha256()
    if not config.any_teacher:
        cache_report.expect_teacher(cache, sha256)
    manifests.verify(cache.directory, cache.manifest, full=False)
    model = model_directory.load_masked_lm(
        source, dtype=config.compute_dtype, logits_dtype="float32"
    )
    report = cache_report.measure_cache(
        model, cache, sample=config.sample, batch_size=config.predict_batch_size
    )
    info = cache.manifest.teacher_info
    about = {
        "teacher": sha256,
        "compute_dtype": config.compute_dtype,
        "truncation_factor": info.truncation_factor,
        "logit_encoding": info.logit_encoding,
        # None of caches that were merged and differ in it.
        "cache_compute_dtype": cache.manifest.flags.get("compute_dtype"),
    }
    return report, about


def _lines(report: "CacheReport") -> Iterator[tuple[str, str]]:
    for temperature, summary in report.kl_divergence.items():
        yield (
            f"KL(teacher || cached), T = {temperature}",
            f"mean {summary.mean:.2e}, 99% {summary.p99:.2e}, largest {summary.max:.2e}",
        )
    yield "same first guess", f"{report.top1_agreement:.2%}"
    yield "mass kept", f"{report.mass_kept:.3%}"
    yield "largest error, log-probability in the top-k", f"{report.topk_error:.2e}"
    yield "largest error, log of the tail", f"{report.tail_error:.2e}"
    yield "largest error, label's log-probability", f"{report.label_error:.2e}"
    yield (
        "teacher's calibration error",
        f"{report.calibration_error:.4f}, from the cache {report.cached_calibration_error:.4f}",
    )
    for group, hidden in report.hidden.items():
        yield (
            f"hidden states, layers {group}",
            f"largest error {hidden.largest_error:.2e}, "
            f"cosine {hidden.cosine_mean:.6f}, smallest {hidden.cosine_min:.6f}",
        )


def table(report: "CacheReport") -> str:
    """Returns the report as text."""
    lines = list(_lines(report))
    width = max(len(name) for name, _ in lines)
    sizes = [(name, f"{size:,.1f}") for name, size in report.bytes_per_position.items()]
    sizes.append(("all", f"{sum(report.bytes_per_position.values()):,.1f}"))
    return "\n".join(
        [
            *(f"{name:<{width}}  {value}" for name, value in lines),
            "",
            *aligned_lines(("feature", "bytes a position"), sizes),
            "",
            f"of {report.num_positions:,} masked positions of {report.num_examples:,} examples; "
            "the tail is one class; nats",
        ]
    )


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = running.FlagTable()
    table.string("input_dir", None, "The teacher cache, from create_teacher_output_data.")
    table.string("teacher", None, "The model directory that it was made with.")
    table.integer("sample", 512, "Examples that are compared.", low=1)
    table.boolean("any_teacher", False, "Compare with a teacher that is not the cache's, too.")
    table.integer("predict_batch_size", 64, "Examples in a batch of the teacher.", low=1)
    table.choice(
        "compute_dtype",
        "float32",
        "What the encoder computes in; logits are float32 in any case.",
        of=["float32", "mixed_bfloat16"],
    )
    table.string("output", None, "A new JSON file for what the report says.")
    table.backend()
    table.require("input_dir", "teacher")
    return table.values


def _report(values: flags.FlagValues) -> None:
    if values.output:
        Location.parse(values.output, "output").expect_absent()
    settings = values.flag_values_dict()
    names = ReportConfig.__dataclass_fields__
    running.choose_backend(values)
    report, about = report_fidelity(ReportConfig(**{name: settings[name] for name in names}))
    print(table(report))
    if values.output:
        Location.parse(values.output, "output").write_json({**about, **dataclasses.asdict(report)})
        print(f"report: {values.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _report, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
