"""The printed summary of a teacher cache."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage import topk_mass
from pipeline.storage.codecs import STATES
from pipeline.storage.manifest import SAMPLED, Manifest
from pipeline.teacher import label_scores


def describe(manifest: Manifest) -> Iterator[str]:
    """Yields the lines of the summary of a teacher cache."""
    info = manifest.teacher_info
    for split in manifests.SPLITS:
        shards = manifest.splits.get(split, ())
        size = sum(shard.bytes for shard in shards)
        count = manifest.num_examples(split)
        yield (
            f"{split:<10} {count:,} examples, {size:,} bytes, "
            f"{size / max(1, count):,.0f} an example"
        )
    yield f"stored     {_stored(manifest)}"
    if info.hidden_groups:
        groups = ", ".join(info.hidden_groups)
        yield f"           hidden states of layers {groups}, {info.hidden_encoding}"
    if info.embedding is not None:
        yield (
            f"           {info.embedding} embeddings of {info.hidden_size} numbers, "
            f"{2 * info.hidden_size:,} bytes an example"
        )
    sizes = manifest.bytes_per_position()
    by_content = ", ".join(f"{name} {_number(size)}" for name, size in sizes.items())
    total = _number(sum(sizes.values()))
    yield f"           {total} bytes a masked position: {by_content}"
    for weight, teacher in _teachers(info.teacher, 1.0):
        share = f", weight {weight:.4g}" if "merged" in info.teacher else ""
        origin = f", {hub['id']}@{hub['commit']}" if (hub := teacher.get(manifests.HUB)) else ""
        yield f"teacher    SHA-256 {teacher['sha256']}{share}{origin}"
    if unused := info.teacher.get("unused_rows"):
        yield f"           {unused} rows of its vocabulary tables belong to no token"
    if (of_teacher := label_scores.of_cache(manifest)) is not None:
        yield from of_teacher.describe()


def describe_mass(directory: Location, manifest: Manifest) -> Iterator[str]:
    """Yields the lines on the mass in a cache's top-k at its temperatures; none without a top-k.

    Raises:
        InputError: a shard is damaged.
    """
    info = manifest.teacher_info
    fits = topk_mass.measure(directory, manifest, info.temperatures)
    if fits:
        by_temperature = "; ".join(
            f"T = {temperature:g}: {fit.mass:.1%}, KL {fit.divergence:.2g}"
            for temperature, fit in fits.items()
        )
        yield f"mass       in the top-k, and KL(top-k || teacher) in nats: {by_temperature}"
    yield from topk_mass.warnings(fits, info.truncation_factor)


def _stored(manifest: Manifest) -> str:
    info, vocab_size = manifest.teacher_info, f"{manifest.vocab.size:,}"
    if info.holds_states:
        return (
            f"all of {vocab_size}, {STATES} of {info.state_size} numbers of {info.state_bits} bits"
        )
    stored = f"top {info.truncation_factor}"
    if info.variable:
        mean = f"{manifest.ids_per_position():.1f} on average"
        if info.truncation == SAMPLED:
            stored = f"tokens of {info.truncation_factor} draws, {mean},"
        else:
            stored += f" up to {info.truncation_mass:g} of the mass, {mean},"
    return f"{stored} of {vocab_size}, {info.logit_encoding}"


def _number(value: float) -> str:
    """Returns an integer in full, a mean with one decimal."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _teachers(
    teacher: Mapping[str, Any], weight: float
) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """Yields each teacher with its weight, also where merged caches were merged again."""
    if "merged" not in teacher:
        yield weight, teacher
    for part in teacher.get("merged", ()):
        yield from _teachers(part, weight * part["weight"])
