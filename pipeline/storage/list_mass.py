"""The mass that a cached top-k holds of the teacher's distribution at a temperature.

A temperature makes a distribution flatter: what a list of 128 tokens holds at temperature 1 it
may lose at 8. The mass is exact at the cached temperatures. At a higher one it is at most as
much as if the tail were tokens as probable as the last of the list: w ↦ w^(T'/T) is concave, so
that fewer and larger weights have the smallest sum.
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

# Of the teacher's mass. A list that holds less says little of the distribution.
LEAST = 0.5
# Examples that tell.
_SAMPLE = 256
_WAY_OUT = "create_teacher_output_data `logit_encoding`=states"


def masses(targets: TeacherTargets, temperature: float) -> np.ndarray:
    """Returns the mass of the ids at a temperature, at most, float64 [P]."""
    lower = [one for one in targets.temperatures if one <= temperature]
    nearest = max(lower, default=targets.temperatures[0])
    log_tails = np.minimum(targets.log_tails(nearest).astype(np.float64), 0.0)
    if nearest == temperature or not lower:
        return -np.expm1(log_tails)
    logits = targets.logits.astype(np.float64)
    present = logits > NO_ID_LOGIT / 2
    inside = np.where(present, np.exp(logits / temperature), 0.0).sum(axis=-1)
    # The tail's weight at the cached temperature, where that of the largest logit is 1.
    known = np.where(present, np.exp(logits / nearest), 0.0).sum(axis=-1)
    with np.errstate(divide="ignore", over="ignore"):
        tail = known * np.exp(log_tails) / -np.expm1(log_tails)
    last = np.where(present, logits, np.inf).min(axis=-1)
    # As many tokens of the last one's weight as have that together.
    rest = tail * np.exp(last / temperature - last / nearest)
    return inside / (inside + rest)


@dataclasses.dataclass(frozen=True)
class ListFit:
    """What a cache's lists hold at a temperature.

    Attributes:
        mass: in the mean; at most, where the temperature is not cached.
        divergence: the mean KL(list ‖ teacher) in nats, the list's probabilities being rescaled
            to 1: −log of the mass.
    """

    mass: float
    divergence: float


def measure(
    directory: Location, manifest: Manifest, temperatures: Sequence[float]
) -> dict[float, ListFit]:
    """Returns what the lists hold at temperatures, of the first examples of a shard.

    Empty for a cache that has no top-k, or no example.

    Raises:
        InputError: the shard is damaged.
    """
    info = manifest.teacher_info
    if info.holds_states or info.truncation == SAMPLED:
        return {}
    shards = sorted(manifest.splits.get(EVAL) or manifest.shards, key=lambda one: one.file)
    shard = next((one for one in shards if one.num_examples), None)
    if shard is None or not temperatures:
        return {}
    codec = cache_input.open_codec(directory, manifest)
    examples = itertools.islice(read_examples(directory / shard.file, manifest), _SAMPLE)
    try:
        targets = TeacherTargets.join(
            [TeacherTargets.from_features(one.features, codec, info) for one in examples]
        )
    except (KeyError, ValueError) as error:
        raise InputError(directory / shard.file, received=f"broken record: {error}") from error
    if not len(targets.ids):
        return {}
    fits = {}
    for temperature in temperatures:
        found = masses(targets, temperature)
        divergence = -np.log(np.maximum(found, np.finfo(np.float64).tiny))
        fits[temperature] = ListFit(float(found.mean()), float(divergence.mean()))
    return fits


def warning(temperature: float | str, mass: float, k: int) -> str:
    """Returns a line on a temperature at which lists of k hold less than `LEAST` of the mass."""
    way_out = show_settings(_WAY_OUT, str)
    return (
        f"warning: at temperature {float(temperature):g} the top {k} hold {mass:.1%} of the "
        f"teacher's mass; {way_out} keeps all of it"
    )


def warnings(fits: Mapping[float, ListFit], k: int) -> Iterator[str]:
    """Yields a line for each temperature at which a cache's lists of k hold too little."""
    for temperature, fit in fits.items():
        if fit.mass < LEAST:
            yield warning(temperature, fit.mass, k)
