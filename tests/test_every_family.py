"""Each model family through capture, distillation and export."""

import dataclasses
import json

import keras
import pytest

from pipeline import run_distill
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.models.families import FAMILIES
from pipeline.models.formats.model_directory import find_model
from tests.conftest import make_cache, save_tiny_bert
from tests.family_examples import example_config
from tests.tools.exports.conftest import run_export

# The tiny model of the tests sets these fields of a family's example itself.
_OWN = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")


@pytest.fixture(scope="module")
def single_dir(tmp_path_factory, examples_config):
    """Masked examples of single texts, which families without segments require; read only."""
    folder = tmp_path_factory.mktemp("single") / "masked"
    config = dataclasses.replace(
        examples_config, output_dir=str(folder), segments="single", dupe_factor=1
    )
    create_masked_examples(config)
    return folder


@pytest.fixture
def sentences(tmp_path, corpus_dir):
    """A file with lines of the corpus, on which exports are compared."""
    path = tmp_path / "sentences.txt"
    path.write_text((corpus_dir / "b.txt").read_text(encoding="utf-8")[:2000], encoding="utf-8")
    return path


@pytest.mark.long
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports come from TensorFlow")
@pytest.mark.parametrize(
    "formats", ["hf,saved_model", pytest.param("litert,onnx", marks=pytest.mark.export)]
)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_is_captured_distilled_and_exported(
    tmp_path, single_dir, vocab_file, sentences, model_type: str, formats: str
) -> None:
    fields = dataclasses.asdict(example_config(model_type))
    fields = {name: value for name, value in fields.items() if name not in _OWN}
    layers = fields.pop("num_hidden_layers")
    teacher = save_tiny_bert(tmp_path / "teacher", vocab_file, seed=7, num_layers=layers, **fields)
    cache = make_cache(tmp_path / "cache", single_dir, teacher)
    out = tmp_path / "student"
    flags = (
        f"--input_dir={cache}",
        f"--init_from={teacher}",
        "--student_layers=1",
        "--student_hidden_size=16",
        "--student_attention_heads=2",
        f"--output_dir={out}",
        "--num_train_steps=2",
        "--train_batch_size=4",
    )
    assert not run_distill.main(["run_distill", *flags])
    source = find_model(out)
    assert (source.config.model_type, source.config.num_hidden_layers) == (model_type, 1)
    assert source.config.hidden_size == 16

    exports = tmp_path / "exports"
    settings = {"model": out, "sentences": sentences, "output_dir": exports}
    assert not run_export(formats=formats, max_seq_length=40, **settings)
    report = json.loads((exports / "export.json").read_text())
    compared = {row["name"]: row["comparison"] for row in report["rows"]}
    assert compared.pop("model") is None and report["left_out"] == {}
    assert set(formats.split(",")) <= set(compared)
    for comparison in compared.values():
        assert comparison["agreement"] == 1.0 and comparison["largest_difference"] < 1e-4
