/** Numbers and answers as elements of the page. */

import { summary, type Answer } from "./answer";
import { format, type ExportedFile } from "./config";

const SHOWN_CLASSES = 5;

export function byId<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function showAnswer(place: HTMLElement, answer: Answer | null): void {
  if (!answer) {
    place.replaceChildren(element("p", { className: "hint" }, "These files have no head: they give features only."));
    return;
  }
  const headline = element("p", { className: "headline" }, summary(answer));
  place.replaceChildren(headline);
  if (answer.kind !== "classes") return;
  const bars = answer.ranking
    .slice(0, SHOWN_CLASSES)
    .map(({ name, probability }) =>
      element(
        "li",
        {},
        element("span", {}, name),
        bar(name, probability),
        element("span", {}, `${(100 * probability).toFixed(1)} %`),
      ),
    );
  place.append(element("ol", { className: "bars" }, ...bars));
}

function bar(name: string, probability: number): HTMLElement {
  const meter = element("div", { className: "bar", role: "meter", ariaLabel: `probability of ${name}` });
  Object.assign(meter, { ariaValueMin: "0", ariaValueMax: "1", ariaValueNow: String(probability) });
  meter.style.setProperty("--share", String(probability));
  return meter;
}

/** A line of the table: a file to choose, and what is known of it. */
export class FileRow {
  readonly radio: HTMLInputElement;
  readonly row: HTMLTableRowElement;
  private readonly cells: Record<"latency" | "factor" | "answer" | "error" | "start", HTMLTableCellElement>;

  constructor({ file, bit_width, size_bytes }: ExportedFile, referenceSize: number) {
    this.radio = element("input", { type: "radio", name: "file", value: file });
    const label = element("label", { title: file }, this.radio, format(bit_width));
    const ratio = element("small", {}, ` ${(size_bytes / referenceSize).toFixed(2)}×`);
    const size = element("td", {}, `${(size_bytes / 1e6).toPrecision(3)} MB`, ratio);
    const cell = () => element("td", {}, "–");
    this.cells = { latency: cell(), factor: cell(), answer: cell(), error: cell(), start: cell() };
    this.row = element("tr", {}, element("th", { scope: "row" }, label), size, ...Object.values(this.cells));
  }

  showStart(milliseconds: number): void {
    this.cells.start.textContent = `${milliseconds.toFixed(0)} ms`;
  }

  showRun(milliseconds: number, seconds: number, answer: Answer | null): void {
    this.cells.latency.textContent = `${milliseconds.toFixed(1)} ms`;
    this.cells.factor.textContent = (milliseconds / 1000 / seconds).toFixed(3);
    this.cells.answer.textContent = answer ? summary(answer) : "–";
    this.cells.error.textContent = "–";
  }

  showComparison(speedup: number, error: number): void {
    this.cells.latency.append(element("small", {}, ` ${speedup.toFixed(2)}×`));
    this.cells.error.textContent = error.toPrecision(2);
  }

  /** Forget what belonged to another clip. */
  clear(): void {
    const { latency, factor, answer, error } = this.cells;
    for (const cell of [latency, factor, answer, error]) cell.textContent = "–";
  }
}

export function exampleButton(name: string): HTMLButtonElement {
  return element("button", { ariaPressed: "false" }, name);
}

/** Offer bytes as a download. */
export function save(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}
