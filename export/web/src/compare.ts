/** All files on one clip, side by side. */

import type { ExportedFile } from "./config";
import type { Engine } from "./engine";
import type { Run } from "./worker";

const ROUNDS = 5;

export interface Comparison {
  run: Run;
  /** Median of the timed rounds. */
  milliseconds: number;
  /** Of the features with the reference's. */
  cosine: number;
}

/** The files take turns after one untimed run each, so that a drifting machine is fair to all. */
export async function compare(
  engine: Engine,
  files: ExportedFile[],
  reference: ExportedFile,
  waveform: Float32Array,
): Promise<Map<string, Comparison>> {
  const first = new Map<string, Run>();
  const times = new Map<string, number[]>(files.map(({ file }) => [file, []]));
  for (const { file } of files) first.set(file, await engine.run(file, waveform));
  for (let round = 0; round < ROUNDS; round++) {
    for (const { file } of files) times.get(file)!.push((await engine.run(file, waveform)).milliseconds);
  }
  const expected = first.get(reference.file)!.features;
  return new Map(
    files.map(({ file }) => {
      const run = first.get(file)!;
      return [file, { run, milliseconds: median(times.get(file)!), cosine: cosine(run.features, expected) }];
    }),
  );
}

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}

function cosine(a: Float32Array, b: Float32Array): number {
  let product = 0;
  let squaresA = 0;
  let squaresB = 0;
  a.forEach((value, i) => {
    product += value * b[i];
    squaresA += value * value;
    squaresB += b[i] * b[i];
  });
  return product / Math.sqrt(squaresA * squaresB);
}
