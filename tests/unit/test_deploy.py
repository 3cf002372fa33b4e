"""The files of ``cluster/deploy`` agree with the project, and a run fits what they describe."""

import copy
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.placement import Node, place, processes
from configs import schema
from configs.robot import RobotConfig

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = re.compile(r"([\w.-]+)(?:\[.*\])?==(\S+)")
PINS = dict(m.groups() for d in PROJECT["project"]["dependencies"] if (m := PINNED.fullmatch(d)))
ROBOT = RobotConfig().resource
schema.register()

# KubeRay's fields that these manifests may use, of the CRDs of ray.io/v1 as of release 1.5.1.
CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"}
CLUSTER |= {"headGroupSpec", "workerGroupSpecs"}
AUTOSCALER = {"version", "idleTimeoutSeconds", "upscalingMode"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
JOB = {"clusterSelector", "submissionMode", "entrypoint", "submitterPodTemplate"}


def documents(name: str) -> dict[str, dict]:
    """Manifests of a file by kind."""
    found = yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text())
    return {manifest["kind"]: manifest for manifest in found}


@pytest.fixture
def cluster():
    return documents("cluster.yaml")["RayCluster"]["spec"]


@pytest.fixture
def job():
    return documents("job.yaml")["RayJob"]["spec"]


@pytest.fixture
def aws():
    return yaml.safe_load((DEPLOY / "aws.yaml").read_text())


def containers(cluster) -> list[dict]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [c for group in groups for c in group["template"]["spec"]["containers"]]


def planned(*arguments: str):
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        run = schema.to_run(compose("run", overrides=list(arguments)))
    return processes(run, list(run.task))


def test_kuberay_manifests_have_only_fields_that_the_crds_have(cluster, job):
    assert set(cluster) == CLUSTER
    assert set(cluster["authOptions"]) == {"mode"}
    assert set(cluster["autoscalerOptions"]) == AUTOSCALER
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    assert all(set(group) == GROUP for group in cluster["workerGroupSpecs"])
    assert set(job) == JOB  # backoffLimit and clusterSelector exclude one another
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_versions_and_images_agree(cluster, job, aws):
    assert cluster["rayVersion"] == PINS["ray"]
    images = {c["image"] for c in containers(cluster)} | {aws["docker"]["image"]}
    images |= {c["image"] for c in job["submitterPodTemplate"]["spec"]["containers"]}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    images |= set(re.findall(r"docker build .* -t (\S+) ", dockerfile))
    assert images == {f"registry.example/vlaw:{PROJECT['project']['version']}"}
    assert f"torch=={PINS['torch']} " in dockerfile
    assert "pip install -r requirements.txt" in dockerfile
    assert f"ray=={PINS['ray']}\n" in (ROOT / "requirements.txt").read_text()
    low, high = re.findall(r"3\.(\d+)", PROJECT["project"]["requires-python"])
    assert int(low) <= int(re.findall(r"FROM python:3\.(\d+)", dockerfile)[0]) < int(high)


def test_the_image_holds_what_a_job_ships_and_no_secret():
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    shipped = re.findall(r"^!/(\w\S*)$", (ROOT / ".rayignore").read_text(), re.MULTILINE)
    assert set(kept) == {*shipped, "requirements.txt"}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE)[-1] == "ray"
    assert not re.findall(r"^(?:ENV|ARG).*TOKEN", dockerfile, re.MULTILINE)
    assert "\n*\n" in (ROOT / ".dockerignore").read_text()  # all else stays at home


def test_nothing_runs_as_root_and_every_node_mounts_the_shared_folder(cluster, job):
    pods = [g["template"]["spec"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    claim = documents("cluster.yaml")["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods:
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {"name": "shared", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"]
    for pod in (*pods, job["submitterPodTemplate"]["spec"]):
        assert pod["securityContext"]["runAsNonRoot"] is True
    assert "out=/shared/" in job["entrypoint"]


def test_the_policy_lets_the_submitter_and_the_metrics_in_and_nobody_else(cluster, job):
    policy = documents("cluster.yaml")["NetworkPolicy"]["spec"]
    name = documents("cluster.yaml")["RayCluster"]["metadata"]["name"]
    own = {"ray.io/cluster": name}
    assert job["clusterSelector"] == own
    assert policy["podSelector"]["matchLabels"] == own
    inside, submitters, metrics = policy["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": own}}]}
    labels = job["submitterPodTemplate"]["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": labels}} in submitters["from"]
    named = {p["name"]: p["containerPort"] for c in containers(cluster) for p in c["ports"]}
    assert [rule["port"] for rule in submitters["ports"]] == [named["dashboard"]]
    assert [rule["port"] for rule in metrics["ports"]] == [named["metrics"]]


def kubernetes_nodes(cluster) -> list[Node]:
    """The head and every worker group at its largest."""
    found = [Node("head", float(cluster["headGroupSpec"]["rayStartParams"]["num-cpus"]), 0)]
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        own = json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        robots = own.get(ROBOT, 0)
        found += [
            Node(
                f"{group['groupName']}-{k}",
                float(limits["cpu"]),
                float(limits.get("nvidia.com/gpu", 0)),
                (ROBOT,) if robots else (),
                robots,
            )
            for k in range(group["maxReplicas"])
        ]
    return found


def test_the_job_fits_the_cluster(cluster, job):
    program, script, *arguments = shlex.split(job["entrypoint"])
    assert (program, script) == ("python", "/opt/vlaw/ray_job.py")
    placed = place(planned(*arguments), kubernetes_nodes(cluster))
    where = {item.process.name: {name[:5] for name in item.nodes} for item in placed}
    assert where.pop("robot") == {"robot"}
    assert set.union(*where.values()) == {"gpu-0", "gpu-1", "gpu-2", "gpu-3", "gpu-4", "gpu-5"}


def test_the_aws_cluster_is_valid_and_holds_a_run(aws):
    """Ray's own validator. It looks at no field of AWS itself."""
    config = prepare_config(copy.deepcopy(aws))
    validate_config(config)
    with pytest.raises(ValidationError, match="nonsense"):
        validate_config(config | {"nonsense": 1})
    nodes = []
    for name, kind in aws["available_node_types"].items():
        has, count = kind["resources"], kind.get("max_workers", 1)
        robots = has.get(ROBOT, 0)
        own = (ROBOT,) if robots else ()
        nodes += [Node(name, has["CPU"], has.get("GPU", 0), own, robots)] * count
    flags = [f"cluster.{who}_gpus=1" for who in ("worker", "learner", "scorer")]
    place(planned("task=all", *flags), nodes)


def node_script(*arguments: str, token: Path) -> subprocess.CompletedProcess[str]:
    """``node.sh`` with an `echo` in the place of `ray`."""
    ray = token.parent / "bin" / "ray"
    ray.parent.mkdir(exist_ok=True)
    ray.write_text('#!/bin/sh\necho "$RAY_AUTH_MODE" "$@"\n')
    ray.chmod(0o755)
    return subprocess.run(
        ["sh", DEPLOY / "node.sh", *arguments],
        env={"PATH": f"{ray.parent}:/usr/bin:/bin", "RAY_AUTH_TOKEN_PATH": str(token)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def token(tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef")
    return tmp_path / "token"


def test_a_machine_is_started_by_its_role(token):
    head = node_script("head", "--num-cpus=0", token=token).stdout
    assert head.startswith("token start --block ")
    assert "--head --port=6379 " in head
    assert head.endswith(" --num-cpus=0\n")
    robot = node_script("robot", "10.0.0.2", "--num-cpus=2", token=token).stdout
    assert "--address=10.0.0.2:6379 " in robot
    assert robot.endswith(f' --resources={{"{ROBOT}": 1}} --num-cpus=2\n')
    assert "resources" not in node_script("worker", "10.0.0.2", token=token).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: node.sh head"),
        (["worker"], "node.sh worker needs the head's address"),
        (["gpu", "10.0.0.2"], "knows head, worker and robot, not gpu"),
    ],
)
def test_a_machine_that_is_started_wrongly_is_told(token, arguments, said):
    done = node_script(*arguments, token=token)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_without_a_token_no_node_starts(tmp_path):
    done = node_script("head", token=tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no token in" in done.stderr
