"""The mixes of losses that are compared, and the sources of their teacher targets."""

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
# Sources of a mix besides caches: a live teacher, and the labels alone.
LIVE = "live"
LABELS = "labels"
# Codecs of caches in which tail masses depend on the temperature.
_CACHED_TEMPERATURES = (1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The objective of a recipe; batches, steps and rates are those of the comparison.

    Attributes:
        name: of the flagfile, or the losses as they were given.
        source: `LIVE`, or a cache such as `compact-32`; None where the losses decide.
        losses: the weights by name.
        schedules: of weights that change.
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
        codec: such as `compact-32`.
        temperatures: those with a stored tail mass; empty where the codec decides.
        hidden_groups: groups of teacher layers whose hidden states are stored.
        embedding: the pooling of the embeddings that are stored; None for none.
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
        """Returns settings of `create_teacher_output_data`."""
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
        InputError: it is no codec's name with a number.
    """
    kind, _, number = source.rpartition("-")
    kinds = (*ENCODINGS, SAMPLED)
    if kind not in kinds or not number.isdecimal() or not int(number):
        names = ", ".join(f"{name}-NUMBER" for name in kinds)
        raise InputError(Setting(subject), f"{LIVE} or one of {names}", f"{source!r}")


@dataclasses.dataclass(frozen=True)
class Mix:
    """A recipe with or without `masked_lm`, and where its teacher targets come from.

    Attributes:
        recipe: the name of the recipe.
        source: `LIVE`, `LABELS` or a cache's codec.
        losses: the weights by name.
        settings: the other settings of `run_distill` that the recipe decides, as text.
        cache: read in training; None without one.
    """

    recipe: str
    source: str
    losses: Mapping[str, float]
    settings: Mapping[str, str]
    cache: CacheSpec | None

    @property
    def with_labels(self) -> bool:
        """Whether `masked_lm` is in it."""
        return MASKED_LM in self.losses

    @property
    def key(self) -> str:
        """The name of its directories."""
        if self.source == LABELS:
            return self.recipe
        return f"{self.recipe}@{self.source}{'+labels' if self.with_labels else '-labels'}"

    @property
    def title(self) -> str:
        """The mix for people."""
        if self.source == LABELS:
            return self.recipe
        return f"{self.recipe}, {self.source}, {'with' if self.with_labels else 'without'} labels"

    def arguments(self) -> dict[str, str]:
        """Returns the settings of `run_distill` that differ between mixes, as text."""
        losses = ",".join(f"{name}={weight:g}" for name, weight in self.losses.items())
        return {"losses": losses, **self.settings}


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Layers of the teacher and of the students, and the hidden sizes of both."""

    teacher_layers: int
    student_layers: int
    hidden_sizes: tuple[int, ...] = ()


def make_mixes(
    recipes: Iterable[Recipe], *, shapes: Shapes, cache: str, masked_lm_weight: float | None = None
) -> list[Mix]:
    """Returns each recipe as it is, or with and without `masked_lm`; one of labels alone once.

    Args:
        recipes: to compare.
        shapes: of the models.
        cache: the source of recipes that name none.
        masked_lm_weight: of `masked_lm` where a recipe has none; None for recipes as they are.

    Raises:
        InputError: a mix that is there twice.
    """
    mixes: dict[str, Mix] = {}
    for recipe in recipes:
        for mix in _variants(recipe, shapes, cache, masked_lm_weight):
            if mix.key in mixes:
                raise InputError(
                    Setting("recipes"),
                    "a list in which each recipe and source stands once",
                    mix.title,
                )
            mixes[mix.key] = mix
    return list(mixes.values())


def _variants(
    recipe: Recipe, shapes: Shapes, cache: str, masked_lm_weight: float | None
) -> Iterator[Mix]:
    for losses in _losses_of(recipe, masked_lm_weight):
        source = _source(recipe, losses, cache)
        settings = _fit(recipe.settings, shapes)
        spec = None if source in (LIVE, LABELS) else _cache_spec(source, settings, losses, shapes)
        schedules = {name: item for name, item in recipe.schedules.items() if name in losses}
        if schedules:
            settings["loss_schedules"] = ",".join(
                f"{name}={item}" for name, item in schedules.items()
            )
        yield Mix(recipe.name, source, losses, settings, spec)


def _losses_of(recipe: Recipe, masked_lm_weight: float | None) -> list[Mapping[str, float]]:
    if masked_lm_weight is None:
        return [recipe.losses]
    others = {name: weight for name, weight in recipe.losses.items() if name != MASKED_LM}
    weight = recipe.losses.get(MASKED_LM, masked_lm_weight)
    return [{MASKED_LM: weight}] if not others else [{**others, MASKED_LM: weight}, others]


def _source(recipe: Recipe, losses: Mapping[str, float], cache: str) -> str:
    """Returns where a mix's teacher targets come from."""
    needs = {load_loss(name).needs for name in losses}
    if needs == {LABEL}:
        return LABELS
    if recipe.source is not None:
        return recipe.source
    over_all = recipe.settings.get("loss_positions") == "all"
    return LIVE if over_all or needs - {LABEL, TOPK} else cache


def _fit(settings: Mapping[str, str], shapes: Shapes) -> dict[str, str]:
    """Leaves out layer groups and relation heads of models of other shapes: defaults apply."""
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
    """Returns the cache that holds what a mix needs."""
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
