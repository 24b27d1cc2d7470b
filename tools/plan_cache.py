"""Tells, before a teacher cache is made, what each k and codec would keep and cost.

python -m tools.plan_cache --input_dir=EXAMPLES --teacher=MODEL --picture=plan.png

The teacher runs over a sample of the masked examples. Nothing is cached.
"""

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import running
from pipeline.storage.codecs import CODECS
from pipeline.storage.manifest import Manifest
from pipeline.teacher.settings import TeacherCacheConfig
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.cache_analysis.planning import CachePlan, SamplePlans


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What was asked for; fields are named as the flags."""

    input_dir: str
    teacher: str
    sample: int = 256
    truncation_factors: tuple[int, ...] = (16, 32, 64, 128, 256)
    truncation_mass: float | None = None
    logit_encodings: tuple[str, ...] = tuple(CODECS)
    dupe_factors: tuple[int, ...] = (1, 5, 10)
    predict_batch_size: int = 64
    compute_dtype: str = "float32"
    output_dir: str = "."

    def __post_init__(self) -> None:
        unknown = [name for name in self.logit_encodings if name not in CODECS]
        if unknown:
            raise InputError(
                Setting("logit_encodings"), f"some of {','.join(CODECS)}", f"{unknown[0]!r}"
            )

    def stage_1b(self) -> TeacherCacheConfig:
        """Returns what `create_teacher_output_data` would be asked for."""
        return TeacherCacheConfig(
            output_dir=self.output_dir,
            input_dir=self.input_dir,
            teacher=self.teacher,
            truncation_mass=self.truncation_mass,
            compute_dtype=self.compute_dtype,
            predict_batch_size=self.predict_batch_size,
        )


@dataclasses.dataclass(frozen=True)
class CacheCost:
    """What a whole cache takes if the corpus is masked `dupe_factor` times."""

    dupe_factor: int
    bytes: int
    hours: float
    fits: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the table shows.

    Attributes:
        num_examples: in the directory, at its own `dupe_factor`.
        dupe_factor: of the directory.
        teacher: the `sha256` of the teacher.
        compute_dtype: what it ran in.
        free_bytes: of the disk where the cache would go.
        sample: what was measured.
        costs: for each of its plans one for each dupe factor asked for.
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
        for plan, measured, cost in zip(sample["plans"], self.sample.plans, costs, strict=True):
            plan["position_bytes"] = measured.position_bytes
            plan["examples_per_second"] = 1.0 / plan.pop("seconds")
            plan["caches"] = cost
        return {
            **value,
            "sample": {name: sample[name] for name in ("num_examples", "num_positions")},
            "plans": sample["plans"],
        }


def _free_bytes(directory: str) -> int:
    """Returns the free disk where a directory is, or would be made."""
    path = pathlib.Path(directory).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cache_costs(
    plan: "CachePlan", manifest: Manifest, dupe_factors: Sequence[int], free_bytes: int
) -> tuple[CacheCost, ...]:
    """Scales what an example takes to whole caches.

    Args:
        plan: as measured.
        manifest: of the masked examples.
        dupe_factors: how often the corpus would be masked.
        free_bytes: of the disk.
    """
    total = sum(manifest.num_examples(split) for split in manifest.splits)
    costs = []
    for dupe_factor in dupe_factors:
        count = total * dupe_factor / max(1, manifest.dupe_factor)
        size = round(count * plan.example_bytes)
        hours = count * plan.seconds / 3600.0
        costs.append(CacheCost(dupe_factor, size, hours, fits=size <= free_bytes))
    return tuple(costs)


def plan_cache(config: PlanConfig) -> Plan:
    """Measures what caches would keep and cost.

    Args:
        config: what was asked for.

    Raises:
        InputError: the masked examples or the teacher are not as they must be.
    """
    # Keras is imported only now that there is something to compute.
    from pipeline.models.formats import model_directory
    from pipeline.storage import manifest as manifests
    from pipeline.teacher import capture
    from tools.cache_analysis import planning

    stage_1b = config.stage_1b()
    source = capture.find_teacher(stage_1b)
    cache = capture.open_examples(stage_1b, source)
    manifests.verify(cache.directory, cache.manifest, full=False)
    model = model_directory.load_masked_lm(
        source, dtype=config.compute_dtype, logits_dtype="float32"
    )
    sample = planning.measure_plans(
        model,
        cache,
        stage_1b,
        sample=config.sample,
        truncation_factors=sorted(
            {min(k, source.config.vocab_size) for k in config.truncation_factors}
        ),
        logit_encodings=config.logit_encodings,
    )
    free = _free_bytes(config.output_dir)
    return Plan(
        num_examples=sum(map(cache.manifest.num_examples, cache.manifest.splits)),
        dupe_factor=cache.manifest.dupe_factor,
        teacher=source.sha256(),
        compute_dtype=config.compute_dtype,
        free_bytes=free,
        sample=sample,
        costs=tuple(
            cache_costs(plan, cache.manifest, config.dupe_factors, free) for plan in sample.plans
        ),
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000.0
    return f"{count:.3g} TB"


def _cells(plan: "CachePlan", costs: Sequence[CacheCost]) -> Iterator[str]:
    yield plan.logit_encoding
    yield str(plan.truncation_factor)
    yield f"{plan.ids_per_position:.1f}"
    yield f"{plan.mass_kept:.2%}"
    for spread in (plan.kl_dense, plan.kl_bucket, plan.kl_reverse):
        yield f"{spread.mean:.2g}"
        yield f"{spread.max:.2g}"
    yield f"{plan.position_bytes:.1f}"
    for cost in costs:
        yield _size(cost.bytes) + ("" if cost.fits else "!")
        yield f"{cost.hours:.3g}"


def table(plan: Plan) -> str:
    """Returns the table as text."""
    titles = ["encoding", "k", "ids", "mass", "KL", "max", "codec KL", "max", "reverse", "max"]
    titles.append("bytes")
    for cost in plan.costs[0]:
        titles += [f"x{cost.dupe_factor}", "hours"]
    rows = [
        tuple(_cells(one, costs)) for one, costs in zip(plan.sample.plans, plan.costs, strict=True)
    ]
    fastest = max(1.0 / one.seconds for one in plan.sample.plans)
    return "\n".join(
        [
            *aligned_lines(titles, rows),
            "",
            f"of {plan.sample.num_positions:,} masked positions of {plan.sample.num_examples:,} "
            f"of {plan.num_examples:,} examples (dupe_factor {plan.dupe_factor})",
            "KL: teacher to decoded, the tail spread evenly over its tokens; nats",
            "codec KL, reverse: the tail as one class, teacher to decoded and decoded to teacher",
            "bytes: the cache adds at a masked position; xN: the whole cache at dupe_factor N",
            f"hours: of stage 1b here, {fastest:.3g} examples/s at best, {plan.compute_dtype}",
            f"free disk: {_size(plan.free_bytes)}; what does not fit is marked !",
        ]
    )


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = running.FlagTable()
    table.string("input_dir", None, "The masked examples, from create_pretraining_data.")
    table.string("teacher", None, "A model directory: Hugging Face's, or Google's BERT.")
    table.integer("sample", 256, "Examples that the teacher runs over.", low=1)
    table.string("truncation_factors", "16,32,64,128,256", "Values of k.")
    table.number(
        "truncation_mass",
        None,
        "Keep no more tokens at a position than have this mass, such as 0.999; at most k.",
        low=0.0,
        high=1.0,
    )
    table.string("logit_encodings", ",".join(CODECS), "How logits are packed.")
    table.string("dupe_factors", "1,5,10", "How often the corpus would be masked.")
    table.integer("predict_batch_size", 64, "Examples in a batch of the teacher.", low=1)
    table.choice(
        "compute_dtype",
        "float32",
        "What the encoder computes in; logits are float32 in any case.",
        of=["float32", "mixed_bfloat16"],
    )
    table.string(
        "output_dir",
        None,
        "Where the cache would go: its free disk is looked at, nothing is written there. "
        "Without, where --output goes.",
    )
    table.string("output", None, "A new JSON file for what the table says.")
    table.string("picture", None, "A new PNG file: bytes a position against the divergence.")
    table.backend()
    table.require("input_dir", "teacher")
    return table.values


def _config(values: flags.FlagValues) -> PlanConfig:
    settings: Mapping[str, Any] = values.flag_values_dict()
    if values.output_dir:
        Location.parse(values.output_dir, "output_dir").expect_local()
    output = Location.parse(values.output or ".")
    place = output.parent if values.output and output.is_local else "."
    return PlanConfig(
        **{
            **{name: settings[name] for name in PlanConfig.__dataclass_fields__},
            "truncation_factors": running.parse_counts(
                "truncation_factors", values.truncation_factors
            ),
            "logit_encodings": tuple(dict.fromkeys(values.logit_encodings.split(","))),
            "dupe_factors": running.parse_counts("dupe_factors", values.dupe_factors),
            "output_dir": values.output_dir or str(place),
        }
    )


def _plan(values: flags.FlagValues) -> None:
    config = _config(values)
    config.stage_1b()
    for flag in ("output", "picture"):
        if values[flag].value:
            Location.parse(values[flag].value, flag).expect_absent()
    if values.picture:
        from tools import plan_picture

        plan_picture.expect_matplotlib()
    running.choose_backend(values)
    plan = plan_cache(config)
    print(table(plan))
    if values.output:
        Location.parse(values.output, "output").write_json(plan.to_json())
        print(f"plan: {values.output}")
    if values.picture:
        plan_picture.draw(plan.sample.plans, values.picture)
        print(f"picture: {values.picture}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _plan, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
