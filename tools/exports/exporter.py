"""Writes formats, checks each against the model, and measures them in turns."""

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
from tools.exports.program import ExportError, Opened, Subject, run_program

# Where the guess is one number, how far it may be off, as a share of it, or of 1 if that is more.
_NEAR = 0.05
# How far a number of a vector may be off, as a share of the vector's largest.
_NEAR_VECTOR = 1e-4


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What two ways of computing the same outputs make of the same inputs.

    Attributes:
        largest_difference: of any two numbers that should be equal, absolute, among
            outputs of equal shape; NaN where one is no number.
        agreement: share of guesses that are the same; a guess is the place of the
            largest number of the last axis, where that has one number only this
            itself, the same within a twentieth. A vector is a guess of its own, the same
            within a ten-thousandth of its largest number.
        num_guesses: guesses that were compared, for a masked LM as many as tokens.
    """

    largest_difference: float
    agreement: float
    num_guesses: int


def compare(
    pairs: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
    *,
    of_vectors: bool = False,
) -> Comparison:
    """Compares expected and received outputs of inputs, by their names.

    Outputs beyond the expected are left alone; those of another shape agree in no guess.

    Example: [[1, 3], [2, 0]] against [[1, 2], [1, 2]] differs by at most 2, and
    agrees in one guess of two.
    """
    largest, agreeing, guesses = 0.0, 0, 0
    for expected, received in pairs:
        for name, wanted in expected.items():
            guesses += wanted[..., 0].size
            got = received[name]
            if got.shape != wanted.shape:
                continue
            # NumPy's maximum, unlike Python's, keeps what is no number.
            largest = float(np.maximum(largest, np.abs(got - wanted).max()))
            same = _are_near if of_vectors else _are_same
            agreeing += int(same(wanted, got).sum())
    return Comparison(largest, agreeing / guesses, guesses)


def _are_same(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Returns whether guesses are the same: bool, without the last axis."""
    if wanted.shape[-1] == 1:
        # NaN is near nothing.
        return (np.abs(got - wanted) <= _NEAR * np.maximum(np.abs(wanted), 1.0))[..., 0]
    return (got.argmax(-1) == wanted.argmax(-1)) & np.isfinite(got).all(-1)


def _are_near(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Returns whether vectors are the same: bool, without the last axis."""
    limit = _NEAR_VECTOR * np.abs(wanted).max(-1)
    # NaN is near nothing.
    return np.abs(got - wanted).max(-1) <= limit


# What writes each format into a folder, and what opens that.
_WRITERS: Mapping[str, Callable[[Subject, pathlib.Path], None]] = {
    HF: lambda subject, directory: subject.write_hf(directory),
    SENTENCE_TRANSFORMERS: hugging_face.write_sentences,
    SAVED_MODEL: lambda subject, directory: saved_model.write_ids(subject.program, directory),
    SAVED_MODEL_TEXT: saved_model.write_text,
    LITERT: litert.write,
    LITERT_INT8: functools.partial(litert.write, quantized=True),
    ONNX: onnx_model.write,
}
_OPENERS: Mapping[str, Callable[[Subject, pathlib.Path], Opened]] = {
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
    """One way to compute the model.

    Attributes:
        name: a format; `model` for the model itself.
        reader: what computed it.
        megabytes: of the export's files, 10⁶ bytes; None for the model itself.
        comparison: with the model itself, for which it is None.
        least_agreement: what the agreement must be.
        latencies: seconds of one example, run by run.
    """

    name: str
    reader: str
    megabytes: float | None
    comparison: Comparison | None
    least_agreement: float | None
    latencies: tuple[float, ...] = ()

    @property
    def latency(self) -> float:
        """Seconds, the median."""
        return statistics.median(self.latencies)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, and the latencies' median and ends in place of all of them."""
        value = dataclasses.asdict(self)
        del value["latencies"]
        return value | {
            "latency_seconds": self.latency,
            "fastest_seconds": min(self.latencies),
            "slowest_seconds": max(self.latencies),
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """What was exported.

    Attributes:
        rows: the model itself first, then what was exported.
        left_out: why, by format.
        num_examples: that were compared.
        latency_tokens: tokens of the example that was timed.
    """

    rows: tuple[Row, ...]
    left_out: Mapping[str, str]
    num_examples: int
    latency_tokens: int


# A row, and what is timed for it.
_Timed = tuple[Row, Callable[[], Any]]


def export(
    subject: Subject,
    formats: Sequence[str],
    examples: Sequence[Example],
    directory: pathlib.Path,
    *,
    repeats: int,
) -> Report:
    """Exports a model.

    A format appears as a folder of `directory`, which exists, only when it was read again and
    agrees on the examples. The longest of them is timed, `repeats` times.
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
    times = measurement.in_turns([call for _, call in timed], repeats)
    rows = tuple(
        dataclasses.replace(row, latencies=tuple(taken))
        for (row, _), taken in zip(timed, times, strict=True)
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
        raise ExportError("it takes text, and the examples of a cache have none: set `sentences`")
    row = Row(name, opened.reader, size, compare(_text_pairs(subject, opened, examples)), least)
    _expect_agreement(row, given="texts")
    return row, lambda: opened.from_text(longest.text)


def _text_pairs(
    subject: Subject, opened: Opened, examples: Sequence[Example]
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yields what the model and what the export make of texts.

    A text whose ids differ agrees in nothing.
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
    compared = row.comparison
    if compared.agreement < row.least_agreement:
        raise ExportError(
            f"expected at least {row.least_agreement:.1%} of the model's first guesses given "
            f"{given}, received {compared.agreement:.1%} of {compared.num_guesses:,}, with "
            f"differences of up to {compared.largest_difference:.3g}"
        )


def _publish(stage: pathlib.Path, final: pathlib.Path) -> None:
    """Gives a folder its name, once all in it is on the disk."""
    for path in stage.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    os.replace(stage, final)
