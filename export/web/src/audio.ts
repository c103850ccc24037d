/** Clips: mono samples at 16 kHz, from files and from a microphone's blocks. */

export const SAMPLE_RATE = 16_000;
export const SHORTEST_SECONDS = 0.1;
export const LONGEST_SECONDS = 30;
/** Below this peak there is no speech, only a quiet room. */
const SILENCE = 0.01;

/** Any audio file the browser can decode, channels averaged, resampled to 16 kHz. */
export async function decode(bytes: ArrayBuffer, name: string): Promise<Float32Array> {
  if (bytes.byteLength === 0) throw new Error(`${name} is empty.`);
  const context = new OfflineAudioContext(1, 1, SAMPLE_RATE); // decodeAudioData resamples to the context's rate
  let audio: AudioBuffer;
  try {
    audio = await context.decodeAudioData(bytes);
  } catch {
    throw new Error(`${name} is not audio that this browser can read: wav, flac, mp3 and ogg usually are.`);
  }
  const mono = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    audio.getChannelData(channel).forEach((sample, i) => (mono[i] += sample / audio.numberOfChannels));
  }
  return mono;
}

export async function resample(samples: Float32Array<ArrayBuffer>, rate: number): Promise<Float32Array> {
  const context = new OfflineAudioContext(1, Math.ceil((samples.length * SAMPLE_RATE) / rate), SAMPLE_RATE);
  const buffer = context.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** Silence at both ends removed, 50 ms of it kept; empty when there is nothing but silence. */
export function trim(samples: Float32Array): Float32Array {
  const peak = samples.reduce((largest, sample) => Math.max(largest, Math.abs(sample)), 0);
  if (peak < SILENCE) return samples.subarray(0, 0);
  const loud = (sample: number) => Math.abs(sample) > 0.05 * peak;
  const margin = 0.05 * SAMPLE_RATE;
  const start = Math.max(0, samples.findIndex(loud) - margin);
  return samples.subarray(start, samples.findLastIndex(loud) + 1 + margin);
}

export function play(samples: Float32Array): void {
  const context = new AudioContext();
  const buffer = context.createBuffer(1, samples.length, SAMPLE_RATE);
  buffer.copyToChannel(new Float32Array(samples), 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.onended = () => context.close();
  source.start();
}
