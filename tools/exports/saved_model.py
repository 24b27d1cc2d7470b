"""TensorFlow's SavedModel: one that takes ids, and one that takes text.

They are two, as plain TensorFlow and servers without tensorflow-text load nothing in which any
operation is of tensorflow-text, whatever signature is asked for.
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
from tools.exports.program import ExportError, Opened, Program, Subject, compile_program

# TensorFlow Serving's name of what is taken unless one asks for another.
SIGNATURE = "serving_default"
TEXT = "text"
TEXT_PACKAGE = "tensorflow_text"
_READER = pathlib.Path(__file__).with_name("saved_model_reader.py")
# Differences between two devices that compute the same.
_TOLERANCE = 1e-2
_ROOT_FILE = "saved_model.pb"


def write_ids(program: Program, directory: pathlib.Path) -> None:
    """Writes a program that takes ids."""
    _save(program, directory, compile_program(program))


def write_text(subject: Subject, directory: pathlib.Path) -> None:
    """Writes a program that takes text.

    Raises:
        ExportError: `why_no_text` has a reason.
    """
    if (reason := why_no_text(subject)) is not None:
        raise ExportError(reason)
    _save(subject.program, directory, _from_text(subject))


def _save(program: Program, directory: pathlib.Path, function: Any) -> None:
    module = tf.Module()
    # What a function reads must hang on what is saved.
    module.weights = list(program.variables)
    module.function = function
    tf.saved_model.save(module, str(directory), signatures={SIGNATURE: function})
    # A note of who wrote it, which nothing reads and which differs from run to run.
    (directory / "fingerprint.pb").unlink(missing_ok=True)
    if not any((directory / "assets").iterdir()):
        shutil.rmtree(directory / "assets")


def why_no_text(subject: Subject) -> str | None:
    """Returns why there is no SavedModel that takes text; None where there is one."""
    if subject.num_texts > 1:
        return "an input is of two texts"
    if not isinstance(subject.tokenizer, WordPieceTokenizer):
        return "the tokenizer is no WordPiece vocab.txt"
    vocab = subject.tokenizer.vocab
    if len(set(vocab)) < len(vocab) or "" in vocab:
        return "tensorflow-text takes no vocabulary with a token twice or an empty one"
    if options := subject.tokenizer.options:
        return f"tensorflow-text has no {', '.join(options)}, which the tokenizer sets"
    return None


def normalize(text: tf.Tensor, *, do_lower_case: bool) -> tf.Tensor:
    """Does to texts what BERT's tokenizer does before it splits them.

    With `do_lower_case` it takes accents off, too. tensorflow-text's own lower-casing also
    replaces Chinese punctuation, which BERT's leaves as it is.
    """
    import tensorflow_text

    text = tf.strings.regex_replace(text, r"[\t\n\r]", " ")
    # Control and formatting characters, and what stands for a byte that is no text.
    text = tf.strings.regex_replace(text, r"[\p{C}\x{FFFD}]", "")
    if not do_lower_case:
        return text
    text = tensorflow_text.normalize_utf8(text, "NFD")
    text = tf.strings.regex_replace(text, r"\p{Mn}", "")
    return tf.strings.lower(text, encoding="utf-8")


def _from_text(subject: Subject) -> Any:
    """Returns the program as a graph of texts, string [B]; it also returns its ids and mask."""
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


def open_ids(subject: Subject, directory: pathlib.Path) -> Opened:
    """Loads what `write_ids` wrote, after a process that has nothing but TensorFlow has."""
    probe = example_batch(np.arange(4))
    signature = _load(directory, {name: probe[name] for name in subject.program.inputs})

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        return signature({name: batch[name] for name in subject.program.inputs})

    return Opened(run, _version("tensorflow"))


def open_text(subject: Subject, directory: pathlib.Path) -> Opened:
    """Loads what `write_text` wrote, after a process that has tensorflow-text, too."""
    text = " ".join(subject.tokenizer.vocab[-8:])
    signature = _load(directory, {TEXT: np.array([text])}, TEXT_PACKAGE)

    def run(text: str) -> Arrays:
        return signature({TEXT: np.array([text])})

    return Opened(None, f"{_version('tensorflow')}, {_version('tensorflow-text')}", run)


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _load(
    directory: pathlib.Path, probe: Mapping[str, np.ndarray], *packages: str
) -> Callable[[Mapping[str, np.ndarray]], Arrays]:
    """Loads a SavedModel, and compares what it computes here and in a fresh process.

    Args:
        probe: inputs to compare on.
        packages: imported before it is loaded, here and there.

    Returns:
        what runs it on inputs by their names.

    Raises:
        ExportError: the fresh process does not load it, or computes something else.
    """
    for name in packages:
        importlib.import_module(name)
    loaded = tf.saved_model.load(str(directory))

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        # `loaded` holds the variables.
        given = {name: tf.constant(value) for name, value in inputs.items()}
        outputs = loaded.signatures[SIGNATURE](**given)
        return {name: value.numpy() for name, value in outputs.items()}

    received, expected = _run_afresh(directory, probe, packages), run(probe)
    for name, value in expected.items():
        if not np.allclose(received[name], value, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise ExportError(f"a fresh process computes other {name}")
    return run


def _run_afresh(
    directory: pathlib.Path, inputs: Mapping[str, np.ndarray], packages: Sequence[str]
) -> Arrays:
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("inputs.npz", "outputs.npz")]
        np.savez(files[0], **inputs)
        # Without the folder of the program on the path, and without a GPU that is in use here.
        command = [sys.executable, "-P", str(_READER), str(directory), *files, *packages]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().split("\n") or ["no reason given"])[-1]
            raise ExportError(f"a fresh process does not load it: {reason[:300]}")
        with np.load(files[1]) as outputs:
            return dict(outputs)
