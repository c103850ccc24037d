/** A head's numbers as an answer that a person reads. */

import type { Head } from "./config";

export type Answer =
  | { kind: "classes"; ranking: { name: string; probability: number }[] }
  | { kind: "text"; text: string }
  | { kind: "values"; values: { name: string; value: number; unit: string }[] };

/** @param output logits (classes) or (frames, 1 + tokens), or values (targets), flattened */
export function toAnswer(head: Head, output: Float32Array): Answer {
  const { task, classes, units } = head;
  if (task === "ctc") return { kind: "text", text: ctcText(output, classes) };
  if (task === "regression") {
    return { kind: "values", values: classes.map((name, i) => ({ name, value: output[i], unit: units?.[i] ?? "" })) };
  }
  const probabilities = softmax(output);
  const ranking = classes.map((name, i) => ({ name, probability: probabilities[i] }));
  return { kind: "classes", ranking: ranking.sort((a, b) => b.probability - a.probability) };
}

/** The answer in a few words. */
export function summary(answer: Answer): string {
  if (answer.kind === "text") return answer.text || "(nothing)";
  if (answer.kind === "classes") return answer.ranking[0].name;
  return answer.values.map(({ name, value, unit }) => `${name} ${value.toPrecision(4)} ${unit}`.trim()).join(", ");
}

function softmax(logits: Float32Array): number[] {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}

/** Greedy CTC: the best token of each frame, repeats merged, blanks (0) dropped. */
function ctcText(logits: Float32Array, tokens: string[]): string {
  const width = tokens.length + 1;
  let text = "";
  let previous = 0;
  for (let start = 0; start < logits.length; start += width) {
    const frame = logits.subarray(start, start + width);
    const best = frame.indexOf(Math.max(...frame));
    if (best !== previous && best !== 0) text += tokens[best - 1];
    previous = best;
  }
  return text;
}
