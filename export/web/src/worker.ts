/** ONNX Runtime's WASM, away from the page's thread: requests are answered one after the other. */

import * as ort from "onnxruntime-web/wasm";
import loaderUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

export type Request = { id: number; file: string; waveform?: Float32Array };

export interface Run {
  features: Float32Array;
  /** Frames, feature dimension. */
  shape: [number, number];
  /** The head's logits or values, flattened; null without a head. */
  output: Float32Array | null;
  milliseconds: number;
}

export interface Started {
  milliseconds: number;
  threads: number;
}

const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
ort.env.wasm.wasmPaths = { mjs: loaderUrl, wasm: wasmUrl };
ort.env.wasm.numThreads = threads;
ort.env.logLevel = "error";

let warm = false;
const sessions = new Map<string, ort.InferenceSession>();
let queue: Promise<void> = Promise.resolve();

self.onmessage = ({ data }: MessageEvent<Request>) => {
  queue = queue.then(() => answer(data));
};

async function answer({ id, file, waveform }: Request): Promise<void> {
  try {
    if (waveform) {
      const run = await runFile(file, waveform);
      self.postMessage({ id, value: run }, { transfer: [run.features.buffer] });
    } else {
      self.postMessage({ id, value: await start(file) });
    }
  } catch (error) {
    self.postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
}

/** Fetch a file and start a session; only the session's start is timed. */
async function start(file: string): Promise<Started> {
  const response = await fetch(new URL(`/files/${encodeURIComponent(file)}`, self.location.origin));
  if (!response.ok) throw new Error(`${file}: the server answered ${response.status} ${response.statusText}`);
  const bytes = await response.arrayBuffer();
  if (!warm) await (await createSession(file, bytes)).release(); // the first session also compiles the runtime
  warm = true;
  const started = performance.now();
  const session = await createSession(file, bytes);
  const milliseconds = performance.now() - started;
  if (!["waveform", "lengths"].every((name) => session.inputNames.includes(name))) {
    throw new Error(
      `${file} takes ${session.inputNames.join(", ")}; this page needs a file that takes waveform and lengths: ` +
        "write one with ssql export --input waveform",
    );
  }
  sessions.set(file, session);
  return { milliseconds, threads };
}

async function createSession(file: string, bytes: ArrayBuffer): Promise<ort.InferenceSession> {
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`${file} does not start in ONNX Runtime: ${error instanceof Error ? error.message : error}`);
  }
}

async function runFile(file: string, waveform: Float32Array): Promise<Run> {
  const session = sessions.get(file);
  if (!session) throw new Error(`${file} was not started`);
  const feeds = {
    waveform: new ort.Tensor("float32", waveform, [1, waveform.length]),
    lengths: new ort.Tensor("int64", BigInt64Array.of(BigInt(waveform.length)), [1]),
  };
  const started = performance.now();
  const outputs = await session.run(feeds);
  const milliseconds = performance.now() - started;
  const { features, logits, values } = outputs;
  const [, frames, dim] = features.dims;
  const output = (logits ?? values)?.data as Float32Array | undefined;
  return {
    features: (features.data as Float32Array).slice(),
    shape: [frames, dim],
    output: output?.slice() ?? null,
    milliseconds,
  };
}
