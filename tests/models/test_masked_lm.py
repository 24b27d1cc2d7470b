"""The model's numbers: those of `transformers`, on every backend."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_specs import records
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.models.masked_lm import MaskedLM

GOLDEN = pathlib.Path(__file__).with_name("golden_bert.npz")
CONFIG_FILE = pathlib.Path(__file__).with_name("small_config.json")
ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"


@pytest.fixture
def golden() -> dict[str, np.ndarray]:
    """Weights, inputs and outputs of a tiny BERT; see make_golden.py."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def golden_dir(golden, tmp_path) -> pathlib.Path:
    """The golden model as a Hugging Face directory."""
    prefix = "weights/"
    weights = {
        name.removeprefix(prefix): value
        for name, value in golden.items()
        if name.startswith(prefix)
    }
    save_file(weights, tmp_path / "model.safetensors")
    config = {"model_type": "bert", **json.loads(golden["config"].tobytes())}
    # What a diff against the defaults leaves out.
    config.setdefault("type_vocab_size", 2)
    config.setdefault("hidden_act", "gelu")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def _inputs(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    positions = np.tile(np.arange(10, dtype="int32"), (3, 1))
    names = (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)
    return {
        **{name: golden[name].astype("int32") for name in names},
        records.MASKED_LM_POSITIONS: positions,
    }


def test_logits_and_states_are_those_of_transformers(golden, golden_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(golden_dir))
    inputs = _inputs(golden)
    np.testing.assert_allclose(np.asarray(model(inputs)), golden["logits"], atol=1e-5)
    states = model.activations(inputs)[records.HIDDEN_STATES]
    real = golden["input_mask"].astype(bool)
    for state, expected in zip(states, golden["hidden_states"], strict=True):
        np.testing.assert_allclose(np.asarray(state)[real], expected[real], atol=1e-5)


def test_only_masked_positions_are_computed_and_in_their_order(golden, golden_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(golden_dir))
    positions = np.array([[3, 1], [0, 0], [2, 9]], "int32")
    logits = np.asarray(model({**_inputs(golden), records.MASKED_LM_POSITIONS: positions}))
    expected = np.take_along_axis(golden["logits"], positions[..., None], axis=1)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_padding_changes_nothing(golden, golden_dir) -> None:
    model = model_directory.load_masked_lm(model_directory.find_model(golden_dir))
    inputs = _inputs(golden)
    cut = {name: value[2:, :4] for name, value in inputs.items()}
    whole = np.asarray(model(inputs))[2:, :4]
    np.testing.assert_allclose(np.asarray(model(cut)), whole, atol=1e-5)


def test_the_teachers_logits_stay_float32_under_mixed_precision(golden, golden_dir) -> None:
    source = model_directory.find_model(golden_dir)
    inputs = _inputs(golden)
    errors = {}
    for logits_dtype in (None, "float32"):
        model = model_directory.load_masked_lm(
            source, dtype="mixed_bfloat16", logits_dtype=logits_dtype
        )
        logits = np.asarray(model(inputs))
        assert logits.dtype == np.float32
        errors[logits_dtype] = np.abs(logits - golden["logits"]).mean()
    assert errors["float32"] < errors[None]


def test_dropout_is_seeded_and_only_in_training() -> None:
    config = EncoderConfig.from_json(Location.parse(CONFIG_FILE))
    inputs = {
        name: np.ones((2, 6), "int32")
        for name in (records.INPUT_IDS, records.INPUT_MASK, records.MASKED_LM_POSITIONS)
    }
    inputs[records.SEGMENT_IDS] = np.zeros((2, 6), "int32")
    one, two, other = (MaskedLM(config, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one(inputs), two(inputs))
    assert np.abs(np.asarray(one(inputs)) - np.asarray(other(inputs))).max() > 0
    first, second = one(inputs, training=True), one(inputs, training=True)
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 0
    np.testing.assert_array_equal(first, two(inputs, training=True))
    np.testing.assert_array_equal(one(inputs), two(inputs))


def test_jax_computes_the_same(golden_dir, golden) -> None:
    np.savez(golden_dir / "inputs.npz", **_inputs(golden))
    code = (
        "import sys, numpy as np; sys.modules['tensorflow'] = None\n"
        "from pipeline.base.location import Location\n"
        "from pipeline.models.formats import model_directory\n"
        f"source = model_directory.find_model(Location.parse({str(golden_dir)!r}))\n"
        "model = model_directory.load_masked_lm(source)\n"
        f"inputs = dict(np.load({str(golden_dir / 'inputs.npz')!r}))\n"
        f"np.save({str(golden_dir / 'logits.npy')!r}, np.asarray(model(inputs)))\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    np.testing.assert_allclose(np.load(golden_dir / "logits.npy"), golden["logits"], atol=1e-5)


def _peer_logits(directory: pathlib.Path, inputs: dict[str, np.ndarray]):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(
        directory, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem], (problem, report[problem])
    with torch.no_grad():
        output = model.eval()(
            input_ids=torch.tensor(inputs[records.INPUT_IDS].astype("int64")),
            attention_mask=torch.tensor(inputs[records.INPUT_MASK].astype("int64")),
            token_type_ids=torch.tensor(inputs[records.SEGMENT_IDS].astype("int64")),
            output_hidden_states=True,
        )
    return output.logits.numpy(), [state.numpy() for state in output.hidden_states]


def _random_inputs(vocab_size: int, length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    mask = (np.arange(length) < random.integers(length // 2, length + 1, (4, 1))).astype("int32")
    return {
        records.INPUT_IDS: random.integers(5, vocab_size, (4, length)).astype("int32"),
        records.INPUT_MASK: mask,
        records.SEGMENT_IDS: (np.arange(length) > length // 3).astype("int32") * mask,
        records.MASKED_LM_POSITIONS: np.tile(np.arange(length, dtype="int32"), (4, 1)),
    }


@pytest.mark.peers
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_an_exported_model_is_the_same_in_transformers(tmp_path, activation: str) -> None:
    settings = json.loads(CONFIG_FILE.read_text())
    (tmp_path / "c.json").write_text(json.dumps({**settings, "hidden_act": activation}))
    model = MaskedLM(EncoderConfig.from_json(tmp_path / "c.json"), seed=3)
    model_directory.save_hf(tmp_path, model)
    inputs = _random_inputs(model.config.vocab_size, 16)
    logits, states = _peer_logits(tmp_path, inputs)
    np.testing.assert_allclose(np.asarray(model(inputs)), logits, atol=1e-5)
    real = inputs[records.INPUT_MASK].astype(bool)
    for ours, theirs in zip(model.activations(inputs)[records.HIDDEN_STATES], states, strict=True):
        np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], atol=1e-5)


@pytest.mark.peers
@pytest.mark.shared
def test_the_real_teacher_is_the_same_in_transformers() -> None:
    directory = Location.parse(SHARED / "models" / "zh-bert-4L-256")
    model = model_directory.load_masked_lm(model_directory.find_model(directory))
    inputs = _random_inputs(21128, 64)
    logits, _ = _peer_logits(directory, inputs)
    real = inputs[records.INPUT_MASK].astype(bool)
    difference = np.abs(np.asarray(model(inputs)) - logits)[real].max()
    print(f"largest difference of a logit: {difference:.2e}")
    # Logits reach 20 here, where float32 has steps of 2e-6.
    assert difference < 1e-4
