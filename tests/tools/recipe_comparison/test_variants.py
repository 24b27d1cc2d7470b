"""Mixes: a recipe with and without labels, and the source of its teacher targets."""

import pytest

from pipeline.base.errors import InputError, Setting
from pipeline.distill.losses.weights import WeightSchedule
from tools.recipe_comparison.variants import CacheSpec, Recipe, RecipeVariant, Shapes, make_variants

_DISTILBERT = Recipe(
    "distilbert",
    None,
    {"kl_divergence": 5.0, "masked_lm": 2.0, "hidden_cosine": 1.0},
    settings={"temperature": "2", "loss_positions": "all"},
)
_WWM = Recipe("wwm", None, {"soft_cross_entropy": 1.0, "probability_cosine": 1.0})


def _variants(*recipes: Recipe, teacher: int = 4, student: int = 2) -> list[RecipeVariant]:
    shapes = Shapes(teacher, student)
    return make_variants(recipes, shapes=shapes, cache="compact-128", masked_lm_weight=0.5)


def test_labels_are_added_to_a_recipe_without_them() -> None:
    with_labels, without = _variants(_WWM)
    assert with_labels.losses == {**_WWM.losses, "masked_lm": 0.5}
    assert with_labels.with_labels and not without.with_labels
    assert without.losses == _WWM.losses
    assert with_labels.arguments()["losses"] == (
        "soft_cross_entropy=1,probability_cosine=1,masked_lm=0.5"
    )
    assert (with_labels.key, without.key) == ("wwm@compact-128+labels", "wwm@compact-128-labels")


def test_labels_are_removed_from_a_recipe_with_them() -> None:
    with_labels, without = _variants(_DISTILBERT)
    assert with_labels.losses == {"kl_divergence": 5.0, "hidden_cosine": 1.0, "masked_lm": 2.0}
    assert without.losses == {"kl_divergence": 5.0, "hidden_cosine": 1.0}
    assert without.arguments()["temperature"] == "2"


def test_labels_alone_are_one_mix_without_a_teacher() -> None:
    (variant,) = _variants(Recipe("masked_lm", None, {"masked_lm": 1.0}))
    assert (variant.source, variant.cache, variant.key) == ("labels", None, "masked_lm")


def test_schedule_is_dropped_together_with_its_loss() -> None:
    losses = {"kl_divergence": 1.0, "masked_lm": 1.0}
    schedules = {"masked_lm": WeightSchedule("linear", 0.0)}
    with_labels, without = _variants(Recipe("mine", None, losses, schedules))
    assert with_labels.arguments()["loss_schedules"] == "masked_lm=linear:0"
    assert "loss_schedules" not in without.arguments()


@pytest.mark.parametrize(
    ("losses", "settings", "source"),
    [
        ({"kl_divergence": 1.0}, {}, "compact-128"),
        ({"kl_divergence": 1.0}, {"loss_positions": "all"}, "live"),
        ({"kl_divergence": 1.0, "hidden_cosine": 1.0}, {}, "live"),
        ({"attention_mse": 1.0}, {}, "live"),
    ],
)
def test_losses_that_caches_do_not_support_use_a_live_teacher(
    losses, settings, source: str
) -> None:
    recipe = Recipe("mine", None, losses, settings=settings)
    assert {variant.source for variant in _variants(recipe)} == {source}


def test_cache_stores_the_temperature_and_states_of_its_recipe() -> None:
    losses = {"kl_divergence": 1.0, "hidden_cosine": 1.0}
    settings = {"temperature": "8", "layer_groups": "1-2:1,3-4:2"}
    variant, _ = _variants(Recipe("mine", "float16-16", losses, settings=settings))
    assert variant.cache == CacheSpec("float16-16", (1.0, 2.0, 8.0), ("1-2", "3-4"))
    assert variant.cache.key == "float16-16_T8_layers1-2,3-4"
    assert variant.cache.settings() == {
        "logit_encoding": "float16",
        "truncation_factor": "16",
        "temperatures": "1,2,8",
        "cache_hidden_states": "1-2,3-4",
    }


def test_cache_stores_the_embeddings_of_its_recipe() -> None:
    losses = {"masked_lm": 1.0, "embedding_cosine": 1.0}
    recipe = Recipe("mine", "compact-8", losses, settings={"embedding_pooling": "cls"})
    assert {variant.cache for variant in _variants(recipe)} == {
        CacheSpec("compact-8", (1.0, 2.0), embedding="cls")
    }
    assert _variants(recipe)[0].cache.settings()["cache_embedding"] == "cls"
    assert {variant.source for variant in _variants(Recipe("mine", None, losses))} == {"live"}


def test_sampled_caches_have_no_temperatures() -> None:
    variant, _ = _variants(Recipe("mine", "sampled-12", {"kl_divergence": 1.0}))
    assert variant.cache.key == "sampled-12"
    assert variant.cache.settings() == {
        "truncation": "sampled",
        "truncation_factor": "12",
        "logit_encoding": "compact",
    }


def test_head_states_need_no_temperatures() -> None:
    recipe = Recipe("mine", "states-4", {"kl_divergence": 1.0}, settings={"temperature": "8"})
    variant, _ = _variants(recipe)
    assert variant.cache == CacheSpec("states-4", ())
    assert variant.cache.settings() == {"logit_encoding": "states", "state_bits": "4"}


def test_layer_groups_of_another_depth_are_dropped() -> None:
    settings = {"layer_groups": "1-6:1,7-12:2"}
    recipe = Recipe("mine", None, {"hidden_cosine": 1.0}, settings=settings)
    assert "layer_groups" not in _variants(recipe, teacher=4)[0].settings
    assert _variants(recipe, teacher=12)[0].settings == settings


@pytest.mark.parametrize(("size", "fits"), [(768, True), (256, False)])
def test_relation_heads_of_another_width_are_dropped(size: int, fits: bool) -> None:
    recipe = Recipe("mine", None, {"relation_kl": 1.0}, settings={"relation_heads": "48"})
    shapes = Shapes(4, 2, (768, size))
    for variant in make_variants([recipe], shapes=shapes, cache="compact-8", masked_lm_weight=1.0):
        assert ("relation_heads" in variant.settings) is fits


def test_same_recipe_with_the_same_source_twice_is_refused() -> None:
    assert len(_variants(_WWM, Recipe("wwm", "compact-32", _WWM.losses))) == 4
    with pytest.raises(InputError) as caught:
        _variants(_WWM, Recipe("wwm", "compact-128", _WWM.losses))
    assert caught.value.subject == Setting("recipes")
    assert "wwm" in caught.value.received
