"""A web server on this machine whose files misbehave as a test wants them to, and archives."""

from __future__ import annotations

import contextlib
import http.server
import io
import re
import socket
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field


def zipped(*members: tuple[str, bytes]) -> bytes:
    """Return a zip of (name, content) pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(*members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz", **options) -> bytes:
    """Return a tar of (name, content) pairs, whose mode is that of a trap, or of entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for member in members:
            info, content = member, b""
            if isinstance(member, tuple):
                info, content = tarfile.TarInfo(member[0]), member[1]
                info.size, info.mode = len(content), 0o6777
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Served:
    """A file, and what is odd about the answers: one dictionary for each request in turn.

    Keys of such a dictionary: ``send`` (bytes until the connection is cut), ``say`` (the
    Content-Length that is claimed), ``status`` and ``headers`` (of an error), ``page`` (HTML
    that comes instead), ``whole`` (Range is ignored), ``change`` (body and ETag from now on),
    ``wait`` (an event or a barrier).
    """

    body: bytes
    etag: str | None = '"1"'
    kind: str = "application/octet-stream"
    odd: list[dict] = field(default_factory=list)
    always: dict = field(default_factory=dict)


class FileServer:
    """``server.files[path]`` are the files, ``server.requests`` the (path, headers) seen."""

    def __init__(self):
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, dict]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(ConnectionError):
                    outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def ranges(self) -> list[str | None]:
        """Return the Range of each request."""
        return [headers.get("Range") for _, headers in self.requests]

    def answer(self, request) -> None:
        self.requests.append((request.path, dict(request.headers)))
        file = self.files.get(request.path)
        if file is None:
            return request.send_error(404)
        odd = file.always | (file.odd.pop(0) if file.odd else {})
        if "wait" in odd:
            odd["wait"].wait(10)
        if "change" in odd:
            file.body, file.etag = odd["change"]
        if "status" in odd:
            request.send_response(odd["status"])
            for name, value in odd.get("headers", {}).items():
                request.send_header(name, value)
            return request.end_headers()
        if "page" in odd:
            body, start, kind = odd["page"].encode(), 0, odd.get("kind", "text/html; charset=utf-8")
        else:
            body, start, kind = file.body, self.start(request, file, odd), file.kind
        if start is None:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(body)}")
            return request.end_headers()
        request.send_response(206 if start else 200)
        request.send_header("Content-Type", kind)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if file.etag and "page" not in odd:
            request.send_header("ETag", file.etag)
        if odd.get("say", 0) is not None:
            request.send_header("Content-Length", str(odd.get("say", len(body) - start)))
        request.end_headers()
        rest = body[start:]
        request.wfile.write(rest[: odd.get("send", len(rest))])
        if odd.get("send", len(rest)) < len(rest):  # cut, so that the reader is reset
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def start(request, file: Served, odd: dict) -> int | None:
        """Return where the answer begins; None for a Range that cannot be had."""
        found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        if not found or odd.get("whole"):
            return 0
        return int(found[1]) if int(found[1]) < len(file.body) else None
