"""Tests of readers: corrupted files give a valid value, or a one-line error with their name."""

import itertools
import pathlib

import pytest

from tests.fuzz import mutation
from tests.fuzz.checking import Reader, fuzz_target
from tests.fuzz.readers import all_readers

READERS = [pytest.param(reader, id=name) for name, reader in all_readers().items()]


@pytest.mark.long
@pytest.mark.parametrize("reader", READERS)
def test_corrupted_files_give_a_value_or_a_one_line_error(
    reader: Reader, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    fuzz_target(reader, folder)()


def test_mutation_repeats_a_short_piece_many_times() -> None:
    choices = iter([1, 7, 1, 0])
    content = mutation._change(lambda limit: next(choices), b"abc")
    assert content == b"a" + b"bc" * 2**19 + b"bc"


def test_mutation_writes_values_that_json_does_not_allow() -> None:
    content = b'{"a": {"b": [1, 2]}}'
    written = set()
    for numbers in itertools.product(range(1, 3), (0,), range(4), (0,), range(4, 8), range(40)):
        choices = itertools.chain(numbers, itertools.repeat(0))
        written.add(mutation.mutate_json(lambda limit, c=choices: next(c) % limit, content))
    assert b"NaN" in written
    assert not any(b"@" in text for text in written)
