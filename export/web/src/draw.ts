/** Pictures of a clip: its waveform, and its features over time. */

/** From low to high: dark violet, magenta, orange, pale yellow. Lightness only rises, also in grey. */
const COLOURS = [
  [14, 10, 46],
  [92, 22, 110],
  [187, 55, 84],
  [249, 142, 9],
  [252, 255, 200],
];
/** Deviations from a dimension's mean at which the colours end. */
const LIMIT = 2.5;

export function drawWaveform(canvas: HTMLCanvasElement, samples: Float32Array): void {
  const context = fit(canvas);
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  context.fillStyle = getComputedStyle(canvas).color;
  const peak = samples.reduce((largest, sample) => Math.max(largest, Math.abs(sample)), 1e-3);
  for (let x = 0; x < width; x++) {
    const start = Math.floor((x * samples.length) / width);
    const column = samples.subarray(start, Math.max(start + 1, Math.floor(((x + 1) * samples.length) / width)));
    const low = column.reduce((a, b) => Math.min(a, b), 0) / peak;
    const high = column.reduce((a, b) => Math.max(a, b), 0) / peak;
    context.fillRect(x, ((1 - high) * height) / 2, 1, Math.max(1, ((high - low) * height) / 2));
  }
}

/** Time to the right, one row a dimension, each in deviations from its own mean over the clip. */
export function drawFeatures(canvas: HTMLCanvasElement, features: Float32Array, frames: number, dim: number): void {
  canvas.width = frames;
  canvas.height = dim;
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(frames, dim);
  for (let row = 0; row < dim; row++) {
    const values = Float32Array.from({ length: frames }, (_, frame) => features[frame * dim + row]);
    const mean = values.reduce((a, b) => a + b) / frames;
    const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / frames) || 1;
    values.forEach((value, frame) => {
      const position = ((value - mean) / deviation / LIMIT + 1) / 2;
      image.data.set([...colour(Math.min(1, Math.max(0, position))), 255], 4 * (row * frames + frame));
    });
  }
  context.putImageData(image, 0, 0);
}

function colour(position: number): number[] {
  const scaled = position * (COLOURS.length - 1);
  const index = Math.min(COLOURS.length - 2, Math.floor(scaled));
  return COLOURS[index].map((low, i) => low + (scaled - index) * (COLOURS[index + 1][i] - low));
}

/** As many pixels as the screen shows. */
function fit(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
  return canvas.getContext("2d")!;
}
