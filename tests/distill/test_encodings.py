"""Every encoding and truncation of a cache, from the teacher to a trained student."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

from data_specs import records
from pipeline import create_teacher_output_data
from pipeline.base.errors import InputError
from pipeline.distill import batches
from pipeline.distill.comparison import Comparison
from pipeline.distill.objective import Objective
from pipeline.distill.settings import StudentConfig
from pipeline.storage import cache_input, serialization, vocab_subset
from pipeline.storage import manifest as manifests
from pipeline.storage.codecs import CODECS
from pipeline.storage.codecs.base import NO_ID
from pipeline.storage.records import TeacherTargets
from pipeline.storage.vocab_subset import VocabSubset
from pipeline.teacher import summary
from pipeline.teacher.capture import create_teacher_cache
from pipeline.teacher.settings import TeacherCacheConfig
from pipeline.tokenizers import vocabulary
from tests.distill.running import damaged_copy, distilled, refused
from tools.merge_caches import MergeConfig, merge_caches

EVAL = "eval-00000-of-00001.tfrecord"
CACHES = {
    f"{encoding}{mass or ''}": {"logit_encoding": encoding, "truncation_mass": mass}
    for encoding in CODECS
    for mass in (None, 0.3)
} | {
    f"{encoding}sampled": {
        "logit_encoding": encoding,
        "truncation": "sampled",
        "temperatures": (1.0,),
    }
    for encoding in CODECS
}
TOPK_CACHES = [name for name in CACHES if not name.endswith("sampled")]


@pytest.fixture(scope="module")
def cache_config(examples_dir, teacher_dir) -> TeacherCacheConfig:
    """The settings of `cache_dir`, except the output directory."""
    return TeacherCacheConfig(
        output_dir="",
        input_dir=str(examples_dir),
        teacher=str(teacher_dir),
        truncation_factor=16,
        predict_batch_size=8,
    )


@pytest.fixture(scope="module")
def caches(cache_config, cache_dir, tmp_path_factory) -> dict[str, pathlib.Path]:
    """A cache for each encoding and truncation; read only."""
    folder = tmp_path_factory.mktemp("encodings")
    for name, changes in CACHES.items():
        create_teacher_cache(
            dataclasses.replace(cache_config, output_dir=str(folder / name), **changes)
        )
    return {name: folder / name for name in CACHES}


@pytest.fixture
def own_settings() -> dict:
    """Ten steps with losses that random draws can also estimate."""
    losses = {"kl_divergence": 1.0, "soft_cross_entropy": 1.0}
    return {"losses": losses, "num_train_steps": 10, "save_checkpoints_steps": 10}


def _features(folder: pathlib.Path) -> list[dict[str, bytes]]:
    return [
        serialization.decode_example(record) for record in serialization.read_records(folder / EVAL)
    ]


def _decoded(folder: pathlib.Path):
    """Yields ids, probabilities and tail of each record, at temperature 1."""
    manifest = manifests.load(folder)
    codec = cache_input.open_codec(folder, manifest)
    for features in _features(folder):
        count = len(features[records.LABEL_LOG_PROBS]) // 2
        ids, logits = codec.decode(features, count)
        tails = np.frombuffer(features[records.LOG_TAIL_MASSES], "<f4").reshape(count, -1)
        targets = TeacherTargets(ids, logits, tails[:, :1], None, (1.0,))
        yield ids, *targets.probabilities(1.0, 16)


@pytest.mark.parametrize("name", TOPK_CACHES)
def test_decoded_probabilities_are_close_to_float16(caches, cache_dir, name) -> None:
    counts = []
    for decoded, reference in zip(_decoded(caches[name]), _decoded(cache_dir), strict=True):
        for ids, p, tail, known_ids, known_p, known_tail in zip(*decoded, *reference, strict=True):
            known = dict(zip(known_ids, known_p, strict=True))
            real = ids >= 0
            # The error is half a step of a range of at most 20, for the least probable token.
            exact = [known[token] for token in ids[real]]
            np.testing.assert_allclose(p[real], exact, rtol=0.12)
            np.testing.assert_allclose(p[real][:3], exact[:3], rtol=0.06)
            assert (p[~real] == 0.0).all()
            dropped = sum(value for token, value in known.items() if token not in ids)
            np.testing.assert_allclose(tail, known_tail + dropped, rtol=2e-3, atol=1e-6)
            counts.append(real.sum())
    mean = np.mean(counts)
    assert mean == 16 if CACHES[name]["truncation_mass"] is None else 1 < mean < 15


@pytest.mark.long
@pytest.mark.parametrize("name", ["compact0.3", "float16sampled"])
def test_student_learns_from_a_truncated_or_sampled_cache(caches, config, name) -> None:
    cache = str(caches[name])
    start = distilled(config, input_dir=cache, do_train=False)
    # Two microbatches require that every codec gives a known number of rows.
    two = {"train_batch_size": 4, "gradient_accumulation_steps": 2}
    later = distilled(config, input_dir=cache, **two)
    assert np.isfinite(later["loss"]) and later["loss"] < start["loss"]
    assert ("probability_cosine" in later) == (not name.endswith("sampled"))


@pytest.mark.parametrize("name", [name for name in TOPK_CACHES if "0.3" not in name])
def test_teacher_as_its_own_student_agrees_with_itself(caches, config, teacher_dir, name) -> None:
    changes = {"student": StudentConfig(student=str(teacher_dir)), "temperature": 2.0}
    report = distilled(config, input_dir=str(caches[name]), do_train=False, **changes)
    assert report["kl_divergence"] == pytest.approx(0.0, abs=1e-3)
    assert report["teacher_agreement"] > 0.98


@pytest.mark.parametrize("name", CACHES)
def test_manifest_records_the_measured_sizes(caches, name) -> None:
    manifest = manifests.load(caches[name])
    totals: dict[str, int] = {}
    positions = ids = 0
    for shard in (shard for shards in manifest.splits.values() for shard in shards):
        for record in serialization.read_records(caches[name] / shard.file):
            features = serialization.decode_example(record)
            positions += len(features[records.LABEL_LOG_PROBS]) // 2
            for feature in manifest.features:
                content = features[feature.name]
                totals[feature.name] = totals.get(feature.name, 0) + len(content)
            if records.TOPK_COUNTS in features:
                ids += np.frombuffer(features[records.TOPK_COUNTS], "<u2").astype(int).sum()
    known = {feature.name for feature in records.MASKED_EXAMPLE_FEATURES}
    assert set(totals) == {feature.name for feature in manifest.features}
    means = {key: value / positions for key, value in totals.items() if key not in known}
    assert manifest.bytes_per_position() == pytest.approx(means, abs=0.005)
    lines = "\n".join(summary.describe(manifest))
    if manifest.teacher_info.variable:
        assert manifest.ids_per_position() == pytest.approx(ids / positions)
        assert f", {ids / positions:.1f} on average, of " in lines
        assert f"{sum(manifest.bytes_per_position().values()):,.1f} bytes a masked" in lines
    else:
        assert manifest.ids_per_position() == 16
    stored = json.loads((caches[name] / "manifest.json").read_text())
    assert stored["bytes_per_position"] == manifest.bytes_per_position()


def test_compact_encoding_and_truncation_shrink_the_cache(caches) -> None:
    sizes = {
        name: sum(manifests.load(folder).bytes_per_position().values())
        for name, folder in caches.items()
    }
    assert sizes["compact"] < sizes["float16"] == 16 * 4 + 10
    for encoding in CODECS:
        assert sizes[f"{encoding}0.3"] < sizes[encoding]


@pytest.mark.long
@pytest.mark.parametrize("name", ["compact", "compact0.3", "compactsampled"])
def test_cache_made_in_tasks_has_the_same_bytes(caches, cache_config, tmp_path, name) -> None:
    folder = tmp_path / "cache"
    for index in (1, 2, 0):
        create_teacher_cache(
            dataclasses.replace(
                cache_config, output_dir=str(folder), num_tasks=3, task_index=index, **CACHES[name]
            )
        )
    names = sorted(path.name for path in caches[name].iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    for file in names:
        assert (folder / file).read_bytes() == (caches[name] / file).read_bytes(), file


def test_token_counts_cover_inputs_and_labels(caches, examples_dir) -> None:
    manifest = manifests.load(caches["compact"])
    expected = np.zeros(manifest.vocab.size, int)
    for file in sorted(examples_dir.glob("*.tfrecord")):
        for record in serialization.read_records(file):
            features = serialization.decode_example(record)
            for name in (records.INPUT_IDS, records.MASKED_LM_IDS):
                np.add.at(expected, np.frombuffer(features[name], "<u2"), 1)
    assert manifest.token_counts.file == "token_counts.npy"
    counts = np.load(caches["compact"] / "token_counts.npy")
    np.testing.assert_array_equal(counts, expected)


def test_damaged_and_missing_token_counts_are_refused(caches, config, tmp_path) -> None:
    folder = tmp_path / "cache"
    path = damaged_copy(caches["compact"], folder, "token_counts.npy", -1)
    with pytest.raises(InputError) as caught:
        distilled(config, input_dir=str(folder))
    assert caught.value.subject == str(path)
    path.unlink()
    with pytest.raises(InputError) as caught:
        cache_input.open_codec(folder, manifests.load(folder))
    assert caught.value.subject == str(path)


BROKEN = [
    {"truncation": "all"},
    {"truncation_mass": 2},
    {"logit_encoding": "text"},
    {"token_counts": None},
    {"token_counts": {"file": "../x", "bytes": 1, "sha256": "0" * 64}},
    *({"measured": value} for value in (None, {}, [1], {"num_positions": -1})),
]


@pytest.mark.parametrize("changes", BROKEN)
def test_invalid_manifests_are_refused(caches, tmp_path, changes) -> None:
    value = json.loads((caches["compact0.3"] / "manifest.json").read_text())
    if "measured" in changes:
        for shard in value["splits"]["eval"]:
            shard |= changes
    else:
        value |= changes
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(InputError) as caught:
        manifests.load(tmp_path)
    assert caught.value.subject.startswith(str(tmp_path / "manifest.json"))


@pytest.mark.parametrize("target", CODECS)
def test_caches_of_any_encoding_merge_to_any_encoding(caches, cache_dir, tmp_path, target) -> None:
    """A cache merged with itself in another encoding is equal within the codecs' error."""
    for name in TOPK_CACHES:
        merged = tmp_path / name
        pair = (str(caches[name]), str(cache_dir))
        made = merge_caches(MergeConfig(pair, str(merged), logit_encoding=target))
        assert made.teacher_info.truncation_mass == CACHES[name]["truncation_mass"]
        assert made.teacher_info.logit_encoding == target
        manifests.verify(merged, made, full=True)
        for (ids, p, tail), reference in zip(_decoded(merged), _decoded(cache_dir), strict=True):
            np.testing.assert_allclose(p[:, 0], reference[1][:, 0], rtol=0.05)
            np.testing.assert_allclose(p.sum(-1) + tail, 1.0, atol=1e-6)
            assert (ids >= 0).all() and ids.shape == reference[0].shape


def test_merged_truncated_caches_keep_fewer_than_k_ids(caches, tmp_path) -> None:
    pair = (str(caches["compact0.3"]), str(caches["float160.3"]))
    made = merge_caches(MergeConfig(pair, str(tmp_path / "merged"), logit_encoding="compact"))
    assert 1 < made.ids_per_position() < 15
    pairs = zip(_decoded(tmp_path / "merged"), _decoded(caches["compact0.3"]), strict=True)
    for (merged_ids, *_), (ids, *_) in pairs:
        np.testing.assert_array_equal(merged_ids == NO_ID, ids == NO_ID)
        np.testing.assert_array_equal(np.sort(merged_ids, axis=-1), np.sort(ids, axis=-1))


def test_merging_sampled_caches_is_refused(caches, cache_dir, tmp_path) -> None:
    pair = (str(cache_dir), str(caches["compactsampled"]))
    with pytest.raises(InputError, match="sampled"):
        merge_caches(MergeConfig(pair, str(tmp_path / "merged")))


@pytest.mark.parametrize("name", TOPK_CACHES)
def test_reduced_vocabulary_gets_the_targets_of_float16(caches, cache_dir, name) -> None:
    """Compares the targets of a student with a reduced vocabulary."""
    targets = []
    for folder in (caches[name], cache_dir):
        cache = cache_input.open_cache(folder, None)
        size = cache.manifest.vocab.size
        table = np.where(np.arange(size) % 3 == 1, vocab_subset.NO_ID, np.arange(size))
        table[:5] = np.arange(5)
        subset = VocabSubset(
            table.astype(np.int32), 1, "[UNK]", vocabulary.VocabInfo(size, "0" * 64), {}
        )
        cache = dataclasses.replace(cache, vocab_subset=subset)
        (batch,) = batches.evaluation_batches(cache, batch_size=16, max_steps=1)
        targets.append({key: value.numpy() for key, value in batch[1].items()})
    received, expected = targets
    real = received[records.MASKED_LM_WEIGHTS] > 0
    assert (real <= (expected[records.MASKED_LM_WEIGHTS] > 0)).all() and real.any()
    if CACHES[name]["truncation_mass"] is None:
        np.testing.assert_allclose(
            received[records.LOG_TAIL_MASSES][real],
            expected[records.LOG_TAIL_MASSES][real],
            atol=0.1,
        )
    rows = zip(received[records.TOPK_IDS][real], expected[records.TOPK_IDS][real], strict=True)
    for ids, known in rows:
        assert set(ids[ids >= 0]) <= set(known[known >= 0]) and ids[0] >= 0


@pytest.mark.parametrize(
    ("changes", "setting", "received"),
    [
        ({"temperature": 2.0}, "temperature", 2),
        ({"losses": {"probability_cosine": 1.0}}, "losses", "probability_cosine needs a top-k"),
        ({"truncation_factor": 8}, "truncation_factor", 8),
    ],
)
def test_losses_that_draws_cannot_estimate_are_refused(
    caches, config, changes, setting, received
) -> None:
    with refused(setting, received):
        distilled(config, input_dir=str(caches["compactsampled"]), **changes)
    Objective({"kl_divergence": 1.0}, Comparison(sampled=True, cached_temperatures=(1.0,)))


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ("--truncation_mass=0", "--truncation_mass"),
        ("--truncation_mass=1.5", "--truncation_mass"),
        ("--truncation=all", "--truncation"),
        ("--truncation=sampled --truncation_mass=0.9", "--truncation_mass"),
        ("--truncation=sampled --temperatures=1,2", "--temperatures"),
    ],
)
def test_invalid_truncation_flags_are_refused(capsys, flags, flag) -> None:
    arguments = ["x", "--input_dir=a", "--teacher=b", "--output_dir=c", *flags.split()]
    assert create_teacher_output_data.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {flag}\\b", line)


def test_command_writes_a_sampled_cache(
    examples_dir, teacher_dir, tmp_path, capsys, caches
) -> None:
    """The default of the temperatures follows from the truncation."""
    arguments = {
        "input_dir": examples_dir,
        "teacher": teacher_dir,
        "output_dir": tmp_path / "cache",
        "truncation_factor": 16,
        "predict_batch_size": 8,
        "truncation": "sampled",
        "logit_encoding": "compact",
    }
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    assert create_teacher_output_data.main(["x", *flags]) == 0
    assert "stored     tokens of 16 draws, " in capsys.readouterr().out
    made, expected = (folder / EVAL for folder in (tmp_path / "cache", caches["compactsampled"]))
    assert made.read_bytes() == expected.read_bytes()
