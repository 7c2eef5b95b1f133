"""Detection of other processes from flags and the cluster, and errors if they do not join."""

import re
import socket

import pytest

from l2l_jax.errors import UserError
from l2l_jax.utils import distributed
from l2l_jax.utils.distributed import LOST, Launch, cluster
from tests.utils.launching import worker

SLURM = dict(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="node[1-2]", SLURM_NTASKS="2")
SLURM |= dict(SLURM_PROCID="1", SLURM_LOCALID="0")
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),  # one task is one process with all GPUs of the node
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),  # the batch script, no step
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}, None),  # the shell of salloc
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "2"}, "Slurm"),
        ({**SLURM, "SLURM_NTASKS": ""}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": ""}, None),
        (POD, "Kubernetes"),
        (dict.fromkeys(POD, ""), None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a single pod
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, None),  # without chips
    ],
)
def test_clusters_are_recognized(environ, expected):
    assert cluster(environ) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "TPU"),  # a TPU VM: JAX queries the number of hosts from its metadata server
        ({"TPU_SKIP_MDS_QUERY": "1"}, None),
        ({**POD, "TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"),  # GKE
        ({**POD, "TPU_WORKER_HOSTNAMES": "a"}, None),
    ],
)
def test_tpu_hosts_are_recognized(monkeypatch, environ, expected):
    monkeypatch.setattr(distributed, "_tpu_chips", lambda: True)
    assert cluster(environ) == expected


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (Launch(coordinator="a:1"), "--num_processes and --process_id must be given too"),
        (Launch(num_processes=2, process_id=0), "--coordinator must be given too"),
        (Launch(None, "10.0.0.1", 2, 0), "--coordinator=10.0.0.1 is not HOST:PORT, such as 10.0.0.1:8476"),
        (Launch(None, "a:1", 2, 2), "--process_id=2 with --num_processes=2: processes are numbered from 0"),
        (Launch(False, "a:1", 2, 1), "--nodistributed contradicts"),
        (Launch(True), "--distributed: no Slurm step, Open MPI, Kubernetes job or Cloud TPU"),
    ],
)
def test_inconsistent_flags_are_rejected(launch, message):
    with pytest.raises(UserError, match=message):
        distributed.start(launch, {})


def test_missing_cluster_requirements_are_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="SLURM_NTASKS is 'two', but should be a number of processes"):
        cluster({**SLURM, "SLURM_NTASKS": "two"})
    monkeypatch.setattr(distributed, "TOKEN", tmp_path / "token")
    with pytest.raises(UserError, match=r"mount a service-account token.*alone, give --nodistributed"):
        distributed.start(Launch(), POD)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install kubernetes.*alone, give --nodistributed"):
        distributed.start(Launch(), POD)


def test_single_process_does_not_initialize_jax_distributed():
    assert not distributed.start(Launch(), {})
    assert not distributed.start(Launch(distributed=False), SLURM)
    assert distributed.place() == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "message"),
    [
        (1, r"Error: Process 1 does not reach process 0 at --coordinator=127.0.0.1:\d+ .*waited 2 s"),
        (0, r"Error: Not all of the 2 processes joined at 127.0.0.1:\d+; waited 2 s .*--num_processes=2"),
    ],
)
def test_timeout_of_missing_processes_is_explained(process, message):
    (ended,) = worker(2, "whole", "nowhere", flags=["--start_timeout=2"], only=process)
    assert ended.code == LOST
    (line,) = ended.errors.splitlines()
    assert re.match(message, line)


def test_port_in_use_is_named():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        launch = Launch(None, f"127.0.0.1:{port}", 2, 0, start_timeout=1)
        with pytest.raises(UserError, match=f"Port {port} of --coordinator=.* cannot be used here"):
            distributed.start(launch, {})
