"""Devices and processes that train one student together, also on several machines.

Each device computes its part of every batch with all weights (data parallelism). On JAX
each process runs the same program. All processes must reach every shared computation in the
same order. Keras and JAX are imported late, because a process must join the others before
any code asks for its devices.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.base.distribution import DATA_PARALLEL
from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.distill.settings import NUM_DATA_STREAMS, DistillConfig
from pipeline.storage.manifest import EVAL, RUN_CONFIG_FILE, TRAIN, Manifest
from pipeline.storage.shuffling import DataStreams

# Words in JAX's errors when another process does not answer: on CPUs, on GPUs, and on all devices.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The devices and processes that train together.

    Attributes:
        num_devices: the number of devices of all processes, which share each batch.
        num_processes: the number of processes.
        process: the index of this process; process 0 writes the output.
        distributed: whether variables and batches are distributed over the devices.
    """

    num_devices: int = 1
    num_processes: int = 1
    process: int = 0
    distributed: bool = False

    @property
    def is_primary(self) -> bool:
        """Whether this process writes the run's output."""
        return self.process == 0

    def streams(self, count: int) -> DataStreams:
        """Returns the data streams that this process reads, out of `count`."""
        own = count // self.num_processes
        return DataStreams(count, first=self.process * own, own=own)


def find_replicas(distribution: str) -> Replicas:
    """Returns the devices and processes of a distribution.

    Raises:
        InputError: the backend cannot distribute.
    """
    if distribution != DATA_PARALLEL:
        return Replicas()
    import keras

    if keras.config.backend() != "jax":
        expected = f"jax with `distribution`={DATA_PARALLEL}"
        raise InputError(Setting("backend"), expected, keras.config.backend())
    import jax

    return Replicas(jax.device_count(), jax.process_count(), jax.process_index(), distributed=True)


@contextlib.contextmanager
def scope(replicas: Replicas) -> Iterator[None]:
    """Replicates variables made in the block over the devices, and divides its batches.

    Raises:
        InterruptedRunError: another process stopped answering.
    """
    if not replicas.distributed:
        yield
        return
    import keras

    # Keras would divide a dataset by reading all of it in each process.
    parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
    with _explain_lost_process(replicas), parallel.scope():
        yield


@contextlib.contextmanager
def _explain_lost_process(replicas: Replicas) -> Iterator[None]:
    """Replaces JAX's errors about an unresponsive process with a readable error."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        if replicas.num_processes > 1 and any(word in str(error) for word in _LOST):
            lost = f"another of the {replicas.num_processes} processes was lost"
            received = f"{lost}; see its messages ({error})"
            hint = "re-run the commands of all processes to resume from the last checkpoint"
            setting = Setting("num_processes")
            raise InterruptedRunError(setting, received=received, hint=hint) from error
        raise


def choose_streams(config: DistillConfig, replicas: Replicas) -> int:
    """Returns the number of data streams.

    It is the given number, else the recorded number of a resumed run, else one per process.
    Process 0 reads the record for all, because it may write the record before another
    process looks for it.

    Raises:
        InputError: the number is not a multiple of the number of processes.
    """

    def find() -> tuple[int, bool]:
        if config.num_data_streams is None and config.output_dir is not None:
            path = config.output_dir / RUN_CONFIG_FILE
            if path.is_file():
                recorded = path.read_json().get(NUM_DATA_STREAMS, 1)
                return recorded if isinstance(recorded, int) and recorded > 0 else 1, True
        return config.num_data_streams or replicas.num_processes, False

    (count, is_recorded), processes = broadcast_from_primary(replicas, find), replicas.num_processes
    if count % processes:
        expected = f"a multiple of {processes}, the number of processes"
        source = f", as recorded in {config.output_dir}" if is_recorded else ""
        raise InputError(Setting("num_data_streams"), expected, f"{count}{source}")
    return count


def expect_equal_parts(config: DistillConfig, replicas: Replicas, manifest: Manifest) -> None:
    """Checks that devices and data streams get equal parts of each batch.

    Raises:
        InputError: the parts are not equal, or the cache has fewer shards than streams.
    """
    devices, streams = replicas.num_devices, config.num_data_streams
    evaluates = config.do_eval and manifest.num_examples(EVAL)
    divisions = [("eval_batch_size", devices, "devices")] * bool(evaluates)
    if config.do_train:
        divisions.append(("train_batch_size", devices, "devices"))
        divisions.append(("train_batch_size", streams, "data streams"))
    for name, count, unit in divisions:
        if getattr(config, name) % count:
            expected = f"a multiple of {count}, the number of {unit}"
            raise InputError(Setting(name), expected, getattr(config, name))
    num_shards = sum(shard.num_examples > 0 for shard in manifest.splits.get(TRAIN, ()))
    if config.do_train and num_shards < streams:
        expected = f"at most {num_shards}, the number of the cache's train shards"
        hint = f"run create_pretraining_data with `num_shards`={streams} to make more shards"
        raise InputError(Setting("num_data_streams"), expected, streams, hint)


@contextlib.contextmanager
def barrier(replicas: Replicas) -> Iterator[None]:
    """A barrier after a block: all processes continue, or none if the block fails in one.

    All processes must enter the block. JAX kills a process that waits too long for another.

    Raises:
        InterruptedRunError: the block failed in another process, or that process does not
            answer.
    """
    if replicas.num_processes == 1:
        yield
        return
    from jax.experimental import multihost_utils

    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    with _explain_lost_process(replicas):
        failed = multihost_utils.process_allgather(np.array(failure is not None, np.int32))
    if failure is not None:
        raise failure
    for process in np.flatnonzero(failed):
        received = f"process {process} failed"
        hint = "see its messages; fix the cause and re-run the commands of all processes to resume"
        raise InterruptedRunError(None, received=received, hint=hint)


def broadcast_from_primary(
    replicas: Replicas, find: Callable[[], tuple[int, int]]
) -> tuple[int, int]:
    """Returns in all processes the two integers that `find` returns in process 0.

    `find` is called only in process 0.

    Raises:
        InterruptedRunError: `find` raised an error in process 0.
    """
    with barrier(replicas):
        values = find() if replicas.is_primary else (0, 0)
    if replicas.num_processes == 1:
        return values
    from jax.experimental import multihost_utils

    return tuple(multihost_utils.broadcast_one_to_all(np.array(values, np.int32)).tolist())


def make_gather() -> Callable[[np.ndarray], Any]:
    """Returns a function that starts an exchange of values between all processes.

    The function takes float32 values of equal shape in all processes, and does not wait. Its
    result, [devices, …], has one row for each device; `numpy.asarray` waits for it. A process's
    values are in the row of its first device, and its other rows are zeros. Call `make_gather`
    inside `scope`.
    """
    import jax
    import keras

    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    spec = jax.sharding.PartitionSpec
    divided = jax.sharding.NamedSharding(mesh, spec(*mesh.axis_names))
    whole = jax.sharding.NamedSharding(mesh, spec())
    identity = jax.jit(lambda value: value, out_shardings=whole)

    def gather(values: np.ndarray) -> Any:
        rows = np.zeros((jax.local_device_count(), *values.shape), values.dtype)
        rows[0] = values
        return identity(jax.make_array_from_process_local_data(divided, rows))

    return gather
