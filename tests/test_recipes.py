"""Published recipes run with --run_local and have the published settings."""

import json
import pathlib

import pytest

from data_specs.corpora import CorpusSource
from pipeline import run_distill
from pipeline.distill import settings
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.models import layer_groups
from pipeline.models.formats.model_directory import find_model
from tests.conftest import make_cache, save_tiny_bert
from tools import try_recipe

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
RECIPES = sorted((ROOT / "data_specs" / "recipes").glob("*.flags"))


@pytest.fixture(scope="module")
def deep_teacher(tmp_path_factory, vocab_file) -> pathlib.Path:
    """A random teacher of twelve layers."""
    folder = tmp_path_factory.mktemp("deep") / "teacher"
    # Without dropout, losses fall within a few steps.
    return save_tiny_bert(
        folder,
        vocab_file,
        seed=2,
        num_layers=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _inputs(recipe: str, folder: pathlib.Path, corpus_dir, vocab_file, teacher) -> pathlib.Path:
    """Makes masked examples for a recipe, and a teacher cache if the recipe reads one."""
    needs = try_recipe.RECIPES[recipe]
    create_masked_examples(
        MaskedExamplesConfig(
            corpora=(CorpusSource(input_dir=str(corpus_dir)),),
            output_dir=str(folder / "examples"),
            vocab_file=str(vocab_file),
            max_seq_length=48,
            max_predictions_per_seq=8,
            doc_stride=30,
            eval_fraction=0.2,
            **needs.masking,
        )
    )
    if not needs.cached:
        return folder / "examples"
    changes = {"truncation_factor": 128, "predict_batch_size": 16, **needs.capture}
    return make_cache(folder / "cache", folder / "examples", teacher, **changes)


# roberta_wwm is slow and differs from roberta_wwm_3layers only in the number of layers.
_TO_RUN = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem == "roberta_wwm"))
    for path in RECIPES
]


@pytest.mark.long
@pytest.mark.parametrize("recipe", _TO_RUN)
def test_losses_of_every_recipe_fall(
    recipe, corpus_dir, vocab_file, deep_teacher, tmp_path, capsys
) -> None:
    folder = _inputs(recipe.stem, tmp_path, corpus_dir, vocab_file, deep_teacher)
    needs = try_recipe.RECIPES[recipe.stem]
    if needs.from_layers:
        student = f"--init_from={deep_teacher}"
    else:
        shape = {"num_layers": 4}
        if needs.num_layers is not None:
            shape = {"num_layers": needs.num_layers, "hidden_size": 16}
        start = save_tiny_bert(tmp_path / "other", vocab_file, seed=3, **shape)
        student = f"--student={start}"
    teacher = [] if needs.cached else [f"--teacher={deep_teacher}"]
    flags = [
        f"--recipe={recipe.stem}",
        f"--input_dir={folder}",
        f"--output_dir={tmp_path / 'student'}",
        student,
        *teacher,
        "--run_local",
        *(f"--{name}={value}" for name, value in needs.settings.items()),
        # These values are smaller than those of --run_local.
        "--num_train_steps=30",
        "--gradient_accumulation_steps=1",
        "--max_eval_steps=2",
    ]
    assert run_distill.main(["run_distill", *flags]) == 0
    assert "--run_local: " in capsys.readouterr().err
    lines = try_recipe.losses_over_steps(tmp_path / "student")
    assert [line["step"] for line in lines] == [10, 20, 30]
    weights = settings.parse_losses(dict(_flags(recipe))["losses"])
    assert lines[-1]["loss"] < lines[0]["loss"]
    for name in weights.keys() - {"masked_lm"}:
        # A cache has hidden states of masked positions only.
        reported = name if name in lines[0] else f"{name}_masked"
        assert lines[-1][reported] < lines[0][reported], name
    model_type = "distilbert" if recipe.stem == "distilbert" else "bert"
    assert find_model(tmp_path / "student").config.model_type == model_type


def _flags(recipe: pathlib.Path) -> list[tuple[str, str]]:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return [
        (name, value)
        for name, _, value in (
            line.removeprefix("--").partition("=") for line in lines if line.startswith("--")
        )
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_file_begins_with_its_source_needs_and_cost(recipe: pathlib.Path) -> None:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    opening = "\n".join(line for line in lines if line.startswith("#"))
    assert lines[0].startswith("# ")
    for text in ("# Source: ", "# Needs ", "# Cost: ", f"--recipe={recipe.stem} ", "--run_local"):
        assert text in opening, text


def test_recipes_have_the_published_settings() -> None:
    """The values are copied from the publications a second time."""
    wide = dict(_flags(ROOT / "data_specs/recipes/roberta_wwm.flags"))
    assert (wide["train_batch_size"], wide["learning_rate"]) == ("384", "5e-5")
    assert (wide["num_train_steps"], wide["num_warmup_steps"]) == ("1000000", "20000")
    half = dict(_flags(ROOT / "data_specs/recipes/distilbert.flags"))
    assert half["losses"] == "kl_divergence=5,masked_lm=2,hidden_cosine=1"
    batch = int(half["train_batch_size"]) * int(half["gradient_accumulation_steps"])
    assert (batch, half["temperature"], half["layer_map"]) == (4096, "2", "0,2,4,7,9,11")
    tiny = dict(_flags(ROOT / "data_specs/recipes/distilrubert_tiny.flags"))
    assert (tiny["student_layers"], tiny["layer_groups"]) == ("2", "1-6:1,7-12:2")
    general = dict(_flags(ROOT / "data_specs/recipes/tinybert_general.flags"))
    assert (general["train_batch_size"], general["learning_rate"]) == ("256", "5e-5")
    # The publication sums scores over four layers and states over five.
    assert general["losses"] == "attention_score_mse=4,hidden_mse=5"
    relations = dict(_flags(ROOT / "data_specs/recipes/minilm_v2.flags"))
    batch = int(relations["train_batch_size"]) * int(relations["gradient_accumulation_steps"])
    assert (batch, relations["learning_rate"], relations["relation_heads"]) == (256, "6e-4", "48")
    assert (relations["num_train_steps"], relations["num_warmup_steps"]) == ("400000", "4000")
    mini = dict(_flags(ROOT / "data_specs/recipes/minirbt.flags"))
    batch = int(mini["train_batch_size"]) * int(mini["gradient_accumulation_steps"])
    assert (batch, mini["temperature"], mini["learning_rate"]) == (4096, "8", "4e-4")
    # The publication sums over seven pairs of layers. T² times the weight of kl_divergence is 1.
    weights = settings.parse_losses(mini["losses"])
    assert weights == {"kl_divergence": 8.0**-2, "hidden_mse": 7.0}
    layers = layer_groups.parse_layer_groups(mini["layer_groups"], 12, 6)
    assert layer_groups.describe(layers) == "0:0,2:1,4:2,6:3,8:4,10:5,12:6"


def test_run_local_only_lowers_sizes_and_raises_the_rate() -> None:
    names = settings.DistillConfig.__dataclass_fields__
    defaults = {name: field.default for name, field in names.items()}
    changed = settings.short_run_settings(
        {**defaults, "train_batch_size": 4, "learning_rate": 1e-2}
    )
    assert "train_batch_size" not in changed
    assert "learning_rate" not in changed
    assert changed["num_train_steps"] == 60
    assert "num_warmup_steps" not in changed
    few = settings.short_run_settings({**defaults, "num_train_steps": 30, "num_warmup_steps": 300})
    assert "num_train_steps" not in few
    assert few["num_warmup_steps"] == 3


CORPORA = {
    "roberta_wwm": ("zh/mlm/fewclue_unlabeled.txt", "bert_chinese_21128.txt"),
    "roberta_wwm_3layers": ("zh/mlm/fewclue_unlabeled.txt", "bert_chinese_21128.txt"),
    "distilbert": ("en/mlm/classic_books.txt", "bert_uncased_30522.txt"),
    "distilrubert_tiny": ("ru/mlm/dialogues_anekdots.txt", "bert_multi_cased_119547.txt"),
    "tinybert_general": ("en/mlm/classic_books.txt", "bert_uncased_30522.txt"),
    "minilm_v2": ("en/mlm/classic_books.txt", "bert_uncased_30522.txt"),
    "minirbt": ("zh/mlm/fewclue_unlabeled.txt", "bert_chinese_21128.txt"),
    "rubert_tiny": ("ru/mlm/dialogues_anekdots.txt", "bert_multi_cased_119547.txt"),
}
CLASSES = {"distilbert": "DistilBertForMaskedLM"}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.peers
@pytest.mark.parametrize("recipe", CORPORA)
def test_losses_of_a_recipe_fall_on_real_text(recipe: str, tmp_path) -> None:
    """Each takes minutes. `transformers` loads the student without missing or unused weights."""
    transformers = pytest.importorskip("transformers")
    corpus, vocab = CORPORA[recipe]
    status = try_recipe.main(
        [
            "try_recipe",
            f"--recipe={recipe}",
            f"--corpus={SHARED / corpus}",
            f"--vocab_file={SHARED / 'vocab' / vocab}",
            f"--work={tmp_path}",
        ]
    )
    assert status == 0
    lines = try_recipe.losses_over_steps(tmp_path / "student")
    assert lines[-1]["loss"] < lines[0]["loss"]
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "student", output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(model).__name__ == CLASSES.get(recipe, "BertForMaskedLM")
    text = json.loads((tmp_path / "student" / "config.json").read_text())
    assert model.config.vocab_size == text["vocab_size"]
