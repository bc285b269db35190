"""Metrics of a running scan through ``ray.util.metrics``: Ray's node agents export them for Prometheus.

Each actor measures its own part; an agent all parts of a pipeline that is in its process. ``sample`` reads the
counters that a part keeps anyway, at most once in INTERVAL_SECONDS, so nothing here runs for a slot; stage latencies
come from the few extents that are timed (``arena/samples.py``). docs/metrics.md lists every name. What happened after
the last export is lost when an actor ends: metrics are for watching, ``ScanStats`` is the account.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Final

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from uring_actors.kernel_host import KernelHost
from uring_actors.loop import LoopThread
from uring_actors.node import LocalNode, NodeSpec
from uring_actors.publisher import Publisher
from uring_actors.reader import Reader

INTERVAL_SECONDS: Final = 1.0

NODE: Final = ("node", "tenant")
DEVICE: Final = ("node", "device", "tenant")
STAGES: Final = ("read", "publish", "scan", "settle")

COUNTERS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "bytes_read": ("Bytes that reads delivered, halos and repeated reads included.", DEVICE),
    "reads": ("Reads that delivered bytes.", DEVICE),
    "read_retries": ("Reads that were tried again.", DEVICE),
    "read_failures": ("Extents that could not be read as a whole, and files that could not be opened.", DEVICE),
    "files_opened": ("Files opened.", DEVICE),
    "bytes_scanned": ("Bytes of files that the kernel is done with.", DEVICE),
    "faults": ("Ring slots that the kernel refused or could not run.", DEVICE),
    "files_scanned": ("Files that are settled, those with errors included.", NODE),
    "matches": ("Rows found.", NODE),
    "errors": ("Files that could not be scanned, or not as a whole.", NODE),
}
GAUGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "reads_in_flight": ("Reads begun and not finished.", DEVICE),
    "files_waiting": ("Files given to a reader and not yet opened.", DEVICE),
    "ring_slots": ("Slots that the ring has.", NODE),
    "ring_slots_in_use": ("Slots published and not yet retired.", NODE),
}
STAGE_SECONDS: Final = "stage_seconds"
STAGE_HELP: Final = (
    "Of about one extent in 64: from begin to end of its read, until it is published, scanned, and settled."
)
BOUNDARIES: Final = tuple(10.0**power * digit for power in range(-6, 1) for digit in (1, 2, 5))
"""Seconds: 1 µs to 5 s."""


def full_name(name: str) -> str:
    """As given to Ray, which puts ``ray_`` before it."""
    return f"uring_actors_{name}"


class Meter:
    """Turns totals into increments, for one set of tags. Subclasses say what to read in ``measure``."""

    def __init__(self, names: Iterable[str], **tags: str) -> None:
        self.tags = {**tags, "node": ray.get_runtime_context().get_node_id()}
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._before: dict[tuple[str, str], int] = {}
        self._due = 0.0
        for name in names:
            if name in COUNTERS:
                text, keys = COUNTERS[name]
                self._counters[name] = Counter(full_name(name), text, keys)
            else:
                text, keys = GAUGES[name]
                self._gauges[name] = Gauge(full_name(name), text, keys)

    def sample(self, *, now: bool = False) -> None:
        """Measure, where INTERVAL_SECONDS have passed since the last time; ``now``: in any case."""
        if now or time.monotonic() >= self._due:
            self._due = time.monotonic() + INTERVAL_SECONDS
            self.measure()

    def measure(self) -> None:
        raise NotImplementedError

    def count(self, name: str, total: int, **tags: str) -> None:
        """Bring a counter up to ``total``."""
        key = (name, tags.get("device", ""))
        more = total - self._before.get(key, 0)
        if more > 0:
            self._before[key] = total
            self._counters[name].inc(more, {**self.tags, **tags})

    def set(self, name: str, value: int) -> None:
        """Set a gauge."""
        self._gauges[name].set(value, self.tags)


class ReaderMeter(Meter):
    """Of one device's reader."""

    def __init__(self, reader: Reader, tenant: str) -> None:
        names = ("bytes_read", "reads", "read_retries", "read_failures", "files_opened")
        super().__init__((*names, "reads_in_flight", "files_waiting"), device=reader.device, tenant=tenant)
        self._reader = reader

    def measure(self) -> None:
        stats = self._reader.stats()
        self.count("bytes_read", stats.lanes.completed_bytes)
        self.count("reads", stats.lanes.completed_reads)
        self.count("read_retries", stats.lanes.retries)
        self.count("read_failures", stats.lanes.failed_completions)
        self.count("files_opened", stats.files_opened)
        self.set("reads_in_flight", stats.lanes.in_flight)
        self.set("files_waiting", stats.files_queued)


class PublisherMeter(Meter):
    """Of the ring, and of what came back from it, device by device."""

    def __init__(self, publisher: Publisher, spec: NodeSpec, tenant: str) -> None:
        super().__init__(("bytes_scanned", "faults", "ring_slots", "ring_slots_in_use"), tenant=tenant)
        self._publisher = publisher
        self._ring_slots = spec.layout.ring_slots
        self._devices = {lane: name for i, (_, name) in enumerate(spec.devices) for lane in spec.lanes_of(i)}
        self._stages = Histogram(full_name(STAGE_SECONDS), STAGE_HELP, list(BOUNDARIES), (*DEVICE, "stage"))

    def measure(self) -> None:
        stats = self._publisher.stats()
        for name in set(self._devices.values()):
            lanes = [lane for lane, device in self._devices.items() if device == name]
            self.count("bytes_scanned", sum(stats.scanned[lane] for lane in lanes), device=name)
            self.count("faults", sum(stats.faults[lane] for lane in lanes), device=name)
        self.set("ring_slots", self._ring_slots)
        self.set("ring_slots_in_use", stats.in_ring)
        for latency in self._publisher.latencies():
            for stage in STAGES:
                tags = {**self.tags, "device": self._devices[latency.lane], "stage": stage}
                self._stages.observe(getattr(latency, stage) / 1e9, tags)


class HostMeter(Meter):
    """Of what is settled."""

    def __init__(self, host: KernelHost, tenant: str) -> None:
        super().__init__(("files_scanned", "matches", "errors"), tenant=tenant)
        self._host = host

    def measure(self) -> None:
        stats = self._host.stats()
        self.count("files_scanned", stats.files)
        self.count("matches", stats.matches)
        self.count("errors", stats.errors)


class MeasuredNode(LocalNode):
    """All roles in this process, with their metrics: for a process that Ray exports from."""

    def __init__(self, spec: NodeSpec) -> None:
        super().__init__(spec)
        tenant = tenant_of(spec)
        self._meters = [
            HostMeter(self._host, tenant),
            PublisherMeter(self._publisher, spec, tenant),
            *(ReaderMeter(reader, tenant) for reader in self._readers),
        ]
        self._ending = threading.Event()
        self._sampling = LoopThread("metrics", self._sample, wake=self._ending.set)

    def start(self) -> None:
        super().start()
        self._sampling.start()

    def _sample(self) -> bool:
        for meter in self._meters:
            meter.sample()
        return not self._ending.wait(INTERVAL_SECONDS)

    def close(self) -> None:
        """What was done since the last sample counts as well."""
        if not self._ending.is_set():
            self._sampling.stop()
            self._sampling.join(10)
            for meter in self._meters:
                meter.sample(now=True)
        super().close()


def tenant_of(spec: NodeSpec) -> str:
    """The scan, as far as a node knows it: Ray's job and the tenant's number in the ring."""
    return f"{ray.get_runtime_context().get_job_id()}/{spec.job.tenant}"
