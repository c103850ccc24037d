/** Promises around the worker that runs the files. */

import type { Request, Run, Started } from "./worker";

type Waiting = { resolve: (value: never) => void; reject: (error: Error) => void };

export class Engine {
  private readonly worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  private readonly waiting = new Map<number, Waiting>();
  private readonly started = new Map<string, Promise<Started>>();
  private requests = 0;

  constructor() {
    this.worker.onmessage = ({ data: { id, value, error } }) => {
      const { resolve, reject } = this.waiting.get(id)!;
      this.waiting.delete(id);
      if (error === undefined) resolve(value as never);
      else reject(new Error(error));
    };
    this.worker.onerror = (event) => {
      const error = new Error(`ONNX Runtime stopped: ${event.message || "its worker did not load"}`);
      for (const { reject } of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
  }

  /** Start a file's session, once. */
  start(file: string): Promise<Started> {
    let promise = this.started.get(file);
    if (!promise) {
      promise = this.ask<Started>({ file });
      promise.catch(() => this.started.delete(file));
      this.started.set(file, promise);
    }
    return promise;
  }

  /** @param waveform samples at 16 kHz */
  async run(file: string, waveform: Float32Array): Promise<Run> {
    await this.start(file);
    return this.ask<Run>({ file, waveform });
  }

  private ask<T>(request: Omit<Request, "id">): Promise<T> {
    const id = this.requests++;
    return new Promise<T>((resolve, reject) => {
      this.waiting.set(id, { resolve: resolve as Waiting["resolve"], reject });
      this.worker.postMessage({ id, ...request });
    });
  }
}
