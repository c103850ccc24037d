/** A float32 array as a .npy file, for numpy.load. */

export function toNpy(values: Float32Array, shape: number[]): Blob {
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
  const padded = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n"; // data starts at a multiple of 64
  const prefix = Uint8Array.of(
    0x93,
    ...new TextEncoder().encode("NUMPY"),
    1,
    0,
    padded.length & 255,
    padded.length >> 8,
  );
  return new Blob([prefix, padded, new Float32Array(values)], { type: "application/octet-stream" });
}
