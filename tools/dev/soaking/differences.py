"""What a disturbed output lacks, and what it has instead, beside an undisturbed one."""

import collections
import json
import pathlib
from collections.abc import Iterator

from pipeline.base import json_text
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization
from tools.dev.soaking.stages import STUDENT, Stage

_MODEL_FILE = "model.safetensors"
_METRICS_FILE = "metrics.jsonl"
# How fast it went is never the same twice.
_TIMED = "examples_per_second"


def compare(stage: Stage, reference: Stage) -> tuple[int, int]:
    """Compares what a stage made with what it makes when nothing disturbs it.

    Args:
        stage: has been disturbed, and has ended well since.
        reference: the same, undisturbed.

    Returns:
        records that are lost, all of them where the output cannot be read, and records
        that are wrong; a student's are its weights' tensors file and its lines of evaluation.
    """
    expected = collections.Counter(_records(reference))
    try:
        found = collections.Counter(_records(stage))
    except (OSError, ValueError):
        found = collections.Counter()
    return sum((expected - found).values()), sum((found - expected).values())


def leftovers(stage: Stage) -> list[str]:
    """Returns the names of what should have gone when the stage ended well."""
    return sorted(path.name for path in stage.output.rglob("*.tmp")) + sorted(
        path.name for path in stage.output.glob(".spill")
    )


def _records(stage: Stage) -> Iterator[bytes]:
    if stage.command == STUDENT:
        yield (stage.output / _MODEL_FILE).read_bytes()
        yield from _evaluations(stage.output / _METRICS_FILE)
        return
    manifest = manifests.load(stage.output)
    # As bytes: nothing of it may differ either.
    yield json_text.dump(manifest.to_json())
    for shards in manifest.splits.values():
        for shard in shards:
            yield from serialization.read_records(stage.output / shard.file)


def _evaluations(path: pathlib.Path) -> Iterator[bytes]:
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["split"] == manifests.EVAL:
            line.pop(_TIMED, None)
            yield json.dumps(line, sort_keys=True).encode()
