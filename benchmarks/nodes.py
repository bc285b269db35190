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
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.data import make_links, patterns_of
from benchmarks.memory import family
from benchmarks.model import Missing, Setting, Verdict

BAR = 1.15
FIRST_BAR = 3.0
RAYLETS = 3
_FILE = 64 << 20
_LEASES = 16
"""That each raylet should have a part of, at least: what one holds is then little."""
_ROOT = Path(__file__).parent.parent
_NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 128 << 20}
_TICK = os.sysconf("SC_CLK_TCK")


def measure(setting: Setting) -> None:
    folder = setting.directory / "nodes"
    folder.mkdir(exist_ok=True)
    with setting.text.open("rb") as source:
        (folder / "text").write_bytes(source.read(_FILE))
    make_links(folder / "text", max(RAYLETS * _LEASES, 4 * setting.size // _FILE) - 1)
    command = [sys.executable, "-m", "benchmarks.nodes", str(folder), str(setting.rounds)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Missing(done.stderr[-2000:])
    said = json.loads(done.stdout.splitlines()[-1])
    size = sum(path.stat().st_size for path in folder.iterdir())
    job, alone = statistics.median(said["job"]), statistics.median(said["alone"])
    setting.report.verdicts += [
        Verdict(
            "nodes",
            f"time of {RAYLETS} raylets, of one node's",
            tuple(ours / theirs for ours, theirs in zip(said["job"], said["alone"], strict=True)),
            BAR,
            at_least=False,
            ours=f"{size / job / 1e9:.2f} GB/s",
            theirs=f"{size / alone / 1e9:.2f} GB/s",
            cpu_ratio=statistics.median(said["alone_cpu"]) / statistics.median(said["job_cpu"]),
            notes=(f"{size / (1 << 30):.1f} GiB; what each raylet did of it: {said['shares']}",),
        ),
        Verdict(
            "nodes", "files with rows missing or twice, a raylet killed", (float(said["wrong"]),), 0, at_least=False
        ),
        Verdict(
            "nodes",
            "bytes done again, of the lost one's share",
            (said["again"] / (size / RAYLETS),),
            1,
            at_least=False,
            notes=(
                f"a raylet killed at half time, with {said['done'] >> 20} MiB done and "
                f"{said['again'] >> 20} MiB held: {said['lossy']:.1f} s in all",
            ),
        ),
        *(
            Verdict(
                "nodes",
                f"s to the second job's first rows, engine {engine}",
                tuple(said["first"][engine]),
                FIRST_BAR,
                at_least=False,
                notes=(f"the first job's came after {said['cold'][engine]:.1f} s",),
            )
            for engine in ("threads", "ray")
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


def _cpu() -> dict[int, float]:
    """CPU seconds so far of this process and those below it."""
    seconds = {}
    for pid in family(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        seconds[pid] = (int(fields[11]) + int(fields[12])) / _TICK
    return seconds


def _cpu_since(before: dict[int, float]) -> float:
    """Of those that live now."""
    return sum(seconds - before.get(pid, 0) for pid, seconds in _cpu().items())


def _rows(batches: Iterable[Any]) -> Counter[bytes]:
    """How many rows each file has."""
    counted: Counter[bytes] = Counter()
    for batch in batches:
        for pair in batch.column("path").value_counts().to_pylist():
            counted[pair["values"]] += pair["counts"]
    return counted


def _alone(folder: str, options: dict[str, Any]) -> tuple[float, float, Counter[bytes]]:
    """Seconds from the first byte, CPU seconds meanwhile, and rows."""
    from uring_actors import scan

    running = scan(folder, engine="ray", **options)
    began, cpu = time.monotonic(), _cpu()
    batches = list(running._node.batches(running._feeder.check))  # the actors' CPU counts before they are ended
    seconds = time.monotonic() - began
    spent = _cpu_since(cpu)
    running.close()
    return seconds, spent, _rows(batches)


def _job(
    folder: str, options: dict[str, Any], address: str, lose: Any = None
) -> tuple[float, float, Counter[bytes], Any]:
    """As ``_alone``, and how the nodes fared. lose: called once, at half time."""
    from uring_actors import scan

    size = sum(path.stat().st_size for path in Path(folder).iterdir())
    cpu = _cpu()
    job = scan(folder, address=address, **options)
    watch = _Watch(job)
    watch.start()
    batches = []
    for batch in job:
        batches.append(batch)
        if lose is not None and job.stats.bytes >= size / 2:
            lose(job)
            lose = None
    ended = time.monotonic()
    watch.join()
    assert watch.began is not None
    return ended - watch.began, _cpu_since(cpu), _rows(batches), job.nodes


def _first(folder: str, options: dict[str, Any], address: str) -> float:
    from uring_actors import scan

    began = time.monotonic()
    with scan(folder, address=address, **options) as job:
        batches = iter(job)
        next(batches)
        first = time.monotonic() - began
        for _ in batches:
            pass
    return first


class _Loser:
    """Kills a raylet that has done and holds work, and notes which."""

    def __init__(self, cluster: Any, raylets: dict[str, Any]) -> None:
        self._cluster = cluster
        self._raylets = raylets
        self.node = ""

    def __call__(self, job: Any) -> None:
        done = {row["node"]: row["bytes"] for row in job.nodes.to_pylist() if row["state"] == "working"}
        self.node = max(self._raylets, key=lambda name: done.get(name, 0))
        self._cluster.remove_node(self._raylets[self.node], allow_graceful=False)


def _serve(folder: str, rounds: int) -> dict[str, Any]:
    import ray
    from ray.cluster_utils import Cluster

    from uring_actors import release_warm

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "node_name": "0", "include_dashboard": False})
    raylets = {name: cluster.add_node(**_NODE, node_name=name) for name in map(str, range(1, RAYLETS))}
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    files = list(Path(folder).iterdir())
    size = sum(path.stat().st_size for path in files)
    options: dict[str, Any] = {"patterns": patterns_of("literal-led")}
    threads = {**options, "engine": "threads", "lease_bytes": min(64 << 20, size // (RAYLETS * _LEASES))}
    said: dict[str, Any] = {"job": [], "job_cpu": [], "alone": [], "alone_cpu": [], "wrong": 0, "cold": {}}
    said["first"] = {"threads": [], "ray": []}
    _first(folder, threads, cluster.address)  # compiles, where that was never done
    for engine in ("ray", "threads"):
        release_warm()
        chosen = {**threads, "engine": engine}
        said["cold"][engine] = _first(folder, chosen, cluster.address)
        said["first"][engine] = [_first(folder, chosen, cluster.address) for _ in range(rounds)]
    for _ in range(rounds):
        seconds, cpu, wanted = _alone(folder, options)
        said["alone"].append(seconds)
        said["alone_cpu"].append(cpu)
        seconds, cpu, rows, nodes = _job(folder, threads, cluster.address)
        said["job"].append(seconds)
        said["job_cpu"].append(cpu)
        said["wrong"] += _differing(rows, wanted)
    said["shares"] = ", ".join(f"{bytes_ >> 20} MiB" for bytes_ in nodes["bytes"].to_pylist())
    lose = _Loser(cluster, raylets)
    said["lossy"], _, rows, nodes = _job(folder, threads, cluster.address, lose)
    said["wrong"] += _differing(rows, wanted)
    (lost,) = [row for row in nodes.to_pylist() if row["node"] == lose.node]
    said["done"], said["again"] = lost["bytes"], sum(nodes["again"].to_pylist())
    ray.shutdown()
    cluster.shutdown()
    if not (lost["again"] and lost["bytes"]):
        raise SystemExit(f"the raylet that was killed had no work: {nodes.to_pylist()}")
    return said


def _differing(rows: Counter[bytes], wanted: Counter[bytes]) -> int:
    """Files with another number of rows."""
    return sum(rows[path] != wanted[path] for path in rows.keys() | wanted.keys())


if __name__ == "__main__":
    print(json.dumps(_serve(sys.argv[1], int(sys.argv[2]))))
