"""A corpus cut into chunks of undecoded documents: where stage 1a begins.

The main process cuts, which is cheap; workers decode, clean and tokenise.
"""

import dataclasses
import fnmatch
import os
import pathlib
from collections.abc import Iterator, Sequence

from data_specs import corpora as corpus_specs
from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base import seeding
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.corpora import readers
from pipeline.corpora.documents import Corpus, CorpusFile, RawDocument

_MIN_CHUNK_BYTES = 2**19
_MAX_CHUNK_BYTES = 2**23
# A document takes memory beside its bytes.
_MAX_CHUNK_DOCUMENTS = 2**16
# Any files, read as their names say.
_ANY_CORPUS = Corpus()


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive documents: the unit of work of the first half of stage 1a.

    Attributes:
        index: its number within the corpus.
        documents: its documents.
        bytes_read: how many bytes of the corpus on disk have been read.
    """

    index: int
    documents: tuple[RawDocument, ...]
    bytes_read: int

    def fingerprint(self) -> str:
        """Returns a digest of everything that the chunk's examples depend on."""
        parts = [
            part
            for document in self.documents
            for part in (
                document.file.key,
                document.ordinal,
                document.content,
                document.split_key or b"",
            )
        ]
        return seeding.digest(*parts).hex()


def resolve(sources: Sequence[CorpusSource]) -> tuple[Corpus, ...]:
    """Returns the corpora of a run with all their settings; files are not looked at.

    Raises:
        InputError: an unknown declaration or dataset, or two corpora of one name.
    """
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(
                Setting("corpora"),
                "a name for each corpus",
                f"{label or 'none'!r} {labels.count(label)} times",
                hint="add name: to tell them apart",
            )
    return tuple(_resolve(source) for source in sources)


def _local_spec(name: str) -> str:
    """Returns the name of a known declaration, or the path of a file of this machine."""
    location = Location.parse(name, "corpus_spec")
    return name if location.is_local else str(location.mirror())


def _resolve(source: CorpusSource) -> Corpus:
    spec, changes = CorpusSpec(), {}
    if source.corpus_spec is not None:
        try:
            spec = corpus_specs.load_spec(_local_spec(source.corpus_spec))
        except ValueError as error:
            raise InputError(Setting("corpus_spec"), received=error) from error
    for name in ("text_fields", "segmenter"):
        if getattr(source, name) is not None:
            changes[name] = getattr(source, name)
    is_tfds = source.tfds_name is not None
    if is_tfds:
        # Imports TensorFlow, which files do not need.
        from pipeline.corpora import tfds_corpus

        changes["text_fields"] = tfds_corpus.choose_fields(source)
    return Corpus(
        label=source.label,
        spec=dataclasses.replace(spec, **changes),
        weight=source.weight,
        tfds_name=source.tfds_name,
        tfds_dir=source.input_dir if is_tfds else None,
    )


def open_corpora(
    sources: Sequence[CorpusSource], corpora: Sequence[Corpus]
) -> tuple[CorpusFile, ...]:
    """Returns the files of all corpora, or the splits of TensorFlow datasets.

    Args:
        sources: where they lie.
        corpora: the same, resolved.

    Raises:
        InputError: nothing is there, or all of it is empty.
    """
    found: list[CorpusFile] = []
    for source, corpus in zip(sources, corpora, strict=True):
        if corpus.tfds_name is not None:
            from pipeline.corpora import tfds_corpus

            found.extend(tfds_corpus.find_splits(corpus))
        else:
            found.extend(find_files(Location.parse(source.input_dir, "input_dir"), corpus=corpus))
    return tuple(found)


def find_files(pattern: Location, *, corpus: Corpus = _ANY_CORPUS) -> tuple[CorpusFile, ...]:
    """Returns a corpus's files, sorted by name.

    Args:
        pattern: a file, a directory (read with all below it, hidden files left
            out) or a glob.
        corpus: of a directory, only files that its declaration names are taken.

    Raises:
        InputError: nothing is there, or all of it is empty.
    """
    paths, root = _list_paths(pattern)
    found = [
        CorpusFile(path, os.path.relpath(str(path), root or "."), size, corpus)
        for path, size in paths.items()
    ]
    visible = [
        file for file in found if not any(p.startswith(".") for p in pathlib.Path(file.name).parts)
    ]
    if not visible:
        raise InputError(pattern, "a file, a folder or a glob of files", "none there")
    if pattern.is_dir():
        visible = [file for file in visible if _is_declared(file)]
        if not visible:
            raise InputError(
                pattern,
                f"the files of `corpus_spec`={corpus.spec.name} ({', '.join(corpus.spec.files)}; "
                f"from {corpus.spec.url})",
                "none of them",
            )
    if not any(file.bytes for file in visible):
        raise InputError(pattern, "text", "nothing: every file there is empty")
    return tuple(sorted(visible, key=lambda file: file.name))


def _list_paths(pattern: Location) -> tuple[dict[Location, int], str]:
    """Returns what a path or glob names, with sizes, and the folder that the names begin at."""
    found = pattern.find()
    if pattern.is_dir() or not found:
        return found, str(pattern)
    return found, os.path.commonpath([os.path.dirname(str(path)) for path in found])


def _is_declared(file: CorpusFile) -> bool:
    name = os.path.basename(file.name).removesuffix(".gz")
    return any(fnmatch.fnmatch(name, pattern) for pattern in file.corpus.spec.files)


def read_chunks(files: Sequence[CorpusFile]) -> Iterator[Chunk]:
    """Yields the corpus in chunks of about half a megabyte to 8 MB, or of 65,536 documents.

    Raises:
        InputError: a file cannot be read, or is not what its name says.
    """
    total = sum(file.bytes for file in files)
    chunk_bytes = min(_MAX_CHUNK_BYTES, max(_MIN_CHUNK_BYTES, total // 256))
    index = size = done = 0
    documents: list[RawDocument] = []
    for file in files:
        for document, bytes_read in readers.read_documents(file):
            documents.append(document)
            size += len(document.content)
            if size >= chunk_bytes or len(documents) >= _MAX_CHUNK_DOCUMENTS:
                yield Chunk(index, tuple(documents), done + bytes_read)
                documents, size, index = [], 0, index + 1
        done += file.bytes
    yield Chunk(index, tuple(documents), done)
