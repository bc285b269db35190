"""Metrics as Prometheus gets them: scraped from the node's own endpoint while a scan stands still."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

import uring_actors as ua
from tests import processes
from uring_actors import metrics
from uring_actors.actors import ensure_ray

LINE = b"a needle\n"
DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"
SAMPLE = re.compile(r"^ray_uring_actors_(\w+)\{(.*)\} (\S+)$", re.MULTILINE)

Found = dict[str, list[tuple[dict[str, str], float]]]


def scrape() -> Found:
    """Our metrics on this node: by name without prefixes, the tags and the value of each series."""
    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found: Found = {}
    for name, tags, value in SAMPLE.findall(text):
        found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value)))
    return found


def workers() -> set[str]:
    """The processes of which there are metrics. Those of earlier scans stay for a while."""
    return {tags["WorkerId"] for series in scrape().values() for tags, _ in series}


def of_tenant(found: Found, name: str, tenant: str, earlier: set[str]) -> list[tuple[dict[str, str], float]]:
    """The series of a tenant's processes, but for the ``earlier`` ones'."""
    series = found.get(name, [])
    return [(tags, value) for tags, value in series if tags["tenant"] == tenant and tags["WorkerId"] not in earlier]


@pytest.mark.usefixtures("ray_session")
def test_a_node_exports_them(tmp_path: Path) -> None:
    import ray

    ensure_ray()
    earlier = workers()
    (tmp_path / "many").write_bytes(LINE * 3_000_000)
    scan = ua.scan(tmp_path, patterns=["needle"], engine="ray", io_engine="pread", slot_bytes=65536, slots=4)
    with scan:
        batches = iter(scan)
        next(batches)  # nobody takes the rest: it stands still, with all of its slots in the ring
        scanned = processes.when_still(lambda: scan.stats.bytes)
        tenant = f"{ray.get_runtime_context().get_job_id()}/0"

        def totals() -> dict[str, float]:
            found = scrape()
            names = [f"{name}_total" for name in metrics.COUNTERS] + list(metrics.GAUGES)
            return {name: sum(value for _, value in of_tenant(found, name, tenant, earlier)) for name in names}

        def exported() -> bool:
            """Each process exports its own, when it comes to it."""
            values = totals()
            return values["bytes_scanned_total"] >= scanned and values["bytes_read_total"] > scanned

        processes.wait_until(exported, 30)
        values = totals()
        found = scrape()
    assert values["bytes_read_total"] > scanned
    assert values["reads_total"] > 0
    assert values["files_opened_total"] >= 1
    assert values["matches_total"] > 0
    assert values["ring_slots_in_use"] >= 4
    assert values["ring_slots"] >= 8
    assert {name for name, value in values.items() if not value} <= {
        "read_retries_total",
        "read_failures_total",
        "faults_total",
        "errors_total",
        "files_scanned_total",
        "reads_in_flight",
        "files_waiting",
    }
    node = ray.get_runtime_context().get_node_id()
    for tags, _ in of_tenant(found, "bytes_scanned_total", tenant, earlier):
        assert tags["node"] == node
        assert tags["device"] in scan.stats.devices
    timed = of_tenant(found, "stage_seconds_count", tenant, earlier)
    assert {tags["stage"] for tags, _ in timed} == set(metrics.STAGES)
    assert all(count >= 1 for _, count in timed)
    assert {tags["device"] for tags, _ in timed} <= set(scan.stats.devices)


@pytest.mark.usefixtures("ray_session")
def test_a_nodes_agent_exports_them_for_all_roles_in_it(tmp_path: Path) -> None:
    """One job after another in the same process: nothing is lost at the end of either, nothing counts twice."""
    ensure_ray()
    (tmp_path / "many").write_bytes(LINE * 30_000)
    (tmp_path / "few").write_bytes(LINE)
    earlier = workers()

    def totals() -> dict[str, float]:
        return {
            name: sum(value for tags, value in series if tags["WorkerId"] not in earlier)
            for name, series in scrape().items()
        }

    for jobs in (1, 2):
        job = ua.scan(tmp_path, patterns=["needle"], address="auto", engine="threads", io_engine="pread")
        assert job.to_table().num_rows == 30_001
        wanted = {"files_scanned_total": 2, "matches_total": 30_001, "bytes_scanned_total": 30_001 * len(LINE)}
        processes.wait_until(
            lambda wanted=wanted, jobs=jobs: (
                {name: totals().get(name, 0) for name in wanted}
                == {name: jobs * value for name, value in wanted.items()}
            ),
            30,
        )
    assert {"reads_total", "files_opened_total", "ring_slots"} <= totals().keys()
    ua.release_warm()


def test_the_page_has_every_name() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([a-z, ]+) \|", DOCS.read_text(), re.MULTILINE)
    wanted = {f"ray_uring_actors_{name}_total": ("counter", tags) for name, (_, tags) in metrics.COUNTERS.items()}
    wanted |= {f"ray_uring_actors_{name}": ("gauge", tags) for name, (_, tags) in metrics.GAUGES.items()}
    wanted[f"ray_uring_actors_{metrics.STAGE_SECONDS}"] = ("histogram", (*metrics.DEVICE, "stage"))
    assert {name: (kind, tuple(tags.split(", "))) for name, kind, tags in rows} == wanted
