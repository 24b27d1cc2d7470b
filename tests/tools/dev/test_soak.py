"""Rounds of faults: the text they run on, and one whole round."""

import gzip
import json
import pathlib

import pytest

from pipeline.base.errors import InputError
from tests.conftest import make_text
from tools.dev import soak
from tools.dev.soaking.running import Outcome


def test_the_text_is_cut_into_plain_and_compressed_files(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "text.txt"
    lines = [f"line {number}, 春天来了\n" for number in range(100)]
    source.write_text("".join(lines), encoding="utf-8")
    folder = tmp_path / "parts"
    folder.mkdir()
    soak.write_text(str(source), folder, 1000)
    parts = sorted(folder.iterdir())
    assert [path.name for path in parts] == ["0.txt", "1.txt.gz", "2.txt", "3.txt.gz"]
    contents = [path.read_bytes() for path in parts]
    whole = b"".join(gzip.decompress(c) if c[:2] == b"\x1f\x8b" else c for c in contents)
    assert source.read_bytes()[:1000].startswith(whole)
    assert len(whole) > 996
    with pytest.raises(InputError, match="^input_dir: expected a text file of 9999 bytes"):
        soak.write_text(str(source), folder, 9999)


def test_a_folder_in_use_is_left_alone(tmp_path: pathlib.Path, capsys) -> None:
    (tmp_path / "mine").touch()
    flags = [f"--work={tmp_path}", f"--input_dir={tmp_path}", "--vocab_file=none"]
    assert soak.main(["soak", *flags]) == 1
    assert "error: --work: expected a new or an empty folder" in capsys.readouterr().err


class _Written:
    """A command that writes one file, and ends well."""

    def __init__(self, command: str, settings: dict, log: pathlib.Path) -> None:
        log.write_text(command)
        output = pathlib.Path(settings["output_dir"])
        output.mkdir(exist_ok=True)
        (output / "made.txt").write_text(command)

    def finish(self) -> Outcome:
        return Outcome(0, "done", 0.1, 2**20, False, 0)


def test_a_round_ends_at_the_first_harm_and_is_kept(tmp_path: pathlib.Path, monkeypatch) -> None:
    results = iter([(0, 0), (0, 0), (0, 0), (0, 0), (3, 0), (0, 0), (0, 0), (0, 0)])
    monkeypatch.setattr(soak, "Running", _Written)
    monkeypatch.setattr(soak, "_write_teacher", lambda stage, folder: None)
    monkeypatch.setattr(soak.faults, "can_mount", lambda folder: True)
    monkeypatch.setattr(soak.differences, "compare", lambda stage, reference: next(results))

    def disturb(disturbance: soak.Disturbance) -> Outcome:
        disturbance.log.write_text("killed")
        return Outcome(-9, "killed", 0.1, 1, False, 0)

    commands = tuple(stage.command for stage in soak.make_stages(*[tmp_path] * 3, folder=tmp_path))
    monkeypatch.setattr(soak.faults, "FAULTS", {"SIGKILL": (disturb, commands)})
    rounds = soak.Soak(tmp_path, "vocab.txt", 1)
    rounds.make_reference()
    for _ in range(3):
        rounds.make_round()
    assert {key: row.injected for key, row in rounds.ledger.rows.items()} == {
        ("SIGKILL", "1a"): 3,
        ("SIGKILL", "1b"): 3,
        ("SIGKILL", "2"): 2,
    }
    assert rounds.ledger.row("SIGKILL", "1b").lost == 3
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("harm-*/**/*.*")}
    assert kept == {
        "harm-2/examples/made.txt",
        "harm-2/cache/made.txt",
        "harm-2/disturbed.log",
        "harm-2/run.log",
    }
    assert not (tmp_path / "round").exists()


@pytest.mark.slow
def test_a_round(tmp_path: pathlib.Path, vocab_file: pathlib.Path, capsys) -> None:
    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(make_text(3, 600)), encoding="utf-8")
    flags = [
        f"--input_dir={source}",
        f"--vocab_file={vocab_file}",
        f"--work={tmp_path / 'work'}",
        "--minutes=0",
        "--text_bytes=60000",
    ]
    assert soak.main(["soak", *flags]) == 0, capsys.readouterr()
    report = json.loads((tmp_path / "work" / "soak.json").read_text())
    assert report["rounds"] == 1
    assert {row["stage"] for row in report["faults"]} == {"1a", "1b", "2"}
    assert all(row["injected"] == 1 for row in report["faults"])
    assert not any(row["lost"] or row["wrong"] for row in report["faults"])
    assert not (tmp_path / "work" / "round").exists()
