"""The share of the teacher's probability mass in a cached top-k, at a temperature.

A higher temperature flattens the distribution: a top-k that holds nearly all of the mass at
temperature 1 may hold little of it at 8. The mass is exact at the cached temperatures. At a
higher temperature it is an upper bound, which assumes that each tail token is as probable as the
last token of the top-k. Let T be the cached temperature and T' ≥ T the higher one. The map
w ↦ w^(T/T') is concave, so few large weights give the smallest tail.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.base.errors import InputError, show_settings
from pipeline.base.location import Location
from pipeline.storage import cache_input
from pipeline.storage.codecs.base import NO_ID_LOGIT
from pipeline.storage.manifest import EVAL, SAMPLED, Manifest
from pipeline.storage.records import TeacherTargets, read_examples

# Share of the teacher's mass below which a top-k is a poor target.
MIN_MASS = 0.5
# Number of examples from which the mean mass is estimated.
_NUM_EXAMPLES = 256
_ALTERNATIVE = "create_teacher_output_data `logit_encoding`=states"


def masses(targets: TeacherTargets, temperature: float) -> np.ndarray:
    """Returns the mass of the ids at a temperature, or an upper bound of it, float64 [P]."""
    lower = [cached for cached in targets.temperatures if cached <= temperature]
    nearest = max(lower, default=targets.temperatures[0])
    log_tails = np.minimum(targets.log_tails(nearest).astype(np.float64), 0.0)
    if nearest == temperature or not lower:
        return -np.expm1(log_tails)
    logits = targets.logits.astype(np.float64)
    present = logits > NO_ID_LOGIT / 2
    inside = np.where(present, np.exp(logits / temperature), 0.0).sum(axis=-1)
    # Weights are relative to the largest logit, at the nearest cached temperature.
    inside_nearest = np.where(present, np.exp(logits / nearest), 0.0).sum(axis=-1)
    with np.errstate(divide="ignore", over="ignore"):
        tail = inside_nearest * np.exp(log_tails) / -np.expm1(log_tails)
    last = np.where(present, logits, np.inf).min(axis=-1)
    # The tail as tokens of the last id's weight, at the requested temperature.
    outside = tail * np.exp(last / temperature - last / nearest)
    return inside / (inside + outside)


@dataclasses.dataclass(frozen=True)
class TopKFit:
    """The fit of a cache's top-k to the teacher's distribution at a temperature.

    Attributes:
        mass: mean mass of the top-k; an upper bound if the temperature is not cached.
        divergence: mean KL(top-k ‖ teacher) in nats, after the top-k is rescaled to sum to 1.
            It equals −log of the mass.
    """

    mass: float
    divergence: float


def measure(
    directory: Location, manifest: Manifest, temperatures: Sequence[float]
) -> dict[float, TopKFit]:
    """Returns the fit of the top-k at each temperature, from the first examples of a shard.

    The result is empty for a cache without a top-k or without examples.

    Raises:
        InputError: the shard is damaged.
    """
    info = manifest.teacher_info
    if info.holds_states or info.truncation == SAMPLED:
        return {}
    shards = sorted(manifest.splits.get(EVAL) or manifest.shards, key=lambda shard: shard.file)
    shard = next((shard for shard in shards if shard.num_examples), None)
    if shard is None or not temperatures:
        return {}
    codec = cache_input.open_codec(directory, manifest)
    examples = itertools.islice(read_examples(directory / shard.file, manifest), _NUM_EXAMPLES)
    try:
        targets = TeacherTargets.join(
            [TeacherTargets.from_features(example.features, codec, info) for example in examples]
        )
    except (KeyError, ValueError) as error:
        received, hint = f"broken record: {error}", "run offline_distill verify_cache"
        raise InputError(directory / shard.file, received=received, hint=hint) from error
    if not len(targets.ids):
        return {}
    fits = {}
    for temperature in temperatures:
        mass = masses(targets, temperature)
        divergence = -np.log(np.maximum(mass, np.finfo(np.float64).tiny))
        fits[temperature] = TopKFit(float(mass.mean()), float(divergence.mean()))
    return fits


def warning(temperature: float | str, mass: float, k: int) -> str:
    """Returns a line on a temperature at which a top-k holds less than `MIN_MASS` of the mass."""
    alternative = show_settings(_ALTERNATIVE, str)
    return (
        f"warning: at temperature {float(temperature):g} the top {k} hold {mass:.1%} of the "
        f"teacher's mass; {alternative} stores all of it"
    )


def warnings(fits: Mapping[float, TopKFit], k: int) -> Iterator[str]:
    """Yields a line for each temperature at which a cache's top-k holds too little of the mass."""
    for temperature, fit in fits.items():
        if fit.mass < MIN_MASS:
            yield warning(temperature, fit.mass, k)
