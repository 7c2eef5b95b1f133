"""Validation of the Kubernetes manifests with a JobSet schema, and of their job with `kubernetes`' models."""

import json
import pathlib

import jsonschema
import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCHEMA = json.loads(pathlib.Path(__file__).with_name("jobset_schema.json").read_text())


def validate(manifest):
    from kubernetes.client import models  # late import, because there are hundreds

    jsonschema.validate(manifest, SCHEMA)
    for job in manifest["spec"]["replicatedJobs"]:
        models.V1JobTemplateSpec.model_validate(job["template"], strict=True)


@pytest.fixture(params=["jobset_tpu.yaml", "jobset_gpu.yaml"])
def manifest(request):
    return yaml.safe_load((LAUNCH / request.param).read_text())


def job_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_manifests_match_the_schema_and_are_consistent(manifest):
    job = job_of(manifest)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    flags = dict(argument.lstrip("-").split("=", 1) for argument in container["args"] if "=" in argument)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(flags["workdir"].startswith(f"{mount}/") for mount in mounts)
    if "coordinator" in flags:
        name = manifest["metadata"]["name"]
        host, port = flags["coordinator"].split(":")
        assert host == f"{name}-{manifest['spec']['replicatedJobs'][0]['name']}-0-0.{name}"
        assert int(port) in [port["containerPort"] for port in container["ports"]]
        assert int(flags["num_processes"]) == job["completions"]
    else:
        assert "--distributed" in container["args"]
    validate(manifest)
