"""The splits of a task."""

from data_specs.tasks import TaskSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from tools.finetuning.kinds import KINDS
from tools.finetuning.task_files import SplitData, find_files


def read_split(
    spec: TaskSpec, data_dir: Location, split: str, *, skip_bad_rows: bool = False
) -> SplitData:
    """Reads a split, and counts what was odd in it.

    A row is bad that has the wrong columns or fields, an unknown label or tag, is not
    JSON, or asks a question whose answer is nowhere in its context. An answer
    that begins elsewhere than the file says is looked for, and the nearest place
    taken. A split whose name begins with `test` may lack labels and answers.

    Raises:
        InputError: there are no such files, no examples in them, or a bad row and
            not `skip_bad_rows`; names the file and the line or the question.
    """
    paths = find_files(spec, data_dir, split)
    data = SplitData(spec, not split.startswith("test"), skip_bad_rows)
    data.examples += KINDS[spec.kind].read(data, paths)
    if not data.examples:
        first = [f"the first of {len(data.bad_rows)} bad rows: {row}" for row in data.bad_rows[:1]]
        raise InputError(paths[0], f"at least one example of {spec.name}", "none", *first)
    return data
