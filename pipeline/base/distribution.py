"""Devices and processes that share the work of a command."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from pipeline.base.errors import InputError, InterruptedRunError, Setting

# Values of `--distribution`.
NOT_DISTRIBUTED = "none"
DATA_PARALLEL = "data_parallel"
DISTRIBUTIONS = (NOT_DISTRIBUTED, DATA_PARALLEL)
# Time after which JAX considers a process without heartbeats as lost.
_HEARTBEAT_SECONDS = 100
# Time that a failed process waits for the other processes before it exits. They may be compiling.
_SHUTDOWN_SECONDS = 1800
# The environment variable for `coordinator_address`, which JAX reads itself.
_ADDRESS_VARIABLE = "JAX_COORDINATOR_ADDRESS"
# Prefix of the keys under which failed processes record themselves in the key-value store of the
# run.
_FAILURES = "offline_distill/failures"


def join(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of a run. Call it before any code asks JAX for devices.

    JAX detects arguments that are None on Cloud TPU pods, Slurm and Open MPI. Where it detects
    no cluster, this process runs alone. `num_processes` 1 skips the detection.

    Raises:
        InputError: the address is malformed, an argument is missing, or the other processes
            cannot be reached.
    """
    if num_processes == 1:
        return
    setting = Setting("coordinator_address")
    address_variable = os.environ.get(_ADDRESS_VARIABLE)
    address = coordinator_address or address_variable
    if address and not address.rpartition(":")[2].isdigit():
        raise InputError(setting, "HOST:PORT of process 0", f"{address!r}")
    arguments = {
        "`coordinator_address`": coordinator_address,
        _ADDRESS_VARIABLE: address_variable,
        "`num_processes`": num_processes,
        "`process_id`": process_id,
    }
    passed = " ".join(f"{name}={value}" for name, value in arguments.items() if value is not None)
    import jax

    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        expected, received = None, f"the other processes cannot be joined ({error})"
        if isinstance(error, ValueError):
            if not passed and str(error).startswith("coordinator_address"):
                # JAX raises this error where it detects no cluster.
                return
            expected = "set together with `num_processes` and `process_id`"
            received = f"{passed or 'none'} ({error})"
        hint = "set `num_processes`=1 to run one process alone"
        raise InputError(setting, expected, received, hint) from error


def _key_value_store() -> Any:
    """Returns JAX's client of the store that joined processes share; None without others."""
    # JAX has no public name for it.
    from jax._src import distributed

    return distributed.global_state.client


@contextlib.contextmanager
def reporting_failure() -> Iterator[None]:
    """Reports a failure of the block to the joined processes, which check for it.

    JAX shuts down joined processes together: a failed process waits for the others before it
    exits. Without the report they would continue until JAX kills all of them.
    """
    try:
        yield
    except BaseException:
        store = _key_value_store()
        if store is not None:
            # The process that holds the store may be lost.
            with contextlib.suppress(RuntimeError):
                store.key_value_set(f"{_FAILURES}/{_process_id()}", "", allow_overwrite=True)
        raise


def _process_id() -> int:
    import jax

    return jax.process_index()


def check_other_processes() -> None:
    """Checks that no joined process has reported a failure.

    Raises:
        InterruptedRunError: one has.
    """
    store = _key_value_store()
    for key, _ in [] if store is None else store.key_value_dir_get(_FAILURES):
        received = f"process {key.rpartition('/')[2]} failed"
        hint = "see its output; fix the cause and re-run the commands of all processes to resume"
        raise InterruptedRunError(None, received=received, hint=hint)
