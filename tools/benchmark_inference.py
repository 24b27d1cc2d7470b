"""How fast models answer here: latency and throughput of students beside their teacher.

python -m tools.benchmark_inference --models=TEACHER,STUDENT --seq_length=512

The table of DistilRuBERT: random sequences, one at a time (latency) and 16 at a time
(throughput), and the size of the weights. What is timed ends with the encoder's last hidden
states, which every task needs; a head, such as a vocabulary's, comes on top. Sequences have
no padding; they come from NumPy, and results go back to it, within the time.

Computed are float32, mixed_bfloat16 where the device has instructions for it, and int8:
weights of 8 bits through LiteRT, on the CPU from a TensorFlow process (left out, and said
so, without ai-edge-litert). A GPU is measured first, where there is one, then the CPU.
Models run in turns; ratios are to the first, of the runs of one turn, as medians with the
smallest and the largest. MB are 10⁶ bytes, of the weights file or the LiteRT file.
"""

import dataclasses
import functools
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from pipeline.base import compute_dtype
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import running
from pipeline.models import weight_names
from pipeline.models.formats import model_directory
from tools import inference_programs, measurement
from tools.exports import formats
from tools.inference_programs import Batches, Forward
from tools.text_table import aligned_lines

INT8 = "int8"
COMPUTATIONS = (compute_dtype.FLOAT32, compute_dtype.BFLOAT16, INT8)


@dataclasses.dataclass(frozen=True)
class Model:
    """One of `--models`.

    Attributes:
        name: for people, no other has it.
        source: where it lies.
    """

    name: str
    source: model_directory.ModelSource

    @property
    def megabytes(self) -> float:
        """Of the files that hold its weights."""
        return sum(path.stat().st_size for path in self.source.weight_files) / 1e6


@dataclasses.dataclass(frozen=True)
class Measured:
    """Figures of the turns.

    Attributes:
        median: of the turns.
        smallest: of them.
        largest: of them.
        compared: how many times better than the first model.
    """

    median: float
    smallest: float
    largest: float
    compared: measurement.Row

    def to_json(self) -> dict[str, Any]:
        """Returns the figures; `times_better` has the median and the ends."""
        return {
            "median": self.median,
            "smallest": self.smallest,
            "largest": self.largest,
            "times_better": [self.compared.ratio, *self.compared.spread],
        }


@dataclasses.dataclass(frozen=True)
class Speed:
    """One model, computed in one way.

    Attributes:
        model: its name.
        device: Keras's name of what computes.
        computation: one of `COMPUTATIONS`.
        parameters: of encoder and head.
        megabytes: of its weights.
        latency: seconds of one sequence; compared with the first model's.
        throughput: sequences a second; compared likewise.
    """

    model: str
    device: str
    computation: str
    parameters: int
    megabytes: float
    latency: Measured
    throughput: Measured


def measured(
    figures: Sequence[float], first: Sequence[float], *, larger_is_better: bool
) -> Measured:
    """Returns one model's figures, turn by turn, beside those of the first model."""
    compared = measurement.compared(
        (figures, first), larger_is_better=larger_is_better, name="", unit=""
    )
    return Measured(statistics.median(figures), min(figures), max(figures), compared)


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = running.FlagTable()
    table.string("models", None, "Model directories, the teacher first, separated by commas.")
    table.integer("seq_length", 512, "Tokens of a sequence.", low=1)
    table.integer("batch_size", 16, "Sequences at a time, for the throughput.", low=1)
    table.integer("repeats", 10, "Turns.", low=1)
    table.string("computations", ",".join(COMPUTATIONS), "What is measured.")
    table.string("output", None, "A new JSON file for what the table says.")
    table.backend()
    table.require("models")
    return table.values


def find_models(text: str, seq_length: int) -> list[Model]:
    """Reads `--models`.

    Raises:
        InputError: one is no model, has no weights or too few positions.
    """
    paths = [part.strip() for part in text.split(",") if part.strip()]
    if not paths:
        raise InputError(Setting("models"), "model directories", "none")
    names = [pathlib.Path(path).resolve().name for path in paths]
    models = []
    for path, name in zip(paths, names, strict=True):
        source = model_directory.find_model(path)
        if seq_length > source.config.max_input_length:
            raise InputError(
                Setting("seq_length"),
                f"at most {source.config.max_input_length}, the positions of {path}",
                seq_length,
            )
        models.append(Model(name if names.count(name) == 1 else path, source))
    return models


def parse_computations(text: str) -> list[str]:
    """Reads `--computations`, and returns them in the order of `COMPUTATIONS`.

    Raises:
        InputError: one is not known.
    """
    wanted = {part.strip() for part in text.split(",") if part.strip()}
    if not wanted or not set(COMPUTATIONS) >= wanted:
        raise InputError(Setting("computations"), f"some of {','.join(COMPUTATIONS)}", f"{text!r}")
    return [name for name in COMPUTATIONS if name in wanted]


def choose_computations(
    wanted: Sequence[str], devices: Sequence[str], backend: str
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns what is computed, as (device, computation), and lines on what is left out.

    Args:
        wanted: some of `COMPUTATIONS`.
        devices: Keras's names.
        backend: Keras's.
    """
    others = [device for device in devices if not device.startswith("cpu")]
    chosen, notes = [], []
    for device in [*others[:1], "cpu:0"]:
        for computation in wanted:
            reason = _why_not(device, computation, backend)
            if reason is None:
                chosen.append((device, computation))
            else:
                notes.append(f"{computation} on {device}: left out, as {reason}")
    return chosen, notes


def _why_not(device: str, computation: str, backend: str) -> str | None:
    """Returns why something is not computed; None where it is."""
    if computation == compute_dtype.BFLOAT16:
        found, reason = compute_dtype.detect([device])
        return None if found == computation else reason
    if computation == INT8:
        if not device.startswith("cpu"):
            return "LiteRT computes on the CPU here"
        if backend != "tensorflow":
            return "a LiteRT model is made from a TensorFlow process (--backend=tensorflow)"
        missing = formats.missing_packages([formats.LITERT_INT8])
        if missing:
            return f"{', '.join(missing)} is not installed (pip install '.[export]')"
    return None


def measure(
    models: Sequence[Model], device: str, computation: str, batches: Batches, *, repeats: int
) -> list[Speed]:
    """Measures all models in turns, computed in one way.

    Args:
        models: the first is what others are compared with.
        device: Keras's name.
        computation: one of `COMPUTATIONS`.
        batches: what is computed.
        repeats: turns.
    """
    forwards, sizes = zip(*(_build(model, device, computation) for model in models), strict=True)
    calls = [
        functools.partial(forward, batches.draw(count, model.source.config.vocab_size))
        for forward, model in zip(forwards, models, strict=True)
        for count in (1, batches.size)
    ]
    times = measurement.in_turns(calls, repeats)
    latencies = times[::2]
    throughputs = [[batches.size / seconds for seconds in taken] for taken in times[1::2]]
    return [
        Speed(
            model.name,
            device,
            computation,
            weight_names.count_parameters(model.source.config),
            size,
            measured(latency, latencies[0], larger_is_better=False),
            measured(throughput, throughputs[0], larger_is_better=True),
        )
        for model, size, latency, throughput in zip(
            models, sizes, latencies, throughputs, strict=True
        )
    ]


def _build(model: Model, device: str, computation: str) -> tuple[Forward, float]:
    """Returns what computes a model, and the size of its file in MB."""
    if computation == INT8:
        return inference_programs.litert_forward(model.source)
    return inference_programs.keras_forward(model.source, device, computation), model.megabytes


def _cells(speed: Speed) -> list[str]:
    def times_better(one: Measured) -> str:
        low, high = one.compared.spread
        return f"{one.compared.ratio:.2f} ({low:.2f}-{high:.2f})"

    latency, throughput = speed.latency, speed.throughput
    return [
        speed.model,
        f"{speed.computation}, {speed.device}",
        f"{speed.parameters / 1e6:.2f} M",
        f"{speed.megabytes:.1f}",
        f"{latency.median:.4g} ({latency.smallest:.4g}-{latency.largest:.4g})",
        times_better(latency),
        f"{throughput.median:.4g} ({throughput.smallest:.4g}-{throughput.largest:.4g})",
        times_better(throughput),
    ]


def table(speeds: Sequence[Speed]) -> str:
    """Returns the table as text."""
    titles = ["", "computed", "parameters", "MB", "latency, s", "times better"]
    titles += ["sequences/s", "times better"]
    return "\n".join(aligned_lines(titles, [_cells(speed) for speed in speeds]))


def to_json(speed: Speed) -> dict[str, Any]:
    """Returns the fields; what was measured as `Measured.to_json`."""
    fields = {field.name: getattr(speed, field.name) for field in dataclasses.fields(speed)}
    return fields | {
        "latency": speed.latency.to_json(),
        "throughput": speed.throughput.to_json(),
    }


def _benchmark(values: flags.FlagValues) -> None:
    if values.output:
        Location.parse(values.output, "output").expect_absent()
    models = find_models(values.models, values.seq_length)
    wanted = parse_computations(values.computations)
    devices = running.choose_backend(values)
    chosen, notes = choose_computations(wanted, devices, values.backend)
    batches = Batches(values.seq_length, values.batch_size)
    speeds: list[Speed] = []
    for device, computation in chosen:
        print(f"measuring {computation} on {device}", file=sys.stderr, flush=True)
        speeds += measure(models, device, computation, batches, repeats=values.repeats)
    sizes = f"latency of 1, throughput of {batches.size}, {batches.seq_length} tokens each"
    lines = [f"{sizes}; {values.backend}; {values.repeats} turns: median (smallest-largest)"]
    print("\n".join([*([table(speeds), ""] if speeds else []), *lines, *notes]))
    if values.output:
        content = {
            "machine": measurement.describe_machine(),
            "backend": values.backend,
            "seq_length": batches.seq_length,
            "batch_size": batches.size,
            "repeats": values.repeats,
            "rows": [to_json(speed) for speed in speeds],
            "left_out": notes,
        }
        Location.parse(values.output, "output").write_json(content)
        print(f"benchmark: {values.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _benchmark, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
