"""The property of every reader that is fuzzed: it gives a valid value or a readable error."""

import contextlib
import dataclasses
import pathlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.location import LocalLocation
from tests.fuzz.mutation import Mutate

# Seconds of CPU time, because wall time is unreliable on shared machines.
TIME_LIMIT = 5.0
# Maximum length of a message in characters, so that people can read it.
_MAX_MESSAGE = 4_000


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of external files.

    Attributes:
        name: name of the reader in the campaign.
        file: the file that is corrupted, in a folder that `prepare` fills.
        mutate: corrupts the content of the file.
        read: reads the folder and uses the result as the library would; raises InputError if the
            content is invalid.
        prepare: fills the folder with valid files.
        others: other files or flags that an error may name instead of the file.
    """

    name: str
    file: str
    mutate: Mutate
    read: Callable[[pathlib.Path], object]
    prepare: Callable[[pathlib.Path], None]
    others: tuple[str, ...] = ()


class Hang(BaseException):
    """A reader took longer than the time limit."""


class Finding(AssertionError):
    """A reader violated the property.

    Attributes:
        place: identifies the finding.
    """

    def __init__(self, text: str, place: str) -> None:
        super().__init__(text)
        self.place = place


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `Hang` in the block after a number of seconds of CPU time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, previous)


def _place(error: BaseException) -> str:
    """Returns the type of an error and the last function of the project in its traceback."""
    function, trace = "?", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "/tests/" not in name and ("/pipeline/" in name or "/tools/" in name or "specs" in name):
            function = f"{pathlib.Path(name).name}:{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return f"{type(error).__name__} in {function}"


def check(reader: Reader, folder: pathlib.Path, content: bytes) -> bool:
    """Checks a reader on corrupted bytes.

    Args:
        reader: the reader.
        folder: a prepared folder; the reader's file in it is overwritten.
        content: the new content of that file.

    Returns:
        whether the reader gave a value; otherwise it raised a valid error.

    Raises:
        Finding: the reader exceeded the time limit, or raised an error of another type, of several
            lines, or without the file's name.
    """
    (folder / reader.file).write_bytes(content)
    try:
        with time_limit(TIME_LIMIT):
            reader.read(folder)
    except InputError as error:
        message = str(error)
        place = _place(error)
        if len(message.splitlines()) != 1:
            raise Finding(f"not one line: {message!r}", f"lines, {place}") from error
        if len(message) > _MAX_MESSAGE:
            text = f"{len(message)} characters: {message[:200]}"
            raise Finding(text, f"long, {place}") from error
        names = (pathlib.Path(reader.file).name, *reader.others)
        # The message of an error has the name of a setting without dashes.
        if not any(name.removeprefix("--") in message for name in names):
            raise Finding(f"names no file: {message}", f"nameless, {place}") from error
        return False
    except Hang as error:
        raise Finding(f"no end after {TIME_LIMIT} s", _place(error)) from error
    except (KeyboardInterrupt, SystemExit):
        raise
    # Panics in Rust code are not subclasses of Exception.
    except BaseException as error:
        text = " ".join(repr(error).split())[:300]
        raise Finding(f"another error: {text}", _place(error)) from error
    return True


def fuzz_target(reader: Reader, folder: pathlib.Path) -> Any:
    """Returns a test of a reader on corrupted files, after checking that it accepts a valid one.

    The test's `hypothesis.fuzz_one_input` takes the bytes of a fuzzer.

    Args:
        reader: the reader.
        folder: an empty folder.
    """
    folder = LocalLocation(folder)
    reader.prepare(folder)
    valid = (folder / reader.file).read_bytes()
    if not check(reader, folder, valid):
        raise Finding("rejects the valid file", "the valid file")

    @settings(max_examples=15)
    @given(st.data())
    def read_corrupted(data: st.DataObject) -> None:
        def below(limit: int) -> int:
            return data.draw(st.integers(0, limit - 1))

        check(reader, folder, reader.mutate(below, valid))

    return read_corrupted
