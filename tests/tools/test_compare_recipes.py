"""Names of recipes, and a complete comparison with tiny sizes."""

import json

import pytest

from data_specs import recipes as published
from pipeline import run_distill
from pipeline.base.errors import InputError, Setting
from pipeline.distill.losses.weights import WeightSchedule
from tools import compare_recipes as tool
from tools.recipe_comparison.settings import CompareRecipesConfig


def test_recipe_gives_its_objective_without_its_scale() -> None:
    recipe = tool.read_recipe("distilbert")
    assert (recipe.name, recipe.source) == ("distilbert", None)
    assert recipe.losses == {"kl_divergence": 5.0, "masked_lm": 2.0, "hidden_cosine": 1.0}
    assert recipe.settings == {
        "temperature": "2",
        "loss_positions": "all",
        "layer_groups": "last",
        "freeze": "position_embeddings",
    }


def _parsed(*arguments: str):
    values = run_distill.define_flags()
    values(["run_distill", *arguments])
    return values


@pytest.mark.parametrize("name", published.names())
def test_each_published_recipe_is_parsed(name: str) -> None:
    recipe = tool.read_recipe(f"{name}@live")
    assert recipe.source == "live"
    flagfile_values = _parsed(f"--flagfile={published.find(name)}")
    assert recipe.losses == flagfile_values.losses
    # The recipe's settings reach the command as text.
    recipe_values = _parsed(*(f"--{setting}={text}" for setting, text in recipe.settings.items()))
    for setting in recipe.settings:
        assert recipe_values[setting].value == flagfile_values[setting].value


def test_custom_flagfile_is_read_by_its_path(tmp_path) -> None:
    path = tmp_path / "mine.flags"
    path.write_text(
        "# My own.\n--losses=kl_divergence=2,masked_lm=1\n--loss_schedules=masked_lm=linear:0\n"
        "--temperature=4\n--train_batch_size=7\n--student_layers=9\n--nodo_eval\n"
    )
    recipe = tool.read_recipe(f"{path}@float16-8")
    assert (recipe.name, recipe.source) == ("mine", "float16-8")
    assert recipe.losses == {"kl_divergence": 2.0, "masked_lm": 1.0}
    assert recipe.schedules == {"masked_lm": WeightSchedule("linear", 0.0)}
    assert recipe.settings == {"temperature": "4"}


def test_list_of_losses_is_a_recipe() -> None:
    recipe = tool.read_recipe("kl_divergence=5+masked_lm@compact-32")
    assert recipe.name == "kl_divergence=5+masked_lm"
    assert recipe.losses == {"kl_divergence": 5.0, "masked_lm": 1.0}


@pytest.mark.parametrize(
    ("entry", "received"),
    [
        ("distilbart", "'distilbart'"),
        ("kl_divergence=5+masked", "'masked'"),
        ("kl_divergence=0", "0"),
        ("distilbert@gzip-3", "'gzip-3'"),
        ("distilbert@compact", "'compact'"),
        ("distilbert@compact-0", "'compact-0'"),
    ],
)
def test_unknown_recipes_and_sources_are_refused(entry: str, received: str) -> None:
    with pytest.raises(InputError) as caught:
        tool.read_recipe(entry)
    assert caught.value.subject == Setting("recipes")
    assert received in str(caught.value.received)


@pytest.mark.parametrize("content", ["--losses=x\n", "--no_such=1\n", "--temperature=2\n"])
def test_invalid_flagfiles_are_refused(tmp_path, content: str) -> None:
    path = tmp_path / "mine.flags"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        tool.read_recipe(str(path))
    error = caught.value
    assert error.subject == Setting("recipes")
    assert str(path) in f"{error.expected} {error.received}"


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"seeds": "1"}, "seeds"),
        ({"student": "model", "student_layers": 2}, "student_layers"),
        ({"tasks": "tnews"}, "tasks"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, changes, subject: str) -> None:
    with pytest.raises(InputError) as caught:
        CompareRecipesConfig(**{"teacher": "t", "input_dir": "i", "work": tmp_path, **changes})
    assert subject in (caught.value.subject, caught.value.setting)


@pytest.mark.parametrize(("weight", "labels"), [(0.0, [True, False]), (1.0, [True, True, False])])
def test_recipes_are_compared_as_written_without_a_weight_of_labels(
    teacher_dir, tmp_path, weight: float, labels: list[bool]
) -> None:
    recipes = ("masked_lm", "kl_divergence=1@states-8")
    settings = {"teacher": str(teacher_dir), "input_dir": "i", "work": tmp_path}
    config = CompareRecipesConfig(**settings, recipes=recipes, masked_lm_weight=weight)
    variants, _ = tool.read_variants(config)
    assert [variant.with_labels for variant in variants] == labels


@pytest.mark.slow
def test_tiny_comparison_runs_end_to_end(
    corpus_dir, teacher_dir, sentiment_dir, tmp_path, capsys
) -> None:
    work = tmp_path / "work"
    flags = [
        f"--teacher={teacher_dir}",
        f"--input_dir={corpus_dir}",
        f"--other_text={corpus_dir}",
        f"--work={work}",
        f"--tasks=chnsenticorp={sentiment_dir}",
        "--max_task_examples=32",
        "--train_seconds=0.05",
        "--train_batch_size=4",
        "--max_seq_length=32",
        "--num_shards=4",
        "--max_eval_steps=1",
        "--student_layers=1",
        "--compute_dtype=float32",
    ]
    recipes = "--recipes=kl_divergence@sampled-4,kl_divergence=2@live"
    assert tool.main(["compare_recipes", *flags, recipes]) == 0
    report = json.loads((work / "comparison.json").read_text())
    keys = [(row["source"], row["with_labels"]) for row in report["mixes"]]
    assert keys == [("sampled-4", True), ("sampled-4", False), ("live", True), ("live", False)]
    sizes = [row["cache_bytes"] for row in report["mixes"]]
    assert sizes[0] == sum(path.stat().st_size for path in work.glob("caches/*/train-*.tfrecord"))
    assert sizes[2] is None
    for row in report["mixes"]:
        assert len(row["scores"]["other/masked_lm_accuracy"]["values"]) == 2
        assert 0.0 <= row["scores"]["chnsenticorp"]["mean"] <= 1.0
        assert row["step_time_ratio"] > 0.0
    assert len(report["labels_effect"]) == 2
    assert "| kl_divergence=2 | live | yes |" in (work / "comparison.md").read_text()
    # No step is repeated.
    capsys.readouterr()
    assert tool.main(["compare_recipes", *flags, recipes]) == 0
    printed = capsys.readouterr().out
    titles = [line for line in printed.splitlines() if line.startswith("[")]
    assert len(titles) > 30 and all("(done before)" in line for line in titles)
