"""Shows examples of a teacher cache, masked examples or unmasked windows as people read them.

python -m tools.inspect_cache --input_dir=CACHE --html=cache.html
"""

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from pipeline.base.errors import InputError, Setting
from pipeline.commands import running

if TYPE_CHECKING:
    from pipeline.storage.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """What was asked for; fields are named as the flags."""

    input_dir: str | None = None
    input_file: str | None = None
    split: str | None = None
    examples: int = 5
    first: int = 0
    example_id: str | None = None
    guesses: int = 5
    html: str | None = None

    def __post_init__(self) -> None:
        if self.example_id is not None and not re.fullmatch(r"[0-9a-f]{1,32}", self.example_id):
            raise InputError(
                Setting("example_id"), "up to 32 hexadecimal digits", f"{self.example_id!r}"
            )
        if self.example_id is not None and self.first:
            raise InputError(Setting("first"), "none beside `example_id`", self.first)


def inspect_cache(config: InspectConfig) -> tuple[list[str], str]:
    """Puts examples into words.

    Args:
        config: what was asked for.

    Returns:
        the lines for a terminal, and the HTML page.

    Raises:
        InputError: the directory is not as it must be, or has no such example.
    """
    # The tokenizers are imported only now that there is something to read.
    from pipeline.storage.cache_input import open_cache
    from tools.pages import inspect_page, inspect_text
    from tools.pages.shown_examples import ExampleReader, Selection, choose_split

    cache = open_cache(config.input_dir, config.input_file)
    split = choose_split(cache, config.split)
    reader = ExampleReader(cache, num_guesses=config.guesses)
    shown = reader.read(Selection(split, config.first, config.examples, config.example_id))
    count = f"{len(shown)} of {cache.manifest.num_examples(split):,} {split} examples"
    about = f"{cache.manifest.kind.replace('_', ' ')}: {count}{_encoding(cache.manifest)}"
    notes = list(_notes(cache.manifest))
    page = inspect_page.examples_page(cache.directory.name, about, " ".join(notes), shown)
    return inspect_text.report_lines(f"{cache.directory}, {about}", notes, shown), page


def _encoding(manifest: "Manifest") -> str:
    info = manifest.teacher_info
    if info is None:
        return ""
    mean = f", {manifest.ids_per_position():.1f} on average" if info.variable else ""
    return f"; {info.logit_encoding}, k = {info.truncation_factor}{mean}"


def _notes(manifest: "Manifest") -> Iterator[str]:
    """Yields how to read what is shown."""
    from data_specs import records
    from pipeline.storage.manifest import SAMPLED

    if manifest.kind == records.UNMASKED_WINDOWS:
        yield "Masked anew each epoch by run_distill; a bar stands before each word."
    if manifest.teacher_info is None:
        return
    if manifest.teacher_info.truncation == SAMPLED:
        yield (
            "Guesses are drawn by chance: p is the share of the draws, the tail is empty; "
            "the label's p is the teacher's own."
        )
    else:
        yield "Tail: the teacher's probability outside the cached ids."


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = running.FlagTable()
    table.string("input_dir", None, "A teacher cache, masked examples or unmasked windows.")
    table.string("input_file", None, "Instead: a glob of its shards.")
    table.choice("split", None, "Without, eval where there is one.", of=["train", "eval"])
    table.integer("examples", 5, "How many to show.", low=1, high=10_000)
    table.integer("first", 0, "How many of the split to leave out before.", low=0)
    table.string("example_id", None, "Show the one whose id begins so, in hexadecimal.")
    table.integer("guesses", 5, "Of the teacher, at a masked position.", low=1, high=1_000)
    table.string("html", None, "A new HTML file for what is shown.")
    return table.values


def _inspect(values: flags.FlagValues) -> None:
    settings = values.flag_values_dict()
    config = InspectConfig(**{name: settings[name] for name in InspectConfig.__dataclass_fields__})
    if config.html:
        config.html.expect_absent()
    lines, page = inspect_cache(config)
    # A terminal that knows no Chinese still shows the rest.
    sys.stdout.reconfigure(errors="backslashreplace")
    print("\n".join(lines))
    if config.html:
        config.html.write_whole(page.encode("utf-8"))
        print(f"page: {config.html}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _inspect, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
