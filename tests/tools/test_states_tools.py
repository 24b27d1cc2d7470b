"""The tools with caches of head states."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from data_specs import records
from pipeline import api
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.models.formats import model_directory
from pipeline.storage import cache_input
from pipeline.storage import manifest as manifests
from pipeline.storage.codecs.states import STATE_PACKINGS
from pipeline.storage.manifest import OUTPUT_TABLE_FILE
from pipeline.teacher.settings import TeacherCacheConfig
from tests.conftest import make_cache, read_folder
from tests.tools.conftest import Features, read_rows, rewrite_cache
from tools import inspect_cache, merge_caches, plan_cache, verify_cache
from tools.cache_analysis import cache_report, planning
from tools.fidelity_report import FidelityConfig, report_fidelity
from tools.inspect_cache import InspectConfig
from tools.merge_caches import MergeConfig
from tools.report.inputs import read_cache, read_fidelity, read_plan
from tools.verification import directory_checks

TRAIN = "train-00000-of-00003.tfrecord"


@pytest.fixture
def folder(states_cache_dir, tmp_path) -> pathlib.Path:
    """A copy of the cache of head states."""
    return shutil.copytree(states_cache_dir, tmp_path / "cache")


def _verify(folder: pathlib.Path, capsys, *flags: str) -> tuple[int, list[str]]:
    status = verify_cache.main(["verify_cache", f"--input_dir={folder}", *flags])
    return status, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("bits", STATE_PACKINGS)
def test_valid_caches_of_head_states_pass_verification(
    bits, examples_dir, teacher_dir, tmp_path, capsys
) -> None:
    changes = {"state_bits": bits, "cache_hidden_states": "1"}
    cache = make_cache(
        tmp_path / "cache", examples_dir, teacher_dir, logit_encoding="states", **changes
    )
    status, lines = _verify(cache, capsys, f"--teacher={teacher_dir}", "--sample_examples=16")
    assert status == 0, lines
    checked = "masks, head states, labels and hidden states are valid"
    assert any(line.endswith(checked) for line in lines)
    assert any(line.startswith("sample ") and "KL " in line for line in lines)


def _changed(name: str, change) -> Features:
    """Returns a function that changes a feature's first number in the third record."""

    def alter(rows: list[Features]) -> list[Features]:
        content = bytearray(rows[2][name])
        content[:2] = change(content[:2])
        rows[2][name] = bytes(content)
        return rows

    return alter


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        (records.HEAD_SCALES, np.inf, records.HEAD_STATES),
        (records.HEAD_SCALES, np.nan, records.HEAD_STATES),
        (records.HEAD_SCALES, -1.0, records.HEAD_SCALES),
        # This scale gives a finite state that does not fit the label's log-probability.
        (records.HEAD_SCALES, 900.0, records.LABEL_LOG_PROBS),
        (records.LABEL_LOG_PROBS, 0.5, records.LABEL_LOG_PROBS),
        (records.LABEL_LOG_PROBS, -0.001, records.LABEL_LOG_PROBS),
        (records.LABEL_LOG_PROBS, np.nan, records.LABEL_LOG_PROBS),
    ],
)
def test_records_with_invalid_states_are_reported(
    states_cache_dir, tmp_path, name, value, named
) -> None:
    alter = _changed(name, lambda old: np.array([value], "<f2").tobytes())
    folder = rewrite_cache(states_cache_dir, tmp_path / "cache", alter)
    loaded = manifests.load(folder)
    report = directory_checks.check_directory(folder, loaded, None, on_records=lambda count: None)
    assert any(f"record 2: {named}: " in text for text in report.problems[TRAIN]), report.problems


def test_states_of_a_wrong_length_are_reported(states_cache_dir, tmp_path) -> None:
    def alter(rows: list[Features]) -> list[Features]:
        rows[1][records.HEAD_STATES] += b"\0"
        return rows

    folder = rewrite_cache(states_cache_dir, tmp_path / "cache", alter)
    loaded = manifests.load(folder)
    report = directory_checks.check_directory(folder, loaded, None, on_records=lambda count: None)
    assert any(f"record 1: {records.HEAD_STATES}: " in text for text in report.problems[TRAIN])


@pytest.mark.parametrize("damage", ["alter", "cut", "remove"])
def test_broken_output_table_is_reported_and_repaired(
    folder, states_cache_dir, examples_dir, teacher_dir, capsys, damage
) -> None:
    path = folder / OUTPUT_TABLE_FILE
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-2] if damage == "cut" else content[:-1] + b"\x17")
    status, (line,) = _verify(folder, capsys)
    assert status == 1 and line.startswith(f"{OUTPUT_TABLE_FILE}: ")
    flags = f"--repair --teacher={teacher_dir} --examples={examples_dir} --sample_examples=4"
    status, lines = _verify(folder, capsys, *flags.split())
    assert status == 0, lines
    repaired = {
        name: content for name, content in read_folder(folder).items() if ".broken" not in name
    }
    assert repaired == read_folder(states_cache_dir)


def test_broken_shard_of_head_states_is_repaired(
    folder, states_cache_dir, examples_dir, teacher_dir, capsys
) -> None:
    path = folder / TRAIN
    path.write_bytes(path.read_bytes()[:-7])
    flags = f"--repair --teacher={teacher_dir} --examples={examples_dir} --sample_examples=0"
    status, lines = _verify(folder, capsys, *flags.split())
    assert status == 0 and f"{TRAIN}: made again, the same bytes" in lines
    assert path.read_bytes() == (states_cache_dir / TRAIN).read_bytes()


def test_sample_differs_from_another_teacher(
    states_cache_dir, examples_dir, other_teacher_dir
) -> None:
    from tools.verification import sample_check

    model = model_directory.load_masked_lm(model_directory.find_model(other_teacher_dir))
    cache = cache_input.open_cache(states_cache_dir, None)
    report = sample_check.check_sample(model, cache, size=8, batch_size=8, compute_dtype="float32")
    assert any(
        f"{records.HEAD_STATES}: " in text for texts in report.problems.values() for text in texts
    )


def test_fidelity_report_on_head_states(states_cache_dir, teacher_dir, tmp_path, capsys) -> None:
    config = FidelityConfig(str(states_cache_dir), str(teacher_dir), sample=20)
    report, about = report_fidelity(config)
    assert tuple(map(float, report.kl_divergence)) == cache_report.STATES_TEMPERATURES
    means = [summary.mean for summary in report.kl_divergence.values()]
    assert 0.0 < means[-1] < means[0] <= 1e-4
    assert (about["logit_encoding"], about["state_bits"]) == ("states", 8)
    assert report.mass_kept == pytest.approx(1.0) and report.tail_error == 0.0
    assert report.top1_agreement > 0.95
    path = tmp_path / "report.json"
    flags = f"--input_dir={states_cache_dir} --teacher={teacher_dir} --sample=4 --output={path}"
    from tools import fidelity_report

    assert fidelity_report.main(["fidelity_report", *flags.split()]) == 0
    assert "state" in capsys.readouterr().out
    assert read_fidelity(path).encoding == "states, 8 bits"
    assert read_cache(states_cache_dir, "cache").encoding == "states, 8 bits"


def test_planned_sizes_of_head_states_equal_those_of_the_cache(
    examples_dir, teacher_dir, states_cache_dir
) -> None:
    config = TeacherCacheConfig(
        output_dir="", input_dir=examples_dir, teacher=teacher_dir, predict_batch_size=8
    )
    model = model_directory.load_masked_lm(model_directory.find_model(teacher_dir))
    measured = planning.measure_plans(
        model,
        cache_input.open_cache(examples_dir, None),
        config,
        sample=10**6,
        truncation_factors=[4],
        logit_encodings=["states", "float16"],
        temperatures=(1.0, 8.0),
    )
    by_bits = {plan.state_bits: plan for plan in measured.plans}
    assert list(by_bits) == [*STATE_PACKINGS, None]
    manifest = manifests.load(states_cache_dir)
    plan = by_bits[8]
    assert plan.bytes_per_position == manifest.bytes_per_position()
    total = sum(shard.bytes for shard in manifest.shards)
    assert plan.example_bytes * measured.num_examples == pytest.approx(total, rel=1e-6)
    assert plan.truncation_factor == plan.ids_per_position == manifest.vocab.size
    for temperature in ("1", "8"):
        fits = {bits: plan.temperatures[temperature] for bits, plan in by_bits.items()}
        assert fits[16].kl.mean < fits[8].kl.mean < fits[4].kl.mean < fits[None].kl.mean
        assert fits[8].kl.max <= 1e-3 and fits[8].mass_kept == 1.0 > fits[None].mass_kept
    assert by_bits[None].temperatures["8"].mass_kept < by_bits[None].mass_kept


def test_plan_warns_if_the_largest_k_holds_little_mass(
    examples_dir, teacher_dir, tmp_path, capsys
) -> None:
    def warnings(**changes: object) -> list[str]:
        flags = {
            "input_dir": examples_dir,
            "teacher": teacher_dir,
            "sample": 8,
            "temperatures": "1,100",
            "logit_encodings": "compact,states",
            **changes,
        }
        arguments = [f"--{name}={value}" for name, value in flags.items()]
        assert plan_cache.main(["plan_cache", *arguments]) == 0
        output_lines = capsys.readouterr().out.splitlines()
        return [line for line in output_lines if line.startswith("warning: at temperature")]

    lines = warnings(truncation_factors="2,4")
    assert "temperature 100 the top 4 hold" in lines[-1]
    assert all("--logit_encoding=states" in line for line in lines)
    # All tokens hold all of the mass.
    path = tmp_path / "plan.json"
    assert warnings(truncation_factors="4,100000", output=path) == []
    planned = [(entry.encoding, entry.temperature) for entry in read_plan(path)]
    names = ["compact"] * 2 + [f"states, {bits} bits" for bits in STATE_PACKINGS]
    assert planned == [(name, temperature) for name in names for temperature in ("1", "100")]
    with pytest.raises(InputError) as caught:
        plan_cache.PlanConfig(examples_dir, str(teacher_dir), temperatures=(2.0, 8.0))
    assert caught.value.subject == "temperatures"


def test_inspect_cache_shows_predictions_from_head_states(states_cache_dir, cache_dir) -> None:
    lines, page = inspect_cache.inspect_cache(
        InspectConfig(input_dir=states_cache_dir, examples=2, html="x.html")
    )
    text = " ".join(lines)
    assert "states of 8 bits" in text and "decoded from head states" in text
    assert page is not None
    expected, _ = inspect_cache.inspect_cache(InspectConfig(input_dir=cache_dir, examples=2))
    # The number, the label and the label's probability are equal in both caches.
    rows, expected_rows = (
        [
            words[:3]
            for words in map(str.split, printed_lines)
            if len(words) > 4 and words[0].isdigit()
        ]
        for printed_lines in (lines, expected)
    )
    assert rows == expected_rows and len(rows) > 4


def test_head_states_are_merged_to_a_top_k(
    states_cache_dir, other_cache_dir, merged_dir, tmp_path
) -> None:
    pair = (str(states_cache_dir), str(other_cache_dir))
    with pytest.raises(InputError) as caught:
        merge_caches.merge_caches(MergeConfig(pair, str(tmp_path / "none")))
    assert caught.value.subject == "truncation_factor"
    config = MergeConfig(pair, str(tmp_path / "merged"), (3.0, 1.0), truncation_factor=16)
    merged = merge_caches.merge_caches(config)
    assert merged.teacher_info.logit_encoding == "float16" and merged.output_table is None
    expected = manifests.load(merged_dir)
    codecs = [
        cache_input.open_codec(directory, manifest)
        for directory, manifest in ((config.output_dir, merged), (merged_dir, expected))
    ]
    for rows in zip(read_rows(config.output_dir), read_rows(merged_dir), strict=True):
        count = len(rows[0][records.MASKED_LM_POSITIONS]) // 2
        (ids, logits), (expected_ids, expected_logits) = (
            codec.decode(row, count) for codec, row in zip(codecs, rows, strict=True)
        )
        # The most probable tokens are in the top-k of both caches.
        is_same = ids[:, 0] == expected_ids[:, 0]
        assert is_same.mean() > 0.5
        np.testing.assert_allclose(logits[is_same, 0], expected_logits[is_same, 0], atol=1e-6)


def test_api_gives_probabilities_at_any_temperature(states_cache_dir, cache_dir) -> None:
    cache = api.open_cache(str(states_cache_dir))
    example = next(cache.examples("eval"))
    reference = next(api.open_cache(str(cache_dir)).examples("eval"))
    for temperature in (1.0, 2.0):
        p, tail = example.targets.probabilities(temperature, k=3)
        q, _ = reference.targets.probabilities(temperature, k=3)
        np.testing.assert_allclose(p, q, rtol=0.05)
        np.testing.assert_allclose(p.sum(-1) + tail, 1.0, rtol=1e-6)
    p, tail = example.targets.probabilities(8.0)
    assert p.shape[-1] == cache.manifest.vocab.size and (tail == 0.0).all()
    (batch,) = cache.dataset("eval", batch_size=4).take(1)
    assert batch[records.HEAD_STATES].shape == (4, 8, 32)
    assert api.verify(str(states_cache_dir)) == {}


def test_loaded_manifest_of_head_states_dumps_to_the_same_bytes(states_cache_dir) -> None:
    value = json.loads((states_cache_dir / "manifest.json").read_text())
    assert value["output_table"]["file"] == OUTPUT_TABLE_FILE
    content = (states_cache_dir / "manifest.json").read_bytes()
    assert json_text.dump(manifests.load(states_cache_dir).to_json()) == content
