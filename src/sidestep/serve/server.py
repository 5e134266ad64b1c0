"""The server: the application on uvicorn, in one process or several that share the machine's threads."""

from __future__ import annotations

import gc
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sidestep.errors import ServeError
from sidestep.serve.app import create_app
from sidestep.serve.body import BEGUN
from sidestep.serve.served_model import open_models
from sidestep.serve.settings import ServeSettings
from sidestep.training.interrupt import deaf_children

# Where workers read what they serve, and how.
_SERVED = "SIDESTEP_SERVE"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Connections beside those whose images wait.
_SPARE_CONNECTIONS = 256
# Seconds in which a worker must say that it lives, also while it imports and measures on a busy machine.
_STARTS = 120
_SWITCH_SECONDS = 0.0005
_log = logging.getLogger(__name__)


def serve(sources: Sequence[Path | str], settings: ServeSettings) -> None:
    """Serve networks until the process is told to stop; what was accepted is answered first.

    Args:
        sources: as `open_models` takes them.
        settings: of the server.

    Raises:
        SidestepError: for what cannot be served, or a port that is taken.
    """
    given = json.dumps({"sources": [str(source) for source in sources], "settings": asdict(settings)})
    with _listening(settings) as listening:
        app = _app(given)
        if settings.workers == 1:
            _run(app, settings, listening)
        else:
            _serve_with_workers(given, settings, listening)


def serve_app(make: Callable[[], FastAPI], settings: ServeSettings) -> None:
    """Serve an application in this process until it is told to stop.

    Args:
        make: makes it; called when the port is known to be free.
        settings: of the server, with one worker.

    Raises:
        SidestepError: for a port that is taken, and what `make` raises.
    """
    with _listening(settings) as listening:
        _run(make(), settings, listening)


@contextmanager
def _listening(settings: ServeSettings) -> Iterator[socket.socket]:
    """Yield a socket that listens, and say when the server was told to stop."""
    listening = _listen(settings.host, settings.port)
    try:
        yield listening
    except KeyboardInterrupt:
        # uvicorn stops in order, and then raises the signal that it was stopped by.
        _log.info("stopped")
    finally:
        listening.close()


def _run(app: FastAPI, settings: ServeSettings, listening: socket.socket) -> None:
    _settle()
    _tell(listening)
    uvicorn.Server(uvicorn.Config(app, **uvicorn_options(settings))).run(sockets=[listening])


def _serve_with_workers(given: str, settings: ServeSettings, listening: socket.socket) -> None:
    """Serve in several processes, each with networks of its own."""
    port = listening.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="sidestep-serve-")
    os.environ[_SERVED], os.environ[_FOLDER] = given, folder
    _tell(listening)
    listening.close()
    try:
        with deaf_children():
            uvicorn.run(
                "sidestep.serve.server:worker_app",
                factory=True,
                workers=settings.workers,
                timeout_worker_healthcheck=_STARTS,
                host=settings.host,
                port=port,
                **uvicorn_options(settings),
            )
    finally:
        del os.environ[_SERVED], os.environ[_FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


def worker_app() -> FastAPI:
    """Return the application of one of several workers, which has its share of the threads."""
    _end_with_parent()
    given = os.environ[_SERVED]
    workers: int = json.loads(given)["settings"]["workers"]
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    # uvicorn would load everything before it stops in order, and nobody's request is here yet.
    in_order = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        app = _app(given)
    finally:
        signal.signal(signal.SIGTERM, in_order)
    _settle()
    return app


def _settle() -> None:
    """Make this process one that serves."""
    # What is there now stays: looking through it for garbage would hold all requests for a tenth of a second.
    gc.collect()
    gc.freeze()
    # Between two batches a scheduler asks a busy event loop for the lock of Python, while the engine rests.
    sys.setswitchinterval(_SWITCH_SECONDS)


def _end_with_parent() -> None:
    """Let a worker stop in order when the process that has started it is gone, killed for example."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="sidestep-parent", daemon=True).start()


def _app(given: str) -> FastAPI:
    asked = json.loads(given)
    settings = ServeSettings(**asked["settings"])
    return create_app(open_models(asked["sources"], settings), settings)


def uvicorn_options(settings: ServeSettings) -> dict[str, Any]:
    """Return how uvicorn runs the application."""
    return {
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "ws": "none",
        # Nothing here asks whose proxy a client has.
        "proxy_headers": False,
        "http": PatientProtocol,
        "timeout_keep_alive": math.ceil(settings.client_seconds),
        "timeout_graceful_shutdown": settings.drain_seconds,
        "limit_concurrency": settings.queue + _SPARE_CONNECTIONS,
    }


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, UnicodeError) as error:
        listening.close()
        raise ServeError(
            f"port {port} of {host} must be free ({error}); choose another with --port"
        ) from error
    return listening


def _tell(listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    _log.info("serving at http://%s:%s", f"[{host}]" if ":" in host else host, port)


class PatientProtocol(HttpToolsProtocol):
    """HTTP that notes when requests begin, and waits for that and for the end of headers, but not for ever.

    uvicorn's own limit holds between requests, while not a byte comes.
    """

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[BEGUN] = time.monotonic()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.idle_since = time.monotonic()
        self._look_later()

    def _look_later(self) -> None:
        self.loop.call_later(self.config.timeout_keep_alive / 4, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        now, cycle = time.monotonic(), self.cycle
        if cycle is not None and not cycle.response_complete:
            self.idle_since = now  # a request is on its way, whose body has a limit of its own
        elif now - self.idle_since > self.config.timeout_keep_alive:
            self.transport.close()
            return
        self._look_later()
