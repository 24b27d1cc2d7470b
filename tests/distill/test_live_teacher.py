"""Live teachers, cached hidden states and embeddings, and students made from teachers."""

import dataclasses
import pathlib

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from data_specs import records
from pipeline.api.cache import Cache
from pipeline.distill import batches, checkpoints, preparation, training
from pipeline.distill.losses.weights import WeightSchedule
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.models.formats import model_directory
from pipeline.storage import manifest as manifests
from pipeline.storage.records import decode_embedding
from tests.conftest import make_cache, save_tiny_bert
from tests.distill.running import (
    assert_equal_arrays,
    assert_same_weights,
    distilled,
    interrupt_at,
    read_lines,
    read_weights,
    refused,
)

DISTRIBUTION = ("soft_cross_entropy", "kl_divergence", "probability_cosine")


@pytest.fixture(scope="module")
def hidden_cache_dir(tmp_path_factory, examples_dir, teacher_dir) -> pathlib.Path:
    """A cache with the hidden states of layers 1-3 and 3, in 8 bits."""
    folder = tmp_path_factory.mktemp("hidden") / "cache"
    changes = {"cache_hidden_states": "1-3,3", "hidden_encoding": "int8"}
    return make_cache(folder, examples_dir, teacher_dir, **changes)


@pytest.fixture
def own_settings(examples_dir, teacher_dir) -> dict:
    """Two of the teacher's three layers, trained on masked examples with a live teacher."""
    losses = {"kl_divergence": 1.0, "hidden_cosine": 1.0}
    return {"losses": losses, "input_dir": examples_dir, "teacher": teacher_dir}


def _evaluate(config: DistillConfig, **changes) -> dict[str, float]:
    return distilled(config, do_train=False, **changes)


@pytest.mark.long
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", [None, "bucket", "label", "renormalize"])
def test_live_top_k_equals_the_cached_one(config, cache_dir, tail, temperature) -> None:
    """The tolerance is the rounding of float16 logits: 2^-11 of the distance to the largest."""
    changes = {"losses": {"kl_divergence": 1.0}, "tail": tail, "temperature": temperature}
    live = _evaluate(config, truncation_factor=16, **changes)
    cached = _evaluate(config, input_dir=str(cache_dir), teacher=None, **changes)
    assert live.keys() == cached.keys()
    for name in live.keys() - {"examples_per_second", "loss"}:
        assert live[name] == pytest.approx(cached[name], rel=2e-3, abs=1e-5), name


@pytest.mark.long
def test_whole_distribution_equals_k_of_the_vocabulary_size(config, vocab) -> None:
    changes = {"losses": {"kl_divergence": 1.0}, "temperature": 3.0}
    dense = _evaluate(config, **changes)
    for tail in ("drop", "bucket", "label", "renormalize"):
        truncated = _evaluate(config, truncation_factor=len(vocab), tail=tail, **changes)
        for name in DISTRIBUTION:
            assert truncated[name] == pytest.approx(dense[name], rel=1e-4, abs=1e-5), (tail, name)


@pytest.mark.long
def test_cached_top_k_combines_with_live_hidden_states(config, hidden_cache_dir) -> None:
    """The top-k comes from the cache, all hidden states from the teacher."""
    mixed = _evaluate(config, input_dir=str(hidden_cache_dir), layer_groups="3:2")
    cached = _evaluate(config, input_dir=str(hidden_cache_dir), teacher=None, layer_groups="3:2")
    assert mixed["kl_divergence"] == cached["kl_divergence"]
    assert set(mixed) - set(cached) == {"hidden_cosine"}
    assert set(cached) - set(mixed) == {"hidden_cosine_masked"}
    both = _evaluate(config, losses={"hidden_cosine_masked": 1.0}, layer_groups="3:2")
    # With 8 bits the error is at most 1/254 of the largest number, so the cosine is nearly 1.
    assert cached["hidden_cosine_masked"] == pytest.approx(both["hidden_cosine_masked"], abs=2e-4)
    assert abs(both["hidden_cosine_masked"] - mixed["hidden_cosine"]) > 1e-3


def test_cached_hidden_states_equal_the_teachers_means(hidden_cache_dir, teacher_dir) -> None:
    manifest = manifests.load(hidden_cache_dir)
    info = manifest.teacher_info
    assert info.hidden_groups == ("1-3", "3")
    assert (info.hidden_encoding, info.hidden_size) == ("int8", 32)
    sizes = {"topk_ids": 32, "topk_logits": 32, "log_tail_masses": 8, "label_log_probs": 2}
    assert manifest.bytes_per_position() == {**sizes, "hidden_states": 64, "hidden_scales": 8}
    cache = preparation.cache_input.open_cache(hidden_cache_dir, None)
    model = model_directory.load_masked_lm(model_directory.find_model(teacher_dir))
    inputs, targets = next(iter(batches.evaluation_batches(cache, batch_size=4, max_steps=1)))
    states = [np.asarray(state) for state in model.activations(inputs)[records.HIDDEN_STATES]]
    rows = np.arange(4)[:, None]
    positions = np.asarray(inputs[records.MASKED_LM_POSITIONS])
    real = np.asarray(targets[records.MASKED_LM_WEIGHTS]) > 0
    for index, mean in enumerate((np.mean(states[1:], axis=0), states[3])):
        expected = mean[rows, positions]
        received = np.asarray(targets[records.HIDDEN_STATES])[:, :, index]
        bound = np.abs(expected).max(axis=-1, keepdims=True) / 254 * 1.01
        assert (np.abs(received - expected) <= bound)[real].all()


@pytest.mark.long
def test_training_with_a_live_teacher_reduces_every_loss(config, tmp_path) -> None:
    losses = {"kl_divergence": 5.0, "masked_lm": 2.0, "hidden_cosine": 1.0, "attention_mse": 100.0}
    changed = dataclasses.replace(
        config,
        losses=losses,
        loss_positions="all",
        temperature=2.0,
        # The teacher has three layers.
        layer_groups="1-2:1,3:2",
        num_train_steps=60,
        save_checkpoints_steps=60,
        log_steps=10,
    )
    training.distill(changed)
    lines = read_lines(config.output_dir, "train")
    for name in ("kl_divergence", "hidden_cosine", "attention_mse", "loss"):
        assert lines[-1][name] < 0.9 * lines[0][name], name
    total = sum(weight * lines[-1][name] for name, weight in losses.items())
    assert lines[-1]["loss"] == pytest.approx(total, rel=1e-5)
    # Checkpoints do not contain the teacher.
    path = config.output_dir / "checkpoints" / "step-00000060.safetensors"
    with safe_open(path, framework="numpy") as file:
        size = sum(np.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    student = sum(value.size for value in read_weights(config.output_dir).values())
    assert size < 3.1 * student + 1000


@pytest.mark.long
def test_loss_positions_all_changes_only_losses_on_distributions(config) -> None:
    """The label loss is still computed at masked positions only."""
    masked = _evaluate(config)
    everywhere = _evaluate(config, loss_positions="all")
    for name in ("masked_lm", "masked_lm_accuracy", "teacher_agreement", "calibration_error"):
        assert everywhere[name] == pytest.approx(masked[name], rel=1e-5), name
    assert everywhere["hidden_cosine"] == pytest.approx(masked["hidden_cosine"], rel=1e-5)
    assert everywhere["kl_divergence"] != pytest.approx(masked["kl_divergence"], rel=1e-3)


@pytest.mark.long
def test_narrower_student_learns_a_projection(
    config, hidden_cache_dir, monkeypatch, tmp_path
) -> None:
    """The states come from the cache only. An interrupted run gives the same bits."""
    changed = dataclasses.replace(
        config,
        input_dir=str(hidden_cache_dir),
        teacher=None,
        student=dataclasses.replace(config.student, student_hidden_size=16),
        losses={"hidden_cosine": 1.0, "masked_lm": 1.0},
        loss_schedules={"masked_lm": WeightSchedule("linear", 0.0)},
        layer_groups="1-3:1",
    )
    training.distill(changed)
    lines = read_lines(changed.output_dir, "eval")
    assert lines[-1]["hidden_cosine_masked"] < lines[0]["hidden_cosine_masked"]
    weights = read_weights(changed.output_dir)
    assert weights["bert.embeddings.word_embeddings.weight"].shape[1] == 16
    assert not any("projection" in name for name in weights)
    again = dataclasses.replace(changed, output_dir=str(tmp_path / "again"))
    interrupt_at(monkeypatch, again, update=11, step=10)
    training.distill(again)
    assert_same_weights(again.output_dir, changed.output_dir)


@pytest.mark.long
def test_narrower_student_learns_states_of_embeddings_and_layers(
    config, examples_dir, teacher_dir, monkeypatch, tmp_path
) -> None:
    """States come from a live teacher or a cache. Only checkpoints contain the projections."""
    folder = make_cache(tmp_path / "cache", examples_dir, teacher_dir, cache_hidden_states="0,1,3")
    changed = dataclasses.replace(
        config,
        student=dataclasses.replace(config.student, student_hidden_size=16),
        losses={"hidden_mse": 3.0},
        layer_groups="0:0,1:1,3:2",
    )
    training.distill(changed)
    cached = dataclasses.replace(
        changed, input_dir=folder, teacher=None, output_dir=tmp_path / "cached"
    )
    training.distill(cached)
    for run, name in ((changed, "hidden_mse"), (cached, "hidden_mse_masked")):
        lines = read_lines(run.output_dir, "eval")
        assert lines[-1][name] < lines[0][name]
        stored = load_file(run.output_dir / "checkpoints" / "step-00000012.safetensors")
        for layer in range(3):
            assert stored[f"hidden_projection_{layer}/kernel"].shape == (16, 32)
            assert stored[f"hidden_projection_{layer}/bias"].any()
        assert not any("projection" in weight for weight in read_weights(run.output_dir))
    again = dataclasses.replace(cached, output_dir=str(tmp_path / "again"))
    interrupt_at(monkeypatch, again, update=11, step=10)
    training.distill(again)
    assert_same_weights(again.output_dir, cached.output_dir)


@pytest.mark.long
def test_hidden_mse_of_equal_embeddings_is_zero(config) -> None:
    """A student that starts with the teacher's embeddings has the same embeddings' output."""
    changes = {"losses": {"hidden_mse": 1.0}, "compute_dtype": "float32"}
    assert _evaluate(config, layer_groups="0:0", **changes)["hidden_mse"] == 0.0
    assert _evaluate(config, layer_groups="0:0,3:2", **changes)["hidden_mse"] > 1e-3


def test_run_configuration_records_the_layers_of_each_loss(config) -> None:
    """Losses with different default layers are recorded as separate groups."""
    losses = {"hidden_mse": 1.0, "hidden_cosine": 1.0}
    changes = {"losses": losses, "student": dataclasses.replace(config.student, student_layers=3)}
    own = preparation.prepare(dataclasses.replace(config, **changes))
    assert own.run_config()["hidden_groups"] == "0:0,1:1,2:2,3:3;3:3"
    given = dataclasses.replace(config, **changes, layer_groups="0:0,1:1,2:2,3:3")
    assert preparation.prepare(given).run_config()["hidden_groups"] == "0:0,1:1,2:2,3:3"


@pytest.mark.long
def test_loss_weights_follow_their_schedules(config) -> None:
    """The last update has the last weight, also with gradient accumulation."""
    changed = dataclasses.replace(
        config,
        losses={"masked_lm": 2.0, "kl_divergence": 1.0},
        loss_schedules={
            "masked_lm": WeightSchedule("linear", 0.0),
            "kl_divergence": WeightSchedule("cosine", 3.0),
        },
        gradient_accumulation_steps=2,
        train_batch_size=4,
        log_steps=1,
    )
    training.distill(changed)
    for line in read_lines(config.output_dir, "train"):
        # The line is written after the update, with the weights of the next update.
        progress = min(1.0, line["step"] / 11)
        expected = (2.0 - 2.0 * progress) * line["masked_lm"]
        expected += (1.0 + 2.0 * (1 - np.cos(np.pi * progress)) / 2) * line["kl_divergence"]
        assert line["loss"] == pytest.approx(expected, rel=1e-4)
    assert line["loss"] == pytest.approx(3.0 * line["kl_divergence"], rel=1e-4)


@pytest.mark.long
def test_frozen_tables_do_not_change(config, teacher_dir) -> None:
    distilled(config, freeze=("position_embeddings", "word_embeddings"))
    trained, teacher = read_weights(config.output_dir), read_weights(teacher_dir)
    for table, moves in (("word", False), ("position", False), ("token_type", True)):
        name = f"bert.embeddings.{table}_embeddings.weight"
        assert np.array_equal(trained[name], teacher[name]) != moves, name


@pytest.mark.long
def test_distilbert_student_is_made_from_a_bert(
    config, tmp_path, vocab_file, examples_config
) -> None:
    """The student has no segments, and a preset names its layers."""
    single = tmp_path / "single"
    create_masked_examples(
        dataclasses.replace(examples_config, output_dir=str(single), segments="single")
    )
    teacher = save_tiny_bert(tmp_path / "deep", vocab_file, seed=3, num_layers=4)
    student = StudentConfig(init_from=str(teacher), layer_map="every:2", drop_segments=True)
    changed = dataclasses.replace(
        config, input_dir=str(single), teacher=str(teacher), student=student
    )
    training.distill(changed)
    student = model_directory.find_model(changed.output_dir).config
    assert (student.model_type, student.num_hidden_layers) == ("distilbert", 2)
    assert student.type_vocab_size == 0
    pairs = dataclasses.replace(changed, input_dir=config.input_dir, output_dir=str(tmp_path / "x"))
    with refused("init_from"):
        training.distill(pairs)


def test_untied_starts_and_teachers_without_a_head_are_refused(
    config, tmp_path, vocab_file
) -> None:
    untied = save_tiny_bert(tmp_path / "untied", vocab_file, seed=3, tie_word_embeddings=False)
    for changes in ({"student": str(untied)}, {"init_from": str(untied), "student_layers": 1}):
        with refused(next(iter(changes)), "a separate output layer"):
            distilled(config, student=StudentConfig(**changes))
    encoder = save_tiny_bert(tmp_path / "encoder", vocab_file, seed=3)
    weights = load_file(encoder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if name.startswith("bert.")}
    save_file(weights, encoder / "model.safetensors")
    with refused("teacher", "none: its files lack cls.predictions."):
        distilled(config, teacher=str(encoder))
    assert not config.output_dir.exists()


NO_TEACHER = {"teacher": None}
BOTH = NO_TEACHER | {"losses": "hidden_cosine,hidden_cosine_masked", "layer_groups": "3:2"}
OF_LAYERS = NO_TEACHER | {"losses": "hidden_cosine", "layer_groups": "1-2:1"}
OF_MAPS = NO_TEACHER | {"losses": "attention_mse", "layer_groups": "1-3:2"}
OF_CACHE = NO_TEACHER | {"losses": "hidden_cosine", "input_dir": "cache"}


@pytest.mark.parametrize(
    ("changes", "setting", "received"),
    [
        (OF_CACHE, "losses", "hidden_cosine needs the teacher's hidden states"),
        (OF_LAYERS, "losses", "layers 1-3, 3"),
        (OF_MAPS, "losses", "attention_mse needs the teacher's attention maps"),
        (NO_TEACHER | {"loss_positions": "all"}, "loss_positions", "all"),
        (BOTH, "losses", "hidden_cosine is computed as hidden_cosine_masked"),
        ({"layer_groups": "1-4:1"}, "layer_groups", "1-4"),
        ({"losses": "attention_mse", "layer_groups": "0-3:1"}, "layer_groups", "0-3:1"),
        ({"losses": "attention_mse"}, "layer_groups", "mean"),
        ({"losses": "hidden_mse"}, "layer_groups", "uniform"),
        ({"losses": "attention_score_mse", "layer_groups": "0:0"}, "layer_groups", "0:0"),
        ({"losses": "relation_kl", "layer_groups": "0:0"}, "layer_groups", "0:0"),
        ({"losses": "relation_kl", "layer_groups": "1-2:1"}, "layer_groups", "1-2:1"),
        ({"losses": "relation_kl", "relation_heads": 3}, "relation_heads", 3),
        ({"losses": "masked_lm", "relation_heads": 4}, "relation_heads", 4),
        (NO_TEACHER | {"losses": "relation_kl"}, "losses", "queries, keys and values"),
        (NO_TEACHER | {"losses": "embedding_mse"}, "losses", "embeddings"),
        (NO_TEACHER | {"losses": "attention_score_mse"}, "layer_groups", "skip"),
        (NO_TEACHER | {"losses": "hidden_mse", "layer_groups": "0:0"}, "losses", "layers 1-3, 3"),
        ({"freeze": ("pooler",)}, "freeze", "pooler"),
        ({"teacher": "nowhere"}, "teacher", None),
    ],
)
def test_missing_targets_and_layers_are_refused(
    config, cache_dir, hidden_cache_dir, changes, setting, received
) -> None:
    folder = cache_dir if changes.get("input_dir") else hidden_cache_dir
    with refused(setting, received):
        distilled(config, **{**changes, "input_dir": folder})
    assert not config.output_dir.exists()


@pytest.mark.long
def test_attention_losses_train_a_narrower_student(config, tmp_path) -> None:
    """Relation heads have different sizes in the two models. Every attention loss falls."""
    student = dataclasses.replace(config.student, student_hidden_size=16, student_layers=3)
    changed = dataclasses.replace(
        config,
        student=student,
        losses={"relation_kl": 1.0, "attention_score_mse": 1.0, "masked_lm": 0.1},
        layer_groups="1:1,3:3",
        relation_heads=8,
        num_train_steps=40,
        save_checkpoints_steps=40,
        log_steps=10,
    )
    training.distill(changed)
    lines = read_lines(config.output_dir, "train")
    for name in ("relation_kl", "attention_score_mse"):
        assert lines[-1][name] < 0.9 * lines[0][name], name
    request = preparation.prepare(changed).run_config()
    assert (request["relation_groups"], request["score_groups"]) == ("1:1,3:3", "1:1,3:3")
    assert request["relation_heads"] == 8


@pytest.mark.long
@pytest.mark.filterwarnings("error:Gradients do not exist")
def test_head_that_no_loss_trains_does_not_change(config, teacher_dir, capsys) -> None:
    """The head does not change under weight decay either, and one line is printed about it."""
    distilled(config, losses={"relation_kl": 1.0}, weight_decay=0.5, learning_rate=0.01)
    trained, teacher = read_weights(config.output_dir), read_weights(teacher_dir)
    heads = [name for name in teacher if name.startswith("cls.predictions")]
    assert len(heads) >= 5
    assert_equal_arrays(*({name: model[name] for name in heads} for model in (trained, teacher)))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not np.array_equal(trained[name], teacher[name])
    lines = capsys.readouterr().err.splitlines()
    assert sum("masked-LM head" in line and "relation_kl" in line for line in lines) == 1


@pytest.mark.long
def test_attention_losses_of_a_copied_layer_are_zero(config, still_teacher_dir) -> None:
    """The student's first layer is a copy of the teacher's."""
    changes = {
        "losses": {"relation_kl": 1.0, "attention_score_mse": 1.0},
        "teacher": still_teacher_dir,
        "student": StudentConfig(init_from=still_teacher_dir, student_layers=2),
    }
    same = _evaluate(config, layer_groups="1:1", **changes)
    assert (same["relation_kl"], same["attention_score_mse"]) == (0.0, 0.0)
    other = _evaluate(config, layer_groups="3:1", **changes)
    assert min(other["relation_kl"], other["attention_score_mse"]) > 1e-4


@pytest.fixture(scope="module")
def embedding_cache_dir(tmp_path_factory, examples_dir, teacher_dir) -> pathlib.Path:
    """A cache with the mean embedding of each example."""
    folder = tmp_path_factory.mktemp("embedding") / "cache"
    return make_cache(folder, examples_dir, teacher_dir, cache_embedding="mean")


@pytest.mark.long
def test_cached_embeddings_equal_the_teachers_for_unmasked_text(
    embedding_cache_dir, teacher_dir
) -> None:
    manifest = manifests.load(embedding_cache_dir)
    info = manifest.teacher_info
    assert (info.embedding, info.hidden_size, info.hidden_groups) == ("mean", 32, ())
    assert records.EMBEDDING not in manifest.bytes_per_position()
    model = model_directory.load_masked_lm(model_directory.find_model(teacher_dir))
    for example in Cache(str(embedding_cache_dir)).examples("eval"):
        text = {
            records.INPUT_IDS: example.true_ids()[None].astype("int32"),
            records.INPUT_MASK: np.ones((1, len(example.input_ids)), "int32"),
            records.SEGMENT_IDS: np.repeat([0, 1], [*example.segment_lengths, 0][:2])[None],
        }
        states = model.activations(text)[records.HIDDEN_STATES][-1]
        expected = np.asarray(states)[0].mean(axis=0)
        np.testing.assert_allclose(example.embedding, expected, atol=2e-3)
        damaged = {records.EMBEDDING: example.features[records.EMBEDDING][:-2]}
        with pytest.raises(ValueError, match="embedding: expected 32"):
            decode_embedding(damaged, info)


def test_manifest_without_embeddings_has_no_embedding_keys(cache_dir) -> None:
    manifest = (cache_dir / "manifest.json").read_json()
    assert "embedding" not in manifest
    assert "cache_embedding" not in manifest["flags"]


@pytest.mark.long
def test_cached_and_live_embeddings_agree(config, embedding_cache_dir) -> None:
    """The tolerance is the rounding of float16."""
    losses = {"losses": {"embedding_cosine": 1.0, "embedding_mse": 1.0, "masked_lm": 1.0}}
    cached = _evaluate(config, input_dir=embedding_cache_dir, teacher=None, **losses)
    live = _evaluate(config, **losses)
    first = _evaluate(config, embedding_pooling="cls", **losses)
    for name in ("embedding_cosine", "embedding_mse"):
        assert cached[name] == pytest.approx(live[name], rel=1e-2, abs=1e-5)
        assert abs(first[name] - live[name]) > 1e-3
    assert cached["masked_lm"] == pytest.approx(live["masked_lm"], rel=1e-5)


@pytest.mark.long
def test_narrower_student_learns_embeddings(
    config, embedding_cache_dir, monkeypatch, tmp_path
) -> None:
    """It learns a projection, in microbatches of different lengths. An interrupted run is equal."""
    changed = dataclasses.replace(
        config,
        input_dir=embedding_cache_dir,
        teacher=None,
        student=dataclasses.replace(config.student, student_hidden_size=16),
        losses={"embedding_cosine": 5.0, "masked_lm": 0.1},
        gradient_accumulation_steps=2,
    )
    training.distill(changed)
    lines = read_lines(changed.output_dir, "eval")
    assert lines[-1]["embedding_cosine"] < lines[0]["embedding_cosine"]
    stored = load_file(changed.output_dir / "checkpoints" / "step-00000012.safetensors")
    assert stored["embedding_projection/kernel"].shape == (16, 32)
    assert not any("projection" in weight for weight in read_weights(changed.output_dir))
    again = dataclasses.replace(changed, output_dir=str(tmp_path / "again"))
    interrupt_at(monkeypatch, again, update=11, step=10)
    training.distill(again)
    assert_same_weights(again.output_dir, changed.output_dir)


@pytest.mark.parametrize(
    ("changes", "setting", "received"),
    [
        ({"embedding_pooling": "cls"}, "losses", "only those of the pooling mean"),
        ({"losses": "masked_lm"} | {"embedding_pooling": "cls"}, "embedding_pooling", "cls"),
        ({"freeze": ("encoder",)}, "losses", "embedding_mse"),
    ],
)
def test_missing_embeddings_are_refused(
    config, embedding_cache_dir, changes, setting, received
) -> None:
    cached = {"losses": "embedding_mse", "input_dir": embedding_cache_dir, "teacher": None}
    with refused(setting, received):
        distilled(config, **{**cached, **changes})


def test_attention_maps_require_equal_numbers_of_heads(config) -> None:
    student = dataclasses.replace(config.student, student_hidden_size=16, student_attention_heads=2)
    with refused("losses", 2):
        distilled(config, student=student, losses={"attention_mse": 1.0}, layer_groups="1:1")


@pytest.mark.slow
def test_another_teacher_is_another_run_configuration(config, tmp_path, vocab_file) -> None:
    training.distill(config)
    other = save_tiny_bert(tmp_path / "other", vocab_file, seed=8)
    with refused("output_dir"):
        distilled(config, teacher=str(other))
    assert checkpoints.checkpoint_steps(config.output_dir) == [10, 12]
