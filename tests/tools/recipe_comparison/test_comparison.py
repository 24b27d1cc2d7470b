"""The steps of a comparison: their order, equal bytes, equal time, and what may be added."""

import dataclasses
import pathlib

import pytest

from pipeline.base.errors import InputError, Setting
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import TRAIN
from tools.commands import SeparateProcess
from tools.recipe_comparison.comparison import RecipeComparison
from tools.recipe_comparison.mixes import Recipe, Shapes, make_mixes
from tools.recipe_comparison.settings import CompareRecipesConfig

_LABELS = Recipe("masked_lm", None, {"masked_lm": 1.0})
_KL = Recipe("kl", "float16-16", {"kl_divergence": 1.0})
_LIVE = Recipe("live", "live", {"kl_divergence": 1.0})


def _comparison(work: pathlib.Path, *recipes: Recipe, **settings) -> RecipeComparison:
    settings = {"teacher": work / "teacher", "input_dir": "text", "work": work / "work", **settings}
    mixes = make_mixes(recipes, shapes=Shapes(4, 2), cache="compact-128", masked_lm_weight=1.0)
    return RecipeComparison(CompareRecipesConfig(**settings), mixes, 2)


def test_all_step_times_are_known_before_a_student_is_trained(tmp_path) -> None:
    tasks = {"tnews": tmp_path, "ocnli": tmp_path}
    steps = list(
        _comparison(tmp_path, _LABELS, _KL, _LIVE, other_text="other", tasks=tasks).steps()
    )
    kinds = [step.kind for step in steps]
    # Text, windows, other text, two judges, a cache, the same in equal bytes.
    assert kinds[:7] == ["data"] * 7
    assert kinds[7:13] == ["time"] * 6
    # Five mixes with two seeds.
    assert kinds[13:] == [kind for kind in ("train", "evaluate", *tasks) for _ in range(10)]
    assert len({step.result for step in steps}) == len(steps)


def test_windows_are_stored_for_live_teachers_only(tmp_path) -> None:
    titles = [step.title for step in _comparison(tmp_path, _LABELS, _KL).steps()]
    assert "unmasked windows" not in titles and "masked examples, other text" not in titles


def test_steps_follow_from_the_step_time_beside_the_baselines(tmp_path, monkeypatch) -> None:
    made = _comparison(tmp_path, _LABELS, _KL, train_seconds=60.0)
    measured = iter([[0.5], [1.8, 1.2], [0.6, 1.2]])
    runs = []

    def call(process, function, arguments):
        runs.append(arguments)
        return next(measured)

    monkeypatch.setattr(SeparateProcess, "call", call)
    made._time_baseline()
    for mix in made.mixes:
        made._time(mix)
    found = [made.step_time_file(mix).read_json() for mix in made.mixes]
    # Masked LM alone is the baseline itself, and is not measured again.
    assert [value["ratio"] for value in found] == pytest.approx([1.0, 1.5, 0.5])
    assert [value["num_train_steps"] for value in found] == [120, 80, 240]
    assert [len(arguments) for arguments in runs] == [1, 2, 2]
    assert "--losses=kl_divergence=1,masked_lm=1" in runs[1][0]
    assert "--losses=masked_lm=1" in runs[1][1]


def test_steps_may_be_those_of_the_baseline(tmp_path, monkeypatch) -> None:
    made = _comparison(tmp_path, _KL, baseline_steps=300)
    measured = iter([[0.5], [1.8, 1.2]])
    monkeypatch.setattr(SeparateProcess, "call", lambda *arguments: next(measured))
    made._time_baseline()
    made._time(made.mixes[0])
    assert made.step_time_file(made.mixes[0]).read_json()["num_train_steps"] == 200


def test_a_mix_that_cannot_be_trained_is_named(tmp_path, monkeypatch) -> None:
    made = _comparison(tmp_path, _KL)

    def call(process, function, arguments):
        raise InputError(Setting("temperature"), "1", "8")

    monkeypatch.setattr(SeparateProcess, "call", call)
    with pytest.raises(InputError) as caught:
        made._time(made.mixes[0])
    assert caught.value.subject == Setting("recipes")
    assert caught.value.received.startswith("kl, float16-16, with labels: temperature")


def test_caches_are_cut_to_whole_shards_of_equal_bytes(cache_dir, tmp_path) -> None:
    made = _comparison(tmp_path, _KL)
    spec = made.mixes[0].cache
    source = made.work / "caches" / spec.key
    source.parent.make_directory()
    source.symlink_to(cache_dir)
    shards = manifests.load(cache_dir).splits[TRAIN]
    most = shards[0].bytes + shards[1].bytes
    cut = dataclasses.replace(made.config, cache_bytes=most)
    RecipeComparison(cut, made.mixes, 2)._cut(spec, (spec,))
    manifest = manifests.load(made.training_cache(spec))
    assert manifest.splits == {TRAIN: shards[:2]}
    manifests.verify(made.training_cache(spec), manifest, full=True)
    with pytest.raises(InputError) as caught:
        few = dataclasses.replace(made.config, cache_bytes=shards[0].bytes - 1)
        RecipeComparison(few, made.mixes, 2)._cut(spec, (spec,))
    assert caught.value.subject == Setting("cache_bytes")
    assert caught.value.received == shards[0].bytes - 1


def test_the_first_run_decides_the_common_bytes(cache_dir, tmp_path) -> None:
    made = _comparison(tmp_path, _KL)
    (spec,) = {mix.cache for mix in made.mixes if mix.cache}
    (made.work / "caches").make_directory()
    (made.work / "caches" / spec.key).symlink_to(cache_dir)
    total = sum(shard.bytes for shard in manifests.load(cache_dir).splits[TRAIN])
    assert made._common_bytes([spec]) == total
    # A smaller cache that is added later does not change what was trained.
    assert made._common_bytes([]) == total


def test_recipes_seeds_and_tasks_may_be_added_but_nothing_changed(tmp_path) -> None:
    task = {"tnews": tmp_path / "a"}
    _comparison(tmp_path, _LABELS, _KL, tasks=task).claim()
    more = {**task, "ocnli": tmp_path / "b"}
    _comparison(tmp_path, _LABELS, _KL, _LIVE, tasks=more, seeds=(1, 2, 3)).claim()
    changed = [
        _comparison(tmp_path, _KL, train_seconds=1.0),
        _comparison(tmp_path, dataclasses.replace(_KL, losses={"soft_cross_entropy": 1.0})),
        _comparison(tmp_path, _KL, tasks={"tnews": tmp_path / "c"}),
    ]
    for other in changed:
        with pytest.raises(InputError) as caught:
            other.claim()
        assert caught.value.subject.startswith(str(tmp_path / "work"))
