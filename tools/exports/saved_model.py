"""TensorFlow's SavedModel: one signature that takes ids, and where possible one that takes text."""

import importlib
import importlib.metadata
import importlib.util
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.tokenizers.wordpiece import WordPieceTokenizer
from tools.exports.examples import Arrays
from tools.exports.program import Opened, Program, Subject, compile_program

# TensorFlow Serving's name of what is taken unless one asks for another.
IDS_SIGNATURE = "serving_default"
TEXT_SIGNATURE = "from_text"
_TEXT = "text"
_TEXT_PACKAGE = "tensorflow_text"
_ROOT_FILE = "saved_model.pb"


def write_ids(program: Program, directory: pathlib.Path) -> None:
    """Writes a program that takes ids."""
    _save(program, directory, {IDS_SIGNATURE: compile_program(program)})


def write(subject: Subject, directory: pathlib.Path) -> None:
    """Writes a program that takes ids, and text where `why_no_text` finds nothing against it."""
    signatures = {IDS_SIGNATURE: compile_program(subject.program)}
    if why_no_text(subject) is None:
        signatures[TEXT_SIGNATURE] = _from_text(subject)
    _save(subject.program, directory, signatures)


def _save(program: Program, directory: pathlib.Path, signatures: Mapping[str, Any]) -> None:
    module = tf.Module()
    # What a function reads must hang on what is saved.
    module.weights = list(program.variables)
    module.signatures_kept = list(signatures.values())
    tf.saved_model.save(module, str(directory), signatures=dict(signatures))
    # A note of who wrote it, which nothing reads and which differs from run to run.
    (directory / "fingerprint.pb").unlink(missing_ok=True)
    if not any((directory / "assets").iterdir()):
        shutil.rmtree(directory / "assets")


def why_no_text(subject: Subject) -> str | None:
    """Returns why there is no signature that takes text; None where there is one."""
    if subject.num_texts > 1:
        return "an input is of two texts"
    if not isinstance(subject.tokenizer, WordPieceTokenizer):
        return "the tokenizer is no WordPiece vocab.txt"
    vocab = subject.tokenizer.vocab
    if len(set(vocab)) < len(vocab) or "" in vocab:
        return "tensorflow-text takes no vocabulary with a token twice or an empty one"
    if options := subject.tokenizer.options:
        return f"tensorflow-text has no {', '.join(options)}, which the tokenizer sets"
    if importlib.util.find_spec(_TEXT_PACKAGE) is None:
        return "tensorflow-text is not installed (pip install '.[export]')"
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

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=_TEXT)], autograph=False)
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


def open_saved_model(subject: Subject, directory: pathlib.Path) -> Opened:
    """Loads what was written."""
    if why_no_text(subject) is None:
        # Its operations are TensorFlow's only after that.
        importlib.import_module(_TEXT_PACKAGE)
    loaded = tf.saved_model.load(str(directory))
    from_ids = loaded.signatures[IDS_SIGNATURE]

    # Both keep `loaded`, which holds the variables.
    def run(batch: Mapping[str, np.ndarray], loaded: Any = loaded) -> Arrays:
        given = {name: tf.constant(batch[name]) for name in subject.program.inputs}
        return {name: value.numpy() for name, value in from_ids(**given).items()}

    def run_text(text: str, loaded: Any = loaded) -> Arrays:
        outputs = loaded.signatures[TEXT_SIGNATURE](tf.constant([text]))
        return {name: value.numpy() for name, value in outputs.items()}

    reader = f"tensorflow {importlib.metadata.version('tensorflow')}"
    return Opened(run, reader, run_text if TEXT_SIGNATURE in loaded.signatures else None)
