"""Requests that are asked until they are answered.

What may go better next time (429, 5xx, timeouts, resets, half an answer) is asked again, later or of another server,
until ``retries`` are spent; a server of the run's own that died is started again meanwhile. Nothing is lost but time.
"""

from __future__ import annotations

import email.utils
import logging
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import httpx

from dapo_fast.config import EngineSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout.http.servers import Servers
from dapo_fast.rollout.server import Server

log = logging.getLogger("dapo_fast.rollout.http")

Read = TypeVar("Read")

KEY_VARIABLES = ("DAPO_FAST_API_KEY", "OPENAI_API_KEY")
_RETRIED = {408, 409, 425, 429}  # and all of 500 and above
_FIRST_WAIT = 0.5  # seconds before the first retry; doubles
_LONGEST_WAIT = 60.0
_LONGEST_ASKED_WAIT = 600.0  # of what a server's Retry-After may ask for
_DEATHS = 3  # of the run's own server that one request may see
# What servers say that cannot draw by a seed: vLLM on the CPU ("CPU Generator does not use offset"), and their like.
_NO_SEEDS = re.compile(
    r"generator does not use offset|\bseed\w*\b.{0,40}\b(not |un)support|not support\w* .{0,20}seed", re.I
)


class ServerError(InputError):
    """A server that refuses a request (``refused``), fails until the retries are spent, or answers nonsense."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class KeyRefusedError(ServerError):
    """A server that wants another API key."""


class RetryableError(Exception):
    """A failure that another attempt may not meet."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Client:
    """Speaks to the servers at ``settings.urls``.

    Attributes:
        seeds: Whether requests carry their seed; a server that fails at seeds ends that where ``engine.seed`` is auto.
    """

    def __init__(self, settings: EngineSettings, server: Server | None = None) -> None:
        """``server`` is the process behind the URLs, where the run has started it."""
        self.settings = settings
        self.servers = Servers([url.rstrip("/").removesuffix("/v1") for url in settings.urls])
        self.seeds = settings.seed is not False
        self._server = server
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._http = httpx.Client(
            timeout=httpx.Timeout(settings.timeout_s, connect=min(30.0, settings.timeout_s)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask_all(
        self, bodies: Sequence[dict], read: Callable[[Any, int], Read], workers: int
    ) -> Iterator[tuple[int, Read]]:
        """(number, ``read(answer, number)``) of every completion request, as they come.

        Raises:
            ServerError: of the first that fails for good; those in flight are left alone.
        """
        todo: queue.SimpleQueue = queue.SimpleQueue()
        found: queue.SimpleQueue = queue.SimpleQueue()
        stop = threading.Event()
        for item in enumerate(bodies):
            todo.put(item)

        def work() -> None:
            while not stop.is_set():
                try:
                    number, body = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    found.put((number, self.ask(body, lambda answer, n=number: read(answer, n), stop=stop), None))
                except BaseException as error:  # raised again by who waits for it
                    found.put((number, None, error))
                    return

        # Daemons: a signal ends the run without waiting for what a server still computes.
        for _ in range(min(workers, len(bodies))):
            threading.Thread(target=work, name="rollout", daemon=True).start()
        try:
            for _ in bodies:
                number, result, error = found.get()
                if error is not None:
                    raise error
                yield number, result
        finally:
            stop.set()

    def ask(
        self,
        body: dict | None,
        read: Callable[[Any], Read],
        *,
        url: str | None = None,
        path: str = "/v1/completions",
        seed_in_doubt: bool = False,
        stop: threading.Event | None = None,
    ) -> Read:
        """``read`` of the answer to ``body`` (None: a GET), asked for until it comes whole.

        Args:
            read: Raises ``RetryableError`` for an answer that another attempt may better.
            url: The server to ask; None: any.
            seed_in_doubt: A third failure, or the server's death, is put down to the seed, which is then left out.
            stop: Ends the waiting.
        """
        stop = stop or threading.Event()
        attempt = deaths = 0
        while True:
            generation = self._server.generation if self._server else 0
            sent = body if body is None or self.seeds else {k: v for k, v in body.items() if k != "seed"}
            with self.servers.lend(url) as server:
                try:
                    found = read(self._send(server.url + path, sent))
                    server.answered()
                    return found
                except RetryableError as error:
                    failure = error
                    server.failed(error)
            died = self._server is not None and self._server.revive(generation)
            words = f"{failure} {self._server.last_words if died else ''}"
            deaths += died
            doubted = seed_in_doubt and (died or attempt >= min(2, self.settings.retries))
            if sent and "seed" in sent and (doubted or _NO_SEEDS.search(words)):
                self._leave_seeds_out(server.url, words)
                attempt = 0
                continue
            if deaths > _DEATHS or (attempt == self.settings.retries and not died):
                raise ServerError(self._given_up(server.url, failure, deaths))
            if died:
                continue
            pause = failure.after
            if pause is None:
                pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
            attempt += 1
            if stop.wait(pause):
                raise ServerError("sampling was given up")

    def _given_up(self, url: str, failure: Exception, deaths: int) -> str:
        kept = "what was collected so far is kept"
        if self._server is None:
            retries = self.settings.retries
            return (
                f"{url}: {failure}; given up after {retries} retries. Is it a completions server, and is it up? Start "
                f"it again and repeat the command: {kept}"
            )
        end = f"; the server died {deaths} times while it was asked the same" if deaths else ""
        log_path, tail = self._server.log_path, self._server.last_words if deaths else self._server.tail()
        return f"{url}: {failure}{end}; given up ({kept}); its last words ({log_path}): {tail}"

    def _leave_seeds_out(self, url: str, words: str) -> None:
        if self.settings.seed is True:
            raise ServerError(f"{url}: fails at a seeded request ({words.strip()}); engine.seed true asks for them")
        if self.seeds:
            self.seeds = False
            log.warning(
                "%s: fails at seeded requests (%s): they carry none, and sampling CANNOT be repeated", url, words
            )

    def _send(self, url: str, body: dict | None) -> Any:
        """The JSON of one answer."""
        try:
            response = self._http.get(url) if body is None else self._http.post(url, json=body)
        except httpx.TimeoutException as error:
            raise RetryableError(f"no answer in {self.settings.timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise RetryableError(f"{type(error).__name__}: {error}") from error
        status, words = response.status_code, " ".join(response.text.split())[:300]
        if status in _RETRIED or (status >= 500 and status != 501):  # 501: not implemented
            raise RetryableError(f"HTTP {status}: {words}", retry_after(response))
        if status in (401, 403):
            raise KeyRefusedError(f"{url}: HTTP {status}; set {' or '.join(KEY_VARIABLES)} to its API key")
        if not response.is_success:
            raise ServerError(f"{url}: HTTP {status}: {words}", refused=True)
        try:
            return response.json()
        except ValueError as error:
            raise RetryableError("an answer that is not JSON") from error


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that a server asks to wait."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_ASKED_WAIT)
