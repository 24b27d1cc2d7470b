"""Describes a corpus before it is prepared: formats, fields, scripts, lengths and duplicates.

offline_distill inspect_corpus --input_dir=CORPUS --vocab_file=vocab.txt

It reads only a sample of each corpus.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from pipeline.base import hub_id
from pipeline.base.errors import naming_setting, show_settings
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.commands.settings import CorpusSettings
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from data_specs.corpora import CorpusSource
    from tools.corpus_analysis.corpus_sample import CorpusSample, Layout

_MAX_SHOWN_PROBLEMS = 5
# Scripts with a smaller share of the letters are not shown.
_MIN_SHOWN_SHARE = 0.0001


@dataclasses.dataclass(frozen=True)
class InspectCorpusConfig(Settings):
    """Settings of this tool, except for those of the corpora."""

    vocab_file: Location | None = setting(
        None,
        "Vocabulary for counts of tokens and the share of unknown ones, in the same forms as for "
        "create_pretraining_data.",
        hub_files=hub_id.TOKENIZER,
    )
    do_lower_case: bool | None = setting(
        None, "Whether to lower-case text. The default is that of create_pretraining_data."
    )
    sample: int = setting(
        10_000, "Approximate number of documents to read from each corpus.", low=1
    )
    output: Location | None = setting(None, "New JSON file for the report.")


def inspect_corpora(
    sources: Sequence["CorpusSource"], config: InspectCorpusConfig
) -> list["CorpusSample"]:
    """Reads a sample of each corpus and returns its measurements."""
    # The readers of all formats are imported here, so that errors in flags are reported quickly.
    from pipeline.tokenizers.loading import load_tokenizer
    from tools.corpus_analysis import corpus_sample

    tokenizer = None
    if config.vocab_file is not None:
        with naming_setting("vocab_file"):
            tokenizer = load_tokenizer(config.vocab_file, do_lower_case=config.do_lower_case)
    return list(corpus_sample.sample_corpora(sources, config.sample, tokenizer))


def describe(sample: "CorpusSample") -> Iterator[str]:
    """Yields the lines of the report on a corpus."""
    yield f"corpus      {sample.name}: {_files(sample.files)}, {sample.bytes:,} bytes"
    yield (
        f"sample      {sample.documents:,} documents, {sample.sampled_bytes:,} bytes of "
        f"{_files(sample.sampled_files)}, {sample.seconds:.1f} s"
    )
    for layout in sample.layouts:
        yield from _describe_layout(layout)
    for problem in sample.problems[:_MAX_SHOWN_PROBLEMS]:
        yield f"problem     {show_settings(problem, '--{}'.format)}"
    if sample.documents > sample.bad:
        yield from _describe_documents(sample)


def _describe_documents(sample: "CorpusSample") -> Iterator[str]:
    about = "about " if sample.sampled_bytes < sample.bytes else ""
    yield f"documents   {about}{sample.scaled(sample.documents):,}"
    yield f"characters  {about}{sample.scaled(sample.characters):,}"
    yield f"skipped     {sample.bad:,} invalid and {sample.short:,} short documents of the sample"
    others = sample.documents - sample.bad - sample.short
    share = sample.duplicates / max(1, others)
    yield f"duplicates  {share:.2%} of the {others:,} documents that are not skipped"
    shares = [
        f"{name} {share:.2%}" for name, share in sample.scripts.items() if share > _MIN_SHOWN_SHARE
    ]
    yield f"scripts     {', '.join(shares) or 'none'} of the letters"
    if sample.tokens is not None:
        share = sample.tokens.unknown / max(1, sample.tokens.tokens)
        yield f"[UNK]       {share:.3%} of {sample.tokens.tokens:,} tokens"
    yield ""
    yield from _length_table(sample)


def _describe_layout(layout: "Layout") -> Iterator[str]:
    yield f"format      {layout.format}: {_files(layout.files)}, for example {layout.example}"
    widths = [
        max([0, *(len(getattr(field, name)) for field in layout.fields)])
        for name in ("name", "type")
    ]
    for field in layout.fields:
        mark = "*" if field.name in layout.text_fields else " "
        kind = field.type.ljust(widths[1])
        yield f"          {mark} {field.name.ljust(widths[0])}  {kind}  {field.example}"
    if layout.missing:
        is_likely = not set(layout.missing) & set(layout.text_fields)
        hint = f"set --text_fields={','.join(layout.text_fields)}"
        yield (
            f"            no field {' or '.join(layout.missing)}: "
            f"{hint if is_likely else 'no field contains text'}"
        )


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _length_table(sample: "CorpusSample") -> list[str]:
    from tools.corpus_analysis.corpus_sample import QUANTILES

    rows = [("characters", sample.quantiles)]
    if sample.tokens is not None:
        rows.append(("tokens", sample.tokens.quantiles))
    return aligned_lines(
        ["of a document", *(f"{quantile:.0%}" for quantile in QUANTILES)],
        [[name, *(f"{value:,}" for value in values)] for name, values in rows],
    )


def _inspect(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, InspectCorpusConfig)
    sources = flags.read_config(values, CorpusSettings).sources()
    if config.output is not None:
        config.output.expect_absent()
    if any(source.tfds_name is not None for source in sources):
        running.import_quietly("tensorflow_datasets", "tensorflow")
    samples = inspect_corpora(sources, config)
    # A terminal that cannot show some characters shows their escapes instead.
    sys.stdout.reconfigure(errors="backslashreplace")
    print("\n\n".join("\n".join(describe(sample)) for sample in samples))
    if config.output is not None:
        config.output.write_json({"corpora": [dataclasses.asdict(sample) for sample in samples]})
        print(f"report: {config.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    values = flags.define_flags(
        CorpusSettings, InspectCorpusConfig, leave_out=("segmenter", "random_next")
    )
    return running.run(values, _inspect, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
