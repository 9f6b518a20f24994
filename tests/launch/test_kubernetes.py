"""The MPIJob against the schema that an API server checks it by, and against mpcfl itself.

No cluster runs it here. What the schema can't see is compared by hand: names, numbers, mounts.
"""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from mpcfl.config import Job, load_job
from mpcfl.parties.rules import check_job

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "launch/kubernetes/mpijob.yaml"
_KINDS = {
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
}
Document = dict[str, Any]


def closed(node: Any) -> Any:
    """Refuse fields that a schema does not name; an API server would drop them without a word."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    inner = {key: closed(value) for key, value in node.items()}
    is_schema = isinstance(node.get("properties"), dict) and "type" in node
    return {"additionalProperties": False, **inner} if is_schema else inner


@pytest.fixture(scope="module")
def errors() -> Callable[[Document], list[str]]:
    """Return what tells where a document breaks the schema of its kind."""
    vector = json.loads((ROOT / "tests/vectors/mpijob_v2beta1_schema.json").read_text())
    definitions = closed(vector["definitions"])
    # Its own metadata are any object to a CRD; a name that nobody reads is an error here as well.
    job = closed(vector["mpijob"])
    job["properties"]["metadata"] = {
        "$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    }

    def find(document: Document) -> list[str]:
        kind = document["kind"]
        schema = job if kind == "MPIJob" else {"$ref": f"#/definitions/{_KINDS[kind]}"}
        checker = Draft202012Validator({**schema, "definitions": definitions})
        return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(document)]

    return find


@pytest.fixture
def documents() -> dict[str, Document]:
    """Return the manifest's documents by kind; every test may change its own."""
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture
def job(documents: dict[str, Document], tmp_path: Path) -> Job:
    file = tmp_path / "job.toml"
    file.write_text(documents["ConfigMap"]["data"]["job.toml"])
    return load_job(file)


def pod(mpijob: Document, replica: str) -> Document:
    spec: Document = mpijob["spec"]["mpiReplicaSpecs"][replica]["template"]["spec"]
    return spec


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_every_document_is_what_the_api_server_takes(errors, documents) -> None:
    assert sorted(documents) == ["ConfigMap", "MPIJob", "PersistentVolumeClaim"]
    assert documents["MPIJob"]["apiVersion"] == "kubeflow.org/v2beta1"
    for document in documents.values():
        assert errors(document) == []


def test_shared_parts_are_the_same_for_a_reader_without_yaml_anchors(errors, documents) -> None:
    plain = json.loads(json.dumps(documents["MPIJob"]))
    assert errors(plain) == []


BROKEN = {
    "a misspelt field of the job": ("spec", "slotPerWorker", 1),
    "a misspelt field of the policy": ("spec.runPolicy", "backOffLimit", 0),
    "a misspelt field of a replica": ("spec.mpiReplicaSpecs.Worker", "replica", 4),
    "a misspelt field of a pod": (
        "spec.mpiReplicaSpecs.Worker.template.spec",
        "automountServiceAccountTokens",
        False,
    ),
    "a misspelt field of a container": (
        "spec.mpiReplicaSpecs.Launcher.template.spec.containers.0",
        "arg",
        [],
    ),
    "a misspelt field of a volume": (
        "spec.mpiReplicaSpecs.Worker.template.spec.volumes.0.configMap",
        "nam",
        "x",
    ),
    "a number in words": ("spec", "slotsPerWorker", "one"),
    "an MPI that the operator does not know": ("spec", "mpiImplementation", "LAM"),
    "a number of pods in words": ("spec.mpiReplicaSpecs.Worker", "replicas", "four"),
    "an argument that is no text": (
        "spec.mpiReplicaSpecs.Launcher.template.spec.containers.0",
        "args",
        ["-n", 4],
    ),
    "a mount in the place of a list": (
        "spec.mpiReplicaSpecs.Worker.template.spec.containers.0",
        "volumeMounts",
        {"name": "job"},
    ),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_job_is_refused(errors, documents, change) -> None:
    path, key, value = change
    broken = copy.deepcopy(documents["MPIJob"])
    place: Any = broken
    for step in path.split("."):
        place = place[int(step)] if step.isdecimal() else place[step]
    place[key] = value
    assert len(errors(broken)) == 1


def test_a_job_without_replicas_or_a_container_without_name_is_refused(errors, documents) -> None:
    mpijob = documents["MPIJob"]
    del pod(mpijob, "Launcher")["containers"][0]["name"]
    assert len(errors(mpijob)) == 1
    del mpijob["spec"]["mpiReplicaSpecs"]
    assert len(errors(mpijob)) == 1


def test_one_worker_one_rank_and_one_secret_for_each_party(documents, job: Job) -> None:
    mpijob, names = documents["MPIJob"], list(job.parties.all_names())
    replicas = mpijob["spec"]["mpiReplicaSpecs"]
    assert replicas["Worker"]["replicas"] == job.n_ranks == len(names)
    assert mpijob["spec"]["slotsPerWorker"] == 1
    arguments = pod(mpijob, "Launcher")["containers"][0]["args"]
    assert option(arguments, "-n") == str(len(names))
    worker = pod(mpijob, "Worker")
    told = {each["name"]: each["value"] for each in worker["initContainers"][0]["env"]}
    assert told["MPCFL_PARTIES"].split() == names
    (projected,) = (each["projected"] for each in worker["volumes"] if "projected" in each)
    secrets = [source["secret"] for source in projected["sources"]]
    assert [secret["name"] for secret in secrets] == [f"mpcfl-{name}" for name in names]
    for secret, name in zip(secrets, names, strict=True):
        files = [f"{name}.toml", f"{name}.key"]
        assert [item["key"] for item in secret["items"]] == files
        assert [item["path"] for item in secret["items"]] == [f"{name}/{file}" for file in files]


def test_ranks_find_their_files_where_they_are_mounted(documents) -> None:
    mpijob = documents["MPIJob"]
    arguments = pod(mpijob, "Launcher")["containers"][0]["args"]
    (party,) = pod(mpijob, "Worker")["containers"]
    mounts = {mount["mountPath"]: mount for mount in party["volumeMounts"]}
    job_file = Path(arguments[arguments.index("mpcfl.parties") + 1])
    assert str(job_file.parent) in mounts
    assert job_file.name in documents["ConfigMap"]["data"]
    assert option(arguments, "--party-files") in mounts
    assert str(Path(option(arguments, "--out")).parent) in mounts
    # Where results lie is each pod's own, whose environment names it.
    results = mounts["/results"]["subPathExpr"].removeprefix("$(").removesuffix(")")
    assert results in [each["name"] for each in party["env"]]
    known = {volume["name"] for volume in pod(mpijob, "Worker")["volumes"]}
    assert {mount["name"] for mount in party["volumeMounts"]} <= known


def test_only_the_container_that_picks_the_own_party_sees_all_secrets(documents) -> None:
    mpijob = documents["MPIJob"]
    assert "volumes" not in pod(mpijob, "Launcher")
    assert "volumeMounts" not in pod(mpijob, "Launcher")["containers"][0]
    (party,) = pod(mpijob, "Worker")["containers"]
    assert "all-parties" not in {mount["name"] for mount in party["volumeMounts"]}


def test_nothing_runs_as_root_with_rights_or_again_by_itself(documents) -> None:
    mpijob = documents["MPIJob"]
    assert mpijob["spec"]["runPolicy"]["backoffLimit"] == 0
    for replica in ("Launcher", "Worker"):
        spec = pod(mpijob, replica)
        assert mpijob["spec"]["mpiReplicaSpecs"][replica]["restartPolicy"] == "Never"
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["automountServiceAccountToken"] is False
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            assert set(container["resources"]) == {"requests", "limits"}


def test_the_job_is_the_packaged_one_but_for_what_a_loss_needs(job: Job) -> None:
    check_job(job, insecure=False)
    packaged = load_job(ROOT / "launch/jobs/digits.toml")
    privacy = packaged.privacy.model_copy(update={"spare_attempts": job.privacy.spare_attempts})
    assert (job.privacy, job.training, job.server) == (privacy, packaged.training, packaged.server)
    assert job.parties.names == packaged.parties.names
    assert job.parties.max_dropout == 1
    assert job.privacy.spare_attempts > 0


@pytest.mark.parametrize(("host", "name"), [("mpcfl-worker-0", "north"), ("a-1-worker-3", "west")])
def test_a_worker_picks_the_party_of_its_number(documents, tmp_path, host: str, name: str) -> None:
    container = pod(documents["MPIJob"], "Worker")["initContainers"][0]
    names = container["env"][0]["value"].split()
    own = tmp_path / "party"
    own.mkdir()
    for each in names:
        folder = tmp_path / "parties" / each
        folder.mkdir(parents=True)
        for kind in ("toml", "key"):
            (folder / f"{each}.{kind}").write_text(each)
            (folder / f"{each}.{kind}").chmod(0o440)
    script = container["args"][0].replace(" /party/", f" {own}/").replace("/parties/", "parties/")
    environment = {"HOSTNAME": host, "MPCFL_PARTIES": " ".join(names), "PATH": "/bin:/usr/bin"}
    command = [*container["command"], script]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert {file.name: file.stat().st_mode & 0o777 for file in own.iterdir()} == {
        f"{name}.toml": 0o600,
        f"{name}.key": 0o600,
    }
    assert (own / f"{name}.key").read_text() == name
