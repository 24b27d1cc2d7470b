"""Devices, and processes of several machines, that train one student together.

Each device computes its part of every batch with all weights (data parallelism). On JAX
each process runs the same program, and all must come to every computation that they share
in the same order. Keras and JAX are imported only where they are needed: a process must
have joined the others before anything asks for its devices.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.distill.settings import DATA_PARALLEL, NUM_DATA_STREAMS, DistillConfig
from pipeline.storage.manifest import EVAL, REQUEST_FILE, TRAIN, Manifest
from pipeline.storage.shuffling import DataStreams

# Heartbeat and shutdown timeout.
_PATIENCE_SECONDS = 100
# In what JAX says when another process does not answer: on CPUs, on GPUs, and everywhere.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
# The environment variable for `coordinator_address`, which JAX reads, too.
_ADDRESS_VARIABLE = "JAX_COORDINATOR_ADDRESS"


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The devices and processes that compute.

    Attributes:
        num_devices: of all processes, which share each batch.
        num_processes: that take part.
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


def join(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of a run; call it before anything asks for devices.

    What is None is found by JAX itself on a Cloud TPU pod, under Slurm and under Open MPI;
    where it finds nothing, this process is alone.

    Args:
        coordinator_address: host and port of process 0.
        num_processes: how many; with 1 nothing is looked for.
        process_id: which of them this is, from 0.

    Raises:
        InputError: the address is none, something is missing, or the others cannot be reached.
    """
    if num_processes == 1:
        return
    received = _received(coordinator_address, num_processes, process_id)
    import jax

    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_PATIENCE_SECONDS,
            shutdown_timeout_seconds=_PATIENCE_SECONDS,
        )
    except ValueError as error:
        # It says so where nothing tells of others.
        if received or not str(error).startswith("coordinator_address"):
            raise InputError(
                Setting("coordinator_address"),
                "it, `num_processes` and `process_id`",
                f"{received or 'none'} ({error})",
                hint="`num_processes`=1 for a process that is alone",
            ) from error
    except RuntimeError as error:
        raise InputError(
            Setting("coordinator_address"),
            received=f"the other processes cannot be joined ({error})",
            hint="`num_processes`=1 for a process that is alone",
        ) from error


def _received(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> str:
    """Returns what is said by flags and by the environment, as text.

    Raises:
        InputError: the address is none.
    """
    named = os.environ.get(_ADDRESS_VARIABLE)
    address = coordinator_address or named
    if address and not address.rpartition(":")[2].isdigit():
        raise InputError(Setting("coordinator_address"), "HOST:PORT of process 0", f"{address!r}")
    given = {
        "`coordinator_address`": coordinator_address,
        _ADDRESS_VARIABLE: named,
        "`num_processes`": num_processes,
        "`process_id`": process_id,
    }
    return " ".join(f"{name}={value}" for name, value in given.items() if value is not None)


def find_replicas(distribution: str) -> Replicas:
    """Returns what computes.

    Args:
        distribution: of `DistillConfig`.

    Raises:
        InputError: the backend cannot do it.
    """
    if distribution != DATA_PARALLEL:
        return Replicas()
    import keras

    if keras.config.backend() != "jax":
        raise InputError(
            Setting("distribution"),
            f"`backend`=jax beside {DATA_PARALLEL}",
            f"`backend`={keras.config.backend()}",
        )
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
            raise InterruptedRunError(
                Setting("num_processes"),
                received=f"another of the {replicas.num_processes} processes was lost, see what it "
                f"says ({error})",
                hint="the same commands continue from the last checkpoint",
            ) from error
        raise


def choose_streams(config: DistillConfig, replicas: Replicas) -> int:
    """Returns the number of data streams: what is given, or the run began with, or one a process.

    Process 0 decides: it may write the request before another one looks for it.

    Raises:
        InputError: processes cannot share so many equally.
    """

    def find() -> tuple[int, bool]:
        path = None if config.output_dir is None else config.output_dir / REQUEST_FILE
        if config.num_data_streams is None and path is not None and path.is_file():
            begun = path.read_json().get(NUM_DATA_STREAMS, 1)
            return begun if isinstance(begun, int) and begun > 0 else 1, True
        return config.num_data_streams or replicas.num_processes, False

    count, is_begun = broadcast_from_primary(replicas, find, size=2)
    why = f", with which {config.output_dir} began" if is_begun else ""
    if count % replicas.num_processes:
        raise InputError(
            Setting("num_data_streams"),
            f"a multiple of the {replicas.num_processes} processes, as each reads its own streams",
            f"{count}{why}",
        )
    return count


def expect_equal_parts(config: DistillConfig, replicas: Replicas, manifest: Manifest) -> None:
    """Checks that devices and data streams get equal parts of each batch that is computed.

    Args:
        config: with its data streams.
        replicas: the devices and processes.
        manifest: of the cache.

    Raises:
        InputError: they cannot, or there are fewer shards than streams.
    """
    devices, streams = replicas.num_devices, config.num_data_streams
    parts = []
    if config.do_eval and manifest.num_examples(EVAL):
        parts.append(("eval_batch_size", devices, f"the {devices} devices"))
    if config.do_train:
        parts.append(("train_batch_size", devices, f"the {devices} devices"))
        parts.append(("train_batch_size", streams, f"the {streams} data streams"))
    for name, count, what in parts:
        if getattr(config, name) % count:
            raise InputError(
                Setting(name),
                f"a multiple of {count}, {what}, as each gets an equal part",
                getattr(config, name),
            )
    num_shards = sum(shard.num_examples > 0 for shard in manifest.splits.get(TRAIN, ()))
    if config.do_train and num_shards < streams:
        raise InputError(
            Setting("num_data_streams"),
            f"at most {num_shards}, the cache's train shards, as each stream reads its own",
            streams,
            hint=f"create_pretraining_data `num_shards`={streams} makes more",
        )


@contextlib.contextmanager
def barrier(replicas: Replicas) -> Iterator[None]:
    """A barrier: all processes continue after the block, or none where one fails in it.

    A process that waits long for another one is killed by JAX.

    Args:
        replicas: the devices and processes; all of them come to the block.

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
        raise InterruptedRunError(
            None, received=f"process {process} cannot go on", hint="see what it says"
        )


def broadcast_from_primary(
    replicas: Replicas, find: Callable[[], Sequence[int]], size: int
) -> list[int]:
    """Returns integers that process 0 finds, in all processes.

    Args:
        replicas: the devices and processes.
        find: called in process 0 alone; it looks at the output directory.
        size: how many integers it returns.

    Raises:
        InterruptedRunError: process 0 has raised what `find` did.
    """
    with barrier(replicas):
        values = list(find()) if replicas.writes else [0] * size
    if replicas.num_processes == 1:
        return values
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(np.array(values, np.int32)).tolist()


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
