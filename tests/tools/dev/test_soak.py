"""Tests of soak: one round of faults on a small text, and the counting of harms."""

import json
import pathlib
import shutil

import pytest

from tests.conftest import make_text
from tools.dev import soak
from tools.dev.faults import Outcome, Stage


def test_a_folder_in_use_stays_as_it_is(tmp_path: pathlib.Path, capsys) -> None:
    (tmp_path / "mine").touch()
    flags = [f"--work={tmp_path}", f"--input_dir={tmp_path}", "--vocab_file=none"]
    assert soak.main(["soak", *flags]) == 1
    assert "error: --work: " in capsys.readouterr().err


def test_lost_and_wrong_records_are_counted(tmp_path, examples_dir) -> None:
    reference = Stage("prepare", "create_pretraining_data", examples_dir, examples_dir, {})
    shutil.copytree(examples_dir, tmp_path / "examples")
    stage = Stage("prepare", reference.command, examples_dir, tmp_path / "examples", {})
    assert soak.compare(stage, reference) == (0, 0)
    num_records = len(list(soak._records(reference)))
    manifest = json.loads((stage.output / "manifest.json").read_text())
    manifest["splits"]["train"] = manifest["splits"]["train"][:1]
    (stage.output / "manifest.json").write_text(json.dumps(manifest))
    lost, wrong = soak.compare(stage, reference)
    # The changed manifest counts as one lost and one wrong record.
    assert 1 < lost < num_records
    assert wrong == 1
    (stage.output / "manifest.json").unlink()
    assert soak.compare(stage, reference) == (num_records, 0)


def test_harms_and_growing_memory_make_a_soak_unclean(tmp_path) -> None:
    ledger = soak.Ledger()
    killed = Outcome(-9, f"masking {tmp_path}: 40%", 3.0, 2**20, False, 0)
    ledger.counts["SIGKILL", "prepare"].update({"injected": 1, "met": 1})
    ledger.note(("SIGKILL", "prepare"), killed, tmp_path)
    ledger.peaks["prepare"] = [100, 100, 100, 100, 100, 125]
    assert ledger.is_clean()
    assert "SIGKILL, prepare, 1 times: signal 9: masking …: N%" in list(ledger.lines())
    ledger.peaks["prepare"][-1] = 126
    assert not ledger.is_clean()
    ledger.peaks.clear()
    ledger.counts["SIGKILL", "prepare"]["lost"] += 1
    assert not ledger.is_clean()


@pytest.mark.slow
def test_a_round_does_no_harm(tmp_path: pathlib.Path, vocab_file: pathlib.Path, capsys) -> None:
    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(make_text(3, 200)), encoding="utf-8")
    work = tmp_path / "work"
    flags = [f"--input_dir={source}", f"--vocab_file={vocab_file}", f"--work={work}"]
    assert soak.main(["soak", *flags, "--minutes=0", "--text_bytes=20000"]) == 0, (
        capsys.readouterr()
    )
    report = json.loads((work / "soak.json").read_text())
    assert report["rounds"] == 1
    assert {row["stage"] for row in report["faults"]} == {"prepare", "capture", "distill"}
    assert all(row["injected"] == 1 for row in report["faults"])
    assert not any(row.get("lost") or row.get("wrong") for row in report["faults"])
    assert not (work / "round").exists()
