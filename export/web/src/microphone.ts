/** A recording in progress, to be looked at while it grows. */

import { LONGEST_SECONDS, resample } from "./audio";
import captureUrl from "./capture.js?url";

const REASONS: Record<string, string> = {
  NotAllowedError: "The microphone may not be used: allow it for this page in the browser, then record again.",
  NotFoundError: "No microphone was found: connect one, or choose a file.",
  NotReadableError: "The microphone is taken by another program, or switched off.",
};

export class Microphone {
  private readonly blocks: Float32Array[] = [];

  private constructor(
    private readonly stream: MediaStream,
    private readonly context: AudioContext,
  ) {}

  /** Ask for the microphone and record. */
  static async open(): Promise<Microphone> {
    // Browsers hide it from pages that are neither local nor encrypted.
    if (!navigator.mediaDevices) throw new Error("A microphone needs a page from 127.0.0.1, localhost or https.");
    let stream: MediaStream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    } catch (error) {
      const { name, message } = error as DOMException;
      throw new Error(REASONS[name] ?? `The microphone did not start: ${message}`);
    }
    const microphone = new Microphone(stream, new AudioContext());
    await microphone.capture();
    return microphone;
  }

  private async capture(): Promise<void> {
    await this.context.audioWorklet.addModule(captureUrl);
    const capture = new AudioWorkletNode(this.context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1, // a microphone may have two channels all the same: the browser then averages them
      channelCountMode: "explicit",
    });
    capture.port.onmessage = ({ data }) => this.blocks.push(data);
    this.context.createMediaStreamSource(this.stream).connect(capture);
  }

  /** What was recorded last, at 16 kHz. */
  async last(seconds: number = LONGEST_SECONDS): Promise<Float32Array> {
    const rate = this.context.sampleRate;
    const wanted = Math.ceil(seconds * rate);
    let first = this.blocks.length;
    let count = 0;
    while (first > 0 && count < wanted) count += this.blocks[--first].length;
    const samples = new Float32Array(count);
    let position = 0;
    for (const block of this.blocks.slice(first)) {
      samples.set(block, position);
      position += block.length;
    }
    return count === 0 ? samples : resample(samples, rate);
  }

  async close(): Promise<void> {
    this.stream.getTracks().forEach((track) => track.stop());
    await this.context.close();
  }
}
