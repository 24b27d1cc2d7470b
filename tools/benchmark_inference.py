"""Measures latency and throughput of students and their teacher.

offline_distill benchmark_inference --models=TEACHER,STUDENT --seq_length=512

Random sequences are computed one at a time (latency) and 16 at a time (throughput). The table also
has the size of the weights. The time includes the encoder up to its last hidden
states, which every task needs, and excludes any head. Sequences have no padding. The time
includes the transfer of inputs from NumPy and of results to NumPy.

The computations are float32, mixed_bfloat16 if the device has instructions for it, and int8:
weights of 8 bits through LiteRT, on the CPU and in a TensorFlow process. Without ai-edge-litert,
int8 is left out with a note. A GPU is measured first, if present, then the CPU. Models are
timed alternately. Ratios compare a model with the first model in the same round; the table has
their median, smallest and largest value. MB are 10⁶ bytes, of the weights file or the LiteRT file.
"""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from pipeline.base import compute_dtype, hub_id
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_words, setting
from pipeline.commands import flags, running
from pipeline.commands.settings import BackendSettings
from pipeline.models import weight_names
from pipeline.models.formats import model_directory
from tools import inference_programs, measurement
from tools.exports import formats
from tools.inference_programs import Batches, Forward
from tools.text_table import aligned_lines

INT8 = "int8"
COMPUTATIONS = (compute_dtype.FLOAT32, compute_dtype.BFLOAT16, INT8)


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    models: tuple[Location, ...] = setting(
        dataclasses.MISSING,
        "Model directories or models on the hub, separated by commas, the teacher first.",
        parse=parse_words,
        hub_files=hub_id.MODEL,
    )
    seq_length: int = setting(512, "Tokens per sequence.", low=1)
    batch_size: int = setting(16, "Sequences per batch for the throughput.", low=1)
    repeats: int = setting(10, "Number of rounds; each model is timed once per round.", low=1)
    computations: tuple[str, ...] = setting(
        COMPUTATIONS,
        "Computations to measure, separated by commas.",
        choices=COMPUTATIONS,
        parse=parse_words,
    )
    output: Location | None = setting(None, "New JSON file for the table.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("models", "computations"):
            if not getattr(self, name):
                raise InputError(Setting(name), "at least one", "none")
        if self.output is not None:
            self.output.expect_absent()


@dataclasses.dataclass(frozen=True)
class Model:
    """One of the models.

    Attributes:
        name: a unique name for the table.
        source: the model directory.
    """

    name: str
    source: model_directory.ModelSource

    @property
    def megabytes(self) -> float:
        """Size of the files with its weights, in 10⁶ bytes."""
        return sum(path.stat().st_size for path in self.source.weight_files) / 1e6


@dataclasses.dataclass(frozen=True)
class FigureSummary:
    """Summary of a model's figures over all rounds.

    Attributes:
        median: the median.
        smallest: the smallest figure.
        largest: the largest figure.
        compared: the comparison with the first model.
    """

    median: float
    smallest: float
    largest: float
    compared: measurement.Row

    def to_json(self) -> dict[str, Any]:
        """Returns the figures; `times_better` has the median, smallest and largest ratio."""
        return {
            "median": self.median,
            "smallest": self.smallest,
            "largest": self.largest,
            "times_better": [self.compared.ratio, *self.compared.spread],
        }


@dataclasses.dataclass(frozen=True)
class Speed:
    """The speed of one model with one computation.

    Attributes:
        model: the model's name.
        device: Keras's name of the device.
        computation: one of `COMPUTATIONS`.
        parameters: number of parameters of encoder and head.
        megabytes: size of the weights.
        latency: seconds per sequence.
        throughput: sequences per second.
    """

    model: str
    device: str
    computation: str
    parameters: int
    megabytes: float
    latency: FigureSummary
    throughput: FigureSummary


def summarize(
    figures: Sequence[float], first: Sequence[float], *, larger_is_better: bool
) -> FigureSummary:
    """Returns the summary of a model's figures, compared in each round with the first model."""
    pairs = list(zip(figures, first, strict=True))
    compared = measurement.compare_pairs(pairs, is_rate=larger_is_better, name="", unit="")
    return FigureSummary(statistics.median(figures), min(figures), max(figures), compared)


def find_models(config: BenchmarkConfig) -> list[Model]:
    """Finds the models; models that share a name are named by their paths.

    Raises:
        InputError: a directory is not a model, or has no weights or too few positions.
    """
    names = [hub_id.display_name(path.resolve()) for path in config.models]
    models = []
    for path, name in zip(config.models, names, strict=True):
        source = model_directory.find_model(path)
        if config.seq_length > source.config.max_input_length:
            raise InputError(
                Setting("seq_length"),
                f"at most {source.config.max_input_length}, the positions of {path}",
                config.seq_length,
            )
        models.append(Model(name if names.count(name) == 1 else str(path), source))
    return models


def choose_computations(
    wanted: Sequence[str], devices: Sequence[str], backend: str
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns pairs of a device and a computation, and lines about computations left out.

    Args:
        wanted: some of `COMPUTATIONS`.
        devices: Keras's device names.
        backend: the name of Keras's backend.
    """
    accelerators = [device for device in devices if not device.startswith("cpu")]
    chosen, notes = [], []
    for device in [*accelerators[:1], "cpu:0"]:
        for computation in wanted:
            reason = _why_not(device, computation, backend)
            if reason is None:
                chosen.append((device, computation))
            else:
                notes.append(f"{computation} on {device}: left out because {reason}")
    return chosen, notes


def _why_not(device: str, computation: str, backend: str) -> str | None:
    """Returns the reason to leave a computation out; None if it can run."""
    if computation == compute_dtype.BFLOAT16:
        supported_dtype, reason = compute_dtype.detect([device])
        return None if supported_dtype == computation else reason
    if computation == INT8:
        if not device.startswith("cpu"):
            return "LiteRT runs only on the CPU"
        if backend != "tensorflow":
            return "conversion to LiteRT needs a TensorFlow process (--backend=tensorflow)"
        missing = formats.missing_packages([formats.LITERT_INT8])
        if missing:
            return f"{', '.join(missing)} is not installed (pip install '.[export]')"
    return None


def measure(
    models: Sequence[Model], device: str, computation: str, batches: Batches, *, repeats: int
) -> list[Speed]:
    """Measures all models alternately with one computation.

    Args:
        models: the models; the others are compared with the first.
        device: Keras's name of the device.
        computation: one of `COMPUTATIONS`.
        batches: the inputs.
        repeats: number of rounds; each model is timed once per round.
    """
    forwards, sizes = zip(*(_build(model, device, computation) for model in models), strict=True)
    calls = [
        functools.partial(forward, batches.draw(count, model.source.config.vocab_size))
        for forward, model in zip(forwards, models, strict=True)
        for count in (1, batches.size)
    ]
    times = measurement.time_alternately(calls, repeats)
    latencies = times[::2]
    throughputs = [[batches.size / seconds for seconds in runs] for runs in times[1::2]]
    return [
        Speed(
            model.name,
            device,
            computation,
            weight_names.count_parameters(model.source.config),
            size,
            summarize(latency, latencies[0], larger_is_better=False),
            summarize(throughput, throughputs[0], larger_is_better=True),
        )
        for model, size, latency, throughput in zip(
            models, sizes, latencies, throughputs, strict=True
        )
    ]


def _build(model: Model, device: str, computation: str) -> tuple[Forward, float]:
    """Returns the forward function of a model, and the size of its file in MB."""
    if computation == INT8:
        return inference_programs.litert_forward(model.source)
    return inference_programs.keras_forward(model.source, device, computation), model.megabytes


def _cells(speed: Speed) -> list[str]:
    def times_better(figures: FigureSummary) -> str:
        low, high = figures.compared.spread
        return f"{figures.compared.ratio:.2f} ({low:.2f}-{high:.2f})"

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
    """Returns the fields as JSON values, with `FigureSummary.to_json` for the figures."""
    fields = {field.name: getattr(speed, field.name) for field in dataclasses.fields(speed)}
    return fields | {"latency": speed.latency.to_json(), "throughput": speed.throughput.to_json()}


def _benchmark(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, BenchmarkConfig)
    models = find_models(config)
    computations = [name for name in COMPUTATIONS if name in config.computations]
    devices = running.choose_backend(values)
    chosen, notes = choose_computations(computations, devices, values.backend)
    batches = Batches(config.seq_length, config.batch_size)
    speeds: list[Speed] = []
    for device, computation in chosen:
        print(f"measuring {computation} on {device}", file=sys.stderr, flush=True)
        speeds += measure(models, device, computation, batches, repeats=config.repeats)
    sizes = f"latency of 1, throughput of {batches.size}, {batches.seq_length} tokens each"
    figures = f"median (smallest-largest) of {config.repeats} rounds"
    lines = [f"{sizes}; {values.backend}; {figures}"]
    print("\n".join([*([table(speeds), ""] if speeds else []), *lines, *notes]))
    if config.output is not None:
        content = {
            "machine": measurement.describe_machine(),
            "backend": values.backend,
            "seq_length": batches.seq_length,
            "batch_size": batches.size,
            "repeats": config.repeats,
            "rows": [to_json(speed) for speed in speeds],
            "left_out": notes,
        }
        config.output.write_json(content)
        print(f"benchmark: {config.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    table = flags.define_flags(BenchmarkConfig, BackendSettings)
    return running.run(table, _benchmark, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
