"""Which server a request goes to, and one line for all requests that wait for one that fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

log = logging.getLogger("dapo_fast.rollout.http")

_DOWN_SECONDS = 5.0  # a server that failed is avoided for so long, if there is another
_LINE_SECONDS = 60.0  # between two lines about the same server


class One:
    """One server and the requests in flight to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.busy = 0
        self.down_until = 0.0
        self._failing_since: float | None = None
        self._failures = 0  # since the last line
        self._next_line = 0.0
        self._lock = threading.Lock()

    def failed(self, failure: object) -> None:
        """A request failed and is asked again; said at once, and then once a minute for all of them."""
        now = time.monotonic()
        with self._lock:
            self.down_until = now + _DOWN_SECONDS
            self._failing_since = self._failing_since or now
            self._failures += 1
            failures, due = self._failures, now >= self._next_line
            if due:
                self._failures, self._next_line = 0, now + _LINE_SECONDS
        if due:
            log.warning("%s: %s; %d requests like it are asked again", self.url, failure, failures)

    def answered(self) -> None:
        """A request was answered."""
        with self._lock:
            since, self._failing_since = self._failing_since, None
        if since is not None and time.monotonic() - since > _DOWN_SECONDS:
            log.warning("%s: answers again, after %.0f s", self.url, time.monotonic() - since)


class Servers:
    """Lends the least busy server, one that failed just now last."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(urls)
        self._servers = [One(url) for url in urls]
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, url: str | None = None) -> Iterator[One]:
        """A server for one request: that at ``url``, or the best."""
        with self._lock:
            now = time.monotonic()
            possible = [server for server in self._servers if url in (None, server.url)]
            server = min(possible, key=lambda s: (s.down_until > now, s.busy))
            server.busy += 1
        try:
            yield server
        finally:
            with self._lock:
                server.busy -= 1
