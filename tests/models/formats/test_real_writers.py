"""Models written by `transformers` and torch give the outputs of their writers; opt-in.

WRITERS_PYTHON=/path/to/python pytest -m peers tests/models/formats/test_real_writers.py

`write_with_transformers.py` lists the packages that this Python needs.
"""

import itertools
import os
import pathlib
import subprocess

import numpy as np
import pytest

from data_specs.records import HIDDEN_STATES, INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.formats.model_directory import assign_weights, find_model, get_weights
from pipeline.models.masked_lm import LOGITS, MaskedLM
from pipeline.models.weight_names import encoder_table

pytestmark = pytest.mark.peers

_WRITER = pathlib.Path(__file__).with_name("write_with_transformers.py")
_FORMATS = ("bin-whole", "bin-sharded", "bin-bfloat16", "h5-whole", "h5-sharded")
_FORMATS += ("tf_safetensors-whole",)
_FAMILIES = ("Bert", "Roberta", "DistilBert", "Albert", "Camembert", "Electra", "MPNet")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Location:
    """The folder of model directories."""
    python = os.environ.get("WRITERS_PYTHON")
    if python is None:
        pytest.skip("WRITERS_PYTHON names no Python with transformers 4, TensorFlow and torch")
    folder = tmp_path_factory.mktemp("written")
    subprocess.run([python, str(_WRITER), str(folder)], check=True, capture_output=True)
    return Location.parse(str(folder))


def _batch(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids = inputs["input_ids"]
    segments = inputs.get("token_type_ids", np.zeros_like(ids))
    return {INPUT_IDS: ids, INPUT_MASK: inputs["attention_mask"], SEGMENT_IDS: segments}


@pytest.mark.parametrize(
    ("family", "file_format"),
    [
        *itertools.product(_FAMILIES, _FORMATS),
        *(("Ernie", name) for name in _FORMATS if name.startswith("bin")),
    ],
)
@pytest.mark.parametrize("kind", ["ForMaskedLM", "Model"])
def test_outputs_equal_those_of_the_writer(
    written: Location, family: str, kind: str, file_format: str
) -> None:
    folder = written / f"{family}{kind}-{file_format}"
    source = find_model(folder)
    assert (len(source.weight_files) > 1) == file_format.endswith("sharded")
    assert source.has_head == (kind == "ForMaskedLM")
    table = None if source.has_head else encoder_table(source.config)
    model = MaskedLM(source.config)
    assign_weights(model, get_weights(model) | source.read_weights(table))
    with np.load(folder / "inputs.npz") as inputs:
        batch = _batch(dict(inputs))
    outputs = model.activations(batch)
    received = outputs[LOGITS] if source.has_head else outputs[HIDDEN_STATES][-1]
    with np.load(folder / "outputs.npz") as expected:
        real = batch[INPUT_MASK] == 1
        difference = np.abs(np.asarray(received) - expected["arr_0"])[real].max()
    print(f"{folder.name}: {difference:.2g}")
    assert difference < 1e-5


@pytest.mark.parametrize(
    ("name", "received", "hint"),
    [
        ("legacy", "a file of torch before 1.6", "weights_only=True"),
        ("module", "BertForMaskedLM", "no code of it was run"),
        ("script", "a TorchScript archive", "torch.jit.load"),
        ("nested", "'state_dict'", "['state_dict']"),
    ],
)
def test_unsupported_files_of_torch_are_refused(
    written: Location, name: str, received: str, hint: str
) -> None:
    source = find_model(written / "refused" / name)
    with pytest.raises(InputError) as error:
        source.read_weights()
    assert error.value.subject == str(written / "refused" / name / "pytorch_model.bin")
    assert received in error.value.received
    assert hint in error.value.hint
