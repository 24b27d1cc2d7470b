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
        "pipeline.errors",
        "pipeline.json_text",
        "pipeline.remote_files",
        "pipeline.cache_folder",
        "pipeline.files",
        "pipeline.folders",
        "pipeline.seeding",
        "pipeline.compute_dtype",
    ),
    (
        "pipeline.models.config",
        "pipeline.models.encoder",
        "pipeline.models.masked_lm",
        "pipeline.models.weight_names",
        "pipeline.models.tensor_files",
        "pipeline.models.tf1_checkpoint",
        "pipeline.models.checkpoints",
        "pipeline.models.layer_init",
        "pipeline.models.layer_groups",
        "pipeline.models.group_means",
        "pipeline.models.slicing",
        "pipeline.models.neighbor_init",
    ),
    (
        "pipeline.runners.shard_job",
        "pipeline.runners.local",
        "pipeline.runners.ray_job",
        "pipeline.runners.ray",
        "pipeline.runners.ahead",
    ),
    (
        "pipeline.storage.serialization",
        "pipeline.storage.topk_codec",
        "pipeline.storage.logit_steps",
        "pipeline.storage.compact_codec",
        "pipeline.storage.logit_codec",
        "pipeline.storage.hidden_codec",
        "pipeline.storage.teacher_info",
        "pipeline.storage.shard_info",
        "pipeline.storage.manifest_checks",
        "pipeline.storage.npy_header",
        "pipeline.storage.manifest",
        "pipeline.storage.vocab_subset",
        "pipeline.storage.cache_input",
        "pipeline.storage.token_counts",
        "pipeline.storage.cache_codec",
        "pipeline.storage.cache_tokens",
        "pipeline.storage.spill",
        "pipeline.storage.shuffling",
        "pipeline.storage.length_buckets",
        "pipeline.storage.writer",
        "pipeline.storage.reader",
        "pipeline.storage.teacher_cache_tfds",
        "pipeline.storage.topk_checks",
        "pipeline.storage.record_checks",
        "pipeline.storage.shard_checks",
        "pipeline.storage.directory_checks",
    ),
    (
        "pipeline.text.cleaning",
        "pipeline.text.documents",
        "pipeline.text.tfds_corpus",
        "pipeline.text.readers",
        "pipeline.text.corpus",
        "pipeline.text.tokens",
        "pipeline.text.wordpiece",
        "pipeline.text.spiece_conversion",
        "pipeline.text.sentencepieces",
        "pipeline.text.tokenizer_json",
        "pipeline.text.tokenizers",
        "pipeline.text.vocab_reduction",
        "pipeline.text.settings",
        "pipeline.text.segmenters",
        "pipeline.text.windows",
        "pipeline.text.masking",
        "pipeline.text.window_masking",
        "pipeline.text.window_batches",
        "pipeline.text.document_masker",
        "pipeline.text.shard_plan",
        "pipeline.text.masked_chunks",
        "pipeline.text.masked_examples",
    ),
    (
        "pipeline.teacher.settings",
        "pipeline.teacher.teacher_input",
        "pipeline.teacher.summary",
        "pipeline.teacher.merging",
        "pipeline.teacher.inference",
        "pipeline.teacher.truncation",
        "pipeline.teacher.sampling",
        "pipeline.teacher.fidelity",
        "pipeline.teacher.dense_sample",
        "pipeline.teacher.planning",
        "pipeline.teacher.cache_report",
        "pipeline.teacher.cache_request",
        "pipeline.teacher.shard_capture",
        "pipeline.teacher.cluster_capture",
        "pipeline.teacher.capture",
        "pipeline.teacher.sample_check",
        "pipeline.teacher.repair",
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
        "pipeline.finetune.task_rows",
        "pipeline.finetune.task_data",
        "pipeline.finetune.features",
        "pipeline.finetune.answers",
        "pipeline.finetune.answer_overlap",
        "pipeline.finetune.metrics",
        "pipeline.finetune.submissions",
        "pipeline.finetune.settings",
        "pipeline.finetune.head_layout",
        "pipeline.finetune.heads",
        "pipeline.finetune.batches",
        "pipeline.finetune.objective",
        "pipeline.finetune.task_inputs",
        "pipeline.finetune.preparation",
        "pipeline.finetune.prediction",
        "pipeline.finetune.task_teacher",
        "pipeline.finetune.evaluation",
        "pipeline.finetune.training",
    ),
    (
        "pipeline.command_line",
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
        "pipeline.models.tf1_checkpoint",
        "pipeline.distill.dynamic_masking",
        "pipeline.distill.targets",
        "pipeline.distill.training",
        "pipeline.finetune.prediction",
        "pipeline.finetune.task_teacher",
        "pipeline.finetune.evaluation",
        "pipeline.finetune.training",
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
