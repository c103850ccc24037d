import http.client
import io
import json
import logging
import os
import socket
import threading
import time
import wave
from pathlib import Path

import numpy as np
import onnx
import pytest

from ssql.commands import demo
from ssql.commands.demo import open_server


@pytest.fixture
def page(tmp_path) -> Path:
    folder = tmp_path / "page"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>page</title>")
    (folder / "assets" / "runtime.wasm").write_bytes(b"\0asm")
    return folder


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "encoder-int8.onnx").write_bytes(b"a model")
    (folder / "private.txt").write_text("private")
    write_config(folder, input="waveform", files=[{"file": "encoder-int8.onnx"}])
    return folder


def write_config(folder: Path, **config: object) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def connection(files, page):
    clip = files.parent / "clip.wav"
    clip.write_bytes(b"RIFF")
    with open_server(files, clips=[clip], page=page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
        yield connection
        connection.close()
        server.shutdown()


def get(connection, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    connection.request(method, path)
    response = connection.getresponse()
    return response, response.read()


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/", "text/html; charset=utf-8", b"<title>page</title>"),
        ("/assets/runtime.wasm", "application/wasm", b"\0asm"),
        ("/files/encoder-int8.onnx?again", "application/octet-stream", b"a model"),
        ("/clips/clips.json", "application/json; charset=utf-8", b'[{"name": "clip", "url": "/clips/0"}]'),
        ("/clips/0", "audio/wav", b"RIFF"),
    ],
)
def test_page_files_and_clips_have_their_types(connection, path, content_type, body):
    response, found = get(connection, path)
    assert (response.status, response.headers["Content-Type"], found) == (200, content_type, body)
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"


def test_head_gives_the_length_without_the_body(connection):
    response, body = get(connection, "/files/encoder-int8.onnx", "HEAD")
    assert (response.headers["Content-Length"], body) == ("7", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/files/private.txt",
        "/files/../files/private.txt",
        "/files/%2e%2e/files/private.txt",
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/files/",
        "/clips/1",
    ],
)
def test_nothing_else_is_served(connection, path):
    response, body = get(connection, path)
    assert response.status == 404
    assert b"private" not in body


def test_a_file_that_vanished_is_404_and_the_server_goes_on(connection, files):
    (files / "encoder-int8.onnx").unlink()
    assert get(connection, "/files/encoder-int8.onnx")[0].status == 404
    assert get(connection, "/")[0].status == 200


def test_words_are_spoken_when_no_clips_are_named(files, page, caplog):
    caplog.set_level(logging.INFO)
    with open_server(files, page=page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
        listing = json.loads(get(connection, "/clips/clips.json")[1])
        spoken = get(connection, listing[1]["url"])[1]
        connection.close()
        server.shutdown()
    assert caplog.messages[0] == "speaking 4 words as examples"
    assert [clip["name"] for clip in listing] == ["seven", "drei", "quatre", "ocho"]
    with wave.open(io.BytesIO(spoken)) as clip:
        assert (clip.getframerate(), clip.getnchannels(), clip.getsampwidth()) == (16_000, 1, 2)
        assert 0.2 < clip.getnframes() / 16_000 < 2


def test_a_file_with_weights_in_a_second_one_is_refused(files, page):
    value = onnx.numpy_helper.from_array(np.zeros(600, np.float32), "weight")
    output = onnx.helper.make_tensor_value_info("weight", onnx.TensorProto.FLOAT, [600])
    model = onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [output], [value]))
    path = files / "encoder-int8.onnx"
    path.unlink()
    onnx.save(model, path, save_as_external_data=True, location=path.name + ".data")
    with pytest.raises(ValueError, match=r"int8\.onnx has its weights in a second file, which the page does not load"):
        open_server(files, clips=[], page=page)


def test_bad_folders_are_named(files, page, tmp_path):
    with pytest.raises(FileNotFoundError, match="the page is not built: run `make web`"):
        open_server(files, clips=[], page=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="page has no config.json: `ssql export .* --input waveform`"):
        open_server(page, clips=[], page=page)
    with pytest.raises(FileNotFoundError, match=r"no such clip: a\.wav"):
        open_server(files, clips=["a.wav"], page=page)
    write_config(files, input="log_mel", files=[{"file": "encoder-int8.onnx"}])
    with pytest.raises(ValueError, match=r"config\.json lists 1 files with input 'log_mel': .* `--input waveform`"):
        open_server(files, clips=[], page=page)
    write_config(files, input="waveform", files=[{"file": "../clip.wav"}])
    with pytest.raises(
        FileNotFoundError, match=r"lists '\.\./clip\.wav', which is not a file in .*files: export again"
    ):
        open_server(files, clips=[], page=page)
    write_config(files, encoder="SpeechTransformer")
    with pytest.raises(ValueError, match=r"config\.json was not written by `ssql export`: KeyError\('files'\)"):
        open_server(files, clips=[], page=page)


def test_a_taken_port_is_named(files, page):
    with open_server(files, clips=[], page=page) as server:
        port = server.server_address[1]
        with pytest.raises(OSError, match=rf"port {port} of 127\.0\.0\.1 cannot be used .*: choose another --port"):
            open_server(files, port, clips=[], page=page)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("evil.example:{port}", 421),
        ("127.0.0.1.evil.example:{port}", 421),
        ("localhost:1", 421),
        ("localhost", 421),
        ("", 421),
    ],
)
def test_only_this_machine_is_answered_by_name(connection, host, status):
    connection.putrequest("GET", "/files/encoder-int8.onnx", skip_host=True)
    connection.putheader("Host", host.format(port=connection.port))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == status
    assert (response.read() == b"a model") == (status == 200)


@pytest.mark.parametrize("hosts", [0, 2])
def test_a_request_names_one_host(connection, hosts):
    connection.putrequest("GET", "/", skip_host=True)
    for _ in range(hosts):
        connection.putheader("Host", f"localhost:{connection.port}")
    connection.endheaders()
    assert connection.getresponse().status == 421


def sent(connection, *parts: bytes, pause: float = 0.0) -> bytes:
    """What the server says to parts of a request, until it closes."""
    with socket.create_connection((connection.host, connection.port), timeout=5) as client:
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
            return b"".join(iter(lambda: client.recv(4096), b""))
        except (ConnectionError, BrokenPipeError):
            return b""


def test_slow_clients_are_left(connection, monkeypatch):
    monkeypatch.setattr(demo, "REQUEST_SECONDS", 0.3)
    started = time.monotonic()
    line = b"GET / HTTP/1.1\r\n"
    assert b"200 OK" not in sent(connection, line)
    assert b"200 OK" not in sent(connection, line, *[b"X-A: b\r\n"[:1]] * 10, pause=0.1)
    assert time.monotonic() - started < 4
    assert get(connection, "/")[0].status == 200


def test_long_requests_are_left(connection):
    line = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    assert b"200 OK" not in sent(connection, line, b"X-A: " + b"b" * 100_000 + b"\r\n\r\n")
    assert b"200 OK" not in sent(connection, line, b"X-A: b\r\n" * 200 + b"\r\n")
    assert get(connection, "/")[0].status == 200


def test_connections_at_once_have_an_end(files, page, monkeypatch):
    monkeypatch.setattr(demo, "CONNECTIONS", 2)
    with open_server(files, clips=[], page=page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        held = [socket.create_connection(server.server_address[:2], timeout=5) for _ in range(2)]
        time.sleep(0.2)
        with socket.create_connection(server.server_address[:2], timeout=5) as third:
            assert third.recv(10) == b""
        for client in held:
            client.close()
        server.shutdown()


def test_a_clip_is_a_file(files, page, tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(FileNotFoundError, match=r"no such clip: .*pipe\.wav"):
        open_server(files, clips=[tmp_path / "pipe.wav"], page=page)
    with pytest.raises(ValueError, match="--port is from 0 to 65535, not 99999"):
        open_server(files, 99999, clips=[], page=page)
