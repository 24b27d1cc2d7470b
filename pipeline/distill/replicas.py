"""Devices, and processes of several machines, that train one student together.

Each device computes its part of every batch with all weights (data parallelism). On JAX
each process runs the same program, and all must come to every computation that they share
in the same order. Keras and JAX are imported only where they are needed: a process must
have joined the others before anything asks for its devices.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.base.distribution import DATA_PARALLEL
from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.distill.settings import NUM_DATA_STREAMS, DistillConfig
from pipeline.storage.manifest import EVAL, REQUEST_FILE, TRAIN, Manifest
from pipeline.storage.shuffling import DataStreams

# In what JAX says when another process does not answer: on CPUs, on GPUs, and everywhere.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The devices and processes that compute.

    Attributes:
        num_devices: of all processes, which share each batch.
        num_processes: those that take part.
        process: which of them this is; 0 is the one that writes.
        distributed: whether variables and batches are laid out over the devices.
    """

    num_devices: int = 1
    num_processes: int = 1
    process: int = 0
    distributed: bool = False

    @property
    def writes(self) -> bool:
        """Whether this process writes what the run leaves."""
        return self.process == 0

    def streams(self, count: int) -> DataStreams:
        """Returns the data streams that this process reads, of so many."""
        own = count // self.num_processes
        return DataStreams(count, first=self.process * own, own=own)


def find_replicas(distribution: str) -> Replicas:
    """Returns what computes.

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
    """Lays out what is made inside the block over the devices: weights whole, batches in parts.

    Raises:
        InterruptedRunError: another process does not answer any more.
    """
    if not replicas.distributed:
        yield
        return
    import keras

    # Its own way to divide data reads all of it in each process.
    parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
    with _loss_told(replicas), parallel.scope():
        yield


@contextlib.contextmanager
def _loss_told(replicas: Replicas) -> Iterator[None]:
    """Raises, in place of what JAX does when another process is silent, what a user can read."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        if replicas.num_processes > 1 and any(word in str(error) for word in _LOST):
            lost = f"another of the {replicas.num_processes} processes was lost"
            received = f"{lost}, see what it says ({error})"
            hint = "the same commands continue from the last checkpoint"
            setting = Setting("num_processes")
            raise InterruptedRunError(setting, received=received, hint=hint) from error
        raise


def choose_streams(config: DistillConfig, replicas: Replicas) -> int:
    """Returns the number of data streams: what is given, or the run began with, or one a process.

    Process 0 decides: it may write the request before another one looks for it.

    Raises:
        InputError: processes cannot share so many equally.
    """

    def find() -> tuple[int, bool]:
        if config.num_data_streams is None and config.output_dir is not None:
            path = config.output_dir / REQUEST_FILE
            if path.is_file():
                begun = path.read_json().get(NUM_DATA_STREAMS, 1)
                return begun if isinstance(begun, int) and begun > 0 else 1, True
        return config.num_data_streams or replicas.num_processes, False

    (count, is_begun), processes = broadcast_from_primary(replicas, find), replicas.num_processes
    if count % processes:
        expected = f"a multiple of the {processes} processes, as each reads its own streams"
        why = f", with which {config.output_dir} began" if is_begun else ""
        raise InputError(Setting("num_data_streams"), expected, f"{count}{why}")
    return count


def expect_equal_parts(config: DistillConfig, replicas: Replicas, manifest: Manifest) -> None:
    """Checks that devices and data streams get equal parts of each batch that is computed.

    Raises:
        InputError: they cannot, or there are fewer shards than streams.
    """
    devices, streams = replicas.num_devices, config.num_data_streams
    evaluates = config.do_eval and manifest.num_examples(EVAL)
    parts = [("eval_batch_size", devices, "devices")] * bool(evaluates)
    if config.do_train:
        parts.append(("train_batch_size", devices, "devices"))
        parts.append(("train_batch_size", streams, "data streams"))
    for name, count, what in parts:
        if getattr(config, name) % count:
            expected = f"a multiple of {count}, the {count} {what}, as each gets an equal part"
            raise InputError(Setting(name), expected, getattr(config, name))
    num_shards = sum(shard.num_examples > 0 for shard in manifest.splits.get(TRAIN, ()))
    if config.do_train and num_shards < streams:
        expected = f"at most {num_shards}, the cache's train shards, as each stream reads its own"
        hint = f"create_pretraining_data `num_shards`={streams} makes more"
        raise InputError(Setting("num_data_streams"), expected, streams, hint)


@contextlib.contextmanager
def barrier(replicas: Replicas) -> Iterator[None]:
    """A barrier: all processes continue after the block, or none where one fails in it.

    All of them come to the block. A process that waits long for another one is killed by JAX.

    Raises:
        InterruptedRunError: the block failed in another process, or that does not answer.
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
    with _loss_told(replicas):
        failed = multihost_utils.process_allgather(np.array(failure is not None, np.int32))
    if failure is not None:
        raise failure
    for process in np.flatnonzero(failed):
        received = f"process {process} cannot go on"
        raise InterruptedRunError(None, received=received, hint="see what it says")


def broadcast_from_primary(
    replicas: Replicas, find: Callable[[], tuple[int, int]]
) -> tuple[int, int]:
    """Returns in all processes the two integers that `find` returns in process 0 alone.

    Raises:
        InterruptedRunError: process 0 has raised what `find` did.
    """
    with barrier(replicas):
        values = find() if replicas.writes else (0, 0)
    if replicas.num_processes == 1:
        return values
    from jax.experimental import multihost_utils

    return tuple(multihost_utils.broadcast_one_to_all(np.array(values, np.int32)).tolist())


def make_gather() -> Callable[[np.ndarray], Any]:
    """Returns what begins to give every process the values of all, and waits for nothing.

    It takes float32 of equal shape in all processes, and returns a row for each device,
    [devices, …], once `numpy.asarray` is called: a process's values in the row of its first
    device, zeros in those of its others. Call it inside `scope`.
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
