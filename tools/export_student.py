"""Exports a masked LM or a fine-tuned model to common formats, and checks each export.

offline_distill export_student --model=STUDENT --sentences=FILE --output_dir=NEW

hf is a Hugging Face directory of the model, its tokenizer and a model card. saved_model takes ids
and loads in any TensorFlow. saved_model_text takes text. It requires a model with a WordPiece
vocab.txt, and programs that load it must import tensorflow_text first. Both SavedModels are also
loaded in a new process. litert is a file for phones, and litert_int8 is the same with 8-bit
weights. onnx is a file for onnxruntime. All formats except litert_int8 are float32, and all accept
any batch size and any length. sentence_transformers is a directory for the library of this name:
hf together with the settings of text vectors (--pooling, --normalize). Its vectors are compared
instead of predictions.

Each export is reloaded and compared with the model on real text: the lines of --sentences with
every seventh token masked, or the eval examples of --input_dir. A format is left out if it lacks
an operation, or if too few of its top-1 predictions equal the model's (at least 99.9% of all
positions, 90% for litert_int8). The command then fails after the other formats are written. The
output is output_dir/FORMAT/ for each format, and export.json with the figures. All formats except
hf and saved_model require pip install '.[export]'.

A fine-tuned model is the directory model of a finetune run. Its logits are those of classes,
[B, C], of an answer's start and end, [B, 2, L], or of each token's tags, [B, L, C]. It is compared
on unmasked lines. A pair of texts, or a question with its context, takes two lines: the first with
the second, the third with the fourth. The run's request.json decides whether a classification is
of pairs.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from pipeline.base import hub_id
from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_words, setting
from pipeline.commands import flags, running
from tools.exports import formats
from tools.exports.formats import CardSettings
from tools.model_tokenizer import load_model_tokenizer
from tools.sentence_layout import PoolingSettings, SentenceLayout, choose_layout
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from pipeline.models.formats.model_directory import ModelSource
    from pipeline.storage.cache_input import CacheInput
    from pipeline.tokenizers.tokens import Tokenizer
    from tools.exports.examples import Example
    from tools.exports.exporter import Report, Row
    from tools.exports.model_card import Origin
    from tools.exports.model_task import ModelTask

REPORT_FILE = "export.json"
_TITLES = ("", "read by", "largest difference", "top-1 agreement", "required", "MB", "latency")


@dataclasses.dataclass(frozen=True)
class ExportConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    model: Location = setting(
        dataclasses.MISSING,
        "Model directory, for example of run_distill or finetune, or a model on the hub.",
        hub_files=hub_id.MODEL,
    )
    output_dir: Location = setting(
        dataclasses.MISSING, "Directory for the exports: new or empty, on this machine."
    )
    formats: tuple[str, ...] = setting(
        (formats.HF, formats.SAVED_MODEL),
        f"Formats, separated by commas: any of {','.join(formats.FORMATS)}.",
        parse=parse_words,
    )
    sentences: Location | None = setting(None, "Text file with lines to check the exports on.")
    input_dir: Location | None = setting(
        None, "Replaces `sentences`: a cache with eval examples to check the exports on."
    )
    num_sentences: int = setting(
        64, "Number of lines, pairs of lines or examples in the check.", low=1
    )
    max_seq_length: int | None = setting(
        None,
        "Maximum number of tokens of a text, also in saved_model_text; by default the model's "
        "number of positions.",
        low=3,
    )
    repeats: int = setting(
        20, "Number of timed runs of each format, alternating between formats.", low=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        formats.check(self.formats)
        if (self.sentences is None) == (self.input_dir is None):
            raise InputError(
                Setting("sentences"),
                "given, or `input_dir` in its place: real text that exports are checked on",
                "neither" if self.sentences is None else "both",
            )
        self.output_dir.expect_local()
        self.output_dir.expect_empty()


def _max_seq_length(config: ExportConfig, source: "ModelSource") -> int:
    max_positions, requested_length = source.config.max_input_length, config.max_seq_length
    if requested_length is not None and requested_length > max_positions:
        raise InputError(
            Setting("max_seq_length"),
            f"at most {max_positions}, the model's positions",
            requested_length,
        )
    return requested_length or max_positions


def _find_tokenizer(config: ExportConfig, source: "ModelSource") -> "Tokenizer | None":
    from pipeline.tokenizers import loading

    if not loading.tokenizer_files(source.directory) and config.sentences is None:
        return None
    return load_model_tokenizer(source)


def _open_cache(config: ExportConfig, source: "ModelSource") -> "CacheInput | None":
    if config.input_dir is None:
        return None
    from pipeline.storage import cache_input, cache_tokenizer
    from pipeline.tokenizers import loading

    cache = cache_input.open_cache(config.input_dir, None)
    vocab_files = loading.tokenizer_files(source.directory)
    with naming_setting("model"):
        cache_tokenizer.expect_vocab(cache, source.config.vocab_size, vocab_files)
        cache_input.expect_positions(cache, source.config.max_input_length)
        cache_input.expect_segments(cache, source.config.type_vocab_size)
    return cache


def _read_sentences(
    config: ExportConfig, source: "ModelSource", task: "ModelTask", tokenizer: "Tokenizer"
) -> "list[Example]":
    from tools.exports import examples

    settings = {"count": config.num_sentences, "max_seq_length": _max_seq_length(config, source)}
    if task.num_texts == 1:
        masked = task.head is None
        return examples.read_lines(config.sentences, tokenizer, masked=masked, **settings)
    double = source.config.family.doubles_separator
    return examples.read_pairs(config.sentences, tokenizer, double_separator=double, **settings)


def cells(row: "Row") -> tuple[str, ...]:
    """Returns the cells of a table row as text."""
    latency = f"{row.latency * 1e3:.4g} ms"
    if row.comparison is None:
        return (row.name, row.reader, "", "", "", "", latency)
    return (
        row.name,
        row.reader,
        f"{row.comparison.largest_difference:.2g}",
        f"{row.comparison.agreement:.2%}",
        f"{row.least_agreement:.1%}",
        f"{row.megabytes:.2f}",
        latency,
    )


def describe(report: "Report") -> str:
    """Returns a line that explains the figures of the table."""
    compared = [row.comparison.num_guesses for row in report.rows if row.comparison is not None]
    return (
        f"difference and agreement: {report.num_examples} examples, {max(compared, default=0):,} "
        f"top-1 predictions; latency: median for one example of {report.latency_tokens} tokens"
    )


def _find_layout(
    config: ExportConfig, pooling: PoolingSettings, source: "ModelSource"
) -> SentenceLayout | None:
    """Returns the layout of vectors; None if no format needs it."""
    if formats.SENTENCE_TRANSFORMERS not in config.formats:
        for name in ("pooling", "normalize"):
            if getattr(pooling, name) is not None:
                expected = f"used together with `formats`={formats.SENTENCE_TRANSFORMERS}"
                received = f"`formats`={','.join(config.formats)}"
                raise InputError(Setting(name), expected, received)
        return None
    return choose_layout(source.directory, pooling)


def _write_report(report: "Report", config: ExportConfig, max_seq_length: int) -> None:
    from tools import measurement

    content = {
        "machine": measurement.describe_machine(),
        "max_seq_length": max_seq_length,
        "repeats": config.repeats,
        "num_examples": report.num_examples,
        "latency_tokens": report.latency_tokens,
        "rows": [row.to_json() for row in report.rows],
        "left_out": dict(report.left_out),
    }
    (config.output_dir / REPORT_FILE).write_json(content)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """The inputs of an export, found and checked."""

    source: "ModelSource"
    task: "ModelTask"
    tokenizer: "Tokenizer | None"
    max_seq_length: int
    examples: "list[Example]"
    card: CardSettings
    origin: "Origin"
    layout: SentenceLayout | None


def _prepare(config: ExportConfig, card: CardSettings, pooling: PoolingSettings) -> _Prepared:
    from pipeline.models.formats import model_directory
    from tools.exports import examples, model_card, model_task

    source = model_directory.find_model(config.model)
    task, max_seq_length = model_task.find_task(source), _max_seq_length(config, source)
    tokenizer, cache = _find_tokenizer(config, source), _open_cache(config, source)
    if cache is None:
        checked_examples = _read_sentences(config, source, task, tokenizer)
    else:
        checked_examples = examples.read_cache(cache, config.num_sentences)
    # The card reads the scores again later. This call reports an invalid file now.
    model_card.read_scores(card.scores)
    if card.name is None:
        card = dataclasses.replace(card, name=hub_id.display_name(config.model.resolve()))
    origin = model_card.find_origin(config.model, None if cache is None else cache.manifest)
    if card.base_model is None and origin.teacher is not None:
        card = dataclasses.replace(card, base_model=origin.teacher.id)
    layout = _find_layout(config, pooling, source)
    return _Prepared(
        source, task, tokenizer, max_seq_length, checked_examples, card, origin, layout
    )


def _write_card(prepared: _Prepared, report: "Report", directory: pathlib.Path) -> None:
    from tools.exports import model_card

    text = model_card.model_card(
        prepared.source.config,
        prepared.card,
        prepared.origin,
        exports=[_TITLES, *map(cells, report.rows)],
        note=describe(report),
        task=prepared.task,
    )
    (directory / model_card.CARD_FILE).write_whole(text.encode("utf-8"))


def _export(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, ExportConfig)
    card, pooling = (flags.read_config(values, kind) for kind in (CardSettings, PoolingSettings))
    prepared = _prepare(config, card, pooling)
    directory = config.output_dir
    # The exports need TensorFlow graphs, which other Keras backends do not have.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    running.import_quietly("keras", "tensorflow")
    from tools.exports import exporter, hugging_face

    subject = hugging_face.load_subject(
        prepared.source,
        prepared.task,
        prepared.tokenizer,
        prepared.max_seq_length,
        prepared.layout,
    )
    directory.make_directory()
    report = exporter.export(
        subject, config.formats, prepared.examples, directory, repeats=config.repeats
    )
    lines = aligned_lines(_TITLES, [cells(row) for row in report.rows])
    print("\n".join([*lines, "", describe(report)]))
    if (directory / formats.HF).is_dir():
        _write_card(prepared, report, directory / formats.HF)
    _write_report(report, config, prepared.max_seq_length)
    if report.left_out:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.left_out.items())
        raise InputError(
            Setting("formats"),
            received=f"left out: {reasons}",
            hint=f"the others are in {directory}",
        )
    print(f"exports: {directory}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    table = flags.define_flags(ExportConfig, PoolingSettings, CardSettings)
    return running.run(table, _export, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
