"""Whatever the bytes, a reader gives a good value or one line that names the file."""

import argparse
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import campaign, mutation
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


def test_a_piece_again_and_again() -> None:
    """At the second of three letters the tenth kind of change: two of them, as often as can be."""
    choices = iter([1, 9, 1, 0])
    assert mutation._step(lambda limit: next(choices), b"abc") == b"a" + b"bc" * 2**19 + b"bc"


def test_a_reader_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="campaign")
    readers = all_readers()
    assert set(campaign.choose(readers, "sidecar;request", parser)) == {"sidecar", "request"}
    assert campaign.choose(readers, "", parser) == readers
    with pytest.raises(SystemExit) as ended:
        campaign.choose(readers, "sidecar;manifset", parser)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "--reader: expected the beginning of one of framing; masked examples; " in message
    assert message.endswith(", received 'manifset'\n")
