"""Sizes of a study that fit in a budget of time, from the costs of its first steps."""

import dataclasses
from collections.abc import Mapping

# Shares of the budget that a teacher's new head may take, and that are left for what was not
# measured.
HEAD_SHARE, RESERVE = 0.1, 0.12
# The fewest that still train a student, a head, or a task.
LEAST_STEPS, LEAST_HEAD_STEPS, LEAST_EXAMPLES = 20, 50, 64
# The least share of the time that can be chosen which is for the students' steps.
_STEPS_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class TaskCost:
    """The costs of fine-tuning on a task.

    Attributes:
        num_examples: training examples of a whole run.
        num_epochs: passes over them.
        fixed: seconds of all runs for what does not depend on the examples.
        per_example: seconds of all runs for an example and pass.
    """

    num_examples: int
    num_epochs: float
    fixed: float
    per_example: float

    @property
    def seconds(self) -> float:
        """Seconds of whole runs besides the fixed ones."""
        return self.num_examples * self.num_epochs * self.per_example


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of all that is still to be made.

    Attributes:
        fixed: seconds of all students and evaluations besides their steps.
        per_step: seconds of a step of all students, with its teacher targets.
        tasks: by name.
    """

    fixed: float
    per_step: float
    tasks: Mapping[str, TaskCost]

    @property
    def fixed_of_tasks(self) -> float:
        """Seconds of all fine-tuning runs besides their steps."""
        return sum(cost.fixed for cost in self.tasks.values())

    def least_seconds(self, num_steps: int) -> float:
        """Returns the seconds of so many steps, and of tasks with the fewest examples."""
        of_tasks = sum(
            min(LEAST_EXAMPLES, cost.num_examples) * cost.num_epochs * cost.per_example
            for cost in self.tasks.values()
        )
        return self.fixed + self.fixed_of_tasks + num_steps * self.per_step + of_tasks


def choose_head_steps(budget: float, step_seconds: float, most: int) -> int:
    """Returns the steps of a teacher's new head: `most`, or fewer in a short budget."""
    steps = int(HEAD_SHARE * budget / step_seconds)
    return min(most, max(LEAST_HEAD_STEPS, steps))


def choose_steps(left: float, costs: Costs) -> int:
    """Returns the steps of each student.

    At least half of the time that can be chosen is for them, and what the tasks do not need.

    Args:
        left: seconds of the budget that are left.
        costs: of all that is to come.

    Example: with 100 seconds left, of which 20 are fixed, tasks that need 10 and steps of half a
    second, 140 steps are made.
    """
    room = left - costs.fixed - costs.fixed_of_tasks
    of_tasks = sum(cost.seconds for cost in costs.tasks.values())
    seconds = max(_STEPS_SHARE * room, room - of_tasks)
    return max(LEAST_STEPS, int(seconds / costs.per_step))


def choose_examples(left: float, tasks: Mapping[str, TaskCost]) -> dict[str, int]:
    """Returns the training examples of each task: the same share of each that fits in what is left.

    Example: with 60 seconds left and two tasks that need 40 and 60 seconds, the first of which
    has 10 more fixed ones, half of the examples of each are used.
    """
    room = left - sum(cost.fixed for cost in tasks.values())
    share = min(1.0, max(0.0, room / sum(cost.seconds for cost in tasks.values())))
    return {
        name: min(cost.num_examples, max(LEAST_EXAMPLES, int(share * cost.num_examples)))
        for name, cost in tasks.items()
    }
