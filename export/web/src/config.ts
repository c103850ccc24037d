/** What `ssql export` wrote beside the ONNX files, as far as the page needs it. */

export interface ExportedFile {
  file: string;
  bit_width: string;
  size_bytes: number;
}

export interface Head {
  task: "classification" | "ctc" | "regression";
  /** Names of the classes, of the tokens without the blank, or of the targets. */
  classes: string[];
  /** Of each target, for regression. */
  units?: string[] | null;
}

export interface ExportConfig {
  sample_rate_hz: number;
  frame_rate_hz: number;
  head: Head | null;
  files: ExportedFile[];
}

export interface ExampleClip {
  name: string;
  url: string;
}

const FORMATS: Record<string, string> = { fp: "fp32", w8a8: "int8", w4a8: "int4" };

/** The common name of a bit-width. */
export function format(bitWidth: string): string {
  return FORMATS[bitWidth] ?? bitWidth;
}

/** The file in full precision, that others are compared with; the first one when there is none. */
export function reference(files: ExportedFile[]): ExportedFile {
  return files.find((file) => file.bit_width === "fp") ?? files[0];
}

export async function fetchJson<T>(url: string): Promise<T> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: the server answered ${response.status} ${response.statusText}`);
  return response.json();
}
