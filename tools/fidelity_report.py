"""Compares a finished teacher cache with its teacher, on a sample of its examples.

offline_distill fidelity_report --input_dir=CACHE --teacher=MODEL
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from pipeline.base import hub_id
from pipeline.base.compute_dtype import BFLOAT16, FLOAT32
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.commands.settings import BackendSettings
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.cache_analysis.cache_report import CacheReport


@dataclasses.dataclass(frozen=True)
class FidelityConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    input_dir: Location = setting(
        dataclasses.MISSING, "Teacher cache, from create_teacher_output_data."
    )
    teacher: Location = setting(
        dataclasses.MISSING,
        "The teacher of the cache: a model directory or a model of the hub.",
        hub_files=hub_id.MODEL,
    )
    sample: int = setting(512, "Number of examples to compare.", low=1)
    any_teacher: bool = setting(False, "Whether to accept a teacher other than the cache's.")
    predict_batch_size: int = setting(64, "Examples in a batch of the teacher.", low=1)
    compute_dtype: str = setting(
        FLOAT32, "Precision of the encoder; logits are always float32.", choices=(FLOAT32, BFLOAT16)
    )
    output: Location | None = setting(None, "New JSON file for the report.")


def report_fidelity(config: FidelityConfig) -> tuple["CacheReport", dict[str, Any]]:
    """Compares a cache with a teacher.

    Returns:
        the report; a description of the comparison, with the teacher's checksum and fields of
        the manifest.
    """
    # Importing Keras takes seconds, so it is imported only when it is needed.
    from pipeline.models.formats import model_directory
    from pipeline.storage import cache_input
    from pipeline.storage import manifest as manifests
    from pipeline.teacher import capture
    from pipeline.teacher.settings import TeacherCacheConfig
    from tools.cache_analysis import cache_report

    settings = TeacherCacheConfig(
        output_dir=".", input_dir=config.input_dir, teacher=config.teacher
    )
    source = capture.find_teacher(settings)
    cache = cache_input.open_cache(config.input_dir, None)
    cache_report.expect_comparable(cache)
    source = capture.fit_teacher(settings, source, cache)
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
        **({"state_bits": info.state_bits} if info.holds_states else {}),
        # None for a cache that was merged from caches with different values.
        "cache_compute_dtype": cache.manifest.flags.get("compute_dtype"),
    }
    return report, about


def _lines(report: "CacheReport") -> Iterator[tuple[str, str]]:
    for temperature, summary in report.kl_divergence.items():
        yield (
            f"KL(teacher || cached), T = {temperature}",
            f"mean {summary.mean:.2e}, 99% {summary.p99:.2e}, largest {summary.max:.2e}",
        )
    yield "same top-1 token", f"{report.top1_agreement:.2%}"
    yield "mass in the top-k", f"{report.mass_kept:.3%}"
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
            f"measured at {report.num_positions:,} masked positions of {report.num_examples:,} "
            "examples; divergences in nats, with the tail as a single class",
        ]
    )


def _report(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, FidelityConfig)
    if config.output is not None:
        config.output.expect_absent()
    running.choose_backend(values)
    report, about = report_fidelity(config)
    print(table(report))
    if config.output is not None:
        config.output.write_json({**about, **dataclasses.asdict(report)})
        print(f"report: {config.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(FidelityConfig, BackendSettings), _report, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
