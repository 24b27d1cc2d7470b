"""The steps of a comparison: order, equal bytes, equal time, and permitted additions."""

import dataclasses
import pathlib

import pytest

from pipeline.base.errors import InputError, Setting
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import TRAIN
from tools.commands import SeparateProcess
from tools.recipe_comparison.comparison import RecipeComparison
from tools.recipe_comparison.settings import CompareRecipesConfig
from tools.recipe_comparison.variants import Recipe, Shapes, make_variants

_LABELS = Recipe("masked_lm", None, {"masked_lm": 1.0})
_KL = Recipe("kl", "float16-16", {"kl_divergence": 1.0})
_LIVE = Recipe("live", "live", {"kl_divergence": 1.0})


def _comparison(work: pathlib.Path, *recipes: Recipe, **settings) -> RecipeComparison:
    settings = {"teacher": work / "teacher", "input_dir": "text", "work": work / "work", **settings}
    variants = make_variants(
        recipes, shapes=Shapes(4, 2), cache="compact-128", masked_lm_weight=1.0
    )
    return RecipeComparison(CompareRecipesConfig(**settings), variants, 2)


def test_step_times_are_measured_before_students_are_trained(tmp_path) -> None:
    tasks = {"tnews": tmp_path, "ocnli": tmp_path}
    steps = list(
        _comparison(tmp_path, _LABELS, _KL, _LIVE, other_text="other", tasks=tasks).steps()
    )
    kinds = [step.kind for step in steps]
    # The data are text, windows, other text, two evaluation caches, a cache, and its cut copy.
    assert kinds[:7] == ["data"] * 7
    assert kinds[7:13] == ["time"] * 6
    # Five variants are trained with two seeds each.
    assert kinds[13:] == [kind for kind in ("train", "evaluate", *tasks) for _ in range(10)]
    assert len({step.result for step in steps}) == len(steps)


def test_windows_are_stored_for_live_teachers_only(tmp_path) -> None:
    titles = [step.title for step in _comparison(tmp_path, _LABELS, _KL).steps()]
    assert "unmasked windows" not in titles and "masked examples, other text" not in titles


def test_steps_follow_from_the_step_time_relative_to_the_baseline(tmp_path, monkeypatch) -> None:
    comparison = _comparison(tmp_path, _LABELS, _KL, train_seconds=60.0)
    measured = iter([[0.5], [1.8, 1.2], [0.6, 1.2]])
    calls = []

    def call(process, function, arguments):
        calls.append(arguments)
        return next(measured)

    monkeypatch.setattr(SeparateProcess, "call", call)
    comparison._time_baseline()
    for variant in comparison.variants:
        comparison._time(variant)
    step_times = [comparison.step_time_file(variant).read_json() for variant in comparison.variants]
    # Masked LM alone is the baseline, which is not measured again.
    assert [value["ratio"] for value in step_times] == pytest.approx([1.0, 1.5, 0.5])
    assert [value["num_train_steps"] for value in step_times] == [120, 80, 240]
    assert [len(arguments) for arguments in calls] == [1, 2, 2]
    assert "--losses=kl_divergence=1,masked_lm=1" in calls[1][0]
    assert "--losses=masked_lm=1" in calls[1][1]


def test_baseline_steps_replace_the_training_time(tmp_path, monkeypatch) -> None:
    comparison = _comparison(tmp_path, _KL, baseline_steps=300)
    measured = iter([[0.5], [1.8, 1.2]])
    monkeypatch.setattr(SeparateProcess, "call", lambda *arguments: next(measured))
    comparison._time_baseline()
    comparison._time(comparison.variants[0])
    assert comparison.step_time_file(comparison.variants[0]).read_json()["num_train_steps"] == 200


def test_mix_with_invalid_settings_is_named(tmp_path, monkeypatch) -> None:
    comparison = _comparison(tmp_path, _KL)

    def call(process, function, arguments):
        raise InputError(Setting("temperature"), "1", "8")

    monkeypatch.setattr(SeparateProcess, "call", call)
    with pytest.raises(InputError) as caught:
        comparison._time(comparison.variants[0])
    assert caught.value.subject == Setting("recipes")
    assert caught.value.received.startswith("kl, float16-16, with labels: temperature")


def test_caches_are_cut_to_whole_shards_of_equal_bytes(cache_dir, tmp_path) -> None:
    comparison = _comparison(tmp_path, _KL)
    spec = comparison.variants[0].cache
    source = comparison.work / "caches" / spec.key
    source.parent.make_directory()
    source.symlink_to(cache_dir)
    shards = manifests.load(cache_dir).splits[TRAIN]
    cache_bytes = shards[0].bytes + shards[1].bytes
    two_shards = dataclasses.replace(comparison.config, cache_bytes=cache_bytes)
    RecipeComparison(two_shards, comparison.variants, 2)._cut(spec, (spec,))
    manifest = manifests.load(comparison.training_cache(spec))
    assert manifest.splits == {TRAIN: shards[:2]}
    manifests.verify(comparison.training_cache(spec), manifest, full=True)
    with pytest.raises(InputError) as caught:
        too_small = dataclasses.replace(comparison.config, cache_bytes=shards[0].bytes - 1)
        RecipeComparison(too_small, comparison.variants, 2)._cut(spec, (spec,))
    assert caught.value.subject == Setting("cache_bytes")
    assert caught.value.received == shards[0].bytes - 1


def test_common_bytes_are_fixed_by_the_first_run(cache_dir, tmp_path) -> None:
    comparison = _comparison(tmp_path, _KL)
    (spec,) = {variant.cache for variant in comparison.variants if variant.cache}
    (comparison.work / "caches").make_directory()
    (comparison.work / "caches" / spec.key).symlink_to(cache_dir)
    total = sum(shard.bytes for shard in manifests.load(cache_dir).splits[TRAIN])
    assert comparison._common_bytes([spec]) == total
    # A smaller cache that is added later does not change the recorded number of bytes.
    assert comparison._common_bytes([]) == total


def test_recipes_seeds_and_tasks_can_be_added_but_not_changed(tmp_path) -> None:
    task = {"tnews": tmp_path / "a"}
    _comparison(tmp_path, _LABELS, _KL, tasks=task).reserve()
    two_tasks = {**task, "ocnli": tmp_path / "b"}
    _comparison(tmp_path, _LABELS, _KL, _LIVE, tasks=two_tasks, seeds=(1, 2, 3)).reserve()
    changed = [
        _comparison(tmp_path, _KL, train_seconds=1.0),
        _comparison(tmp_path, dataclasses.replace(_KL, losses={"soft_cross_entropy": 1.0})),
        _comparison(tmp_path, _KL, tasks={"tnews": tmp_path / "c"}),
    ]
    for comparison in changed:
        with pytest.raises(InputError) as caught:
            comparison.reserve()
        assert caught.value.subject.startswith(str(tmp_path / "work"))
