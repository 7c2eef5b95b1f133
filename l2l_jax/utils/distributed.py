"""Multi-host runs: joining the processes of a run, and ending them when one is lost.

Importing this module does not import JAX.
"""

import dataclasses
import errno
import glob
import importlib.util
import logging
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping

from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import check_backend

logger = logging.getLogger(__name__)
LOST = 75  # exit code if other processes are lost or never join: EX_TEMPFAIL of sysexits.h, "try again"
# Path at which Kubernetes mounts the token of a pod's service account
TOKEN = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
# Status codes of JAX's coordination service and collectives when a process has ended
LOST_STATUS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")
# Beginning of messages about failed collectives, which have other status codes
COLLECTIVE_FAILED = re.compile(r"Gloo [\w-]+ failed|NCCL operation", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Launch:
    """The processes of a run according to command-line flags; None means as detected from the cluster."""

    distributed: bool | None = None
    coordinator: str | None = None  # "host:port" of process 0, to which all processes connect
    num_processes: int | None = None
    process_id: int | None = None
    start_timeout: int = 300  # seconds to wait for all processes to join
    heartbeat_timeout: int = 60  # seconds without a heartbeat after which a process is considered lost

    def check(self) -> None:
        """Raise a UserError unless the fields are consistent."""
        names = ("coordinator", "num_processes", "process_id")
        missing = [f"--{name}" for name in names if getattr(self, name) is None]
        if len(missing) == len(names):
            return
        if self.distributed is False:
            raise UserError("--nodistributed contradicts --coordinator, --num_processes and --process_id.")
        if missing:
            raise UserError(
                f"{' and '.join(missing)} must be given too: --coordinator=HOST:PORT --num_processes=N "
                "--process_id=I go together, with I from 0 to N - 1."
            )
        if not re.fullmatch(r".+:\d{1,5}", self.coordinator or ""):
            raise UserError(f"--coordinator={self.coordinator} is not HOST:PORT, such as 10.0.0.1:8476.")
        if not 0 <= (self.process_id or 0) < (self.num_processes or 0):
            raise UserError(
                f"--process_id={self.process_id} with --num_processes={self.num_processes}: processes are "
                "numbered from 0 to one less than there are."
            )


def cluster(environ: Mapping[str, str]) -> str | None:
    """Return the cluster manager that started this process as one of several, or None.

    These are the managers from which JAX can detect coordinator, number and index: a Slurm step or Open MPI
    with more than one task, an indexed Kubernetes job (including a JobSet's), and the hosts of a Cloud TPU.
    """
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if _number(environ, "SLURM_NTASKS") > 1 and all(environ.get(name) for name in slurm):
        if _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") > 1:
            return "Slurm"
        logger.info(
            "This Slurm step has one task (the shell of salloc, for example), so one process runs; srun "
            "starts one for each of the %s tasks of the job.",
            environ["SLURM_NTASKS"],
        )
    if _number(environ, "OMPI_COMM_WORLD_SIZE") > 1 and environ.get("OMPI_MCA_orte_hnp_uri"):
        return "Open MPI"
    if _tpu_chips():
        if "," in environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", "")):
            return "TPU"
        if not environ.get("TPU_SKIP_MDS_QUERY") and not environ.get("KUBERNETES_SERVICE_HOST"):
            return "TPU"  # JAX asks the machine's metadata server
        return None
    if environ.get("KUBERNETES_SERVICE_HOST") and environ.get("JOB_COMPLETION_INDEX"):
        return "Kubernetes"
    return None


def _number(environ: Mapping[str, str], *names: str) -> int:
    """Return the number in the first of these variables that is set and not empty; 1 if there is none."""
    name = next((name for name in names if environ.get(name, "").strip()), "")
    try:
        return int(environ[name]) if name else 1
    except ValueError as error:
        raise UserError(
            f"The environment variable {name} is {environ[name]!r}, but should be a number of processes: "
            "unset it, or give --nodistributed to run alone."
        ) from error


def _tpu_chips() -> bool:
    """Return whether this machine has libtpu and TPU chips (devices with Google's PCI vendor number)."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    vendors = glob.glob("/sys/bus/pci/devices/*/vendor")
    return any(pathlib.Path(vendor).read_text(encoding="utf-8").strip() == "0x1ae0" for vendor in vendors)


def start(launch: Launch, environ: Mapping[str, str] = os.environ) -> bool:
    """Join the other processes of the run, and return whether there are any; call it before using JAX.

    A process that waits for others longer than `launch.start_timeout` prints an error and exits with the code
    `LOST`, because JAX's own timeout cannot be caught.

    Raises:
      UserError: The fields of `launch` contradict each other, or the processes cannot be joined.
    """
    launch.check()
    named = launch.coordinator is not None
    manager = None if named or launch.distributed is False else cluster(environ)
    if not named and manager is None:
        if launch.distributed:
            raise UserError(
                "--distributed: no Slurm step, Open MPI, Kubernetes job or Cloud TPU started this process; "
                "give --coordinator=HOST:PORT --num_processes=N --process_id=I."
            )
        return False
    if manager == "Kubernetes":
        _check_pod()
    if named and launch.process_id == 0:
        _wait_for_port(launch)
    _initialize(launch, manager)
    import jax  # imported here to report the errors above immediately

    return jax.process_count() > 1


def _check_pod() -> None:
    """Raise a UserError unless JAX can ask Kubernetes for the other pods of the job."""
    if importlib.util.find_spec("kubernetes") is None:
        missing = "pip install kubernetes"
    elif TOKEN.is_file():
        return
    else:
        missing = f"mount a service-account token that may read pods and jobs (there is no {TOKEN})"
    raise UserError(
        f"This pod belongs to an indexed Kubernetes job. To join its other pods, {missing}, or give "
        "--coordinator, --num_processes and --process_id (launch/jobset_gpu.yaml does); to run alone, "
        "give --nodistributed."
    )


def _initialize(launch: Launch, manager: str | None) -> None:
    """Initialize JAX as one of several processes."""
    import jax  # imported here to report command-line errors immediately

    on_terminate = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(launch.start_timeout, lambda: end(LOST, f"Error: {_nobody_came(launch)}"))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.num_processes,
            launch.process_id,
            cluster_detection_method="deactivate" if manager is None else None,
            initialization_timeout=launch.start_timeout + 30,  # the timer above expires first
            heartbeat_timeout_seconds=launch.heartbeat_timeout,
        )
        check_backend()  # waits for all processes to report their devices
    except UserError:
        raise
    except Exception as error:  # errors of JAX, the cluster's client, or the network
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        met, alone = manager or launch.coordinator, " To run alone, give --nodistributed." if manager else ""
        raise UserError(f"The processes could not be joined ({met}: {reason}).{alone}") from error
    finally:
        timer.cancel()
    if threading.current_thread() is threading.main_thread():
        # JAX installs its own SIGTERM handler. The training loop uses its own handlers to agree on a step to
        # stop at; everywhere else the signal should end the process.
        signal.signal(signal.SIGTERM, on_terminate or signal.SIG_DFL)


def _wait_for_port(launch: Launch) -> None:
    """Wait until the coordinator's port is free, because JAX would crash if it is in use."""
    port = int((launch.coordinator or "").rsplit(":", 1)[1])
    deadline = time.monotonic() + launch.start_timeout
    while True:
        try:
            with socket.create_server(("", port)):  # with SO_REUSEADDR
                return
        except (OSError, OverflowError) as error:
            # A process of a previous run may still be shutting down.
            if time.monotonic() >= deadline or getattr(error, "errno", None) != errno.EADDRINUSE:
                raise UserError(
                    f"Port {port} of --coordinator={launch.coordinator} cannot be used here ({error}): "
                    "choose another, the same for all processes."
                ) from error
        time.sleep(0.5)


def _nobody_came(launch: Launch) -> str:
    waited = f"waited {launch.start_timeout} s (--start_timeout)"
    if launch.coordinator is None:
        return (
            f"The other processes of the cluster did not join; {waited}. Were all of them started? To run "
            "alone, give --nodistributed."
        )
    host, port = launch.coordinator.rsplit(":", 1)
    if launch.process_id:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            return (
                f"Process {launch.process_id} does not reach process 0 at --coordinator={launch.coordinator} "
                f"({error}); {waited}. Is it running there, and is the port open?"
            )
    return (
        f"Not all of the {launch.num_processes} processes joined at {launch.coordinator}; {waited}. Was each "
        f"started, with --num_processes={launch.num_processes} and a unique --process_id?"
    )


def place() -> tuple[int, int]:
    """Return this process's index and the number of processes, without starting JAX."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def is_lost_peer(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes is JAX's report that a process has ended."""
    jax = sys.modules.get("jax")
    if jax is None or place()[1] == 1:
        return False
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            status, _, message = str(error).partition(":")
            if status in LOST_STATUS or COLLECTIVE_FAILED.search(message):
                return True
        error = error.__cause__
    return False


def end(code: int, message: str = "") -> None:
    """End this process immediately, after a last line on stderr.

    This is for a process that stops while others continue: in a normal exit, they would wait for each other.
    """
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
