"""Bytes of a masked position, and what they tell, against lists of int64 and float."""

from collections.abc import Iterator

from data_specs import records
from pipeline.base import compute_dtype
from pipeline.models.formats import model_directory
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs import CODECS
from pipeline.teacher.settings import TeacherCacheConfig
from tools.cache_analysis import planning
from tools.cache_analysis.planning import CachePlan
from tools.dev.benchmarks import ancestor_layout, record_rows
from tools.dev.benchmarks.inputs import Inputs
from tools.dev.benchmarks.measurement import Row

_SAMPLE = 192
_MASS = 0.999
_TOPK = (records.TOPK_IDS, records.TOPK_LOGITS)
# Targets: bytes of a position, and the codec's divergence in nats.
_MOST_BYTES = {"float16": 535.0, "uint8": None, "compact": 280.0}
_MOST_NATS = 2e-5


def _ancestor_bytes(cache: CacheInput) -> float:
    """Returns what the top-k of a masked position takes in lists."""
    sizes = positions = 0
    for one in record_rows.padded_examples(cache, _SAMPLE):
        count = int(one[records.MASKED_LM_WEIGHTS].sum())
        real = {**one, **{name: one[name][:count] for name in _TOPK}}
        none = {**one, **{name: one[name][:0] for name in _TOPK}}
        sizes += len(ancestor_layout.serialize(real)) - len(ancestor_layout.serialize(none))
        positions += count
    return sizes / positions


def _measure(inputs: Inputs, mass: float | None, encodings: list[str]) -> list[CachePlan]:
    source = model_directory.find_model(inputs.teacher)
    model = model_directory.load_masked_lm(
        source, dtype=compute_dtype.FLOAT32, logits_dtype="float32"
    )
    config = TeacherCacheConfig(output_dir="", input_dir="", teacher="", truncation_mass=mass)
    return list(
        planning.measure_plans(
            model,
            inputs.examples(mixed=False),
            config,
            sample=_SAMPLE,
            truncation_factors=[inputs.truncation_factor],
            logit_encodings=encodings,
        ).plans
    )


def rows(inputs: Inputs) -> Iterator[Row]:
    """Yields the bytes of each codec and its divergence from the exact top-k."""
    lists = _ancestor_bytes(inputs.cache(mixed=False))
    for plan in _measure(inputs, None, list(CODECS)):
        name = plan.logit_encoding
        yield Row(
            name=f"cache, {name}, k={plan.truncation_factor}",
            unit="bytes a position",
            ours=plan.position_bytes,
            against="lists of int64 and float",
            baseline=lists,
            ratio=lists / plan.position_bytes,
            most=_MOST_BYTES[name],
            note="tails and the label's probability included in ours",
        )
        yield Row(
            name=f"cache, {name}: KL(decoded || exact top-k)",
            unit="nats",
            ours=plan.kl_reverse.mean,
            most=_MOST_NATS,
            note=f"the largest {plan.kl_reverse.max:.1e}",
        )
    for plan in _measure(inputs, _MASS, ["float16", "compact"]):
        yield Row(
            name=f"cache, {plan.logit_encoding}, --truncation_mass={_MASS:g}",
            unit="bytes a position",
            ours=plan.position_bytes,
            against="lists of int64 and float",
            baseline=lists,
            ratio=lists / plan.position_bytes,
            note=f"{plan.ids_per_position:.1f} ids a position, at most {plan.truncation_factor}",
        )
