"""The splits of a task."""

from data_specs.tasks import TaskSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from tools.finetuning.kinds import KINDS
from tools.finetuning.task_files import SplitData, find_files


def read_split(
    spec: TaskSpec, data_dir: Location, split: str, *, skip_bad_rows: bool = False
) -> SplitData:
    """Reads a split, and counts its irregular rows.

    A row is bad if it has the wrong columns or fields, has an unknown label or tag, is not
    JSON, or is a question whose answer does not occur in its context. An answer may begin
    elsewhere than its file says; the nearest occurrence is taken then. A split whose name
    begins with `test` may lack labels and answers.

    Raises:
        InputError: the files are missing or have no examples, or a row is bad and
            `skip_bad_rows` is off; names the file and the line or the question.
    """
    paths = find_files(spec, data_dir, split)
    data = SplitData(spec, not split.startswith("test"), skip_bad_rows)
    data.examples += KINDS[spec.kind].read(data, paths)
    if not data.examples:
        first = [f"the first of {len(data.bad_rows)} bad rows: {row}" for row in data.bad_rows[:1]]
        raise InputError(paths[0], f"at least one example of {spec.name}", "none", *first)
    return data
