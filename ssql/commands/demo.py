"""`ssql demo`: a web page on this machine that runs exported files in the browser."""

import io
import json
import logging
import mimetypes
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ssql.terminal.checks import not_empty
from ssql.terminal.console import say

log = logging.getLogger(__name__)

PAGE = Path(__file__).parents[1] / "page"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".wav": "audio/wav",
    ".onnx": "application/octet-stream",
}
HEADERS = {
    # Cross-origin isolation: without it browsers give WebAssembly no threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Nothing is loaded from anywhere else.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
# What a browser on this machine needs moments for; a client that sends a byte now and then is not waited for.
REQUEST_SECONDS, ANSWER_SECONDS = 10.0, 60.0
CONNECTIONS = 64  # at once
HEADERS_AT_MOST = 2**16  # bytes of a request's line and headers together
SPOKEN = (("seven", "en-us+f2"), ("drei", "de+m1"), ("quatre", "fr+f4"), ("ocho", "es+m3"))


@dataclass(frozen=True)
class Resource:
    """What the server answers to one path: bytes, or a file read when it is asked for."""

    content_type: str
    content: bytes | Path

    def read(self) -> bytes:
        """The bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def demo(files: str, port: int = 8000, clips: list[str] | None = None) -> None:
    """Serve a page, on this machine only, that runs exported files in the browser on a microphone or a clip.

    Example: ssql demo --files runs/mine

    Args:
        files: folder that `ssql export --input waveform` wrote.
        port: of 127.0.0.1; 0 takes a free one.
        clips: audio files to offer as examples; words spoken by eSpeak NG by default.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port is from 0 to 65535, not {port}")
    not_empty(clips=clips)
    with open_server(files, port, clips) as server:
        say(f"http://127.0.0.1:{server.server_port}  (Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("ended")


def open_server(
    files: str | Path, port: int = 0, clips: Sequence[str | Path] | None = None, page: str | Path = PAGE
) -> ThreadingHTTPServer:
    """A server of the page and of a folder's exported files, listening on 127.0.0.1.

    It answers only paths it knew at the start, `/files/...`, `/clips/...` and the page's, so no request
    reaches anything else; and only requests to this machine by name (`127.0.0.1:PORT`, `localhost:PORT`), so that no
    page from elsewhere reaches it by a name of its own that leads here.

    Raises:
        FileNotFoundError: the page is not built; no config.json; a file it lists, or a clip, does not exist.
        ValueError: a config.json that is not of `ssql export --input waveform`.
        OSError: the port is taken.
    """
    resources = {**_page(Path(page)), **_files(Path(files)), **_clips(clips)}
    handler = type("Handler", (_Handler,), {"resources": resources})
    try:
        return _Server(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        if isinstance(error, OverflowError):
            raise ValueError(f"port {port} is none: write one from 0 to 65535") from None
        raise OSError(f"port {port} of 127.0.0.1 cannot be used ({error.strerror}): choose another --port") from error


class _Server(ThreadingHTTPServer):
    """Serves so many connections at once, and says no word about those that break."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.free = threading.BoundedSemaphore(CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or close it where there are too many."""
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer on a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the client's affair."""
        log.debug("connection from %s broke", client_address, exc_info=True)


class _InTime(io.RawIOBase):
    """What a client sends, until a moment and up to a size: both are for each request anew."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.renew()

    def renew(self) -> None:
        """A request begins."""
        self.until, self.left = time.monotonic() + REQUEST_SECONDS, HEADERS_AT_MOST

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive what has come, or wait for it until the moment.

        Raises:
            TimeoutError: the moment has passed, or more has come than a request has.
        """
        remaining = self.until - time.monotonic()
        if remaining <= 0 or self.left <= 0:
            raise TimeoutError("a request that takes too long, or is too long")
        self.connection.settimeout(remaining)
        count = self.connection.recv_into(buffer)
        self.left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    resources: dict[str, Resource]
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Read from a client that has only so much time."""
        super().setup()
        self.rfile.close()
        self.incoming = _InTime(self.connection)
        self.rfile = io.BufferedReader(self.incoming)

    def handle_one_request(self) -> None:
        """A request, and its answer."""
        self.incoming.renew()
        super().handle_one_request()

    def do_GET(self) -> None:
        """Answer with a resource, or 404."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The headers alone."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        self.connection.settimeout(ANSWER_SECONDS)
        assert isinstance(self.server, _Server)
        port = self.server.server_port
        if self.headers.get_all("Host", []) not in ([f"127.0.0.1:{port}"], [f"localhost:{port}"]):
            self.close_connection = True
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, explain=f"only http://127.0.0.1:{port} is answered")
            return
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body is not read, and must not be taken for the next request
        resource = self.resources.get(self.path.partition("?")[0])
        try:
            body = resource.read() if resource else b""
        except OSError as error:
            log.error("%s: %s", self.path, error)
            resource = None
        if resource is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        for name, value in {"Content-Type": resource.content_type, "Content-Length": len(body), **HEADERS}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are logged for debugging only."""
        log.debug(format, *args)


def _resource(path: Path) -> Resource:
    return Resource(CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream"), path)


def _json(value: object) -> Resource:
    return Resource(CONTENT_TYPES[".json"], json.dumps(value).encode())


def _page(folder: Path) -> dict[str, Resource]:
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(
            "the page is not built: run `make web`, or `npm ci && npm run build` in export/web (Node.js 20 or newer)"
        )
    built = {f"/{path.relative_to(folder).as_posix()}": _resource(path) for path in folder.rglob("*") if path.is_file()}
    return {"/": built["/index.html"], **built}


def _files(folder: Path) -> dict[str, Resource]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: `ssql export --encoder ... --output {folder} --input waveform` writes one"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        names = [entry["file"] for entry in config["files"]]
        given = config["input"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by `ssql export`: {error!r}") from error
    if given != "waveform" or not names:
        raise ValueError(f"{path} lists {len(names)} files with input {given!r}: export with `--input waveform`")
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise FileNotFoundError(f"{path} lists {name!r}, which is not a file in {folder}: export again")
    return {f"/files/{name}": _resource(folder / name) for name in ("config.json", *names)}


def _clips(paths: Sequence[str | Path] | None) -> dict[str, Resource]:
    if paths is None:
        clips = _spoken()
    else:
        missing = [str(path) for path in paths if not Path(path).is_file()]  # a folder or a named pipe is none
        if missing:
            raise FileNotFoundError(f"no such clip: {', '.join(missing)}")
        for path in map(str, paths):  # a browser may play what libsndfile does not read
            if not (mimetypes.guess_type(path)[0] or "audio/").startswith(("audio/", "video/")):
                raise ValueError(f"{path} is not audio by its name: give clips such as talk.wav")
        clips = [(Path(path).stem, _resource(Path(path))) for path in paths]
    urls = [f"/clips/{index}" for index in range(len(clips))]
    listing = [{"name": name, "url": url} for (name, _), url in zip(clips, urls, strict=True)]
    return {"/clips/clips.json": _json(listing), **{url: clip for (_, clip), url in zip(clips, urls, strict=True)}}


def _spoken() -> list[tuple[str, Resource]]:
    """Words of the default data, by voices of its test clips."""
    import soundfile

    from ssql.data.espeak import SAMPLE_RATE, Utterance, synthesize  # imports torch

    clips = []
    for text, waveform in zip(SPOKEN, synthesize(Utterance(*spoken) for spoken in SPOKEN), strict=True):
        file = io.BytesIO()
        soundfile.write(file, (32767 * waveform).short().numpy(), SAMPLE_RATE, format="WAV")
        clips.append((text[0], Resource(CONTENT_TYPES[".wav"], file.getvalue())))
    return clips
