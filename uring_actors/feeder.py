"""A thread that hands a node its files: listed ones (``scanning.py``), or leased ones (``many/agent.py``)."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from uring_actors.node import Node


class Feeder(ABC):
    """Life: created → started → ended, by itself or after ``stop`` (idempotent).

    node: what it feeds. ended: set when it has given its last.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.ended = threading.Event()
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    @abstractmethod
    def _feed(self) -> None:
        """Submit files until there are no more, and say so (``finish``); or until ``_stopping``."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(10)

    def check(self) -> None:
        """Raise what ended the feeding, if anything did but ``stop``."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._feed()
        except BaseException as error:
            if not self._stopping.is_set():
                self._failure = error
        finally:
            self.ended.set()
