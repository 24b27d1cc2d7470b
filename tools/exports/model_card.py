"""Model cards: a README.md for a model, with the front matter that model hubs read."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.distill.step_times import CLOCK_FIELDS
from pipeline.models.config import EncoderConfig
from pipeline.storage.manifest import EVAL, HUB, RUN_CONFIG_FILE, TRAIN, HubSource, Manifest
from tools.exports.formats import CardSettings
from tools.exports.model_task import ModelTask, hub_names
from tools.report.runs import read_metrics

CARD_FILE = "README.md"
METRICS_FILE = "metrics.jsonl"
_MASKED_LM_TASK = ModelTask()
# Column titles of a table of names and values.
_UNTITLED = ("", "")
# Keys of a line of `metrics.jsonl` that are not scores.
_NO_SCORES = ("step", "split", "learning_rate", *CLOCK_FIELDS)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a model, as far as it is known.

    Attributes:
        run_config: the run configuration of `run_distill`; empty if it is not known.
        cache: the manifest of the training data; None if it is not available.
        evaluation: scores of the last evaluation.
        hub: models of the hub from which the model was made, by setting.
    """

    run_config: Mapping[str, Any]
    cache: Manifest | None
    evaluation: Mapping[str, float]
    hub: Mapping[str, HubSource] = dataclasses.field(default_factory=dict)

    @property
    def teacher(self) -> HubSource | None:
        """The teacher if it is a model of the hub: the live teacher, or that of the cache."""
        info = None if self.cache is None else self.cache.teacher_info
        cached = None if info is None else info.teacher.get(HUB)
        return self.hub.get("teacher", cached and HubSource(**cached))


def find_origin(directory: Location, cache: Manifest | None) -> Origin:
    """Returns the origin of a model from the files that `run_distill` wrote next to it.

    Args:
        directory: the model directory.
        cache: a manifest. It is used only if its checksum is that of the run's cache.

    Raises:
        InputError: a file cannot be read.
    """
    run_config = {}
    if (directory / RUN_CONFIG_FILE).is_file():
        run_config = (directory / RUN_CONFIG_FILE).read_json()
    if run_config.get("kind") != "student":
        return Origin({}, None, {})
    if cache is not None and cache.sha256() != run_config.get("cache"):
        cache = None
    path = directory / METRICS_FILE
    lines = read_metrics(path) if path.is_file() else []
    last = [line for line in lines if line["split"] == EVAL][-1:]
    scores = {name: value for line in last for name, value in line.items()}
    for name in _NO_SCORES:
        scores.pop(name, None)
    sources = json_text.convert(
        run_config.get(HUB, {}), dict[str, HubSource], directory / RUN_CONFIG_FILE
    )
    return Origin(run_config, cache, scores, sources)


def read_scores(paths: Sequence[Location]) -> dict[str, float]:
    """Returns the numbers of JSON files, by name.

    Raises:
        InputError: a value is not a finite number, or a name occurs twice.
    """
    scores: dict[str, float] = {}
    for path in paths:
        for name, value in json_text.convert(path.read_json(), dict[str, float], path).items():
            if name in scores or not math.isfinite(value):
                expected = "each score once" if name in scores else "a number"
                raise InputError(path, expected, f"{name}: {value}")
            scores[name] = value
    return scores


def front_matter(
    config: EncoderConfig,
    settings: CardSettings,
    *,
    distilled: bool,
    task: ModelTask = _MASKED_LM_TASK,
) -> str:
    """Returns the YAML that model hubs read, between two lines of `---`."""
    languages = [name.strip() for name in (settings.language or "").split(",") if name.strip()]
    tags = [config.model_type, task.hub.tag, *(["distillation"] if distilled else [])]
    values = {"library_name": "transformers", "pipeline_tag": task.hub.pipeline_tag, "tags": tags}
    known = {"language": languages, "license": settings.license, "base_model": settings.base_model}
    values |= {name: value for name, value in known.items() if value}
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    return f"---\n{text}---\n"


def describe_shape(config: EncoderConfig, task: ModelTask = _MASKED_LM_TASK) -> str:
    """Returns a model's size in words, such as `BERT of 4 layers × 256`."""
    shape = f"{config.num_hidden_layers} layers × {config.hidden_size}"
    millions = f"{task.count_parameters(config) / 1e6:.2f} million parameters"
    return f"{config.family.title} of {shape}, {config.vocab_size:,} tokens, {millions}"


def _table(rows: Iterable[Sequence[str]], titles: Sequence[str]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _teacher(origin: Origin) -> str | None:
    """Returns a description of the teacher; None if there was none, or if it is unknown."""
    if origin.run_config.get("teacher"):
        name = hub_names(origin.hub, "teacher")
        return f"live,{name} SHA-256 `{origin.run_config['teacher']}`"
    info = None if origin.cache is None else origin.cache.teacher_info
    if info is None:
        return None
    merged = info.teacher.get("merged")
    if merged:
        return f"{len(merged)} teachers, merged"
    try:
        shape = describe_shape(EncoderConfig(**info.teacher["config"]))
    except (KeyError, TypeError, InputError):
        shape = "of an unknown model family"
    name = "" if origin.teacher is None else f"`{origin.teacher}`, "
    return f"{name}{shape}; SHA-256 `{info.teacher.get('sha256')}`"


def _cache(origin: Origin) -> str:
    checksum = f"manifest's SHA-256 `{origin.run_config['cache']}`"
    if origin.cache is None:
        return checksum
    cache, targets = origin.cache, ""
    if cache.teacher_info is not None:
        targets = f", the teacher's top {cache.teacher_info.truncation_factor} at masked positions"
    examples = f"{cache.num_examples(TRAIN):,} examples of at most {cache.max_seq_length} tokens"
    return f"{examples}{targets}; {checksum}"


def _training_rows(origin: Origin, task: ModelTask) -> list[tuple[str, str]]:
    """Returns the rows on a model's training, each a name and a text; none if it is unknown."""
    if task.finetuning is not None:
        return list(task.finetuning.training.items())
    run_config = origin.run_config
    if not run_config:
        return []
    start = run_config["student"]
    layers = start.get("layer_map")
    source = "a model" if layers is None else f"layers {', '.join(map(str, layers))} of a model"
    source += hub_names(origin.hub, "student", "init_from")
    losses = " + ".join(f"{weight:g} × {name}" for name, weight in run_config["losses"].items())
    examples = run_config["train_batch_size"] * run_config["gradient_accumulation_steps"]
    rows = [
        ("teacher", _teacher(origin)),
        ("trained on", _cache(origin)),
        ("initial weights", f"{source} with SHA-256 `{start['sha256']}`"),
        ("losses", f"{losses}; temperature {run_config['temperature']:g}"),
        ("tail", run_config.get("tail")),
        (
            "steps",
            f"{run_config['num_train_steps']:,} of {examples:,} examples, learning rate "
            f"{run_config['learning_rate']:g} after {run_config['num_warmup_steps']:,} "
            "warm-up steps",
        ),
        ("seed", str(run_config["random_seed"])),
        ("precision", f"{run_config['compute_dtype']}, {run_config['backend']}"),
    ]
    return [(name, text) for name, text in rows if text is not None]


def _section(title: str, rows: Sequence[Sequence[str]], titles: Sequence[str] = _UNTITLED) -> list:
    return [f"## {title}", "", *_table(rows, titles), ""] if rows else []


def _opening(config: EncoderConfig, task: ModelTask, *, distilled: bool) -> str:
    """Returns the description of a model in one line."""
    article = "An" if config.family.title[0] in "AEIO" else "A"
    words = [f"{article} {describe_shape(config, task)}"]
    if distilled:
        words.append("distilled from a larger model's predictions of masked tokens")
    if task.finetuning is not None:
        teacher = " with a teacher's logits" if task.finetuning.distilled else ""
        words.append(f"fine-tuned on {task.finetuning.task}{teacher}")
    return f"{', '.join(words)}. It takes up to {config.max_input_length} tokens."


def model_card(
    config: EncoderConfig,
    settings: CardSettings,
    origin: Origin,
    *,
    exports: Sequence[Sequence[str]] = (),
    note: str = "",
    task: ModelTask = _MASKED_LM_TASK,
) -> str:
    """Returns the README.md of a model.

    Args:
        config: the model's configuration.
        settings: the user's settings for the card.
        origin: the model's origin.
        exports: rows of the table of exports, the titles first; empty if there is no table.
        note: a line below that table.
        task: the model's task.

    Raises:
        InputError: a file of scores cannot be read.
    """
    distilled = bool(set(origin.run_config.get("losses", ())) - {"masked_lm"})
    tuned = task.finetuning
    scores = {**origin.evaluation, **({} if tuned is None else tuned.scores)}
    scores |= read_scores(settings.scores)
    has_teacher = distilled or (tuned is not None and tuned.distilled)
    lines = [
        front_matter(config, settings, distilled=has_teacher, task=task),
        f"# {settings.name}",
        "",
        _opening(config, task, distilled=distilled),
        "",
        "```python",
        f"from transformers import {task.hub.auto_class}, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({settings.name!r})",
        f"model = {task.hub.auto_class}.from_pretrained({settings.name!r})",
        "```",
        "",
        *_section("Task", task.rows()),
        *_section("Training", _training_rows(origin, task)),
        *_section("Scores", [(name, f"{value:.4g}") for name, value in scores.items()]),
        *_section("Exports", exports[1:], exports[0] if exports else _UNTITLED),
    ]
    if exports and note:
        lines += [note, ""]
    return "\n".join(lines).rstrip() + "\n"
