"""Plans of caches: the command, what it writes, and what it refuses."""

import json
import pathlib
import struct
import sys

import pytest

from data_specs.corpora import CorpusSource
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.storage import manifest as manifests
from pipeline.storage.codecs import CODECS
from tools import plan_cache as tool
from tools.plan_cache import CacheCost, PlanConfig


def _flags(examples_dir, teacher_dir, **others: object) -> list[str]:
    given = {"input_dir": examples_dir, "teacher": teacher_dir, "sample": 12}
    given |= {"truncation_factors": "4,16", "predict_batch_size": 8, **others}
    return ["plan_cache", *(f"--{name}={value}" for name, value in given.items())]


def _error(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    (line,) = lines
    return line


def test_the_command(examples_dir, teacher_dir, tmp_path, capsys) -> None:
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
    names = [(one["logit_encoding"], one["truncation_factor"]) for one in plan["plans"]]
    topk = [(name, k) for name in CODECS for k in (4, 16)]
    assert names == topk + [("states", manifest.vocab.size)] * 3
    fields = (
        "logit_encoding truncation_factor state_bits temperatures ids_per_position mass_kept "
        "kl_dense kl_bucket kl_reverse bytes_per_position position_bytes example_bytes "
        "examples_per_second caches"
    )
    for one in plan["plans"]:
        assert set(one) == set(fields.split())
        assert one["position_bytes"] == pytest.approx(sum(one["bytes_per_position"].values()))
        assert [cost["dupe_factor"] for cost in one["caches"]] == [1, 5, 10]
        for cost in one["caches"]:
            count = plan["num_examples"] * cost["dupe_factor"] / 2
            assert cost["bytes"] == pytest.approx(count * one["example_bytes"], abs=1)
            assert cost["hours"] == pytest.approx(count / one["examples_per_second"] / 3600)
            assert cost["fits"]
    # 4 ids and logits of 2 bytes each, two tails of 4 and the label's 2.
    assert plan["plans"][0]["position_bytes"] == 4 * 4 + 2 * 4 + 2
    output_lines = capsys.readouterr().out
    # A random teacher: the advice is to train its head.
    assert "--freeze=encoder" in output_lines
    lines = output_lines.splitlines()
    assert lines[0].split()[:4] == ["encoding", "k", "ids", "mass"]
    assert len({len(line) for line in lines[: 2 + len(plan["plans"])]}) == 1
    assert lines[-1] == f"plan: {output}"


def test_k_is_at_most_the_vocabulary_and_there_once(examples_dir, teacher_dir, vocab) -> None:
    settings = {"sample": 4, "predict_batch_size": 4, "logit_encodings": ("float16",)}
    factors = (8, 10**6, 10**7)
    plan = tool.plan_cache(
        PlanConfig(str(examples_dir), str(teacher_dir), truncation_factors=factors, **settings)
    )
    assert [one.truncation_factor for one in plan.sample.plans] == [8, len(vocab)]


def test_costs_scale_and_say_what_fits(examples_dir) -> None:
    manifest = manifests.load(examples_dir)
    total = sum(map(manifest.num_examples, manifest.splits))

    class Measured:
        example_bytes = 100.0
        seconds = 36.0

    # The directory has each window twice.
    costs = tool.cache_costs(Measured, manifest, (1, 2, 10), free_bytes=100 * total)
    assert costs == (
        CacheCost(1, 50 * total, total / 200, fits=True),
        CacheCost(2, 100 * total, total / 100, fits=True),
        CacheCost(10, 500 * total, total / 20, fits=False),
    )


def test_the_picture(examples_dir, teacher_dir, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import image

    path = tmp_path / "plan.png"
    flags = _flags(examples_dir, teacher_dir, picture=path, truncation_factors="4,16,1000000")
    assert tool.main(flags) == 0
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (960, 600)
    pixels = image.imread(path)[..., :3]
    # A line of each codec's colour: Okabe and Ito's blue and vermilion.
    for colour in ((0, 114, 178), (213, 94, 0)):
        near = abs(pixels * 255 - colour).max(axis=-1) < 3
        assert near.sum() > 100


def test_no_matplotlib(examples_dir, teacher_dir, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = tmp_path / "plan.png"
    assert tool.main(_flags(examples_dir, teacher_dir, picture=path)) == 1
    assert _error(capsys).startswith("error: --picture: must be unset, as matplotlib")
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
def test_mistaken_flags_are_named(examples_dir, teacher_dir, capsys, changes, subject) -> None:
    assert tool.main(_flags(examples_dir, teacher_dir, **changes)) == 1
    assert _error(capsys).startswith(f"error: {subject}")


@pytest.mark.parametrize("flag", ["output", "picture"])
def test_nothing_is_overwritten(examples_dir, teacher_dir, tmp_path, capsys, flag: str) -> None:
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
