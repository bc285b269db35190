"""Jobs as Ray runs them elsewhere: submitted, with a runtime environment, with token authentication, and inside a
driver that has a Ray of its own. Each starts a Ray in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
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
import sys, time
import ray
from ray.job_submission import JobSubmissionClient
context = ray.init(num_cpus=2, include_dashboard=True, dashboard_port=0, object_store_memory=80 << 20)
client = JobSubmissionClient("http://" + context.dashboard_url)
job = client.submit_job(
    entrypoint=sys.argv[1], runtime_env={"working_dir": sys.argv[2], "env_vars": {"URING_ACTORS_TEST": "there"}}
)
while client.get_job_status(job) not in ("SUCCEEDED", "FAILED", "STOPPED"):
    time.sleep(0.5)
print(client.get_job_status(job))
print(client.get_job_logs(job))
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
