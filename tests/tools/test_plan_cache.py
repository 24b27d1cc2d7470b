"""Plans of caches: the table, the files and the errors."""

import json
import pathlib
import sys
from types import SimpleNamespace

import pytest

from data_specs.corpora import CorpusSource
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.storage import manifest as manifests
from pipeline.storage import topk_mass
from pipeline.storage.codecs import CODECS
from pipeline.storage.codecs.states import STATE_PACKINGS
from tests.tools.page_reading import charts, hints, parse, texts
from tools import plan_cache as tool
from tools.plan_cache import CacheCost, PlanConfig


def _flags(examples_dir, teacher_dir, **changes: object) -> list[str]:
    settings = {"input_dir": examples_dir, "teacher": teacher_dir, "sample": 12}
    settings |= {"truncation_factors": "4,16", "predict_batch_size": 8, **changes}
    return ["plan_cache", *(f"--{name}={value}" for name, value in settings.items())]


def _error(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    (line,) = lines
    return line


def test_command_writes_and_prints_every_measurement(
    examples_dir, teacher_dir, tmp_path, capsys
) -> None:
    output = tmp_path / "plan.json"
    assert tool.main(_flags(examples_dir, teacher_dir, output=output)) == 0
    plan = json.loads(output.read_text())
    manifest = manifests.load(examples_dir)
    names = "num_examples dupe_factor teacher compute_dtype free_bytes sample plans"
    assert set(plan) == set(names.split())
    assert plan["num_examples"] == sum(map(manifest.num_examples, manifest.splits))
    assert plan["dupe_factor"] == 2
    assert plan["sample"]["num_examples"] == 12
    assert plan["sample"]["num_positions"] > 12
    labels = plan["sample"]["labels"]
    assert labels["num_labels"] == plan["sample"]["num_positions"]
    assert labels["label_log_prob"] < labels["unigram_log_prob"] < 0.0
    names = [
        (measured["logit_encoding"], measured["truncation_factor"]) for measured in plan["plans"]
    ]
    topk = [(name, k) for name in CODECS for k in (4, 16)]
    assert names == topk + [("states", manifest.vocab.size)] * 3
    fields = (
        "logit_encoding truncation_factor state_bits temperatures ids_per_position mass_kept "
        "kl_dense kl_bucket kl_reverse bytes_per_position position_bytes example_bytes "
        "examples_per_second caches"
    )
    for measured in plan["plans"]:
        assert set(measured) == set(fields.split())
        assert measured["position_bytes"] == pytest.approx(
            sum(measured["bytes_per_position"].values())
        )
        assert [cost["dupe_factor"] for cost in measured["caches"]] == [1, 5, 10]
        for cost in measured["caches"]:
            count = plan["num_examples"] * cost["dupe_factor"] / 2
            assert cost["bytes"] == pytest.approx(count * measured["example_bytes"], abs=1)
            assert cost["hours"] == pytest.approx(count / measured["examples_per_second"] / 3600)
            assert cost["fits"]
    # A position has 4 ids and 4 logits of 2 bytes, two tails of 4 bytes and the label's 2 bytes.
    assert plan["plans"][0]["position_bytes"] == 4 * 4 + 2 * 4 + 2
    output_lines = capsys.readouterr().out
    # The teacher is random, so the table advises training its head.
    assert "--freeze=encoder" in output_lines
    lines = output_lines.splitlines()
    assert lines[0].split()[:3] == ["encoding", "k", "mass,"]
    assert len({len(line) for line in lines[: 2 + len(plan["plans"])]}) == 1
    titles = ["encoding", "k", "ids", "bytes"]
    (costs,) = [index for index, line in enumerate(lines) if line.split()[:4] == titles]
    for row, measured in zip(lines[costs + 2 :], plan["plans"], strict=False):
        numbers = {f"{measured[name]:.1f}" for name in ("ids_per_position", "position_bytes")}
        assert numbers <= set(row.split())
    size = 2 + len(plan["plans"])
    assert max(map(len, lines[:size] + lines[costs : costs + size])) <= 120
    assert lines[-1] == f"plan: {output}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.264, "1.26 s"), (59.99, "1 min"), (738.0, "12.3 min"), (16_200.0, "4.5 h")],
)
def test_times_have_a_readable_unit(seconds: float, text: str) -> None:
    assert tool._duration(seconds) == text


def test_only_the_longest_lists_are_warned_about() -> None:
    def plan(k: int, *masses: float, bits: int | None = None) -> SimpleNamespace:
        fits = {
            f"{number}": SimpleNamespace(mass_kept=mass) for number, mass in enumerate(masses, 1)
        }
        return SimpleNamespace(truncation_factor=k, state_bits=bits, temperatures=fits)

    plans = [plan(8, 0.4, 0.1), plan(64, 0.9, 0.49), plan(5_000, 1.0, 1.0, bits=4)]
    assert list(tool._mass_warnings(plans)) == [topk_mass.warning(2.0, 0.49, 64)]
    assert list(tool._mass_warnings(plans[2:])) == []


def test_k_beyond_the_vocabulary_is_planned_once(examples_dir, teacher_dir, vocab) -> None:
    settings = {"sample": 4, "predict_batch_size": 4, "logit_encodings": ("float16",)}
    factors = (8, 10**6, 10**7)
    plan = tool.plan_cache(
        PlanConfig(str(examples_dir), str(teacher_dir), truncation_factors=factors, **settings)
    )
    assert [measured.truncation_factor for measured in plan.sample.plans] == [8, len(vocab)]


def test_costs_scale_with_the_dupe_factor(examples_dir) -> None:
    manifest = manifests.load(examples_dir)
    total = sum(map(manifest.num_examples, manifest.splits))

    class Measured:
        example_bytes = 100.0
        seconds = 36.0

    # The directory has two masked copies of each window.
    costs = tool.cache_costs(Measured, manifest, (1, 2, 10), free_bytes=100 * total)
    assert costs == (
        CacheCost(1, 50 * total, total / 200, fits=True),
        CacheCost(2, 100 * total, total / 100, fits=True),
        CacheCost(10, 500 * total, total / 20, fits=False),
    )


def test_page_charts_every_plan_at_each_temperature(examples_dir, teacher_dir, tmp_path) -> None:
    path, output = tmp_path / "plan.html", tmp_path / "plan.json"
    sizes = {"truncation_factors": "4,16,1000000", "temperatures": "1,8"}
    assert tool.main(_flags(examples_dir, teacher_dir, html=path, output=output, **sizes)) == 0
    page, plans = path.read_text(encoding="utf-8"), json.loads(output.read_text())["plans"]
    table, costs = parse(page).tables
    assert len(table) == len(costs) == 1 + len(plans)
    for row, plan in zip(costs[1:], plans, strict=True):
        assert row[2::2] == [tool._size(cost["bytes"]) for cost in plan["caches"]]
        assert row[3::2] == [tool._duration(3600 * cost["hours"]) for cost in plan["caches"]]
    # The teacher is random.
    assert "--freeze=encoder" in parse(page).text
    for row, plan in zip(table[1:], plans, strict=True):
        cells = [f"{plan['position_bytes']:,.1f}"]
        for fit in plan["temperatures"].values():
            cells += [f"{fit['mass_kept']:.1%}", f"{fit['kl']['mean']:.2g}"]
        assert row[2:] == cells
    drawn = charts(page)
    assert [title.partition(":")[0] for title in drawn] == ["T = 1", "T = 8"]
    for chart in drawn.values():
        assert {name: len(texts_of_points) for name, texts_of_points in hints(chart).items()} == {
            **dict.fromkeys(CODECS, 3),
            "states": len(STATE_PACKINGS),
        }
        assert {"4", "16", *(f"{bits} bits" for bits in STATE_PACKINGS)} <= set(texts(chart))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_package_is_named_before_the_teacher_runs(
    examples_dir, teacher_dir, tmp_path, capsys, monkeypatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / "plan.html"
    assert tool.main(_flags(examples_dir, teacher_dir, html=path)) == 1
    assert _error(capsys).startswith(f"error: {package}: ")
    assert not path.exists()


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"input_dir": ""}, "missing: --input_dir "),
        ({"sample": 0}, "--sample: "),
        ({"truncation_factors": "16,0"}, "--truncation_factors: "),
        ({"dupe_factors": "1.5"}, "--dupe_factors: "),
        ({"logit_encodings": "float16,text"}, "--logit_encodings: "),
        ({"truncation_mass": 0}, "--truncation_mass: "),
        ({"output": "/no/such/plan.json"}, "--output: /no/such/plan.json: "),
        ({"output_dir": "gs://bucket/cache"}, "--output_dir: "),
    ],
)
def test_error_about_an_invalid_flag_names_it(
    examples_dir, teacher_dir, capsys, changes, subject
) -> None:
    assert tool.main(_flags(examples_dir, teacher_dir, **changes)) == 1
    assert _error(capsys).startswith(f"error: {subject}")


@pytest.mark.parametrize("flag", ["output", "html"])
def test_existing_files_are_not_overwritten(
    examples_dir, teacher_dir, tmp_path, capsys, flag: str
) -> None:
    path = tmp_path / "there"
    path.write_text("mine")
    assert tool.main(_flags(examples_dir, teacher_dir, **{flag: path})) == 1
    assert _error(capsys).startswith(f"error: --{flag}: {path}: ")
    assert path.read_text() == "mine"


SHARED = pathlib.Path(__file__).parents[3] / "shared"


@pytest.mark.shared
def test_half_of_a_real_teachers_mass_is_outside_its_top_16(tmp_path) -> None:
    teacher = SHARED / "models" / "zh-bert-4L-256"
    text = (SHARED / "data" / "zh" / "mlm" / "reviews.txt").read_text(encoding="utf-8")
    corpus, examples = tmp_path / "reviews.txt", tmp_path / "examples"
    corpus.write_text("\n".join(text.splitlines()[:400]), encoding="utf-8")
    create_masked_examples(
        MaskedExamplesConfig(
            corpora=(CorpusSource(input_dir=str(corpus)),),
            output_dir=examples,
            vocab_file=teacher,
            max_seq_length=128,
            max_predictions_per_seq=20,
            doc_stride=126,
            segments="single",
            dupe_factor=1,
        )
    )
    config = PlanConfig(examples, str(teacher), sample=32, truncation_factors=(16, 128))
    for plan in tool.plan_cache(config).sample.plans:
        assert plan.kl_bucket.mean < 1e-4
        expected = {16: 0.53, 128: 0.76}[plan.truncation_factor]
        assert plan.mass_kept == pytest.approx(expected, abs=0.1)
