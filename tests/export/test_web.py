"""The page of `ssql demo` in a real browser, against ONNX Runtime outside of it."""

import base64
import io
import itertools
import re
import shutil
import threading
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio

import export
import quant
from encoders import Head, SpeechTransformer
from export.runtime.session import open_session
from ssql.commands import demo
from ssql.data.espeak import Utterance, synthesize

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
if not (demo.PAGE / "index.html").is_file():
    pytest.skip("the page is not built: make web (Node.js 20 or newer)", allow_module_level=True)

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402
from written import to_file  # noqa: E402

FILES = {"fp": "encoder-fp32.onnx", "w8a8": "encoder-int8.onnx", "w4a8": "encoder-int4.onnx"}
FORMATS = {"fp32": "encoder-fp32.onnx", "int8": "encoder-int8.onnx", "int4": "encoder-int4.onnx"}
PATIENCE = 60_000  # ms
WORDS = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben"]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return next(synthesize([Utterance("drei und vier", "de+f2")])).numpy()


@pytest.fixture(scope="module")
def speech(clip) -> SpeechTransformer:
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=64, depth=2, heads=2))
    clips = torch.from_numpy(clip).unsqueeze(0)
    quant.calibrate(encoder, [encoder.front_end(clips)], lambda batch: encoder(*batch))
    return encoder.eval()


def export_with(encoder: SpeechTransformer, head: Head, folder: Path, bit_widths: Sequence[str] = tuple(FILES)) -> Path:
    folder.mkdir()
    paths = [folder / FILES[bit_width] for bit_width in bit_widths]
    for bit_width, path in zip(bit_widths, paths, strict=True):
        to_file(encoder, path, bit_width, input="waveform", head=head, check=False)
    export.write_card(export.describe(paths, encoder), folder)
    return folder


def make_head(task: str, classes: list[str], units: list[str] | None = None) -> Head:
    torch.manual_seed(1)
    head = Head(task, 64, classes, units)
    with torch.no_grad():
        head.linear.weight.mul_(8)
    return head


@pytest.fixture(scope="module")
def folder(speech, tmp_path_factory) -> Path:
    return export_with(speech, make_head("classification", WORDS), tmp_path_factory.mktemp("web") / "files")


@pytest.fixture(scope="module")
def browser(clip, tmp_path_factory) -> Iterator[Browser]:
    """With a microphone that hears the clip again and again."""
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    heard.write_bytes(wav(np.concatenate([clip, np.zeros(8_000)])))
    flags = [*FLAGS, "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={heard}"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=flags) as browser:
        yield browser


@contextmanager
def opened(browser: Browser, folder: Path, **options: object) -> Iterator[Page]:
    """The page on a folder's files, ready; fails on an error in its console or a request to another machine."""
    with demo.open_server(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        page = browser.new_page(**options)
        page.set_default_timeout(PATIENCE)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("request", lambda it: it.url.startswith((address, "blob:")) or faults.append(it.url))
        page.goto(address)
        settle(page)
        yield page
        page.close()
        server.shutdown()
        assert faults == []


@pytest.fixture
def page(browser, folder) -> Iterator[Page]:
    with opened(browser, folder) as page:
        yield page


def settle(page: Page) -> None:
    page.locator("body[aria-busy=false]").wait_for()


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    """int16, shape (samples,) or (samples, channels)."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples[0].size)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((32767 * samples).astype("<i2").tobytes())
    return buffer.getvalue()


def drop(page: Page, content: bytes, name: str = "clip.wav") -> None:
    transfer = page.evaluate_handle(
        """([base64, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], name));
            return transfer;
        }""",
        [base64.b64encode(content).decode(), name],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    settle(page)


def features(page: Page) -> np.ndarray:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as .npy").click()
    return np.load(download.value.path())


def native(path: Path, content: bytes) -> dict[str, np.ndarray]:
    with wave.open(io.BytesIO(content)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    session = open_session(path)  # exact, as WebAssembly is
    outputs = session.run(None, {"waveform": samples[np.newaxis], "lengths": np.array([len(samples)])})
    return {output.name: value[0] for output, value in zip(session.get_outputs(), outputs, strict=True)}


def error_over_variance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(((found - expected) ** 2).mean() / expected.var(axis=0).mean())


def probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def choose(page: Page, content: bytes, name: str = "clip.wav") -> None:
    page.get_by_label("Choose a file").set_input_files({"name": name, "mimeType": "audio/wav", "buffer": content})
    settle(page)


# Sums in another order move a float32 result by 3e-5 here. In quantized files that turns roundings: natively, noise
# of 1e-8 in the samples moves int8 and int4 features of this clip by 0.016.
@pytest.mark.parametrize(("form", "tolerance"), [("fp32", 1e-4), ("int8", 0.03), ("int4", 0.03)])
def test_a_dropped_clip_gets_the_answer_and_features_of_native_onnx_runtime(page, folder, clip, form, tolerance):
    expected = {name: native(folder / file, wav(clip)) for name, file in FORMATS.items()}
    page.get_by_role("radio", name=form).check()
    settle(page)
    drop(page, wav(clip))
    found = features(page)
    assert found.dtype == np.float32
    assert np.allclose(found, expected[form]["features"], rtol=0, atol=tolerance)
    assert error_over_variance(found, expected[form]["features"]) < 1e-3
    departures = {name: np.linalg.norm(found - outputs["features"]) for name, outputs in expected.items()}
    assert min(departures, key=departures.__getitem__) == form
    likely = probabilities(expected[form]["logits"])
    ranking = likely.argsort()[::-1][:5]
    assert page.locator(".headline").inner_text() == WORDS[ranking[0]]
    shown = page.get_by_role("meter").all()
    assert [meter.get_attribute("aria-label") for meter in shown] == [f"probability of {WORDS[i]}" for i in ranking]
    values = [float(meter.get_attribute("aria-valuenow") or "nan") for meter in shown]
    assert np.allclose(values, likely[ranking], rtol=0, atol=tolerance / 5)


def test_all_files_are_compared_on_one_clip(page, folder, clip):
    drop(page, wav(clip))
    page.get_by_role("button", name="Compare all").click()
    settle(page)
    full = native(folder / FORMATS["fp32"], wav(clip))["features"]
    for form, file in FORMATS.items():
        cells = page.get_by_role("row").filter(has=page.get_by_role("radio", name=form)).get_by_role("cell")
        size, latency, factor, answer, error, start = cells.all_inner_texts()
        expected = native(folder / file, wav(clip))
        assert size.startswith(f"{(folder / file).stat().st_size / 1e6:#.3g} MB")
        assert answer == WORDS[expected["logits"].argmax()]
        assert float(error) == pytest.approx(error_over_variance(expected["features"], full), rel=0.06, abs=1e-6)
        assert float(latency.split(" ms")[0]) / 1000 / (len(clip) / 16_000) == pytest.approx(float(factor), abs=6e-4)
        assert start.endswith(" ms")


def test_a_clip_of_any_rate_is_resampled_and_its_channels_averaged(page, folder, clip):
    slow = torchaudio.functional.resample(torch.from_numpy(clip), 16_000, 44_100).numpy()
    choose(page, wav(np.stack([1.5 * slow, 0.5 * slow], axis=1), rate=44_100))
    page.get_by_role("radio", name="fp32").check()
    settle(page)
    expected = native(folder / FORMATS["fp32"], wav(clip))
    found = features(page)
    assert found.shape == expected["features"].shape
    assert error_over_variance(found, expected["features"]) < 0.05
    assert page.locator(".headline").inner_text() == WORDS[expected["logits"].argmax()]


def test_ctc_heads_answer_with_text_and_regressions_with_values(browser, speech, clip, tmp_path):
    letters = make_head("ctc", list("abcdefg"))
    with opened(browser, export_with(speech, letters, tmp_path / "ctc", ["fp"])) as page:
        drop(page, wav(clip))
        best = native(tmp_path / "ctc" / FILES["fp"], wav(clip))["logits"].argmax(axis=1)
        text = "".join(letters.classes[token - 1] for token, _ in itertools.groupby(best) if token)
        assert len(text) > 3
        assert page.locator(".headline").inner_text() == text
    prosody = make_head("regression", ["pitch", "level"], ["Hz", "dB"])
    with opened(browser, export_with(speech, prosody, tmp_path / "prosody", ["fp"])) as page:
        drop(page, wav(clip))
        shown = re.fullmatch(r"pitch (\S+) Hz, level (\S+) dB", page.locator(".headline").inner_text())
        expected = native(tmp_path / "prosody" / FILES["fp"], wav(clip))["values"]
        assert np.allclose([float(value) for value in shown.groups()], expected, rtol=1e-3)


def test_an_example_is_one_key_away(page):
    page.get_by_role("button", name="drei", exact=True).focus()
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator(".headline").inner_text() in WORDS
    assert page.get_by_role("button", name="drei", exact=True, pressed=True).is_visible()
    page.get_by_role("radio", name="int8").focus()
    page.keyboard.press("ArrowDown")
    settle(page)
    assert page.get_by_role("radio", name="int4").is_checked()


def test_it_fits_a_phone(browser, folder):
    with opened(browser, folder, viewport={"width": 340, "height": 700}) as page:
        page.get_by_role("button", name="drei", exact=True).click()
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 340


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "nothing.wav", "nothing.wav is empty."),
        (b"RIFF no audio", "notes.wav", "notes.wav is not audio that this browser can read"),
        (wav(np.zeros(800)), "click.wav", "The clip lasts 0.05 s: at least 0.1 s are needed."),
        (wav(np.zeros(31 * 16_000)), "long.wav", "The clip lasts 31 s: its first 30 s are shown."),
    ],
)
def test_a_bad_clip_is_named(page, clip, content, name, message):
    choose(page, content, name)
    assert message in page.get_by_role("alert").inner_text()
    choose(page, wav(clip))
    assert page.get_by_role("alert").is_hidden()


def test_a_bad_file_is_named(browser, speech, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "files")
    (tmp_path / "files" / FILES["w4a8"]).write_bytes(b"no model")
    to_file(speech, tmp_path / "files" / FILES["fp"], check=False, overwrite=True)  # takes log-mel
    with opened(browser, tmp_path / "files") as page:
        for form, message in (
            ("int4", "encoder-int4.onnx does not start in ONNX Runtime"),
            (
                "fp32",
                "encoder-fp32.onnx takes log_mel, lengths; this page needs a file that takes waveform",
            ),
        ):
            page.get_by_role("radio", name=form).check()
            settle(page)
            assert message in page.get_by_role("alert").inner_text()


def test_a_refused_microphone_is_named(page):
    page.get_by_role("button", name="Record").click()
    settle(page)
    assert "The microphone may not be used: allow it" in page.get_by_role("alert").inner_text()


def test_a_microphone_is_answered_live_and_its_recording_kept(browser, folder):
    with opened(browser, folder, permissions=["microphone"]) as page:
        page.get_by_role("button", name="Record").click()
        expect(page.locator(".headline")).to_have_text(re.compile("|".join(WORDS)), timeout=PATIENCE)
        assert page.get_by_role("button", name="Compare all").is_disabled()
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Compare all")).to_be_enabled(timeout=PATIENCE)
        assert features(page).shape[1] == 64
        assert page.get_by_role("alert").is_hidden()
