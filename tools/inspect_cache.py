"""Shows examples of a teacher cache, masked examples or unmasked windows as readable text.

offline_distill inspect_cache --input_dir=CACHE --html=cache.html
"""

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running

if TYPE_CHECKING:
    from pipeline.storage.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class InspectConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    input_dir: Location | None = setting(
        None, "Teacher cache, masked examples or unmasked windows."
    )
    input_file: Location | None = setting(
        None, "In place of `input_dir`: a glob of shard files, for example 'DIR/*.tfrecord'."
    )
    split: str | None = setting(
        None, "Split to show; eval by default if there is one.", choices=("train", "eval")
    )
    examples: int = setting(5, "Number of examples to show.", low=1, high=10_000)
    first: int = setting(0, "Number of examples to skip at the beginning of the split.", low=0)
    example_id: str | None = setting(
        None, "In place of `first`: the first hexadecimal digits of the example's id."
    )
    guesses: int = setting(
        5,
        "Number of the teacher's predictions to show at a position.",
        low=1,
        high=1_000,
    )
    html: Location | None = setting(None, "New HTML file for the same content.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.example_id is not None and not re.fullmatch(r"[0-9a-f]{1,32}", self.example_id):
            raise InputError(
                Setting("example_id"), "up to 32 hexadecimal digits", f"{self.example_id!r}"
            )
        if self.example_id is not None and self.first:
            raise InputError(Setting("first"), "unset with `example_id`", self.first)


def inspect_cache(config: InspectConfig) -> tuple[list[str], str | None]:
    """Returns examples as lines for a terminal, and as an HTML page; None unless `html` is set."""
    # The tokenizers are imported only now that there is something to read.
    from pipeline.storage.cache_input import open_cache
    from tools.report import examples_page, examples_text
    from tools.report.shown_examples import ExampleReader, Selection, choose_split

    cache = open_cache(config.input_dir, config.input_file)
    split = choose_split(cache, config.split)
    reader = ExampleReader(cache, num_guesses=config.guesses)
    shown = reader.read(Selection(split, config.first, config.examples, config.example_id))
    count = f"{len(shown)} of {cache.manifest.num_examples(split):,} {split} examples"
    about = f"{cache.manifest.kind.replace('_', ' ')}: {count}"
    if (info := cache.manifest.teacher_info) is not None:
        mean = f", {cache.manifest.ids_per_position():.1f} on average" if info.variable else ""
        bits = f" of {info.state_bits} bits" if info.holds_states else ""
        about += f"; {info.logit_encoding}{bits}, k = {info.truncation_factor}{mean}"
    notes = list(_notes(cache.manifest))
    page = None
    if config.html:
        page = examples_page.examples_page(cache.directory.name, about, " ".join(notes), shown)
    return examples_text.report_lines(f"{cache.directory}, {about}", notes, shown), page


def _notes(manifest: "Manifest") -> Iterator[str]:
    """Yields explanations of the examples."""
    from data_specs import records
    from pipeline.storage.manifest import SAMPLED
    from pipeline.teacher import label_scores

    if manifest.kind == records.UNMASKED_WINDOWS:
        yield (
            "run_distill masks these windows differently in each epoch. Each word starts at a bar."
        )
    if manifest.teacher_info is None:
        return
    if manifest.teacher_info.truncation == SAMPLED:
        yield (
            "Predictions are sampled: p is a token's share of the samples, and the tail is empty. "
            "p(label) is the teacher's probability."
        )
    elif manifest.teacher_info.holds_states:
        yield "The whole distribution is decoded from head states; the tail is empty."
    else:
        yield "Tail: the teacher's probability mass outside the cached ids."
    if (labels := label_scores.of_cache(manifest)) is not None:
        yield f"Teacher: {labels.figures()}; {labels.baselines()}."


def _inspect(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, InspectConfig)
    if config.html:
        config.html.expect_absent()
    lines, page = inspect_cache(config)
    # A terminal without Chinese characters still shows the other text.
    sys.stdout.reconfigure(errors="backslashreplace")
    print("\n".join(lines))
    if config.html:
        config.html.write_whole(page.encode("utf-8"))
        print(f"page: {config.html}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(InspectConfig), _inspect, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
