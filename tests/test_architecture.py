"""The rules of the house that a reading of the source can check."""

import ast
import pathlib
import subprocess
import sys

import pytest

from data_specs import records

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("data_specs/*.py")])

# A module may import only modules of earlier lines, or earlier ones of its own.
LAYERS = (
    (
        "data_specs.records",
        "data_specs.declarations",
        "data_specs.corpora",
        "data_specs.tasks",
    ),
    (
        "pipeline.base.errors",
        "pipeline.base.json_text",
        "pipeline.base.remote_files",
        "pipeline.base.local_mirror",
        "pipeline.base.files",
        "pipeline.base.folders",
        "pipeline.base.seeding",
        "pipeline.base.compute_dtype",
    ),
    (
        "pipeline.models.config",
        "pipeline.models.encoder",
        "pipeline.models.masked_lm",
        "pipeline.models.weight_names",
        "pipeline.models.formats.safetensors_files",
        "pipeline.models.formats.tf1_checkpoint",
        "pipeline.models.formats.model_directory",
        "pipeline.models.initialization.layer_init",
        "pipeline.models.layer_groups",
        "pipeline.models.group_means",
        "pipeline.models.initialization.slicing",
        "tools.quickstart_teacher_init",
    ),
    (
        "pipeline.runners.workers",
        "pipeline.runners.local",
        "pipeline.runners.ray_job",
        "pipeline.runners.ray",
        "pipeline.base.prefetch",
    ),
    (
        "pipeline.storage.serialization",
        "pipeline.storage.codecs.base",
        "pipeline.storage.codecs.logit_steps",
        "pipeline.storage.codecs.compact",
        "pipeline.storage.codecs.float16",
        "pipeline.storage.codecs.hidden",
        "pipeline.storage.teacher_info",
        "pipeline.storage.shard_info",
        "pipeline.storage.manifest_checks",
        "pipeline.storage.npy_header",
        "pipeline.storage.manifest",
        "pipeline.storage.vocab_subset",
        "pipeline.storage.cache_input",
        "pipeline.storage.token_counts",
        "pipeline.storage.cache_codec",
        "tools.vocabulary.cache_tokens",
        "pipeline.storage.spill",
        "pipeline.storage.shuffling",
        "pipeline.storage.length_buckets",
        "pipeline.storage.writer",
        "pipeline.storage.reader",
        "pipeline.storage.teacher_cache_tfds",
        "tools.verification.topk_checks",
        "tools.verification.record_checks",
        "tools.verification.shard_checks",
        "tools.verification.directory_checks",
    ),
    (
        "pipeline.corpora.cleaning",
        "pipeline.corpora.documents",
        "pipeline.corpora.tfds_corpus",
        "pipeline.corpora.readers",
        "pipeline.corpora.corpus",
        "pipeline.tokenizers.tokens",
        "pipeline.tokenizers.wordpiece",
        "pipeline.tokenizers.spiece_conversion",
        "pipeline.tokenizers.sentencepiece_model",
        "pipeline.tokenizers.tokenizer_json",
        "pipeline.tokenizers.loading",
        "tools.vocabulary.vocab_reduction",
        "pipeline.masking.settings",
        "pipeline.tokenizers.segmenters",
        "pipeline.masking.windows",
        "pipeline.masking.mask_policy",
        "pipeline.masking.window_masking",
        "pipeline.masking.window_batches",
        "pipeline.masking.document_masker",
        "pipeline.masking.shard_plan",
        "pipeline.masking.masked_chunks",
        "pipeline.masking.masked_examples",
    ),
    (
        "pipeline.teacher.settings",
        "pipeline.teacher.teacher_input",
        "pipeline.teacher.summary",
        "tools.cache_analysis.merging",
        "pipeline.teacher.inference",
        "pipeline.teacher.truncation",
        "pipeline.teacher.sampling",
        "tools.cache_analysis.fidelity",
        "tools.cache_analysis.dense_sample",
        "tools.cache_analysis.planning",
        "tools.cache_analysis.cache_report",
        "pipeline.teacher.cache_request",
        "pipeline.teacher.shard_capture",
        "pipeline.teacher.cluster_capture",
        "pipeline.teacher.capture",
        "tools.verification.sample_check",
        "tools.verification.repair",
    ),
    (
        "pipeline.distill.settings",
        "pipeline.distill.replicas",
        "pipeline.distill.shared_batches",
        "pipeline.distill.losses",
        "pipeline.distill.objective",
        "pipeline.distill.objective_choice",
        "pipeline.distill.dynamic_masking",
        "pipeline.distill.targets",
        "pipeline.distill.metrics",
        "pipeline.distill.distiller",
        "pipeline.distill.student_shape",
        "pipeline.distill.student",
        "pipeline.distill.preparation",
        "pipeline.distill.optimization",
        "pipeline.distill.checkpoint_files",
        "pipeline.distill.training_state",
        "pipeline.distill.stopping",
        "pipeline.distill.run_log",
        "pipeline.distill.progress",
        "pipeline.distill.training",
    ),
    (
        "tools.finetuning.task_rows",
        "tools.finetuning.task_data",
        "tools.finetuning.features",
        "tools.finetuning.answers",
        "tools.finetuning.answer_overlap",
        "tools.finetuning.metrics",
        "tools.finetuning.submissions",
        "tools.finetuning.settings",
        "tools.finetuning.head_layout",
        "tools.finetuning.heads",
        "tools.finetuning.batches",
        "tools.finetuning.objective",
        "tools.finetuning.task_inputs",
        "tools.finetuning.preparation",
        "tools.finetuning.prediction",
        "tools.finetuning.task_teacher",
        "tools.finetuning.evaluation",
        "tools.finetuning.training",
    ),
    (
        "pipeline.commands.running",
        "pipeline.create_pretraining_data",
        "pipeline.create_teacher_output_data",
        "pipeline.run_distill",
    ),
)
ORDER = {name: index for index, name in enumerate(name for layer in LAYERS for name in layer)}
# These run where only Keras and JAX are installed.
TENSORFLOW_FREE = [
    name
    for name in ORDER
    if name.startswith(("pipeline.models.", "pipeline.distill.", "pipeline.finetune."))
    and name
    not in (
        "pipeline.models.formats.tf1_checkpoint",
        "pipeline.distill.dynamic_masking",
        "pipeline.distill.targets",
        "pipeline.distill.training",
        "tools.finetuning.prediction",
        "tools.finetuning.task_teacher",
        "tools.finetuning.evaluation",
        "tools.finetuning.training",
    )
]


def _module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: pathlib.Path) -> set[str]:
    """Returns every module of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(ORDER)


def test_every_module_has_its_place() -> None:
    names = {_module_name(path) for path in SOURCES if path.name != "__init__.py"}
    assert names == set(ORDER)


@pytest.mark.parametrize("path", SOURCES, ids=_module_name)
def test_imports_run_one_way(path: pathlib.Path) -> None:
    name = _module_name(path)
    backwards = {other for other in _imports(path) if ORDER[other] >= ORDER.get(name, -1)}
    assert not backwards, f"{name} imports {sorted(backwards)}"


def test_feature_names_are_strings_in_one_place_only() -> None:
    names = {feature.name for features in records.FEATURES.values() for feature in features}
    names |= {records.INPUT_MASK, records.SEGMENT_IDS, records.MASKED_LM_WEIGHTS}
    found = [
        f"{_module_name(path)}:{node.lineno} {node.value}"
        for path in SOURCES
        if path.name != "records.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not found


def test_only_commands_know_flags() -> None:
    users = {
        _module_name(path)
        for path in SOURCES
        if any(
            isinstance(node, ast.ImportFrom | ast.Import) and "absl" in ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    }
    assert users == set(LAYERS[-1])


def test_no_assert_in_library_code() -> None:
    found = [
        f"{_module_name(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert not found


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_models_and_losses_run_without_tensorflow() -> None:
    imports = "; ".join(f"import {name}" for name in TENSORFLOW_FREE)
    code = (
        f"import sys; sys.modules['tensorflow'] = None; {imports}; print(sys.modules['tensorflow'])"
    )
    result = _run(code, KERAS_BACKEND="jax")
    assert result.stdout.strip() == "None", result.stderr


@pytest.mark.parametrize(
    "command", ["create_pretraining_data", "create_teacher_output_data", "run_distill"]
)
def test_a_mistaken_flag_is_answered_before_anything_heavy_is_imported(command: str) -> None:
    code = (
        f"import sys; from pipeline import {command} as c; status = c.main(['x', '--no_such=1']); "
        "heavy = {'tensorflow', 'keras', 'jax', 'tokenizers', 'sentencepiece', 'rjieba'}; "
        "heavy &= set(sys.modules); "
        "print(status, sorted(heavy))"
    )
    result = _run(code)
    assert result.stdout.strip() == "1 []"
    assert result.stderr.startswith("error: ")


_TRUSTING = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}


@pytest.mark.parametrize("path", [*SOURCES, *sorted(ROOT.glob("tools/**/*.py"))], ids=_module_name)
def test_nothing_from_a_file_is_run(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in _TRUSTING]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if node.module in _TRUSTING else []
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += (
                [called] if called in ("eval", "exec", "torch.load", "yaml.unsafe_load") else []
            )
            found += [
                key.arg
                for key in node.keywords
                if key.arg in ("allow_pickle", "trust_remote_code")
                and ast.unparse(key.value) != "False"
            ]
    assert not found
