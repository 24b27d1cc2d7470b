"""The report of a comparison with results written by hand."""

import pytest

from pipeline.storage import manifest as manifests
from tools.recipe_comparison import table
from tools.recipe_comparison.comparison import RecipeComparison
from tools.recipe_comparison.settings import CompareRecipesConfig
from tools.recipe_comparison.variants import Recipe, Shapes, make_variants


@pytest.fixture
def finished(tmp_path, examples_dir, cache_dir) -> RecipeComparison:
    """A comparison in which labels add 2 points of accuracy and 0.1 to KL."""
    config = CompareRecipesConfig(
        teacher=tmp_path / "teacher", input_dir="text", work=tmp_path / "work", tasks={}
    )
    recipes = [
        Recipe("masked_lm", None, {"masked_lm": 1.0}),
        Recipe("kl", "float16-16", {"kl_divergence": 1.0}),
    ]
    variants = make_variants(recipes, shapes=Shapes(4, 2), cache="compact-8", masked_lm_weight=1.0)
    comparison = RecipeComparison(config, variants, 2)
    (comparison.work / "equal_bytes").make_directory()
    (comparison.work / "examples").symlink_to(examples_dir)
    (comparison.work / "equal_bytes" / "float16-16").symlink_to(cache_dir)
    for folder in ("scores", "step_times"):
        (comparison.work / folder).make_directory()
    for variant in variants:
        time = {"ratio": 1.25, "seconds": 0.1, "num_train_steps": 1234}
        comparison.step_time_file(variant).write_json(time)
    for trial in comparison.trials:
        labels = trial.variant.with_labels
        comparison.scores_file(trial).write_json(
            {
                "like": {
                    "masked_lm_accuracy": 0.30 + 0.02 * labels + 0.01 * trial.seed,
                    "teacher_agreement": 0.7 + 0.001 * labels + 0.01 * trial.seed,
                    "kl_divergence": 1.0 + 0.1 * labels,
                    "teacher_accuracy": 0.44,
                }
            }
        )
    return comparison


def test_scores_have_means_and_deviations(finished, cache_dir) -> None:
    report = table.read_report(finished)
    labels, with_labels, without = report["mixes"]
    accuracy = with_labels["scores"]["like/masked_lm_accuracy"]
    assert accuracy["values"] == pytest.approx([0.33, 0.34])
    assert accuracy["mean"] == pytest.approx(0.335)
    assert accuracy["std"] == pytest.approx(0.01 / 2**0.5)
    assert labels["cache_bytes"] is None
    manifest = manifests.load(cache_dir)
    assert without["cache_bytes"] == sum(shard.bytes for shard in manifest.splits["train"])
    assert without["train_examples"] == manifest.num_examples("train")
    assert report["teacher"] == {"like": 0.44}


def test_effect_of_labels_is_compared_with_the_spread(finished) -> None:
    (effect,) = table.read_report(finished)["labels_effect"]
    assert (effect["recipe"], effect["source"]) == ("kl", "float16-16")
    accuracy, agreement, divergence = (
        effect["scores"][f"like/{name}"]
        for name in ("masked_lm_accuracy", "teacher_agreement", "kl_divergence")
    )
    assert accuracy["difference"] == pytest.approx(0.02)
    assert accuracy["verdict"] == "better"
    assert agreement["verdict"] == "within the spread"
    # A larger divergence is worse.
    assert divergence["difference"] == pytest.approx(0.1)
    assert divergence["verdict"] == "worse"


def test_markdown_has_a_row_for_each_mix(finished) -> None:
    report = table.read_report(finished)
    text = table.markdown(report, table.score_columns(finished))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    cells = {tuple(row[:3]): row[3:] for row in rows}
    assert cells["kl", "float16-16", "yes"][:2] == ["1,234", "1.25"]
    assert cells["kl", "float16-16", "yes"][4:] == ["33.5 ± 0.7", "71.6 ± 0.7", "1.100 ± 0.000"]
    assert cells["kl", "float16-16", "+2.0"] == ["+0.1 ~", "+0.100"]
