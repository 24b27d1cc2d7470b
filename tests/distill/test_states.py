"""Students from a cache of head states equal students with a live teacher."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_specs import records
from pipeline import create_teacher_output_data
from pipeline.base.errors import InputError
from pipeline.distill import batches, training
from pipeline.distill.cached_head import open_head
from pipeline.distill.comparison import STUDENT, TEACHER, BatchComparison, Comparison
from pipeline.distill.losses.distributions import dense_distribution, join_tails
from pipeline.distill.settings import StudentConfig
from pipeline.models.formats import model_directory
from pipeline.models.masked_lm import LOGITS
from pipeline.storage import cache_input, output_table, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.codecs.base import NO_ID
from pipeline.storage.codecs.states import OutputTable
from pipeline.storage.manifest import OUTPUT_TABLE_FILE
from pipeline.storage.records import TeacherTargets
from pipeline.storage.vocab_subset import VocabSubset
from pipeline.teacher import summary
from pipeline.tokenizers.vocabulary import VocabInfo
from tests.conftest import dense_logits, make_cache, read_folder, save_tiny_bert
from tests.distill.running import damaged_copy, distilled, read_lines, refused

EVAL = "eval-00000-of-00001.tfrecord"
# The largest divergence of decoded from exact distributions of this random teacher, nats.
DIVERGENCES = {16: 1e-6, 8: 1e-4, 4: 2e-2}
LOSSES = ("soft_cross_entropy", "kl_divergence", "probability_cosine", "masked_lm")


@pytest.fixture(scope="module")
def caches(tmp_path_factory, examples_dir, teacher_dir, states_cache_dir) -> dict:
    """A cache of head states for each number of bits; read only."""
    folder = tmp_path_factory.mktemp("bits")
    return {8: states_cache_dir} | {
        bits: make_cache(
            folder / str(bits), examples_dir, teacher_dir, logit_encoding="states", state_bits=bits
        )
        for bits in (4, 16)
    }


@pytest.fixture
def own_settings(states_cache_dir) -> dict:
    """Every loss on distributions, at a temperature that is in no cache."""
    losses = dict.fromkeys(LOSSES, 1.0)
    return {"losses": losses, "temperature": 3.0, "input_dir": states_cache_dir}


def _targets(folder: pathlib.Path) -> list[tuple[dict[str, bytes], TeacherTargets]]:
    manifest = manifests.load(folder)
    codec, pairs = cache_input.open_codec(folder, manifest), []
    for record in serialization.read_records(folder / EVAL):
        features = serialization.decode_example(record)
        targets = TeacherTargets.from_features(features, codec, manifest.teacher_info)
        pairs.append((features, targets))
    return pairs


@pytest.mark.parametrize("bits", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 8.0])
def test_decoded_distribution_is_close_to_the_teachers(
    caches, teacher_dir, bits, temperature
) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(teacher_dir))
    largest = 0.0
    for features, targets in _targets(caches[bits])[:12]:
        exact = dense_logits(model, features, model.config.vocab_size)
        labels = np.frombuffer(features[records.MASKED_LM_IDS], "<u2")
        log_probs = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
        label = np.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
        # They come from the dense logits, not from the states, so only float16 rounds them.
        np.testing.assert_allclose(targets.label_log_probs, label, rtol=2e-3, atol=1e-3)
        p, rest = targets.probabilities(temperature)
        assert (rest == 0.0).all()
        q = np.empty_like(p)
        np.put_along_axis(q, targets.ids, p, axis=-1)
        scaled = exact / temperature
        scaled -= np.log(np.exp(scaled).sum(-1, keepdims=True))
        largest = max(largest, (np.exp(scaled) * (scaled - np.log(q))).sum(-1).max())
    assert largest < DIVERGENCES[bits]


def test_manifest_describes_state_sizes_and_output_table(caches, examples_dir) -> None:
    for bits, folder in caches.items():
        manifest = manifests.load(folder)
        info = manifest.teacher_info
        assert (info.state_bits, info.state_size, info.temperatures) == (bits, 32, ())
        assert info.truncation_factor == manifest.vocab.size
        assert manifest.output_table.file == OUTPUT_TABLE_FILE
        assert manifest.output_table.bytes == (folder / OUTPUT_TABLE_FILE).stat().st_size
        sizes = {"head_states": 32 * bits // 8, "label_log_probs": 2}
        sizes |= {} if bits == 16 else {"head_scales": 2}
        assert manifest.bytes_per_position() == sizes
        assert "states of 32 numbers" in "\n".join(summary.describe(manifest))
        assert manifest.flags["state_bits"] == bits


def test_cache_made_in_tasks_is_byte_equal(
    states_cache_dir, examples_dir, teacher_dir, tmp_path
) -> None:
    folder = tmp_path / "cache"
    for index in (1, 2, 0):
        make_cache(
            folder,
            examples_dir,
            teacher_dir,
            logit_encoding="states",
            num_tasks=3,
            task_index=index,
        )
    assert read_folder(folder) == read_folder(states_cache_dir)


@pytest.mark.long
def test_losses_of_each_step_equal_those_of_a_live_teacher(
    config, examples_dir, teacher_dir
) -> None:
    """The tolerance is the codec's error."""
    cached = dataclasses.replace(config, log_steps=1)
    live = dataclasses.replace(
        cached,
        input_dir=examples_dir,
        teacher=teacher_dir,
        output_dir=f"{config.output_dir}-live",
    )
    for run in (cached, live):
        training.distill(run)
    lines, expected = (read_lines(run.output_dir) for run in (cached, live))
    assert len(lines) == len(expected) > config.num_train_steps
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() & set(LOSSES):
            assert line[name] == pytest.approx(other[name], abs=2e-3), (line["step"], name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 8.0, "tail": "label"},
        {"truncation_factor": 7, "tail": "bucket"},
        {"truncation_factor": 7, "tail": "drop", "temperature": 1.0},
        {"truncation_factor": 10**6, "tail": "renormalize"},
    ],
)
def test_any_k_and_temperature_equals_a_live_teacher(
    config, caches, examples_dir, teacher_dir, changes
) -> None:
    cached = distilled(config, input_dir=caches[16], do_train=False, **changes)
    live = distilled(config, input_dir=examples_dir, teacher=teacher_dir, do_train=False, **changes)
    assert cached.keys() == live.keys()
    for name in live.keys() - {"examples_per_second", "loss"}:
        assert cached[name] == pytest.approx(live[name], rel=2e-3, abs=2e-4), name


def test_live_teacher_adds_hidden_states_to_cached_head_states(config, teacher_dir) -> None:
    mixed = distilled(
        config,
        teacher=teacher_dir,
        losses={**config.losses, "hidden_cosine": 1.0},
        do_train=False,
        layer_groups="3:2",
    )
    cached = distilled(config, do_train=False)
    assert set(mixed) - set(cached) == {"hidden_cosine"}
    for name in LOSSES:
        assert mixed[name] == cached[name]


def test_teacher_as_its_own_student_agrees_with_itself(config, caches, teacher_dir) -> None:
    student = StudentConfig(student=str(teacher_dir))
    report = distilled(config, student=student, input_dir=caches[8], do_train=False)
    assert 0.0 <= report["kl_divergence"] < 9 * 1e-4
    assert report["teacher_agreement"] > 0.98


@pytest.mark.long
def test_output_table_is_neither_trained_nor_in_checkpoints(config, states_cache_dir) -> None:
    training.distill(config)
    path = config.output_dir / "checkpoints" / "step-00000012.safetensors"
    names = load_file(path).keys()
    assert names and not any("cached_head" in name for name in names)
    head = open_head(cache_input.open_cache(states_cache_dir, None), 1)
    assert not head.trainable_variables and len(head.variables) == 2


# Students with a reduced vocabulary.


@pytest.fixture(scope="module")
def complete_cache_dir(tmp_path_factory, examples_dir, teacher_dir, vocab) -> pathlib.Path:
    """A top-k cache whose k is the size of the vocabulary."""
    folder = tmp_path_factory.mktemp("complete") / "cache"
    return make_cache(folder, examples_dir, teacher_dir, truncation_factor=len(vocab))


@pytest.mark.parametrize("tail", ["drop", "bucket", "label", "renormalize"])
@pytest.mark.parametrize("k", [None, 9])
def test_reduced_vocabulary_gives_the_targets_of_a_complete_top_k(
    caches, complete_cache_dir, vocab, tail, k
) -> None:
    """At each temperature, the mass of the tokens that the student lacks is in the tail."""
    ids = np.full(len(vocab), NO_ID, np.int32)
    known = [*range(5), *range(5, len(vocab), 2)]
    # The student has the tokens in another order.
    ids[known] = [*range(5), *range(len(known) - 1, 4, -1)]
    subset = VocabSubset(ids, 1, "[UNK]", VocabInfo(len(known), "0" * 64), {})
    values = []
    for folder in (caches[16], complete_cache_dir):
        cache = cache_input.open_cache(folder, None)
        cache = dataclasses.replace(cache, vocab_subset=subset)
        is_complete = folder is complete_cache_dir
        # The list has all tokens of the student.
        has_no_rest = is_complete and k is None and tail == "bucket"
        comparison = Comparison(
            temperature=2.0,
            tail="renormalize" if has_no_rest else tail,
            truncation_factor=k or (len(vocab) if is_complete else None),
            cached_temperatures=cache.manifest.teacher_info.temperatures,
            states_cached=not is_complete,
        )
        (batch,) = batches.evaluation_batches(cache, batch_size=16, max_steps=1)
        inputs, targets = batch
        random = np.random.default_rng(4)
        shape = (*targets[records.MASKED_LM_IDS].shape, len(known))
        activations = {STUDENT: {LOGITS: random.normal(size=shape).astype(np.float32)}}
        if not is_complete:
            head = open_head(cache, len(known))
            logits = head.vocabulary_logits(targets[records.HEAD_STATES], *head.output_layer())
            activations[TEACHER] = {LOGITS: logits}
        compared = BatchComparison(comparison, inputs, targets, activations)
        measured = compared.at_positions(comparison.losses(LOSSES), with_predictions=True)
        real = np.asarray(targets[records.MASKED_LM_WEIGHTS]) > 0
        values.append({name: np.asarray(value)[real] for name, value in measured.items()})
    states, complete = values
    assert states.keys() == complete.keys() and len(states["first"]) > 20
    for name, value in complete.items():
        np.testing.assert_allclose(states[name], value, rtol=3e-3, atol=3e-3, err_msg=name)


def test_output_table_is_reordered_for_a_reduced_vocabulary(states_cache_dir, vocab) -> None:
    """A student's row without a token has no mass; tokens that the student lacks come last."""
    cache = cache_input.open_cache(states_cache_dir, None)
    ids = np.full(len(vocab), NO_ID, np.int32)
    ids[[0, 1, 7, 9]] = [0, 1, 4, 2]
    subset = VocabSubset(ids, 1, "[UNK]", VocabInfo(5, "0" * 64), {})
    whole = open_head(cache, len(vocab))
    head = open_head(dataclasses.replace(cache, vocab_subset=subset), 5)
    states = np.random.default_rng(5).normal(size=(3, 32)).astype(np.float32)
    original, own = (
        np.asarray(layer.vocabulary_logits(states, *layer.output_layer()))
        for layer in (whole, head)
    )
    np.testing.assert_allclose(own[:, [0, 1, 4, 2]], original[:, [0, 1, 7, 9]], rtol=1e-5)
    assert own.shape == (3, len(vocab) + 1) and (own[:, 3] < -1e29).all()
    others = np.delete(original, [0, 1, 7, 9], axis=-1)
    np.testing.assert_allclose(np.sort(own[:, 5:]), np.sort(others), rtol=1e-5)


def test_tails_with_lacking_tokens_equal_hand_computed_values() -> None:
    """The probabilities are .5, .25 and .25; the student lacks the last token."""
    logits = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    dense = dense_distribution(logits, temperature=1.0, vocab_size=2)
    np.testing.assert_allclose(dense.probabilities, [[0.5, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(dense.tail, [0.25], rtol=1e-6)
    # The top-k is the first token. Outside are a third of the student's mass, and a quarter of all.
    log_tail = np.log(np.array([[1.0 / 3.0]], np.float32))
    joined = join_tails(log_tail, logits, temperature=1.0, vocab_size=2)
    np.testing.assert_allclose(np.exp(joined), [[0.5]], rtol=1e-6)
    nothing = join_tails(np.array([[-np.inf]], "f4"), logits, temperature=1.0, vocab_size=2)
    np.testing.assert_allclose(np.exp(nothing), [[0.25]], rtol=1e-6)


@pytest.mark.parametrize("tail", ["drop", "bucket", "label", "renormalize"])
@pytest.mark.parametrize("k", [None, 1])
def test_losses_are_finite_if_the_student_lacks_all_likely_tokens(tail, k) -> None:
    comparison = Comparison(tail=tail, truncation_factor=k, states_cached=True)
    logits = np.array([[[0.0, -1.0, 900.0]]], np.float32)
    targets = {records.MASKED_LM_IDS: np.array([[1]]), records.MASKED_LM_WEIGHTS: np.ones((1, 1))}
    activations = {
        STUDENT: {LOGITS: np.array([[[0.5, 0.25]]], np.float32)},
        TEACHER: {LOGITS: logits},
    }
    compared = BatchComparison(comparison, {}, targets, activations)
    values = compared.at_positions(comparison.losses(LOSSES))
    assert all(np.isfinite(np.asarray(value)).all() for value in values.values()), values


# Bad input.


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ("--logit_encoding=compact --state_bits=8", "--state_bits"),
        ("--state_bits=8", "--state_bits"),
        ("--logit_encoding=states --state_bits=5", "--state_bits"),
        ("--logit_encoding=states --state_bits=32", "--state_bits"),
        ("--logit_encoding=states --temperatures=1,8", "--temperatures"),
        ("--logit_encoding=states --truncation_factor=32", "--truncation_factor"),
        ("--logit_encoding=states --truncation=sampled", "--truncation"),
        ("--logit_encoding=states --truncation_mass=0.9", "--truncation_mass"),
    ],
)
def test_invalid_flags_are_refused(capsys, flags, flag) -> None:
    arguments = ["x", "--input_dir=a", "--teacher=b", "--output_dir=c", *flags.split()]
    assert create_teacher_output_data.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {flag}\\b", line)


@pytest.mark.parametrize(
    "changes",
    [
        {"state_bits": 5},
        {"state_bits": None},
        {"state_size": 0},
        {"state_size": 2**40},
        {"temperatures": [1.0]},
        {"truncation": "sampled"},
        {"truncation_mass": 0.5},
        {"output_table": None},
        {"output_table": {"file": "../x", "bytes": 1, "sha256": "0" * 64}},
    ],
)
def test_broken_manifests_are_refused(states_cache_dir, tmp_path, changes) -> None:
    value = json.loads((states_cache_dir / "manifest.json").read_text()) | changes
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(InputError) as caught:
        manifests.load(tmp_path)
    assert caught.value.subject.startswith(str(tmp_path / "manifest.json"))


def test_altered_truncated_and_missing_output_tables_are_refused(config, tmp_path) -> None:
    folder = tmp_path / "cache"
    path = damaged_copy(config.input_dir, folder, OUTPUT_TABLE_FILE, -1)
    for damage in (lambda: None, lambda: path.write_bytes(path.read_bytes()[:-9]), path.unlink):
        damage()
        with pytest.raises(InputError) as caught:
            distilled(config, input_dir=folder)
        assert caught.value.subject == str(path)


def test_output_table_of_another_teacher_is_refused(config, tmp_path, vocab_file) -> None:
    """The table has the same size, but another checksum."""
    folder = tmp_path / "cache"
    shutil.copytree(config.input_dir, folder)
    source = model_directory.find_model(save_tiny_bert(tmp_path / "other", vocab_file, seed=9))
    weights = source.read_weights()
    (folder / OUTPUT_TABLE_FILE).unlink()
    size = (source.config.vocab_size, source.config.hidden_size)
    layer = weights["encoder/embeddings/word_embeddings"], weights["head/bias"]
    output_table.ensure_table(folder, *size, read_layer=lambda: layer)
    with pytest.raises(InputError) as caught:
        distilled(config, input_dir=folder)
    assert caught.value.subject == str(folder / OUTPUT_TABLE_FILE)


@pytest.mark.parametrize(
    "tensors",
    [
        {"table": np.zeros((3, 4), "f2")},
        {"table": np.zeros((3, 5), "f2"), "bias": np.zeros(3, "f4")},
        {"table": np.zeros((3, 4), "f4"), "bias": np.zeros(3, "f4")},
        {"table": np.zeros((3, 4), "f2"), "bias": np.zeros(3, "f4"), "x": np.zeros(1, "f4")},
        {"table": np.full((3, 4), np.inf, "f2"), "bias": np.zeros(3, "f4")},
        {},
    ],
)
def test_malformed_output_tables_are_refused(tmp_path, tensors) -> None:
    path = tmp_path / OUTPUT_TABLE_FILE
    save_file(tensors, path)
    with pytest.raises(InputError) as caught:
        output_table.read_table(tmp_path, 3, 4)
    assert caught.value.subject == str(path)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError) as caught:
        output_table.read_table(tmp_path, 3, 4)
    assert caught.value.subject == str(path)


def test_output_table_beyond_float16_is_refused(tmp_path) -> None:
    layer = np.full((2, 4), 1e6, np.float32), np.zeros(2, np.float32)
    with refused("teacher"):
        output_table.ensure_table(tmp_path, 2, 4, read_layer=lambda: layer)
    assert not (tmp_path / OUTPUT_TABLE_FILE).exists()
    assert OutputTable.of(*layer).is_finite is False


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"temperature": 8.0}, "temperature"), ({"truncation_factor": 99}, "truncation_factor")],
)
def test_errors_of_a_top_k_cache_suggest_the_codec_of_states(
    config, cache_dir, changes, setting
) -> None:
    changes = {"temperature": 1.0, **changes}
    with pytest.raises(InputError) as caught:
        distilled(config, input_dir=cache_dir, **changes)
    assert caught.value.subject == setting
    assert "`logit_encoding`=states" in caught.value.hint
