/** All files on one clip, side by side. */

import type { ExportedFile } from "./config";
import type { Engine } from "./engine";
import type { Run } from "./worker";

const ROUNDS = 5;

export interface Comparison {
  run: Run;
  /** Median of the timed rounds. */
  milliseconds: number;
  /** Of the features from the reference's, over the variance of those. */
  error: number;
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
  const expected = first.get(reference.file)!;
  return new Map(
    files.map(({ file }) => {
      const run = first.get(file)!;
      return [file, { run, milliseconds: median(times.get(file)!), error: errorOverVariance(run, expected) }];
    }),
  );
}

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}

/** Mean squared error over the variance of the expected features, each dimension's mean taken off. */
function errorOverVariance({ features }: Run, { features: expected, shape: [frames, dim] }: Run): number {
  const means = new Float64Array(dim);
  expected.forEach((value, i) => (means[i % dim] += value / frames));
  let error = 0;
  let variance = 0;
  expected.forEach((value, i) => {
    error += (features[i] - value) ** 2;
    variance += (value - means[i % dim]) ** 2;
  });
  return error === 0 ? 0 : error / variance;
}
