"""What goes over the wire, and the two ways there: a loopback socket, or a transport inside the process."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import httpx2


@dataclass(frozen=True)
class Request:
    """A request as a cloud gets it; names of headers are lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any

    @classmethod
    def parse(cls, method: str, target: str, headers: dict[str, str], content: bytes) -> Request:
        """Read a request."""
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        named = {name.lower(): value for name, value in headers.items()}
        return cls(method, unquote(parts.path), query, named, json.loads(content) if content else None)


@dataclass(frozen=True)
class Response:
    """An answer. `raw` is sent in place of the body; `documented` False: a guess, of which the vendor's document says nothing."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    raw: bytes | None = None
    documented: bool = True

    @property
    def content(self) -> bytes:
        """The bytes of the body."""
        if self.raw is not None:
            return self.raw
        return b"" if self.body is None else json.dumps(self.body).encode()


class Silence(Enum):
    """Instead of an answer."""

    CUT = "the connection ends"
    HANG = "the connection stays, and nothing comes"


@dataclass(frozen=True)
class Exchange:
    """A request with the answer that was sent; `sound` False: the answer was spoilt on purpose."""

    request: Request
    response: Response
    sound: bool = True


class Answering(Protocol):
    """Whatever answers requests."""

    reachable: bool

    def handle(self, request: Request) -> Response | Silence:
        """Return the answer, or none."""


class Inside(httpx2.AsyncBaseTransport):
    """A transport that takes requests to a cloud in the same process, so that virtual time can stand still."""

    def __init__(self, cloud: Answering) -> None:
        self._cloud = cloud

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        content = await request.aread()
        if not self._cloud.reachable:
            raise httpx2.ConnectError("connection refused", request=request)
        headers = dict(request.headers.items())
        answer = self._cloud.handle(Request.parse(request.method, str(request.url), headers, content))
        if answer is Silence.CUT:
            raise httpx2.RemoteProtocolError("server disconnected without sending a response", request=request)
        if answer is Silence.HANG:
            raise httpx2.ReadTimeout("no answer", request=request)  # what a socket would say after the client's timeout
        assert isinstance(answer, Response)
        return httpx2.Response(answer.status, headers={"content-type": answer.kind, **answer.headers}, content=answer.content)


class Server:
    """A cloud on a free port of loopback, with a thread for each connection."""

    def __init__(self, cloud: Answering) -> None:
        self._stopped = threading.Event()
        stopped = self._stopped

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                request = Request.parse(self.command, self.path, dict(self.headers.items()), self.rfile.read(length))
                told = cloud.handle(request) if cloud.reachable and not stopped.is_set() else Silence.CUT
                if isinstance(told, Silence):
                    if told is Silence.HANG:
                        stopped.wait()
                    self.close_connection = True
                    return
                self.send_response(told.status)
                for name, value in {"Content-Type": told.kind, **told.headers}.items():
                    self.send_header(name, value)
                if told.status != 204:
                    self.send_header("Content-Length", str(len(told.content)))
                self.end_headers()
                self.wfile.write(told.content)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: the exchanges are kept."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def stop(self) -> None:
        """Stop listening; connections that hang are let go."""
        self._stopped.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
