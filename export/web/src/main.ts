/** The page: a clip comes in, the chosen file runs, features and answer are shown. */

import { toAnswer } from "./answer";
import { LONGEST_SECONDS, SAMPLE_RATE, SHORTEST_SECONDS, decode, play, trim } from "./audio";
import { compare } from "./compare";
import { fetchJson, format, reference, type ExampleClip, type ExportConfig, type ExportedFile } from "./config";
import { drawFeatures, drawWaveform } from "./draw";
import { Engine } from "./engine";
import { Microphone } from "./microphone";
import { toNpy } from "./npy";
import { FileRow, byId, exampleButton, save, showAnswer } from "./view";
import type { Run } from "./worker";

/** What the live answer looks back on while recording. */
const LIVE_SECONDS = 2;
const LIVE_INTERVAL_MS = 250;

const record = byId<HTMLButtonElement>("record");
const status = byId("status");

let config: ExportConfig;
let chosen: ExportedFile;
let clip: Float32Array | null = null;
let lastRun: Run | null = null;
let microphone: Microphone | null = null;
let actions = 0;
const rows = new Map<string, FileRow>();
const engine = new Engine();

function fail(error: unknown): void {
  const place = byId("error");
  place.textContent = error instanceof Error ? error.message : String(error);
  place.hidden = false;
}

/** Run an action of the user; what goes wrong is shown until the next action. */
async function attempt(action: () => Promise<void>): Promise<void> {
  byId("error").hidden = true;
  actions++;
  document.body.ariaBusy = "true";
  try {
    await action();
  } catch (error) {
    fail(error);
  } finally {
    document.body.ariaBusy = String(--actions > 0);
  }
}

async function choose(file: ExportedFile): Promise<void> {
  chosen = file;
  rows.get(file.file)!.radio.checked = true;
  status.textContent = `Starting ${format(file.bit_width)} …`;
  const { threads } = await startFile(file);
  status.textContent = `${format(file.bit_width)} runs here in WebAssembly, ${threads === 1 ? "1 thread" : `${threads} threads`}.`;
  if (clip) await runClip(clip);
}

async function startFile(file: ExportedFile) {
  const started = await engine.start(file.file);
  rows.get(file.file)!.showStart(started.milliseconds);
  return started;
}

/** Take a clip and show what the chosen file makes of it. */
async function take(samples: Float32Array): Promise<void> {
  const seconds = samples.length / SAMPLE_RATE;
  if (seconds < SHORTEST_SECONDS) {
    throw new Error(`The clip lasts ${seconds.toFixed(2)} s: at least ${SHORTEST_SECONDS} s are needed.`);
  }
  if (microphone) await endRecording();
  clip = samples.subarray(0, LONGEST_SECONDS * SAMPLE_RATE);
  rows.forEach((row) => row.clear());
  await runClip(clip);
  for (const id of ["play", "save", "compare"]) byId<HTMLButtonElement>(id).disabled = false;
  if (seconds > LONGEST_SECONDS) {
    throw new Error(`The clip lasts ${seconds.toFixed(0)} s: its first ${LONGEST_SECONDS} s are shown.`);
  }
}

async function runClip(samples: Float32Array): Promise<void> {
  const file = chosen;
  const run = await engine.run(file.file, samples);
  show(file, samples, run, run.milliseconds);
}

function show(file: ExportedFile, samples: Float32Array, run: Run, milliseconds: number): void {
  const seconds = samples.length / SAMPLE_RATE;
  const answer = config.head && run.output ? toAnswer(config.head, run.output) : null;
  rows.get(file.file)!.showRun(milliseconds, seconds, answer);
  if (file !== chosen) return;
  lastRun = run;
  const [frames, dim] = run.shape;
  const [waveform, features] = [byId<HTMLCanvasElement>("waveform"), byId<HTMLCanvasElement>("features")];
  showAnswer(byId("answer"), answer);
  drawWaveform(waveform, samples);
  waveform.ariaLabel = `Waveform: ${seconds.toFixed(2)} s`;
  drawFeatures(features, run.features, frames, dim);
  features.ariaLabel = `Features: ${frames} frames of ${dim} dimensions, ${config.frame_rate_hz} frames a second`;
  byId("axis-shape").textContent = `${frames} frames × ${dim} dimensions`;
  byId("axis-end").textContent = `${seconds.toFixed(2)} s`;
}

async function compareAll(samples: Float32Array): Promise<void> {
  for (const file of config.files) await startFile(file);
  status.textContent = "Comparing …";
  const expected = reference(config.files);
  const comparisons = await compare(engine, config.files, expected, samples);
  const fullPrecision = comparisons.get(expected.file)!.milliseconds;
  for (const file of config.files) {
    const { run, milliseconds, error } = comparisons.get(file.file)!;
    show(file, samples, run, milliseconds);
    rows.get(file.file)!.showComparison(fullPrecision / milliseconds, error);
  }
  status.textContent = "Compared: medians of five runs, in turns.";
}

async function startRecording(): Promise<void> {
  microphone = await Microphone.open();
  record.textContent = "Stop";
  record.ariaPressed = "true";
  pressExample(null);
  void listen(microphone).catch(async (error) => {
    fail(error);
    await endRecording();
  });
}

/** The answer to the last seconds, again and again, until recording stops. */
async function listen(source: Microphone): Promise<void> {
  const until = performance.now() + 1000 * LONGEST_SECONDS;
  while (microphone === source) {
    if (performance.now() > until) return stopRecording();
    const samples = trim(await source.last(LIVE_SECONDS));
    const heard = samples.length >= SHORTEST_SECONDS * SAMPLE_RATE;
    status.textContent = heard ? "Listening …" : "Listening: nothing heard yet.";
    if (heard && microphone === source) await runClip(samples);
    await new Promise((resolve) => setTimeout(resolve, LIVE_INTERVAL_MS));
  }
}

async function endRecording(): Promise<Float32Array> {
  const source = microphone!;
  microphone = null;
  record.textContent = "Record";
  record.ariaPressed = "false";
  const samples = await source.last();
  await source.close();
  status.textContent = "Recorded.";
  return samples;
}

async function stopRecording(): Promise<void> {
  const samples = trim(await endRecording());
  if (samples.length === 0) throw new Error("The recording is silent: check which microphone the browser uses.");
  await take(samples);
}

function pressExample(pressed: HTMLButtonElement | null): void {
  for (const button of byId("examples").children) button.ariaPressed = String(button === pressed);
}

async function takeFile(file: File): Promise<void> {
  pressExample(null);
  await take(await decode(await file.arrayBuffer(), file.name));
}

function offerExamples(clips: ExampleClip[]): void {
  const buttons = clips.map(({ name, url }) => {
    const button = exampleButton(name);
    button.onclick = () =>
      attempt(async () => {
        pressExample(button);
        await take(await decode(await (await fetch(url)).arrayBuffer(), name));
      });
    return button;
  });
  byId("examples").append(...buttons);
}

function connect(): void {
  record.onclick = () => attempt(microphone ? stopRecording : startRecording);
  byId("play").onclick = () => play(clip!);
  byId("compare").onclick = () => attempt(() => compareAll(clip!));
  byId("save").onclick = () =>
    save(toNpy(lastRun!.features, lastRun!.shape), `features-${format(chosen.bit_width)}.npy`);
  const input = byId<HTMLInputElement>("chosen");
  input.onchange = () => {
    const [file] = input.files!;
    input.value = ""; // the same file may be chosen again
    if (file) void attempt(() => takeFile(file));
  };
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  };
  document.ondragleave = (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging"); // left the window
  };
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const file = event.dataTransfer?.files[0];
    if (file) void attempt(() => takeFile(file));
  };
  record.disabled = false;
}

void attempt(async () => {
  config = await fetchJson<ExportConfig>("/files/config.json");
  const expected = reference(config.files);
  byId("reference").textContent = format(expected.bit_width);
  for (const file of config.files) {
    const row = new FileRow(file, expected.size_bytes);
    row.radio.onchange = () => attempt(() => choose(file));
    rows.set(file.file, row);
    byId("files").append(row.row);
  }
  offerExamples(await fetchJson<ExampleClip[]>("/clips/clips.json"));
  connect();
  await choose(config.files.find(({ bit_width }) => bit_width === "w8a8") ?? expected);
});
