"""Jobs as Ray runs them elsewhere: submitted, with a runtime environment, with token authentication, and inside a
driver that has a Ray of its own. Each starts a Ray in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow  # each starts a Ray, one of them with its dashboard


def run(program: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


OPTIONS = """OPTIONS = dict(patterns=["needle"], io_engine="pread", slot_bytes=65536, slots=4, kernel_threads=1)
"""

TOKEN = (
    OPTIONS
    + """
import os, sys
import ray
import uring_actors as ua
ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
assert os.environ["RAY_AUTH_MODE"] == "token"
for engine in ("threads", "ray"):
    job = ua.scan(sys.argv[1], address="auto", engine=engine, **OPTIONS)
    assert job.to_table().num_rows == 500, job.errors
    assert ray.is_initialized()
scan = ua.scan(sys.argv[1], engine="ray", **OPTIONS)
assert scan.to_table().num_rows == 500
assert ray.is_initialized()
print("done")
"""
)


def test_with_token_authentication_in_a_driver_that_has_ray(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a needle\n" * 500)
    assert run(TOKEN, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4).endswith("done\n")


SUBMIT = """
import subprocess, sys, time
import ray
from ray.job_submission import JobSubmissionClient
context = ray.init(
    "local", num_cpus=2, include_dashboard=True, dashboard_port=0, object_store_memory=80 << 20, _node_name="one"
)
start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
start += ["--object-store-memory", "80000000", "--dashboard-agent-listen-port", "0"]
start += ["--address", context.address_info["gcs_address"], "--node-name"]
others = [subprocess.Popen([*start, name], stdout=subprocess.DEVNULL) for name in sys.argv[3:]]
while len(ray.nodes()) <= len(others):
    time.sleep(0.1)
client = JobSubmissionClient("http://" + context.dashboard_url)
environment = {"working_dir": sys.argv[2], "env_vars": {"URING_ACTORS_TEST": "there"}}
for last in [False] * 60 + [True]:
    try:
        job = client.submit_job(entrypoint=sys.argv[1], runtime_env=environment)
        break
    except RuntimeError as error:  # on a busy machine Ray's agent comes late
        if last or "try again later" not in str(error):
            raise
        time.sleep(1)
while client.get_job_status(job) not in ("SUCCEEDED", "FAILED", "STOPPED"):
    time.sleep(0.5)
print(client.get_job_status(job))
print(client.get_job_logs(job))
for other in others:
    other.terminate()
    other.wait()
"""

PROGRAM = """
import os
import uring_actors as ua
from pathlib import Path

assert "runtime_resources" in ua.__file__, ua.__file__
assert os.environ["URING_ACTORS_TEST"] == "there"
job = ua.scan(Path("files").absolute(), address="auto", engine="threads", patterns=["needle"], io_engine="pread")
print("rows:", job.to_table().num_rows, job.nodes["state"].to_pylist())
"""


@pytest.mark.parametrize("how", ["program", "command"])
def test_submitted_with_a_runtime_environment(tmp_path: Path, how: str) -> None:
    """The package itself comes with the working directory, to the driver and to every node."""
    shutil.copytree(ROOT / "uring_actors", tmp_path / "uring_actors", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file").write_bytes(b"a needle\n" * 500)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = "-m uring_actors scan --address auto --engine threads --io-engine pread -e needle files -o rows --quiet"
    told = "&& wc -l < rows" if how == "command" else ""
    entry = f"{sys.executable} {'program.py' if how == 'program' else command} {told}"
    said = run(SUBMIT, entry, tmp_path, PYTHONPATH="")
    assert "SUCCEEDED" in said, said
    assert ("rows: 500 ['working']" if how == "program" else "\n500\n") in said, said


def test_the_job_script_scans_on_all_nodes(tmp_path: Path) -> None:
    """cluster/job.py, submitted as its docstring says: each node scans what it has for itself, unless left out."""
    for folder in ("files", "work"):
        (tmp_path / folder).mkdir()
    (tmp_path / "files" / "file").write_bytes(b"a needle\n" * 500)
    shutil.copy(ROOT / "cluster" / "job.py", tmp_path / "work" / "job.py")
    found = tmp_path / "rows"  # not in the job's folder: nodes of one machine share that, and one may remove it
    scan = f"{sys.executable} job.py --engine threads --io-engine pread --format jsonl --quiet -e needle"
    command = f"{scan} -o {found} --host-local {tmp_path / 'files'}"
    said = run(SUBMIT, command, tmp_path / "work", "two", PYTHONPATH=str(ROOT))
    assert "SUCCEEDED" in said, said
    nodes = Counter(json.loads(row)["node"] for row in found.read_text().splitlines())
    assert nodes == {"one": 500, "two": 500}
