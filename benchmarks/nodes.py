"""(e) One job over three raylets of this machine, against the single-node Ray scan of the same cached files; with one
raylet lost at half time; and how soon a second job's first rows come.

The raylets share the machine's cores, so nothing can be gained: what is measured is what leases, acknowledgements and
three pipelines cost. The ratio counts from the first byte, as the other measurements do: a scan's can be read when
``scan`` returns, a job's when the first node works.

    python -m benchmarks.nodes DIRECTORY ROUNDS      a process of its own, that prints one JSON object
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.data import make_links, patterns_of
from benchmarks.model import Missing, Setting, Verdict

BAR = 1.15
FIRST_BAR = 3.0
RAYLETS = 3
_FILE = 64 << 20
_ROOT = Path(__file__).parent.parent
_NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 128 << 20}


def measure(setting: Setting) -> None:
    folder = setting.directory / "nodes"
    folder.mkdir(exist_ok=True)
    with setting.text.open("rb") as source:
        (folder / "text").write_bytes(source.read(_FILE))
    make_links(folder / "text", max(RAYLETS * 4, 4 * setting.size // _FILE) - 1)
    command = [sys.executable, "-m", "benchmarks.nodes", str(folder), str(setting.rounds)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Missing(done.stderr[-2000:])
    said = json.loads(done.stdout.splitlines()[-1])
    size = sum(path.stat().st_size for path in folder.iterdir())
    job, alone = sorted(said["job"])[len(said["job"]) // 2], sorted(said["alone"])[len(said["alone"]) // 2]
    setting.report.verdicts += [
        Verdict(
            "nodes",
            f"time of {RAYLETS} raylets, of one node's",
            tuple(ours / theirs for ours, theirs in zip(said["job"], said["alone"], strict=True)),
            BAR,
            at_least=False,
            ours=f"{size / job / 1e9:.2f} GB/s",
            theirs=f"{size / alone / 1e9:.2f} GB/s",
            notes=(f"{size / (1 << 30):.1f} GiB; what each raylet did of it: {said['shares']}",),
        ),
        Verdict("nodes", "rows missing or twice, a raylet killed", (float(said["wrong"]),), 0, at_least=False),
        Verdict(
            "nodes",
            "bytes done again, of the lost one's share",
            (said["again"] / (size / RAYLETS),),
            1,
            at_least=False,
            notes=(f"a raylet killed at half time: {said['lossy']:.1f} s in all, {said['again'] >> 20} MiB again",),
        ),
        Verdict(
            "nodes",
            "s to the second job's first rows",
            tuple(said["first"]),
            FIRST_BAR,
            at_least=False,
            notes=(
                f"time to first rows, engines threads and ray: {said['first'][0]:.1f} and {said['first_ray']:.1f} s",
            ),
        ),
    ]


class _Watch(threading.Thread):
    """When the first node of a job worked."""

    def __init__(self, job: Any) -> None:
        super().__init__(daemon=True)
        self.began: float | None = None
        self._job = job

    def run(self) -> None:
        while "working" not in self._job.nodes["state"].to_pylist():
            time.sleep(0.02)
        self.began = time.monotonic()


def _alone(folder: str, options: dict[str, Any]) -> tuple[float, int]:
    """Seconds from the first byte, and rows."""
    from uring_actors import scan

    running = scan(folder, engine="ray", **options)
    began = time.monotonic()
    rows = sum(batch.num_rows for batch in running)
    return time.monotonic() - began, rows


def _job(folder: str, options: dict[str, Any], address: str, lose: Any = None) -> tuple[float, int, Any]:
    from uring_actors import scan

    size = sum(path.stat().st_size for path in Path(folder).iterdir())
    job = scan(folder, address=address, **options)
    watch = _Watch(job)
    watch.start()
    rows = 0
    for batch in job:
        rows += batch.num_rows
        if lose is not None and job.stats.bytes >= size / 2:
            lose()
            lose = None
    ended = time.monotonic()
    watch.join()
    assert watch.began is not None
    return ended - watch.began, rows, job.nodes


def _first(folder: str, options: dict[str, Any], address: str) -> float:
    from uring_actors import scan

    began = time.monotonic()
    with scan(folder, address=address, **options) as job:
        next(iter(job))
        return time.monotonic() - began


def _serve(folder: str, rounds: int) -> dict[str, Any]:
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "node_name": "0", "include_dashboard": False})
    raylets = [cluster.add_node(**_NODE, node_name=str(number)) for number in range(1, RAYLETS)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    options: dict[str, Any] = {"patterns": patterns_of("literal-led")}
    threads = {**options, "engine": "threads"}
    said: dict[str, Any] = {"job": [], "alone": [], "wrong": 0, "first": []}
    _job(folder, threads, cluster.address)  # loads the compiled loops
    for _ in range(rounds):
        seconds, wanted = _alone(folder, options)
        said["alone"].append(seconds)
        seconds, rows, nodes = _job(folder, threads, cluster.address)
        said["job"].append(seconds)
        said["wrong"] += abs(rows - wanted)
        said["first"].append(_first(folder, threads, cluster.address))
    said["shares"] = ", ".join(f"{bytes_ >> 20} MiB" for bytes_ in nodes["bytes"].to_pylist())
    said["first_ray"] = _first(folder, {**options, "engine": "ray"}, cluster.address)
    lose = lambda: cluster.remove_node(raylets[-1], allow_graceful=False)  # noqa: E731
    said["lossy"], rows, nodes = _job(folder, threads, cluster.address, lose)
    said["wrong"] += abs(rows - wanted)
    said["again"] = sum(nodes["again"].to_pylist())
    ray.shutdown()
    cluster.shutdown()
    return said


if __name__ == "__main__":
    print(json.dumps(_serve(sys.argv[1], int(sys.argv[2]))))
