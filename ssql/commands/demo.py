"""`ssql demo`: a web page on this machine that runs exported files in the browser."""

import io
import json
import logging
import mimetypes
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from export.external_data import data_file
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
SPOKEN = (("seven", "en-us+f2"), ("drei", "de+m1"), ("quatre", "fr+f4"), ("ocho", "es+m3"))


# What the server answers to one path: the ending that tells its type, and bytes, or a file read when it is asked for.
Resource = tuple[str, bytes | Path]


def demo(files: str, port: int = 8000, clips: list[str] | None = None) -> None:
    """Serve a page, on this machine only, that runs exported files in the browser on a microphone or a clip.

    Example: ssql demo --files runs/mine

    Args:
        files: folder that `ssql export --input waveform` wrote.
        port: of 127.0.0.1; 0 takes a free one.
        clips: audio files to offer as examples; words spoken by eSpeak NG by default.
    """
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
        ValueError: no port, a config.json that is not of `ssql export --input waveform`, or a file with weights in a
            second one.
        OSError: the port is taken.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port is from 0 to 65535, not {port}")
    resources = {**_page(Path(page)), **_files(Path(files)), **_clips(clips)}
    handler = type("Handler", (_Handler,), {"resources": resources})
    try:
        return _Server(("127.0.0.1", port), handler)
    except OSError as error:
        raise OSError(f"port {port} of 127.0.0.1 cannot be used ({error.strerror}): choose another --port") from error


class _Server(ThreadingHTTPServer):
    """Serves so many connections at once, and says no word about those that break."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.free = threading.BoundedSemaphore(CONNECTIONS)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more; a connection is closed where there is not."""
        return self.free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer on a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the client's affair."""
        log.debug("connection from %s broke", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    resources: dict[str, Resource]
    protocol_version = "HTTP/1.1"
    timeout = ANSWER_SECONDS

    def handle_one_request(self) -> None:
        """A request, which has only so much time to come, and its answer."""
        end = threading.Timer(REQUEST_SECONDS, self._hear_no_more)
        end.daemon = True
        end.start()
        super().handle_one_request()
        end.cancel()

    def _hear_no_more(self) -> None:
        with suppress(OSError):  # closed already
            self.connection.shutdown(socket.SHUT_RD)

    def do_GET(self) -> None:
        """Answer with a resource, or 404."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The headers alone."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        assert isinstance(self.server, _Server)
        port = self.server.server_port
        if self.headers.get_all("Host", []) not in ([f"127.0.0.1:{port}"], [f"localhost:{port}"]):
            self.close_connection = True
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, explain=f"only http://127.0.0.1:{port} is answered")
            return
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body is not read, and must not be taken for the next request
        try:
            ending, content = self.resources[self.path.partition("?")[0]]
            body = content if isinstance(content, bytes) else content.read_bytes()
        except (KeyError, OSError) as error:
            log.debug("%s: %s", self.path, error)
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        content_type = CONTENT_TYPES.get(ending, "application/octet-stream")
        for name, value in {"Content-Type": content_type, "Content-Length": len(body), **HEADERS}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are logged for debugging only."""
        log.debug(format, *args)


def _resource(path: Path) -> Resource:
    return path.suffix.lower(), path


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
        if data_file(folder / name) is not None:
            raise ValueError(
                f"{folder / name} has its weights in a second file, which the page does not load: export with fewer "
                "weight bits, to another folder"
            )
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
    return {
        "/clips/clips.json": (".json", json.dumps(listing).encode()),
        **{url: clip for (_, clip), url in zip(clips, urls, strict=True)},
    }


def _spoken() -> list[tuple[str, Resource]]:
    """Words of the default data, by voices of its test clips."""
    log.info("speaking %d words as examples", len(SPOKEN))
    import soundfile

    from ssql.data.espeak import SAMPLE_RATE, Utterance, synthesize  # imports torch

    clips: list[tuple[str, Resource]] = []
    for text, waveform in zip(SPOKEN, synthesize(Utterance(*spoken) for spoken in SPOKEN), strict=True):
        file = io.BytesIO()
        soundfile.write(file, (32767 * waveform).short().numpy(), SAMPLE_RATE, format="WAV")
        clips.append((text[0], (".wav", file.getvalue())))
    return clips
