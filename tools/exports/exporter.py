"""Export: writes each format, compares it with the model, and measures its latency."""

import dataclasses
import functools
import os
import pathlib
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_specs.records import INPUT_IDS
from tools import measurement
from tools.exports import hugging_face, litert, onnx_model, saved_model
from tools.exports.examples import Arrays, Example, encode, example_batch
from tools.exports.formats import (
    FORMATS,
    HF,
    LITERT,
    LITERT_INT8,
    ONNX,
    SAVED_MODEL,
    SAVED_MODEL_TEXT,
    SENTENCE_TRANSFORMERS,
)
from tools.exports.program import ExportError, ReloadedExport, Subject, run_program

# Tolerance of a prediction that is one number, relative to the larger of its magnitude and 1.
_NEAR = 0.05
# Tolerance of the numbers of a vector, relative to the vector's largest number.
_NEAR_VECTOR = 1e-4


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The comparison of two programs on the same inputs.

    A prediction is the index of the largest number of the last axis. If the last axis has only
    one number, the prediction is this number, and two predictions agree within 5%. If the outputs
    are vectors, each vector is a prediction. Two vectors agree if all their numbers agree within
    0.01% of the largest number.

    Attributes:
        largest_difference: largest absolute difference of two numbers, among outputs of equal
            shape; NaN if a number is NaN.
        agreement: fraction of predictions that agree.
        num_guesses: number of predictions; for a masked LM, the number of tokens.
    """

    largest_difference: float
    agreement: float
    num_guesses: int


def compare(
    pairs: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
    *,
    of_vectors: bool = False,
) -> Comparison:
    """Returns the comparison of expected and received outputs, which are matched by name.

    Outputs that are not expected are ignored. If two shapes differ, no prediction agrees.

    Example: [[1, 3], [2, 0]] and [[1, 2], [1, 2]] differ by at most 2. One of two predictions
    agrees.

    Args:
        pairs: expected and received outputs for each input.
        of_vectors: whether the outputs are vectors.
    """
    largest, num_agreeing, num_guesses = 0.0, 0, 0
    for expected_outputs, received_outputs in pairs:
        for name, expected in expected_outputs.items():
            num_guesses += expected[..., 0].size
            received = received_outputs[name]
            if received.shape != expected.shape:
                continue
            # NumPy's maximum, unlike Python's, propagates NaN.
            largest = float(np.maximum(largest, np.abs(received - expected).max()))
            agree = _are_near if of_vectors else _are_same
            num_agreeing += int(agree(expected, received).sum())
    return Comparison(largest, num_agreeing / num_guesses, num_guesses)


def _are_same(expected: np.ndarray, received: np.ndarray) -> np.ndarray:
    """Returns which predictions agree: bool, without the last axis."""
    if expected.shape[-1] == 1:
        # A comparison with NaN is False.
        limit = _NEAR * np.maximum(np.abs(expected), 1.0)
        return (np.abs(received - expected) <= limit)[..., 0]
    return (received.argmax(-1) == expected.argmax(-1)) & np.isfinite(received).all(-1)


def _are_near(expected: np.ndarray, received: np.ndarray) -> np.ndarray:
    """Returns which vectors agree: bool, without the last axis."""
    limit = _NEAR_VECTOR * np.abs(expected).max(-1)
    # A comparison with NaN is False.
    return np.abs(received - expected).max(-1) <= limit


# The functions that write each format into a folder, and those that open such a folder.
_WRITERS: Mapping[str, Callable[[Subject, pathlib.Path], None]] = {
    HF: lambda subject, directory: subject.write_hf(directory),
    SENTENCE_TRANSFORMERS: hugging_face.write_sentences,
    SAVED_MODEL: lambda subject, directory: saved_model.write_ids(subject.program, directory),
    SAVED_MODEL_TEXT: saved_model.write_text,
    LITERT: litert.write,
    LITERT_INT8: functools.partial(litert.write, quantized=True),
    ONNX: onnx_model.write,
}
_OPENERS: Mapping[str, Callable[[Subject, pathlib.Path], ReloadedExport]] = {
    HF: lambda subject, directory: subject.open_hf(directory),
    SENTENCE_TRANSFORMERS: hugging_face.open_sentences,
    SAVED_MODEL: saved_model.open_ids,
    SAVED_MODEL_TEXT: saved_model.open_text,
    LITERT: litert.open_litert,
    LITERT_INT8: litert.open_litert,
    ONNX: onnx_model.open_onnx,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """The measurements of an export, or of the model itself.

    Attributes:
        name: a format; `model` for the model itself.
        reader: the library that computed it.
        megabytes: size of the export's files in MB; None for the model itself.
        comparison: comparison with the model; None for the model itself.
        least_agreement: smallest agreement that is accepted.
        latencies: seconds for one example, in each run.
    """

    name: str
    reader: str
    megabytes: float | None
    comparison: Comparison | None
    least_agreement: float | None
    latencies: tuple[float, ...] = ()

    @property
    def latency(self) -> float:
        """Median latency in seconds."""
        return statistics.median(self.latencies)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values, with median, minimum and maximum of the latencies."""
        value = dataclasses.asdict(self)
        del value["latencies"]
        return value | {
            "latency_seconds": self.latency,
            "fastest_seconds": min(self.latencies),
            "slowest_seconds": max(self.latencies),
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of an export.

    Attributes:
        rows: the model itself, followed by the exported formats.
        left_out: reasons why formats were not exported, by format.
        num_examples: number of examples that were compared.
        latency_tokens: number of tokens of the example that was timed.
    """

    rows: tuple[Row, ...]
    left_out: Mapping[str, str]
    num_examples: int
    latency_tokens: int


# A row, and the function that is timed for it.
_Timed = tuple[Row, Callable[[], Any]]


def export(
    subject: Subject,
    formats: Sequence[str],
    examples: Sequence[Example],
    directory: pathlib.Path,
    *,
    repeats: int,
) -> Report:
    """Exports a model to several formats.

    Args:
        subject: the model.
        formats: names of formats.
        examples: inputs for the comparison; the longest one is timed.
        directory: an existing directory. A folder for a format appears in it only after the
            export was reloaded and agrees with the model on the examples.
        repeats: number of timed runs of each export.
    """
    longest = max(examples, key=lambda example: example.num_tokens)
    reference = run_program(subject.program)
    model = Row("model", "Keras, float32", None, None, None)
    timed: list[_Timed] = [(model, lambda: reference(longest.batch))]
    left_out = {}
    for name in formats:
        stage = directory / f".{name}.tmp"
        try:
            timed.append(_export_one(subject, name, examples, stage, longest))
            _publish(stage, directory / name)
        except ExportError as error:
            left_out[name] = str(error)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    times = measurement.time_alternately([call for _, call in timed], repeats)
    rows = tuple(
        dataclasses.replace(row, latencies=tuple(latencies))
        for (row, _), latencies in zip(timed, times, strict=True)
    )
    return Report(rows, left_out, len(examples), longest.num_tokens)


def _export_one(
    subject: Subject, name: str, examples: Sequence[Example], stage: pathlib.Path, longest: Example
) -> _Timed:
    """Writes a format into `stage` and compares it with the model."""
    _WRITERS[name](subject, stage)
    opened = _OPENERS[name](subject, stage)
    size = sum(path.stat().st_size for path in stage.rglob("*") if path.is_file()) / 1e6
    least, of_vectors = FORMATS[name].least_agreement, FORMATS[name].gives_vectors
    if opened.run is not None:
        reference = run_program(subject.vectors if of_vectors else subject.program)
        pairs = ((reference(example.batch), opened.run(example.batch)) for example in examples)
        row = Row(name, opened.reader, size, compare(pairs, of_vectors=of_vectors), least)
        _expect_agreement(row, given="ids")
        return row, lambda: opened.run(longest.batch)
    if longest.text is None:
        raise ExportError("it takes text, which examples of a cache do not have: set `sentences`")
    row = Row(name, opened.reader, size, compare(_text_pairs(subject, opened, examples)), least)
    _expect_agreement(row, given="texts")
    return row, lambda: opened.from_text(longest.text)


def _text_pairs(
    subject: Subject, opened: ReloadedExport, examples: Sequence[Example]
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yields the outputs of the model and those of the export for each text.

    If the export computes other ids, its outputs are emptied, so that no prediction agrees.
    """
    reference = run_program(subject.program)
    for example in examples:
        ids = encode(subject.tokenizer, example.text, subject.max_seq_length)
        batch = example_batch(ids)
        expected, received = reference(batch), opened.from_text(example.text)
        if received[INPUT_IDS].tolist() != batch[INPUT_IDS].tolist():
            received = {name: value[:0] for name, value in received.items()}
        yield expected, received


def _expect_agreement(row: Row, *, given: str) -> None:
    comparison = row.comparison
    if comparison.agreement < row.least_agreement:
        raise ExportError(
            f"given {given}, at least {row.least_agreement:.1%} of the model's top predictions "
            f"must agree, got {comparison.agreement:.1%} of {comparison.num_guesses:,}, with "
            f"differences of up to {comparison.largest_difference:.3g}"
        )


def _publish(stage: pathlib.Path, final: pathlib.Path) -> None:
    """Renames a folder to its final name, after all its files are written to the disk."""
    for path in stage.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    os.replace(stage, final)
