"""The variants of losses to compare, and the sources of their teacher targets."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.distill.losses import load_loss
from pipeline.distill.losses.base import EMBEDDING, HIDDEN, LABEL, TOPK
from pipeline.distill.losses.weights import WeightSchedule
from pipeline.models import layer_groups
from pipeline.storage.codecs import ENCODINGS, STATES
from pipeline.storage.manifest import SAMPLED

MASKED_LM = "masked_lm"
# Sources of a variant besides caches: a live teacher, and the labels alone.
LIVE = "live"
LABELS = "labels"
# Codecs of caches in which tail masses depend on the temperature.
_CACHED_TEMPERATURES = (1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The objective of a recipe; the comparison decides batches, steps and learning rates.

    Attributes:
        name: the name of the flagfile, or the text of the losses.
        source: `LIVE`, or a cache, for example `compact-32`; None if the losses decide it.
        losses: the weights by name.
        schedules: the schedules of weights that change during training.
        settings: other settings of `run_distill`, as text by name.
    """

    name: str
    source: str | None
    losses: Mapping[str, float]
    schedules: Mapping[str, WeightSchedule] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """A teacher cache of a comparison.

    Attributes:
        codec: the codec's name and number, for example `compact-32`.
        temperatures: temperatures with a stored tail mass; empty if the codec decides them.
        hidden_groups: groups of teacher layers whose hidden states are stored.
        embedding: the pooling of the stored embeddings; None if none are stored.
    """

    codec: str
    temperatures: tuple[float, ...]
    hidden_groups: tuple[str, ...] = ()
    embedding: str | None = None

    @property
    def key(self) -> str:
        """The name of its directory."""
        extra = [f"T{value:g}" for value in self.temperatures if value not in _CACHED_TEMPERATURES]
        extra += [f"layers{','.join(self.hidden_groups)}"] if self.hidden_groups else []
        extra += [self.embedding] if self.embedding else []
        return "_".join([self.codec, *extra])

    def settings(self) -> dict[str, Any]:
        """Returns the settings of `create_teacher_output_data`."""
        kind, _, number = self.codec.rpartition("-")
        if kind == SAMPLED:
            chosen = {
                "truncation": SAMPLED,
                "truncation_factor": number,
                "logit_encoding": "compact",
            }
        elif kind == STATES:
            chosen = {"logit_encoding": STATES, "state_bits": number}
        else:
            chosen = {"logit_encoding": kind, "truncation_factor": number}
        if self.temperatures:
            chosen["temperatures"] = ",".join(f"{value:g}" for value in self.temperatures)
        if self.hidden_groups:
            chosen["cache_hidden_states"] = ",".join(self.hidden_groups)
        if self.embedding is not None:
            chosen["cache_embedding"] = self.embedding
        return chosen


def expect_codec(source: str, subject: str) -> None:
    """Checks the name of a cache.

    Raises:
        InputError: the name is not a codec's name with a number.
    """
    kind, _, number = source.rpartition("-")
    kinds = (*ENCODINGS, SAMPLED)
    if kind not in kinds or not number.isdecimal() or not int(number):
        names = ", ".join(f"{name}-NUMBER" for name in kinds)
        raise InputError(Setting(subject), f"{LIVE} or one of {names}", f"{source!r}")


@dataclasses.dataclass(frozen=True)
class RecipeVariant:
    """A recipe with or without `masked_lm`, and the source of its teacher targets.

    Attributes:
        recipe: the name of the recipe.
        source: `LIVE`, `LABELS` or a cache's codec.
        losses: the weights by name.
        settings: other settings of `run_distill` that the recipe decides, as text.
        cache: the training cache; None without one.
    """

    recipe: str
    source: str
    losses: Mapping[str, float]
    settings: Mapping[str, str]
    cache: CacheSpec | None

    @property
    def with_labels(self) -> bool:
        """Whether the variant has `masked_lm`."""
        return MASKED_LM in self.losses

    @property
    def key(self) -> str:
        """The name of its directories."""
        if self.source == LABELS:
            return self.recipe
        return f"{self.recipe}@{self.source}{'+labels' if self.with_labels else '-labels'}"

    @property
    def title(self) -> str:
        """The name of the variant in tables and messages."""
        if self.source == LABELS:
            return self.recipe
        return f"{self.recipe}, {self.source}, {'with' if self.with_labels else 'without'} labels"

    def arguments(self) -> dict[str, str]:
        """Returns the settings of `run_distill` that differ between variants, as text."""
        losses = ",".join(f"{name}={weight:g}" for name, weight in self.losses.items())
        return {"losses": losses, **self.settings}


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Layers of the teacher and of the students, and the hidden sizes of both."""

    teacher_layers: int
    student_layers: int
    hidden_sizes: tuple[int, ...] = ()


def make_variants(
    recipes: Iterable[Recipe], *, shapes: Shapes, cache: str, masked_lm_weight: float | None = None
) -> list[RecipeVariant]:
    """Returns the variants of each recipe.

    With a `masked_lm_weight`, a recipe gives two variants: with and without `masked_lm`. A recipe
    with labels only gives one variant.

    Args:
        recipes: the recipes to compare.
        shapes: the shapes of the models.
        cache: the source of recipes that do not name one.
        masked_lm_weight: weight of `masked_lm` in recipes without it; None to keep recipes
            unchanged.

    Raises:
        InputError: a variant is repeated.
    """
    variants: dict[str, RecipeVariant] = {}
    for recipe in recipes:
        for variant in _variants(recipe, shapes, cache, masked_lm_weight):
            if variant.key in variants:
                raise InputError(
                    Setting("recipes"),
                    "a list of different recipes or sources",
                    variant.title,
                )
            variants[variant.key] = variant
    return list(variants.values())


def _variants(
    recipe: Recipe, shapes: Shapes, cache: str, masked_lm_weight: float | None
) -> Iterator[RecipeVariant]:
    for losses in _losses_of(recipe, masked_lm_weight):
        source = _source(recipe, losses, cache)
        settings = _fit(recipe.settings, shapes)
        spec = None if source in (LIVE, LABELS) else _cache_spec(source, settings, losses, shapes)
        schedules = {name: item for name, item in recipe.schedules.items() if name in losses}
        if schedules:
            settings["loss_schedules"] = ",".join(
                f"{name}={item}" for name, item in schedules.items()
            )
        yield RecipeVariant(recipe.name, source, losses, settings, spec)


def _losses_of(recipe: Recipe, masked_lm_weight: float | None) -> list[Mapping[str, float]]:
    if masked_lm_weight is None:
        return [recipe.losses]
    others = {name: weight for name, weight in recipe.losses.items() if name != MASKED_LM}
    weight = recipe.losses.get(MASKED_LM, masked_lm_weight)
    return [{MASKED_LM: weight}] if not others else [{**others, MASKED_LM: weight}, others]


def _source(recipe: Recipe, losses: Mapping[str, float], cache: str) -> str:
    """Returns the source of a variant's teacher targets."""
    needs = {load_loss(name).needs for name in losses}
    if needs == {LABEL}:
        return LABELS
    if recipe.source is not None:
        return recipe.source
    over_all = recipe.settings.get("loss_positions") == "all"
    return LIVE if over_all or needs - {LABEL, TOPK} else cache


def _fit(settings: Mapping[str, str], shapes: Shapes) -> dict[str, str]:
    """Removes layer groups and relation heads that do not fit the models; defaults then apply."""
    settings = dict(settings)
    if (text := settings.get("layer_groups")) is not None:
        try:
            layer_groups.parse_layer_groups(text, shapes.teacher_layers, shapes.student_layers)
        except InputError:
            del settings["layer_groups"]
    heads = int(settings.get("relation_heads", 1))
    if any(size % heads for size in shapes.hidden_sizes):
        del settings["relation_heads"]
    return settings


def _cache_spec(
    codec: str, settings: Mapping[str, str], losses: Mapping[str, float], shapes: Shapes
) -> CacheSpec:
    """Returns a cache with the teacher targets that a variant needs."""
    has_tails = codec.rpartition("-")[0] not in (SAMPLED, STATES)
    temperature = float(settings.get("temperature", 1.0))
    temperatures = tuple(sorted({*_CACHED_TEMPERATURES, temperature})) if has_tails else ()
    groups: dict[str, None] = {}
    embedding = None
    for loss in map(load_loss, losses):
        if loss.needs == HIDDEN:
            text = settings.get("layer_groups", loss.default_layer_groups)
            parsed = layer_groups.parse_layer_groups(
                text, shapes.teacher_layers, shapes.student_layers
            )
            groups |= dict.fromkeys(str(group.teacher) for group in parsed)
        elif loss.needs == EMBEDDING:
            embedding = settings.get("embedding_pooling", "mean")
    return CacheSpec(codec, temperatures, tuple(groups), embedding)
