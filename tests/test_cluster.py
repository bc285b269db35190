"""cluster/ and ``host-setup``: the manifests are valid and name what there is; hosts are set up, in another root."""

from __future__ import annotations

import errno
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.scripts.scripts import start as ray_start

from cluster import job
from tests import sandbox
from tests.kuberay_schema import SCHEMAS
from uring_actors import host_setup
from uring_actors.cli import main
from uring_actors.errors import OptionError

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
PROFILE = ROOT / "uring_actors" / "seccomp.json"
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
IO_URING = {"io_uring_setup", "io_uring_enter", "io_uring_register"}


# ── manifests ────────────────────────────────────────────────────────────────────────────────────────────────
def load(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def check(resource: dict[str, Any]) -> None:
    """Raises where Kubernetes, or KubeRay's definitions, would refuse it."""
    if resource["kind"] in SCHEMAS:
        jsonschema.validate(resource, SCHEMAS[resource["kind"]])
        templates = list(pod_templates(resource))
    else:
        templates = []
        kubernetes_validate.validate(resource, "1.31", strict=True)
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template.get("metadata", {})}}
        kubernetes_validate.validate({**pod, "spec": template["spec"]}, "1.31", strict=True)


def pod_templates(found: Any) -> Iterator[dict[str, Any]]:
    """Every ``template`` in a resource, wherever it is."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key == "template":
                yield value
            else:
                yield from pod_templates(value)
    elif isinstance(found, list):
        for value in found:
            yield from pod_templates(value)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path: Path) -> None:
    check(load(path))


def spoil_pod(cluster: dict[str, Any]) -> None:
    cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["securityContex"] = {}


def spoil_resource(cluster: dict[str, Any]) -> None:
    cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["ports"] = "8080"


def spoil_group(cluster: dict[str, Any]) -> None:
    cluster["spec"]["workerGroupSpecs"][0]["replica"] = 1


def spoil_parameters(cluster: dict[str, Any]) -> None:
    cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


@pytest.mark.parametrize("spoil", [spoil_pod, spoil_resource, spoil_group, spoil_parameters])
def test_what_is_wrong_is_found(spoil: Callable[[dict[str, Any]], None]) -> None:
    cluster = load(CLUSTER / "kuberay" / "raycluster.yaml")
    spoil(cluster)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(cluster)


def test_pods_may_do_what_scans_need() -> None:
    cluster = load(CLUSTER / "kuberay" / "raycluster.yaml")
    nvme, gpu = cluster["spec"]["workerGroupSpecs"]
    (worker,) = nvme["template"]["spec"]["containers"]
    allowed = worker["securityContext"]
    assert {"IPC_LOCK", "DAC_READ_SEARCH"} <= set(allowed["capabilities"]["add"])
    assert allowed["seccompProfile"] == {"type": "Localhost", "localhostProfile": "uring-actors.json"}
    (gpu_worker,) = gpu["template"]["spec"]["containers"]
    assert gpu_worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (chosen,) = re.findall(r"--nodes (\S+)", load(CLUSTER / "kuberay" / "rayjob.yaml")["spec"]["entrypoint"])
    for group in (nvme, gpu):
        (word,) = shlex.split(group["rayStartParams"]["resources"])
        assert json.loads(word) == {chosen: 1}
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert "hostPath" in volumes["data"]


def test_the_pieces_name_each_other() -> None:
    cluster, scan, setup = (load(CLUSTER / "kuberay" / f"{n}.yaml") for n in ("raycluster", "rayjob", "host-setup"))
    assert scan["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert not scan["spec"]["shutdownAfterJobFinishes"]
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    (script,) = re.findall(r"python (\S+)", scan["spec"]["entrypoint"])
    assert f"COPY cluster/job.py {script}" in dockerfile
    assert f"RAY_VERSION={cluster['spec']['rayVersion']}" in dockerfile
    (profile,) = host_setup.steps(kubernetes=True)[-1].files
    assert profile[0] == "/var/lib/kubelet/seccomp/uring-actors.json"
    (container,) = setup["spec"]["template"]["spec"]["initContainers"]
    name, *arguments = container["command"]
    assert name == "uring-actors"
    assert main([*arguments[:-1], "/nowhere at all"]) == 2, "only the root is wrong"


def test_the_launchers_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(CLUSTER / "launcher.yaml")
    prepared = prepare_config(config)  # what ``ray up`` makes of it, and then checks
    validate_config(prepared)
    (workers,) = [node for name, node in prepared["available_node_types"].items() if node.get("min_workers")]
    assert workers["min_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, "head_ip": "192.0.2.10"})


# ── the job ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("pattern", "status", "left"), [("needle", 0, 0), ("nothing", 1, 0), ("needle", 2, 2)])
def test_a_job_that_finds_nothing_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, status: int, left: int
) -> None:
    """The command's own statuses, on one node: here is no cluster. test_living_in_ray.py submits such a job."""
    (tmp_path / "f").write_bytes(b"a needle\n")
    paths = [str(tmp_path / "f")] * (status < 2) + [str(tmp_path / "none")] * (status == 2)
    told: list[Sequence[str]] = []

    def on_one_node(arguments: Sequence[str]) -> int:
        told.append(arguments)
        given = [word for word in arguments if word not in ("--address", "auto")]
        return main([*given, "--engine", "threads", "--io-engine", "pread", "--quiet"])

    monkeypatch.setattr(job, "uring_actors", on_one_node)
    assert job.main(["-e", pattern, *paths]) == left
    assert told == [["scan", "--address", "auto", "-e", pattern, *paths]]


def test_the_commands_of_the_readme() -> None:
    """What runs on no single machine is at least spelled right."""
    text = (CLUSTER / "README.md").read_text()
    for path in re.findall(r"(?<![/\w])cluster/[\w/.-]+\w", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"kubectl apply -f (\S+?)`", text):
        assert (ROOT / path) in MANIFESTS
    (submitted,) = re.findall(r"^ray job submit --working-dir cluster -- python job\.py (.*)$", text, re.MULTILINE)
    assert job.main([*shlex.split(submitted), "--explain"]) == 0
    words = shlex.split(load(CLUSTER / "kuberay" / "rayjob.yaml")["spec"]["entrypoint"])
    assert job.main([*words[2:], "--explain"]) == 0
    started = re.findall(r"^ray start (.*)$", text, re.MULTILINE)
    known = {option for parameter in ray_start.params for option in parameter.opts}
    assert started
    assert {word.partition("=")[0] for line in started for word in line.split()} <= known


# ── host-setup ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A root with the settings of a kernel that forbids everything."""
    for path, value in (
        ("proc/sys/kernel/io_uring_disabled", "2\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
        ("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size advise [never] deny force\n"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(value)
    return tmp_path


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_checking_changes_nothing(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(host)
    assert main(["host-setup", "--root", str(host), "--kubernetes"]) == 1
    assert contents(host) == before
    out = capsys.readouterr().out
    assert "/proc/sys/kernel/io_uring_disabled: would be 0 (was 2)" in out
    assert "/etc/security/limits.d/90-uring-actors.conf: would be written" in out
    assert "* hard memlock unlimited" in out
    assert "--apply" in out


def test_applying_once_is_enough(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["host-setup", "--root", str(host), "--kubernetes", "--user", "ray", "--group", "scanners"]
    assert main([*arguments, "--apply"]) == 0
    made = contents(host)
    assert made["proc/sys/kernel/io_uring_disabled"] == "0\n"
    assert made["sys/kernel/mm/transparent_hugepage/shmem_enabled"] == "advise\n"
    assert (
        "ray soft memlock unlimited\nray hard memlock unlimited\n"
        in made["etc/security/limits.d/90-uring-actors.conf"]
    )
    assert "DefaultLimitMEMLOCK=infinity" in made["etc/systemd/system.conf.d/90-uring-actors.conf"]
    assert 'GROUP="scanners"' in made["etc/udev/rules.d/90-uring-actors.rules"]
    assert made["var/lib/kubelet/seccomp/uring-actors.json"] == PROFILE.read_text()
    stamps = {path: path.stat().st_mtime_ns for path in host.rglob("*") if path.is_file()}
    capsys.readouterr()
    for extra in ([], ["--apply"]):
        assert main([*arguments, *extra]) == 0
        assert set(re.findall(r": (.*)$", capsys.readouterr().out, re.MULTILINE)) == {"as it should be"}
    assert {path: path.stat().st_mtime_ns for path in host.rglob("*") if path.is_file()} == stamps
    modes = {path.stat().st_mode & 0o777 for path in (host / "etc").rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_what_somebody_changed_is_set_again(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["host-setup", "--root", str(host)]
    assert main([*arguments, "--apply"]) == 0
    file = host / "etc/sysctl.d/90-uring-actors.conf"
    file.write_text("kernel.io_uring_disabled = 2\n")
    (host / "proc/sys/kernel/io_uring_disabled").write_text("1\n")
    capsys.readouterr()
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "90-uring-actors.conf: would be rewritten" in out
    assert "would be 0 (was 1)" in out
    assert "2 changes" in out
    assert main([*arguments, "--apply"]) == 0
    assert "-kernel.io_uring_disabled = 0\n" in file.read_text()


@pytest.mark.parametrize(
    ("now", "left"),
    [("[always] madvise never\n", True), ("always [madvise] never\n", True), ("always madvise [never]\n", False)],
)
def test_more_than_was_asked_is_left(host: Path, now: str, left: bool) -> None:
    setting = host / "sys/kernel/mm/transparent_hugepage/enabled"
    setting.write_text(now)
    for change in list(host_setup.changes(host_setup.steps(), host)):
        host_setup.apply(change, host)
    assert setting.read_text() == (now if left else "madvise\n")


def test_a_kernel_without_the_settings(tmp_path: Path) -> None:
    assert main(["host-setup", "--root", str(tmp_path), "--apply"]) == 0
    assert not (tmp_path / "proc").exists()
    assert not (tmp_path / "sys").exists()
    assert main(["host-setup", "--root", str(tmp_path)]) == 0


def test_a_place_that_cannot_be_written(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (host / "etc").write_text("a file, where a directory should be")
    assert main(["host-setup", "--root", str(host), "--apply"]) == 2
    assert "/etc" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"user": "a b"}, {"user": ""}, {"group": 'x", RUN+="y'}, {"group": "*"}])
def test_names_that_are_none(options: dict[str, str]) -> None:
    with pytest.raises(OptionError):
        host_setup.steps(**options)  # type: ignore[arg-type]


# ── the seccomp profile ──────────────────────────────────────────────────────────────────────────────────────
def run_under(profile: Path, *command: str) -> subprocess.CompletedProcess[str]:
    if sandbox.library() is None:
        pytest.skip("no libseccomp here")
    return subprocess.run(
        [sys.executable, "-m", "tests.sandbox", str(profile), *command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


def test_a_scan_with_io_uring_under_the_profile(tmp_path: Path, need_uring: Callable[[], None]) -> None:
    need_uring()
    (tmp_path / "f").write_bytes(b"a needle\n")
    scan = (sys.executable, "-m", "uring_actors", "scan", "--engine", "threads", "--io-engine", "uring")
    command = (*scan, "--quiet", "-e", "needle", str(tmp_path / "f"))
    done = run_under(PROFILE, *command)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/f:1:3:needle\n"), done.stderr
    profile = json.loads(PROFILE.read_text())
    (ours,) = [entry for entry in profile["syscalls"] if set(entry["names"]) == IO_URING]
    profile["syscalls"].remove(ours)
    (tmp_path / "without").write_text(json.dumps(profile))
    done = run_under(tmp_path / "without", *command)
    assert done.returncode == 2
    assert "io_uring_setup failed" in done.stderr


@pytest.mark.parametrize("call", ["unshare(0x10000000)", "setns(0, 0)", 'chroot(b"/")', 'mount(0, b"/", 0, 32, 0)'])
def test_the_profile_forbids_what_the_runtimes_do(call: str) -> None:
    code = f"import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.{call}, ctypes.get_errno())"
    done = run_under(PROFILE, sys.executable, "-c", code)
    assert done.stdout == f"-1 {errno.ENOSYS}\n", done.stderr
