"""Estimates the size, time and fidelity of teacher caches before the teacher runs.

offline_distill plan_cache --input_dir=EXAMPLES --teacher=MODEL --html=plan.html

The teacher runs over a sample of the masked examples. Nothing is cached.
"""

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from data_specs.records import POOLINGS
from pipeline.base import hub_id
from pipeline.base.compute_dtype import BFLOAT16, FLOAT32
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_counts, parse_numbers, parse_words, setting
from pipeline.commands import flags, running
from pipeline.commands.settings import BackendSettings
from pipeline.storage import topk_mass
from pipeline.storage.codecs import ENCODINGS, HIDDEN_CODECS
from pipeline.storage.manifest import Manifest
from pipeline.teacher.settings import TeacherCacheConfig, expect_ascending_from_1
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.cache_analysis.planning import CachePlan, SamplePlans
    from tools.report.page import Note, Table


@dataclasses.dataclass(frozen=True)
class PlanConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    input_dir: Location = setting(
        dataclasses.MISSING, "Shard directory of masked examples, from create_pretraining_data."
    )
    teacher: Location = setting(
        dataclasses.MISSING,
        "The teacher: a model directory in Hugging Face's or Google's BERT layout, or a model of "
        "the hub.",
        hub_files=hub_id.MODEL,
    )
    sample: int = setting(256, "Number of examples that the teacher runs over.", low=1)
    truncation_factors: tuple[int, ...] = setting(
        (16, 32, 64, 128, 256),
        "Values of k, the number of tokens stored at a masked position, separated by commas.",
        parse=parse_counts,
    )
    truncation_mass: float | None = setting(
        None,
        "Plans caches that store a position's most probable tokens until their probabilities sum "
        "to this value, at most k; for example 0.999.",
        low=0.0,
        high=1.0,
    )
    logit_encodings: tuple[str, ...] = setting(
        tuple(ENCODINGS),
        "Codecs of the teacher's distribution.",
        choices=tuple(ENCODINGS),
        parse=parse_words,
    )
    temperatures: tuple[float, ...] = setting(
        (1.0, 2.0, 4.0, 8.0),
        "Temperatures of distillation at which the mass in the top-k and the divergence are "
        "measured, ascending from 1.",
        parse=parse_numbers,
    )
    dupe_factors: tuple[int, ...] = setting(
        (1, 5, 10), "Numbers of masked copies of the corpus.", parse=parse_counts
    )
    cache_hidden_states: str | None = setting(
        None,
        "Groups of teacher layers whose mean hidden states the planned caches store; for example "
        "1-6,7-12.",
    )
    hidden_encoding: str = setting(
        "float16", "Codec of the hidden states.", choices=tuple(HIDDEN_CODECS)
    )
    cache_embedding: str | None = setting(
        None, "Pooling of the embeddings that the planned caches store.", choices=POOLINGS
    )
    predict_batch_size: int = setting(64, "Examples in a batch of the teacher.", low=1)
    compute_dtype: str = setting(
        FLOAT32, "Precision of the encoder; logits are always float32.", choices=(FLOAT32, BFLOAT16)
    )
    output_dir: Location | None = setting(
        None,
        "Planned directory of the cache, to report its free disk space. Nothing is written to it. "
        "By default the directory of `output`.",
    )
    output: Location | None = setting(None, "New JSON file for the table.")
    html: Location | None = setting(
        None, "New HTML file: charts of the divergence against the bytes of a position."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "logit_encodings", tuple(dict.fromkeys(self.logit_encodings)))
        expect_ascending_from_1("temperatures", self.temperatures)
        if self.output_dir is None:
            is_local = self.output is not None and self.output.is_local
            directory = self.output.parent if is_local else Location.parse(".")
            object.__setattr__(self, "output_dir", directory)
        self.output_dir.expect_local()

    def capture_config(self) -> TeacherCacheConfig:
        """Returns the settings of `create_teacher_output_data` for the planned cache."""
        return TeacherCacheConfig(
            output_dir=self.output_dir,
            input_dir=self.input_dir,
            teacher=self.teacher,
            truncation_mass=self.truncation_mass,
            cache_hidden_states=self.cache_hidden_states,
            hidden_encoding=self.hidden_encoding,
            cache_embedding=self.cache_embedding,
            compute_dtype=self.compute_dtype,
            predict_batch_size=self.predict_batch_size,
        )


@dataclasses.dataclass(frozen=True)
class CacheCost:
    """Size and time of a whole cache if the corpus is masked `dupe_factor` times."""

    dupe_factor: int
    bytes: int
    hours: float
    fits: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """The contents of the table.

    Attributes:
        num_examples: of the masked examples, at their `dupe_factor`.
        dupe_factor: of the masked examples.
        teacher: the `sha256` of the teacher.
        compute_dtype: of the teacher's forward pass.
        free_bytes: free disk space at the planned directory.
        sample: the measurements.
        costs: for each plan of the sample, the cost at each requested dupe factor.
    """

    num_examples: int
    dupe_factor: int
    teacher: str
    compute_dtype: str
    free_bytes: int
    sample: "SamplePlans"
    costs: tuple[tuple[CacheCost, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `--output` holds."""
        value = dataclasses.asdict(self)
        sample, costs = value.pop("sample"), value.pop("costs")
        plans = sample.pop("plans")
        for plan, measured, cost in zip(plans, self.sample.plans, costs, strict=True):
            plan["position_bytes"] = measured.position_bytes
            plan["examples_per_second"] = 1.0 / plan.pop("seconds")
            plan["caches"] = cost
        return {**value, "sample": sample, "plans": plans}


def _free_bytes(directory: Location) -> int:
    """Returns the free disk space at a directory, which need not exist."""
    path = pathlib.Path(directory).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cache_costs(
    plan: "CachePlan", manifest: Manifest, dupe_factors: Sequence[int], free_bytes: int
) -> tuple[CacheCost, ...]:
    """Scales the size and time of an example to whole caches."""
    total = sum(map(manifest.num_examples, manifest.splits))
    costs = []
    for dupe_factor in dupe_factors:
        count = total * dupe_factor / max(1, manifest.dupe_factor)
        size = round(count * plan.example_bytes)
        hours = count * plan.seconds / 3600.0
        costs.append(CacheCost(dupe_factor, size, hours, fits=size <= free_bytes))
    return tuple(costs)


def plan_cache(config: PlanConfig) -> Plan:
    """Measures fidelity, size and time of caches."""
    # Importing Keras takes seconds, so it is imported only when it is needed.
    from pipeline.models.formats import model_directory
    from pipeline.storage import manifest as manifests
    from pipeline.teacher import capture
    from tools.cache_analysis import planning

    settings = config.capture_config()
    source = capture.find_teacher(settings)
    source.print_unused()
    cache, source = capture.open_examples(settings, source)
    manifests.verify(cache.directory, cache.manifest, full=False)
    model = model_directory.load_masked_lm(
        source, dtype=config.compute_dtype, logits_dtype="float32"
    )
    factors = sorted({min(k, source.config.vocab_size) for k in config.truncation_factors})
    sample = planning.measure_plans(
        model,
        cache,
        settings,
        sample=config.sample,
        truncation_factors=factors,
        logit_encodings=config.logit_encodings,
        temperatures=config.temperatures,
    )
    free, manifest = _free_bytes(config.output_dir), cache.manifest
    costs = [cache_costs(plan, manifest, config.dupe_factors, free) for plan in sample.plans]
    return Plan(
        num_examples=sum(map(manifest.num_examples, manifest.splits)),
        dupe_factor=manifest.dupe_factor,
        teacher=source.sha256(),
        compute_dtype=config.compute_dtype,
        free_bytes=free,
        sample=sample,
        costs=tuple(costs),
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000.0
    return f"{count:.3g} TB"


def _name(plan: "CachePlan") -> tuple[str, str]:
    """Returns the columns that identify a plan."""
    if plan.state_bits is None:
        return plan.logit_encoding, str(plan.truncation_factor)
    return f"{plan.logit_encoding}, {plan.state_bits} bits", "all"


def _duration(seconds: float) -> str:
    """Returns a time in a readable unit, for example 1.26 s, 12.3 min or 4.5 h."""
    for unit, size in (("s", 60.0), ("min", 60.0)):
        if seconds < 0.9995 * size:
            return f"{seconds:.3g} {unit}"
        seconds /= size
    return f"{seconds:,.3g} h" if seconds < 999.5 else f"{seconds:,.0f} h"


def _fit_table(plans: Sequence["CachePlan"]) -> list[str]:
    """Returns a table of the mass and the divergence at each temperature; the first one is 1."""
    titles = []
    for temperature in plans[0].temperatures:
        titles += [f"mass, T = {temperature}", "KL"]
    titles = ["encoding", "k", *titles[:2], "max", *titles[2:]]
    rows = []
    for plan in plans:
        cells = []
        for fit in plan.temperatures.values():
            cells += [f"{fit.mass_kept:.2%}", f"{fit.kl.mean:.2g}"]
        rows.append([*_name(plan), *cells[:2], f"{plan.kl_dense.max:.2g}", *cells[2:]])
    return aligned_lines(titles, rows)


def _mass_warnings(plans: Sequence["CachePlan"]) -> Iterator[str]:
    """Yields a line for each temperature at which the longest lists hold too little mass."""
    longest = max(
        (plan for plan in plans if plan.state_bits is None),
        key=lambda plan: plan.truncation_factor,
        default=None,
    )
    if longest is not None:
        for temperature, fit in longest.temperatures.items():
            if fit.mass_kept < topk_mass.MIN_MASS:
                yield topk_mass.warning(temperature, fit.mass_kept, longest.truncation_factor)


def _cost_cells(costs: Sequence[CacheCost]) -> list[str]:
    """Returns the size and the time of a whole cache at each dupe factor."""
    cells = []
    for cost in costs:
        cells += [_size(cost.bytes) + ("" if cost.fits else "!"), _duration(3600.0 * cost.hours)]
    return cells


def _cost_titles(costs: Sequence[CacheCost]) -> list[str]:
    return [title for cost in costs for title in (f"x{cost.dupe_factor}", "time")]


def _cost_table(plan: Plan) -> list[str]:
    """Returns a table of the codecs' errors, sizes and times."""
    titles = ["encoding", "k", "ids", "bytes", "codec KL", "reverse", *_cost_titles(plan.costs[0])]
    rows = []
    for measured, costs in zip(plan.sample.plans, plan.costs, strict=True):
        row = [*_name(measured), f"{measured.ids_per_position:.1f}"]
        row.append(f"{measured.position_bytes:.1f}")
        row += [f"{spread.mean:.2g}" for spread in (measured.kl_bucket, measured.kl_reverse)]
        rows.append([*row, *_cost_cells(costs)])
    return aligned_lines(titles, rows)


def _cost_note(plan: Plan) -> str:
    fastest = max(1.0 / measured.seconds for measured in plan.sample.plans)
    return (
        f"Time: duration of capture on this machine, at most {fastest:.3g} examples/s, "
        f"{plan.compute_dtype}"
    )


def _disk_note(plan: Plan) -> str:
    return f"Free disk: {_size(plan.free_bytes)}; larger caches are marked !"


def table(plan: Plan) -> str:
    """Returns the tables as text."""
    sample = plan.sample
    return "\n".join(
        [
            *_fit_table(sample.plans),
            "",
            f"measured at {sample.num_positions:,} masked positions of "
            f"{sample.num_examples:,} of {plan.num_examples:,} examples (dupe_factor "
            f"{plan.dupe_factor})",
            "mass: the teacher's probability mass on the stored ids, at temperature T",
            "KL: mean KL(teacher || decoded) in nats, without T², with the tail's mass spread "
            "evenly over the tokens that are not stored",
            "max: the largest KL of a position at T = 1",
            *_mass_warnings(sample.plans),
            *sample.labels.describe(),
            "",
            *_cost_table(plan),
            "",
            "ids, bytes: mean number of stored token ids and of bytes at a masked position",
            "codec KL, reverse: KL(teacher || decoded) and KL(decoded || teacher) at T = 1, with "
            "the tail as a single class",
            "xN: size of the whole cache at dupe_factor N",
            _cost_note(plan),
            _disk_note(plan),
        ]
    )


def _page_costs(plan: Plan) -> Iterator["Table | Note"]:
    """Yields the table of sizes and times of whole caches, and its notes."""
    from tools.report import page

    rows = [
        [*_name(measured), *_cost_cells(costs)]
        for measured, costs in zip(plan.sample.plans, plan.costs, strict=True)
    ]
    yield page.Table(["encoding", "k", *_cost_titles(plan.costs[0])], rows)
    yield page.Note(f"xN: size of the whole cache at dupe_factor N. {_cost_note(plan)}.")
    yield page.Note(f"{_disk_note(plan)}.")


def html_page(plan: Plan) -> str:
    """Returns the page: fidelity at each temperature, and the sizes and times of caches."""
    from tools.report import caches, inputs, page

    sample = plan.sample
    lead = (
        f"Measured at {sample.num_positions:,} masked positions of {sample.num_examples:,} of "
        f"{plan.num_examples:,} examples. The teacher's forward pass is {plan.compute_dtype}."
    )
    labels = page.Note(
        f"Teacher: {sample.labels.figures()}; {sample.labels.baselines()}.",
        " ".join(("Warning:", *warning)) if (warning := list(sample.labels.warning())) else "",
    )
    contents = [labels, *caches.plan_contents(inputs.planned_caches(plan.to_json()))]
    contents += [page.Note("", line) for line in _mass_warnings(sample.plans)]
    sections = [
        page.Section("Divergence against size", contents),
        page.Section("Size and time of the whole cache", list(_page_costs(plan))),
    ]
    return page.report_page("Plan of a teacher cache", lead, sections)


def _plan(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, PlanConfig)
    config.capture_config()
    for location in (config.output, config.html):
        if location is not None:
            location.expect_absent()
    if config.html is not None:
        from tools.report import page

        page.expect_packages()
    running.choose_backend(values)
    plan = plan_cache(config)
    print(table(plan))
    if config.output is not None:
        config.output.write_json(plan.to_json())
        print(f"plan: {config.output}")
    if config.html is not None:
        config.html.write_whole(html_page(plan).encode("utf-8"))
        print(f"page: {config.html}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(PlanConfig, BackendSettings), _plan, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
