"""Exports as TensorFlow SavedModels: one that takes ids, and one that takes text.

A SavedModel with any operation of tensorflow-text does not load in TensorFlow alone or in servers
without tensorflow-text, whichever signature is used. Therefore there are two SavedModels.
"""

import importlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.tokenizers.wordpiece import WordPieceTokenizer
from tools.exports.examples import Arrays, example_batch
from tools.exports.program import ExportError, Program, ReloadedExport, Subject, compile_program

# Name of the default signature in TensorFlow Serving.
SIGNATURE = "serving_default"
TEXT = "text"
TEXT_PACKAGE = "tensorflow_text"
_READER = pathlib.Path(__file__).with_name("saved_model_reader.py")
# Tolerance for the same computation on two devices.
_TOLERANCE = 1e-2
_ROOT_FILE = "saved_model.pb"


def write_ids(program: Program, directory: pathlib.Path) -> None:
    """Writes a SavedModel that takes ids."""
    _save(program, directory, compile_program(program))


def write_text(subject: Subject, directory: pathlib.Path) -> None:
    """Writes a SavedModel that takes text.

    Raises:
        ExportError: this is not possible, see `reason_without_text`.
    """
    if (reason := reason_without_text(subject)) is not None:
        raise ExportError(reason)
    _save(subject.program, directory, _from_text(subject))


def _save(program: Program, directory: pathlib.Path, function: Any) -> None:
    module = tf.Module()
    # TensorFlow saves only variables that are attributes of the module.
    module.weights = list(program.variables)
    module.function = function
    tf.saved_model.save(module, str(directory), signatures={SIGNATURE: function})
    # Nothing reads this file, and it differs from run to run.
    (directory / "fingerprint.pb").unlink(missing_ok=True)
    if not any((directory / "assets").iterdir()):
        shutil.rmtree(directory / "assets")


def reason_without_text(subject: Subject) -> str | None:
    """Returns the reason why a SavedModel cannot take text; None if it can."""
    if subject.num_texts > 1:
        return "an input has two texts"
    if not isinstance(subject.tokenizer, WordPieceTokenizer):
        return "it requires a WordPiece tokenizer (vocab.txt)"
    vocab = subject.tokenizer.vocab
    if len(set(vocab)) < len(vocab) or "" in vocab:
        return "tensorflow-text supports no vocabulary with an empty token or the same token twice"
    if options := subject.tokenizer.options:
        return f"tensorflow-text does not support {', '.join(options)}, which the tokenizer sets"
    return None


def normalize(text: tf.Tensor, *, do_lower_case: bool) -> tf.Tensor:
    """Normalizes texts as BERT's tokenizer does before it splits them.

    With `do_lower_case`, accents are removed too. tensorflow-text's own lower-casing cannot be
    used, because it replaces Chinese punctuation, which BERT's tokenizer does not change.
    """
    import tensorflow_text

    text = tf.strings.regex_replace(text, r"[\t\n\r]", " ")
    # Control and formatting characters, and the replacement character for invalid bytes.
    text = tf.strings.regex_replace(text, r"[\p{C}\x{FFFD}]", "")
    if not do_lower_case:
        return text
    text = tensorflow_text.normalize_utf8(text, "NFD")
    text = tf.strings.regex_replace(text, r"\p{Mn}", "")
    return tf.strings.lower(text, encoding="utf-8")


def _from_text(subject: Subject) -> Any:
    """Returns the program as a graph for texts, string [B]; its outputs include ids and mask."""
    import tensorflow_text

    tokenizer, program = subject.tokenizer, subject.program
    special = tokenizer.special_ids
    splitter = tensorflow_text.FastBertTokenizer(
        vocab=list(tokenizer.vocab),
        token_out_type=tf.int32,
        unknown_token=tokenizer.vocab[special["unk"]],
    )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=TEXT)], autograph=False)
    def run(text: tf.Tensor) -> dict[str, tf.Tensor]:
        text = normalize(text, do_lower_case=tokenizer.do_lower_case)
        ids = splitter.tokenize(text)[:, : subject.max_seq_length - 2]
        ends = tf.ones_like(text, tf.int32)[:, tf.newaxis]
        ids = tf.concat([special["cls"] * ends, ids, special["sep"] * ends], axis=1)
        mask = tf.sequence_mask(ids.row_lengths(), dtype=tf.int32)
        ids = ids.to_tensor(special["pad"])
        batch = {INPUT_IDS: ids, INPUT_MASK: mask, SEGMENT_IDS: tf.zeros_like(ids)}
        outputs = program.call({name: batch[name] for name in program.inputs})
        return {**outputs, INPUT_IDS: ids, INPUT_MASK: mask}

    return run


def open_ids(subject: Subject, directory: pathlib.Path) -> ReloadedExport:
    """Loads a SavedModel of `write_ids`; first, a process with only TensorFlow loads it."""
    probe = example_batch(np.arange(4))
    signature = _load(directory, {name: probe[name] for name in subject.program.inputs})

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        return signature({name: batch[name] for name in subject.program.inputs})

    return ReloadedExport(run, _version("tensorflow"))


def open_text(subject: Subject, directory: pathlib.Path) -> ReloadedExport:
    """Loads a SavedModel of `write_text`; first, a process with tensorflow-text loads it."""
    text = " ".join(subject.tokenizer.vocab[-8:])
    signature = _load(directory, {TEXT: np.array([text])}, TEXT_PACKAGE)

    def run(text: str) -> Arrays:
        return signature({TEXT: np.array([text])})

    return ReloadedExport(None, f"{_version('tensorflow')}, {_version('tensorflow-text')}", run)


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _load(
    directory: pathlib.Path, probe: Mapping[str, np.ndarray], *packages: str
) -> Callable[[Mapping[str, np.ndarray]], Arrays]:
    """Loads a SavedModel, and compares its results in this process and in a new process.

    Args:
        directory: the SavedModel.
        probe: inputs for the comparison.
        packages: packages that both processes import before they load it.

    Returns:
        a function that computes outputs for inputs, both by name.

    Raises:
        ExportError: the new process cannot load it, or gives other results.
    """
    for name in packages:
        importlib.import_module(name)
    loaded = tf.saved_model.load(str(directory))

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        # The signature does not keep the variables alive; `loaded` does.
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        outputs = loaded.signatures[SIGNATURE](**tensors)
        return {name: value.numpy() for name, value in outputs.items()}

    received, expected = _run_in_new_process(directory, probe, packages), run(probe)
    for name, value in expected.items():
        if not np.allclose(received[name], value, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise ExportError(f"a new process computes other values of {name}")
    return run


def _run_in_new_process(
    directory: pathlib.Path, inputs: Mapping[str, np.ndarray], packages: Sequence[str]
) -> Arrays:
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("inputs.npz", "outputs.npz")]
        np.savez(files[0], **inputs)
        # -P leaves the folder of the script out of the path. A GPU may be in use by this process.
        command = [sys.executable, "-P", str(_READER), str(directory), *files, *packages]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().split("\n") or ["no reason given"])[-1]
            raise ExportError(f"a new process cannot load it: {reason[:300]}")
        with np.load(files[1]) as outputs:
            return dict(outputs)
