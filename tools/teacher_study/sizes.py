"""Sizes of a study that fit in a time budget, computed from the costs of its first steps."""

import dataclasses
from collections.abc import Mapping

# The share of the budget that a teacher's new head may take, and the share that is reserved for
# unmeasured work.
HEAD_SHARE, RESERVE = 0.1, 0.12
# The smallest useful numbers of student steps, head steps and task examples.
LEAST_STEPS, LEAST_HEAD_STEPS, LEAST_EXAMPLES = 100, 50, 64
# The minimum share of the disposable time that goes to the students' steps.
_STEPS_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class TaskCost:
    """The costs of fine-tuning on a task.

    Attributes:
        num_examples: number of training examples of a full run.
        num_epochs: passes over the examples.
        fixed: seconds of all runs that do not depend on the number of examples.
        per_example: seconds of all runs per example and pass.
    """

    num_examples: int
    num_epochs: float
    fixed: float
    per_example: float

    @property
    def seconds(self) -> float:
        """Seconds of full runs without the fixed seconds."""
        return self.num_examples * self.num_epochs * self.per_example


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of the remaining work.

    Attributes:
        fixed: seconds of all students and evaluations without the training steps.
        per_step: seconds of one step of all students, with its teacher targets.
        tasks: the costs of tasks by name.
    """

    fixed: float
    per_step: float
    tasks: Mapping[str, TaskCost]

    @property
    def fixed_of_tasks(self) -> float:
        """Seconds of all fine-tuning runs without their steps."""
        return sum(cost.fixed for cost in self.tasks.values())

    def least_seconds(self, num_steps: int) -> float:
        """Returns the seconds of `num_steps` steps, and of tasks with the fewest examples."""
        task_seconds = sum(
            min(LEAST_EXAMPLES, cost.num_examples) * cost.num_epochs * cost.per_example
            for cost in self.tasks.values()
        )
        return self.fixed + self.fixed_of_tasks + num_steps * self.per_step + task_seconds


def choose_head_steps(budget: float, step_seconds: float, most: int) -> int:
    """Returns the number of steps of a teacher's new head: `most`, or fewer in a short budget."""
    steps = int(HEAD_SHARE * budget / step_seconds)
    return min(most, max(LEAST_HEAD_STEPS, steps))


def choose_steps(left: float, costs: Costs) -> int:
    """Returns the number of steps of each student.

    The steps get at least half of the disposable time, and all of it that the tasks do not need.

    Args:
        left: remaining seconds of the budget.
        costs: costs of the remaining work.

    Example: 100 seconds are left, of which 20 are fixed. The tasks need 10 seconds, and a step
    takes half a second. The result is 140 steps.
    """
    disposable_seconds = left - costs.fixed - costs.fixed_of_tasks
    task_seconds = sum(cost.seconds for cost in costs.tasks.values())
    seconds = max(_STEPS_SHARE * disposable_seconds, disposable_seconds - task_seconds)
    return max(LEAST_STEPS, int(seconds / costs.per_step))


def choose_examples(left: float, tasks: Mapping[str, TaskCost]) -> dict[str, int]:
    """Returns the number of training examples of each task, by equal shares of the remaining time.

    Time that a small task does not need goes to the others.

    Example: 60 seconds are left. Two tasks need 20 and 60 seconds, and the first also has 10
    seconds of fixed cost. The first uses all of its examples, and the second half of them.
    """
    disposable_seconds = max(0.0, left - sum(cost.fixed for cost in tasks.values()))
    examples = {}
    by_need = sorted(tasks.items(), key=lambda item: item[1].seconds)
    for index, (name, cost) in enumerate(by_need):
        seconds = min(cost.seconds, disposable_seconds / (len(by_need) - index))
        disposable_seconds -= seconds
        affordable = int(cost.num_examples * seconds / cost.seconds)
        examples[name] = min(cost.num_examples, max(LEAST_EXAMPLES, affordable))
    return {name: examples[name] for name in tasks}
