"""Whatever the bytes, a reader gives a good value or one line that names the file."""

import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.checking import Reader, check
from tests.fuzz.readers import all_readers

READERS = [pytest.param(reader, id=name) for name, reader in all_readers().items()]


@pytest.mark.parametrize("reader", READERS)
def test_whatever_the_bytes(reader: Reader, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    reader.prepare(folder)
    right = (folder / reader.file).read_bytes()
    # Else nothing would be tried but refusals.
    assert check(reader, folder, right)

    @settings(max_examples=15)
    @given(st.data())
    def wrong(data: st.DataObject) -> None:
        def below(limit: int) -> int:
            return data.draw(st.integers(0, limit - 1))

        check(reader, folder, reader.mutate(below, right))

    wrong()
