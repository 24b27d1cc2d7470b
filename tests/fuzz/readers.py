"""The list of all readers of external files that are fuzzed."""

from tests.fuzz import model_readers, run_readers, storage_readers, text_readers
from tests.fuzz.checking import Reader


def all_readers() -> dict[str, Reader]:
    """Returns all readers by name."""
    readers = [
        *storage_readers.readers(),
        *text_readers.readers_of_text(),
        *model_readers.readers_of_models(),
        *run_readers.readers_of_runs(),
    ]
    return {reader.name: reader for reader in readers}
