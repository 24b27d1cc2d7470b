"""Tests of model cards: the front matter for hubs, and the description of a run."""

import dataclasses
import json
import pathlib

import pytest
import yaml

from pipeline import run_distill
from pipeline.base.errors import InputError
from pipeline.models.formats.model_directory import find_model
from pipeline.storage import manifest as manifests
from tools.exports import model_card as tool
from tools.exports.model_card import CardSettings, Origin, find_origin, model_card

NOWHERE = Origin({}, None, {})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_dir, teacher_dir) -> pathlib.Path:
    """A student that was trained for two updates; read only."""
    folder = tmp_path_factory.mktemp("run") / "student"
    flags = (
        f"--input_dir={cache_dir} --init_from={teacher_dir} --student_layers=2 --num_train_steps=2 "
        "--train_batch_size=4 --gradient_accumulation_steps=2 --max_eval_steps=1 "
        f"--losses=soft_cross_entropy=1,masked_lm=0.5 --learning_rate=5e-4 --output_dir={folder}"
    )
    assert run_distill.main(["run_distill", *flags.split()]) == 0
    return folder


def _section(card: str, title: str) -> dict[str, str]:
    """Returns the rows of a table of two columns below a title."""
    text = card.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] not in ("", "---")}


def test_the_card_describes_the_run(run_dir, cache_dir, teacher_dir, tmp_path) -> None:
    cache = manifests.load(cache_dir)
    scores = tmp_path / "scores.json"
    scores.write_text('{"ChnSentiCorp": 91.25, "OCNLI": 70}')
    settings = CardSettings("tiny", scores=(scores,))
    config = find_model(run_dir).config
    card = model_card(config, settings, find_origin(run_dir, cache))
    teacher = find_model(teacher_dir)
    size = config.vocab_size
    first = next(line for line in card.splitlines() if line.startswith("A BERT"))
    assert first.startswith(f"A BERT of 2 layers × 32, {size:,} tokens, 0.0")
    text = "a larger model's predictions of masked tokens. It takes up to 64 tokens."
    assert first.endswith(f", distilled from {text}")
    made = _section(card, "Training")
    assert made["teacher"].startswith(f"BERT of 3 layers × 32, {size:,} tokens, ")
    assert made["teacher"].endswith(f"SHA-256 `{teacher.sha256()}`")
    assert made["trained on"] == (
        f"{cache.num_examples('train'):,} examples of at most 48 tokens, the teacher's top 16 at "
        f"masked positions; manifest's SHA-256 `{cache.sha256()}`"
    )
    assert made["initial weights"] == f"layers 0, 2 of a model with SHA-256 `{teacher.sha256()}`"
    assert made["losses"] == "0.5 × masked_lm + 1 × soft_cross_entropy; temperature 1"
    assert made["steps"] == "2 of 8 examples, learning rate 0.0005 after 0 warm-up steps"
    assert made["seed"] == "12345" and made["precision"] == "float32, tensorflow"
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    evaluation = [json.loads(line) for line in lines if json.loads(line)["split"] == "eval"][-1]
    shown = _section(card, "Scores")
    assert shown["ChnSentiCorp"] == "91.25" and shown["OCNLI"] == "70"
    assert shown["teacher_agreement"] == f"{evaluation['teacher_agreement']:.4g}"
    assert not {"step", "split", "examples_per_second"} & set(shown)


def test_the_manifest_of_another_cache_is_ignored(run_dir, cache_dir) -> None:
    cache = manifests.load(cache_dir)
    other = dataclasses.replace(cache, seed=cache.seed + 1)
    config, origin = find_model(run_dir).config, find_origin(run_dir, other)
    made = _section(model_card(config, CardSettings("tiny"), origin), "Training")
    assert made["trained on"] == f"manifest's SHA-256 `{cache.sha256()}`"
    assert "teacher" not in made


def test_the_front_matter_is_yaml_of_what_is_known(teacher_dir) -> None:
    config = find_model(teacher_dir).config
    settings = CardSettings("tiny", "ru,en", "mit", "someone/large: model #1")
    card = model_card(config, settings, NOWHERE, exports=[["", "MB"], ["hf", "1.5"]], note="how")
    opening, front, rest = card.split("---\n", 2)
    assert opening == "" and yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["bert", "masked-lm"],
        "language": ["ru", "en"],
        "license": "mit",
        "base_model": "someone/large: model #1",
    }
    assert rest.endswith("## Exports\n\n|  | MB |\n| --- | --- |\n| hf | 1.5 |\n\nhow\n")
    assert "distilled" not in rest and "## Scores" not in rest
    bare = yaml.safe_load(tool.front_matter(config, CardSettings("x"), distilled=True)[4:-4])
    assert bare["tags"] == ["bert", "masked-lm", "distillation"]
    assert not {"license", "language", "base_model"} & bare.keys()


@pytest.mark.peers
def test_the_code_in_the_card_loads_the_model(teacher_dir, monkeypatch) -> None:
    config = find_model(teacher_dir).config
    card = model_card(config, CardSettings(str(teacher_dir)), NOWHERE)
    code = card.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert len(code.splitlines()) == 3
    assert names["model"].config.hidden_size == config.hidden_size
    assert names["tokenizer"].mask_token == "[MASK]"


@pytest.mark.parametrize("value", ['"high"', "true", "NaN", "[1]", "null"])
def test_scores_must_be_finite_numbers(tmp_path, value: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(f'{{"fine": 1, "OCNLI": {value}}}')
    with pytest.raises(InputError) as caught:
        tool.read_scores([path])
    assert caught.value.subject.startswith(str(path))


def test_a_score_in_two_files_is_an_error(tmp_path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_text('{"OCNLI": 1.5}')
    assert tool.read_scores(paths[:1]) == {"OCNLI": 1.5}
    with pytest.raises(InputError) as caught:
        tool.read_scores(paths)
    assert (caught.value.subject, caught.value.expected) == (str(paths[1]), "each score once")
    assert tool.read_scores([]) == {}


def test_a_damaged_file_of_a_run_is_named(run_dir, tmp_path) -> None:
    (tmp_path / "request.json").write_bytes((run_dir / "request.json").read_bytes())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{broken\n')
    with pytest.raises(InputError) as caught:
        find_origin(tmp_path, None)
    assert caught.value.subject == f"{tmp_path / 'metrics.jsonl'}, line 2"
    # The directory belongs to another command.
    (tmp_path / "request.json").write_text('{"kind": "masked_examples"}')
    assert find_origin(tmp_path, None) == NOWHERE
