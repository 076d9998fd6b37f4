// A decoded scene as the bytes of a 3DGS PLY file, which other engines' own loaders read.

import { open } from "./decoder/index.js";

/** @typedef {import("./decoder/index.js").Input} Input */
/** @typedef {import("./decoder/index.js").Selection} Selection */

const SWEEPS = 6;

/**
 * Quaternion (w, x, y, z) and natural logarithms of the standard deviations of a covariance, by Jacobi rotations.
 * @param {ArrayLike<number>} covariance xx, xy, xz, yy, yz, zz
 * @param {number} at where it begins
 * @param {Float64Array} out 7 numbers: quaternion, logarithms
 */
export function shapeOf(covariance, at, out) {
  const a = [
    covariance[at], covariance[at + 1], covariance[at + 2],
    covariance[at + 1], covariance[at + 3], covariance[at + 4],
    covariance[at + 2], covariance[at + 4], covariance[at + 5],
  ];
  const v = [1, 0, 0, 0, 1, 0, 0, 0, 1];
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    for (let p = 0; p < 2; p++) {
      for (let q = p + 1; q < 3; q++) {
        const off = a[3 * p + q];
        if (off === 0) continue;
        const theta = (a[4 * q] - a[4 * p]) / (2 * off);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1);
        const s = t * c;
        for (let k = 0; k < 3; k++) {
          const [x, y] = [a[3 * k + p], a[3 * k + q]];
          a[3 * k + p] = c * x - s * y;
          a[3 * k + q] = s * x + c * y;
        }
        for (let k = 0; k < 3; k++) {
          const [x, y] = [a[3 * p + k], a[3 * q + k]];
          a[3 * p + k] = c * x - s * y;
          a[3 * q + k] = s * x + c * y;
          const [z, w] = [v[3 * k + p], v[3 * k + q]];
          v[3 * k + p] = c * z - s * w;
          v[3 * k + q] = s * z + c * w;
        }
      }
    }
  }
  // Columns of v are the axes; together they must turn, not mirror.
  const det =
    v[0] * (v[4] * v[8] - v[5] * v[7]) - v[1] * (v[3] * v[8] - v[5] * v[6]) + v[2] * (v[3] * v[7] - v[4] * v[6]);
  if (det < 0) for (let k = 0; k < 3; k++) v[3 * k + 2] = -v[3 * k + 2];
  const trace = v[0] + v[4] + v[8];
  const squares = [trace, v[0] - v[4] - v[8], v[4] - v[0] - v[8], v[8] - v[0] - v[4]];
  const largest = squares.indexOf(Math.max(...squares));
  const root = Math.sqrt(Math.max(1 + squares[largest], 0)) / 2;
  const rest = 0.25 / root;
  const products = [
    [0, v[7] - v[5], v[2] - v[6], v[3] - v[1]],
    [v[7] - v[5], 0, v[3] + v[1], v[2] + v[6]],
    [v[2] - v[6], v[3] + v[1], 0, v[7] + v[5]],
    [v[3] - v[1], v[2] + v[6], v[7] + v[5], 0],
  ][largest];
  for (let k = 0; k < 4; k++) out[k] = k === largest ? root : products[k] * rest;
  const most = Math.max(a[0], a[4], a[8], 1e-60);
  for (let k = 0; k < 3; k++) out[4 + k] = 0.5 * Math.log(Math.max(a[4 * k], 1e-12 * most));
}

/**
 * Decode a file and write it as a PLY.
 * @param {Input} input as for `open` of the decoder
 * @param {Selection & { onNotice?: (message: string) => void }} [selection] what of it
 * @returns {Promise<Uint8Array>}
 */
export async function decodeToPly(input, { onNotice, ...selection } = {}) {
  const file = await open(input, { onNotice });
  try {
    const { arrays, count, shDegree } = await file.decode({ ...selection, as: "arrays" });
    if (!arrays) throw new Error("no arrays");
    const bands = (shDegree + 1) ** 2 - 1;
    const names = [
      ..."xyz", "f_dc_0", "f_dc_1", "f_dc_2", ...Array.from({ length: 3 * bands }, (_, k) => `f_rest_${k}`),
      "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3",
    ];
    const properties = names.map((name) => `property float ${name}\n`).join("");
    const head = `ply\nformat binary_little_endian 1.0\nelement vertex ${count}\n${properties}end_header\n`;
    const width = names.length;
    const bytes = new Uint8Array(head.length + 4 * width * count);
    bytes.set(new TextEncoder().encode(head));
    const view = new DataView(bytes.buffer, head.length);
    const { means, covariances, alphas, sh0, shN } = arrays;
    const shape = new Float64Array(7);
    for (let i = 0, to = 0; i < count; i++) {
      const put = (/** @type {number} */ x) => {
        view.setFloat32(to, x, true);
        to += 4;
      };
      for (let k = 0; k < 3; k++) put(means[3 * i + k]);
      for (let k = 0; k < 3; k++) put(sh0[3 * i + k]);
      for (let c = 0; c < 3; c++) for (let b = 0; b < bands; b++) put(shN[3 * (bands * i + b) + c]);
      put(Math.log(alphas[i] / (1 - alphas[i])));
      shapeOf(covariances, 6 * i, shape);
      for (let k = 4; k < 7; k++) put(shape[k]);
      for (let k = 0; k < 4; k++) put(shape[k]);
    }
    return bytes;
  } finally {
    file.close();
  }
}
