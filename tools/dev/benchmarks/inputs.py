"""Inputs of the benchmarks: text, a teacher, masked examples and teacher caches."""

import dataclasses
import importlib.util
import shutil

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.formats import model_directory
from pipeline.storage import cache_input
from pipeline.storage.cache_input import CacheInput
from pipeline.tokenizers import loading
from tools.dev.benchmarks import processes

# Bytes of text for capture and distillation.
_SAMPLE_BYTES = 600_000
_TRUNCATION_FACTOR = 128


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of the benchmarks; all new files are in `work`.

    `corpus` should have long documents, so that inputs have the full length.
    """

    work: Location
    corpus: Location
    mixed_corpus: Location
    teacher: Location
    repeats: int
    max_seq_length: int = 512

    @property
    def truncation_factor(self) -> int:
        """The k of caches: 128, or the teacher's whole vocabulary."""
        source = model_directory.find_model(self.teacher)
        return min(_TRUNCATION_FACTOR, source.config.vocab_size)

    @property
    def vocab(self) -> Location:
        """The teacher's tokenizer file."""
        return loading.find_vocab_file(self.teacher)

    def check(self) -> None:
        """Raises InputError if the teacher's model or tokenizer cannot be found."""
        model_directory.find_model(self.teacher)
        loading.find_vocab_file(self.teacher)

    def has(self, *packages: str) -> bool:
        """Whether all of some optional packages are installed."""
        return all(importlib.util.find_spec(package) for package in packages)

    def new_directory(self, name: str) -> Location:
        """Returns the path of a folder in `work`, after removing an old one."""
        path = self.work / name
        self.remove(path)
        return path

    def remove(self, path: Location) -> None:
        """Removes a folder that a benchmark made; folders outside `work` stay."""
        if path.is_dir() and self.work.resolve() in path.resolve().parents:
            shutil.rmtree(path)

    def _examples(self, name: str, corpus: Location) -> Location:
        """Masks the beginning of a corpus once, in single segments; returns the directory."""
        output = self.work / name
        text = self.work / f"{name}.txt"
        if not text.is_file():
            text.write_whole(_first_lines(corpus, _SAMPLE_BYTES))
        processes.run(
            "create_pretraining_data",
            input_dir=text,
            vocab_file=self.vocab,
            output_dir=output,
            max_seq_length=self.max_seq_length,
            doc_stride=self.max_seq_length - 2,
            segments="single",
            dupe_factor=1,
        )
        return output

    def examples(self, *, mixed: bool) -> CacheInput:
        """Returns masked examples, either of mixed or of full length."""
        name, corpus = ("mixed", self.mixed_corpus) if mixed else ("full", self.corpus)
        path = self._examples(name, corpus)
        return cache_input.open_cache(path, None)

    def cache(self, *, mixed: bool, logit_encoding: str = "float16") -> CacheInput:
        """Returns the teacher cache of these masked examples."""
        examples = self.examples(mixed=mixed).directory
        output = self.work / f"cache-{examples.name}-{logit_encoding}"
        processes.run(
            "create_teacher_output_data",
            input_dir=examples,
            teacher=self.teacher,
            output_dir=output,
            compute_dtype="auto",
            truncation_factor=self.truncation_factor,
            logit_encoding=logit_encoding,
            force=True,
        )
        return cache_input.open_cache(output, None)


def write_beginning(path: Location, size: int, work: Location) -> Location:
    """Writes the first lines of a text file, at most `size` bytes, into `work`."""
    beginning = work / f"beginning-{path.name}"
    beginning.write_whole(_first_lines(path, size))
    return beginning


def _first_lines(path: Location, size: int) -> bytes:
    """Returns the first lines of a text file, at most `size` bytes."""
    with open(path, "rb") as file:
        content = file.read(size)
    if b"\n" not in content:
        received = f"no line end in the first {len(content)} bytes"
        raise InputError(path, "a text file of several lines", received)
    return content[: content.rindex(b"\n") + 1]
