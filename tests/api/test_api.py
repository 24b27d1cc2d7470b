"""Tests of the Python API: `import offline_distill`."""

import re
import shutil

import numpy as np
import pytest

from data_specs import records
from pipeline import api
from pipeline.storage import manifest
from tests.conftest import ROOT, run_python


def _run(code: str, **options) -> str:
    return run_python("-c", code, KERAS_BACKEND="jax", **options).stdout.strip()


def test_importing_the_api_imports_no_large_package() -> None:
    code = (
        "import sys; from pipeline import api; api.DistillConfig, api.TeacherCacheConfig, "
        "api.MaskedExamplesConfig, api.InputError; print(sorted({'tensorflow', 'keras', 'jax', "
        "'tokenizers', 'sentencepiece', 'tensorflow_datasets', 'huggingface_hub'} "
        "& set(sys.modules)))"
    )
    assert _run(code) == "[]"


def test_every_public_name_exists() -> None:
    for name in api.__all__:
        assert getattr(api, name) is not None
    with pytest.raises(AttributeError):
        api.no_such_name  # noqa: B018


def test_probabilities_of_the_targets_of_an_example_sum_to_1(cache_dir) -> None:
    cache = api.open_cache(str(cache_dir))
    examples = list(cache.examples("eval"))
    assert len(examples) == cache.manifest.num_examples("eval")
    for example in examples:
        probabilities, rest = example.targets.probabilities(temperature=1.0, k=3)
        assert probabilities.shape == (len(example.masked_lm_positions), 3)
        np.testing.assert_allclose(probabilities.sum(axis=-1) + rest, 1.0)
        assert (np.diff(probabilities, axis=-1) <= 0).all()


def test_masked_examples_have_no_targets(examples_dir) -> None:
    example = next(api.open_cache(str(examples_dir)).examples("train"))
    assert example.targets is None
    assert len(example.masked_lm_ids) == len(example.masked_lm_positions)


def test_records_of_unmasked_windows_are_windows(windows_dir) -> None:
    example = next(api.open_cache(str(windows_dir)).examples("train"))
    assert len(example.word_starts) and not hasattr(example, "masked_lm_ids")


def test_tokens_are_those_of_the_vocabulary(cache_dir) -> None:
    cache = api.open_cache(str(cache_dir))
    example = next(cache.examples("eval"))
    assert cache.tokens(example.input_ids)[0] == "[CLS]"


def test_error_for_an_unknown_split_names_the_existing_ones(cache_dir) -> None:
    cache = api.open_cache(str(cache_dir))
    for read in (lambda: next(cache.examples("test")), lambda: cache.dataset("t", batch_size=2)):
        with pytest.raises(api.InputError) as caught:
            read()
        assert "train" in caught.value.expected and "eval" in caught.value.expected


def test_directory_without_a_manifest_is_refused(tmp_path) -> None:
    with pytest.raises(api.InputError):
        api.open_cache(str(tmp_path))


def test_dataset_without_a_seed_has_the_order_of_the_examples(cache_dir) -> None:
    cache = api.open_cache(str(cache_dir))
    batch = next(iter(cache.dataset("eval", batch_size=2)))
    for row, example in zip(batch[records.INPUT_IDS].numpy(), cache.examples("eval"), strict=False):
        length = len(example.input_ids)
        assert (row[:length] == example.input_ids).all() and not row[length:].any()


def test_dataset_with_a_seed_is_endless_and_reproducible(cache_dir) -> None:
    cache = api.open_cache(str(cache_dir))
    count = cache.manifest.num_examples("eval")
    batches = cache.dataset("eval", batch_size=count + 1, seed=1).take(2)
    first, _ = [batch[records.INPUT_IDS].numpy() for batch in batches]
    repeated = next(iter(cache.dataset("eval", batch_size=count + 1, seed=1)))
    assert (first == repeated[records.INPUT_IDS].numpy()).all()


def test_verify_names_the_damaged_file(cache_dir, tmp_path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(cache_dir, folder)
    assert not api.verify(str(folder))
    file = manifest.load(folder).splits["train"][0].file
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(bytes(content))
    assert list(api.verify(str(folder))) == [file]


def test_merging_a_cache_with_itself_keeps_its_probabilities(cache_dir, tmp_path) -> None:
    api.merge([str(cache_dir), str(cache_dir)], str(tmp_path / "merged"))
    pairs = zip(
        api.open_cache(str(cache_dir)).examples("eval"),
        api.open_cache(str(tmp_path / "merged")).examples("eval"),
        strict=True,
    )
    for original, merged in pairs:
        expected, _ = original.targets.probabilities(1.0, k=3)
        received, _ = merged.targets.probabilities(1.0, k=3)
        np.testing.assert_allclose(received, expected, atol=2e-3)


@pytest.mark.long
def test_three_stages_make_a_student(corpus_dir, vocab_file, teacher_dir, tmp_path) -> None:
    corpus = api.CorpusSource(input_dir=str(corpus_dir))
    examples, cache, student = (str(tmp_path / name) for name in ("examples", "cache", "student"))
    api.create_pretraining_data(
        api.MaskedExamplesConfig(
            corpora=(corpus,),
            vocab_file=str(vocab_file),
            output_dir=examples,
            max_seq_length=48,
            max_predictions_per_seq=8,
            doc_stride=30,
            dupe_factor=1,
        )
    )
    api.create_teacher_output_data(
        api.TeacherCacheConfig(
            input_dir=examples,
            teacher=str(teacher_dir),
            output_dir=cache,
            truncation_factor=16,
            compute_dtype="auto",
        )
    )
    config = api.DistillConfig(
        student=api.StudentConfig(init_from=str(teacher_dir), student_layers=1),
        losses="kl_divergence=1",
        input_dir=cache,
        output_dir=student,
        num_train_steps=2,
        train_batch_size=4,
        length_buckets=1,
        max_eval_steps=1,
    )
    assert 0.0 <= api.distill(config)["teacher_agreement"] <= 1.0
    assert api.load_model(student).count_params() < api.load_model(str(teacher_dir)).count_params()


def _snippets() -> list[str]:
    text = (ROOT / "pipeline" / "storage" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return [block for block in blocks if "open_cache" in block]


@pytest.mark.long
@pytest.mark.parametrize("number", range(2))
def test_readme_snippet_reads_a_cache_in_few_lines(cache_dir, tmp_path, number: int) -> None:
    snippet = _snippets()[number]
    imports = [line for line in snippet.splitlines() if line.startswith(("import", "from"))]
    assert imports == ["import offline_distill"]
    assert len(snippet.strip().splitlines()) <= 1 + 1 + 5
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk" / "cache").symlink_to(cache_dir)
    # The wheel installs the API under this name.
    alias = "import sys; from pipeline import api; sys.modules['offline_distill'] = api\n"
    assert _run(alias + snippet, cwd=tmp_path)


def test_readme_has_two_snippets_that_read_a_cache() -> None:
    assert len(_snippets()) == 2
