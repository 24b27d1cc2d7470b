"""Python API of offline distillation: `import offline_distill`.

In a clone of the repository, use `from pipeline import api`.

The functions prepare a corpus, capture a teacher and distill a student, as the three commands do:

    import offline_distill as od

    corpus = od.CorpusSource(input_dir="corpus")
    od.create_pretraining_data(
        od.MaskedExamplesConfig(corpora=(corpus,), vocab_file="vocab.txt", output_dir="examples")
    )
    od.create_teacher_output_data(
        od.TeacherCacheConfig(input_dir="examples", teacher="teacher", output_dir="cache")
    )
    start = od.StudentConfig(init_from="teacher", student_layers=2)
    metrics = od.distill(od.DistillConfig(student=start, input_dir="cache", output_dir="student"))

`open_cache` reads a teacher cache:

    cache = od.open_cache("cache")
    for example in cache.examples("eval"):
        probabilities, rest = example.targets.probabilities(temperature=1.0, k=3)

The fields of the config classes have the names, defaults and ranges of the commands' flags. A
function downloads the models of the hub that its config names. Invalid values raise `InputError`.

The environment variable KERAS_BACKEND selects the framework that Keras computes with. Set it
before the first call.

Importing this package imports no large package. It is the only package of `pipeline` that imports
from `tools`, in `verify` and `merge`, because it offers both packages to callers.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_specs.corpora import CorpusSource
    from pipeline.api.cache import Cache, CachedExample
    from pipeline.base.errors import InputError
    from pipeline.distill.settings import DistillConfig, StudentConfig
    from pipeline.masking.settings import MaskedExamplesConfig
    from pipeline.models.masked_lm import MaskedLM
    from pipeline.storage.manifest import Manifest
    from pipeline.teacher.settings import TeacherCacheConfig

_CLASSES = {
    "Cache": "pipeline.api.cache",
    "CachedExample": "pipeline.api.cache",
    "CorpusSource": "data_specs.corpora",
    "DistillConfig": "pipeline.distill.settings",
    "InputError": "pipeline.base.errors",
    "MaskedExamplesConfig": "pipeline.masking.settings",
    "StudentConfig": "pipeline.distill.settings",
    "TeacherCacheConfig": "pipeline.teacher.settings",
}
__all__ = [
    "Cache",
    "CachedExample",
    "CorpusSource",
    "DistillConfig",
    "InputError",
    "MaskedExamplesConfig",
    "StudentConfig",
    "TeacherCacheConfig",
    "create_pretraining_data",
    "create_teacher_output_data",
    "distill",
    "load_model",
    "merge",
    "open_cache",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports a class when it is first used."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_CLASSES[name]), name)


def __dir__() -> list[str]:
    return __all__


def create_pretraining_data(config: "MaskedExamplesConfig") -> "Manifest":
    """Prepares a corpus: writes masked examples or unmasked windows, or resumes such a run.

    Returns:
        the manifest of the output directory.

    Example:
        corpus = CorpusSource(input_dir="corpus", text_fields=("title", "content"))
        config = MaskedExamplesConfig(
            corpora=(corpus,), vocab_file="vocab.txt", output_dir="examples", max_workers=4
        )
        print(create_pretraining_data(config).num_examples("train"))
    """
    from pipeline.masking.masked_examples import create_masked_examples

    return create_masked_examples(_downloaded(config))


def create_teacher_output_data(config: "TeacherCacheConfig") -> "Manifest | None":
    """Captures a teacher: runs it once over masked examples, or resumes such a run.

    Returns:
        the manifest of the teacher cache; None if other tasks still have shards to write.

    Example:
        config = TeacherCacheConfig(
            input_dir="examples", teacher="teacher", output_dir="cache", logit_encoding="compact"
        )
        create_teacher_output_data(config)
    """
    from pipeline.teacher.capture import create_teacher_cache

    return create_teacher_cache(_with_compute_dtype(_downloaded(config)))


def distill(config: "DistillConfig") -> Mapping[str, float]:
    """Trains and evaluates a student, or resumes an interrupted run.

    Returns:
        the metrics of the last evaluation, keyed by name.

    Example:
        start = StudentConfig(init_from="teacher", student_layers=3)
        config = DistillConfig(
            student=start, losses="kl_divergence=1", input_dir="cache", output_dir="student"
        )
        print(distill(config)["teacher_agreement"])
    """
    from pipeline.distill import training

    return training.distill(_with_compute_dtype(_downloaded(config)))


def open_cache(path: str) -> "Cache":
    """Opens a directory of masked examples or unmasked windows, or a teacher cache.

    Args:
        path: the directory, on this machine or in a bucket.

    Example:
        cache = open_cache("cache")
        example = next(cache.examples("eval"))
        print(cache.manifest.num_examples("train"), example.targets.ids.shape)
    """
    from pipeline.api.cache import Cache

    return Cache(path)


def load_model(path: str) -> "MaskedLM":
    """Loads a masked language model, for example a student, as a Keras model.

    Args:
        path: a model directory in Hugging Face's or Google's BERT layout, or a model of the
            hub, which is downloaded: `ORG/NAME`, `ORG/NAME@REVISION` or a URL.

    Example:
        model = load_model("student")
        print(model.count_params())
    """
    from pipeline.base import hub_id
    from pipeline.base.settings import parse_model
    from pipeline.hub import models
    from pipeline.models.formats import model_directory

    directory = models.download(parse_model(path), hub_id.MODEL)
    return model_directory.load_masked_lm(model_directory.find_model(directory))


def verify(path: str) -> Mapping[str, Sequence[str]]:
    """Checks every byte and every record of a directory of shards.

    Returns:
        the problems, keyed by the name of the file; empty if there are none.

    Raises:
        InputError: the manifest is missing or damaged.

    Example:
        for file, problems in verify("cache").items():
            print(file, *problems, sep="\\n  ")
    """
    from pipeline.base.location import Location
    from tools import verify_cache

    directory = Location.parse(path)
    manifest = verify_cache.load_manifest(directory)
    return verify_cache.verify_directory(directory, manifest).problems


def merge(paths: Sequence[str], output: str, **settings: Any) -> "Manifest":
    """Averages the teacher caches of several teachers over the same masked examples.

    Args:
        paths: the teacher caches.
        output: directory for the merged cache: empty, or that of an interrupted run.
        **settings: other fields of `tools.merge_caches.MergeConfig`.

    Returns:
        the manifest of the merged cache.

    Example:
        merge(["cache_a", "cache_b"], "merged", weights=(2.0, 1.0))
    """
    from tools.merge_caches import MergeConfig, merge_caches

    return merge_caches(MergeConfig(input_dirs=tuple(paths), output_dir=output, **settings))


def _downloaded(config: Any) -> Any:
    """Returns a config in which models of the hub are replaced by their directories."""
    from pipeline.hub import models

    return models.with_downloaded_models(config)


def _with_compute_dtype(config: Any) -> Any:
    """Returns a config in which a `compute_dtype` of `auto` is resolved."""
    from pipeline.base import compute_dtype

    if config.compute_dtype != compute_dtype.AUTO:
        return config
    import keras

    policy, _ = compute_dtype.detect(keras.distribution.list_devices())
    return dataclasses.replace(config, compute_dtype=policy)
