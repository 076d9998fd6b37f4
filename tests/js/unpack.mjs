// Records for a GPU as their description says (reconstruct.js): what a shader makes of them.

import assert from "node:assert/strict";
import { BLOCK } from "../../splatcodec/player/decoder/index.js";

export const SH_C0 = 0.28209479177387814;
const word = new Uint32Array(1);
const asFloat = new Float32Array(word.buffer);
export const floatOf = (bits) => ((word[0] = bits), asFloat[0]);

export function unpack(records, boxes, i) {
  const [a, b, c, d] = records.subarray(4 * i, 4 * i + 4);
  const box = boxes.subarray(16 * Math.floor(i / BLOCK), 16 * Math.floor(i / BLOCK) + 16);
  const [lowX, lowY, lowZ, stepX, stepY, stepZ, sizeLow, sizeStep, shapeStep] = box;
  const position = [lowX + (a & 65535) * stepX, lowY + (a >>> 16) * stepY, lowZ + (b & 65535) * stepZ];
  const R = [(b >>> 16) & 255, b >>> 24, c & 255].map((q) => 2 ** (sizeLow + q * sizeStep));
  const w = [(c >>> 8) & 255, (c >>> 16) & 255, c >>> 24].map(
    (q) => Math.sign(q - 127) * (floatOf(0x3f800000 + Math.abs(q - 127) * shapeStep) - 1),
  );
  const color = [d & 255, (d >>> 8) & 255, (d >>> 16) & 255].map((q, k) => box[9 + k] + q * box[12 + k]);
  const [x, y, z] = [[R[0], 0, 0], [w[0] * R[1], R[1], 0], [w[1] * R[2], w[2] * R[2], R[2]]];
  const dot = (p, q) => p[0] * q[0] + p[1] * q[1] + p[2] * q[2];
  const blur2 = box[15];
  const covariance = [dot(x, x) - blur2, dot(x, y), dot(x, z), dot(y, y) - blur2, dot(y, z), dot(z, z) - blur2];
  const steps = [stepX, stepY, stepZ];
  const colorStep = box.subarray(12, 15);
  return { position, covariance, color, alpha: (d >>> 24) / 255, steps, R, w, blur2, sizeStep, shapeStep, colorStep };
}

export function unpackSh(sh, words, degree, i) {
  const row = sh.subarray(words * i, words * i + words);
  const bits = (at, n) => {
    let value = 0;
    for (let k = 0; k < n; k++) value += ((row[(at + k) >> 5] >>> ((at + k) & 31)) & 1) * 2 ** k;
    return value;
  };
  const scale = floatOf(((row[words - 1] >>> 24) + 856) << 20);
  const bands = (degree + 1) ** 2 - 1;
  const wide = Math.min(bands, 8);
  const values = [];
  for (let band = 0; band < bands; band++) {
    for (let channel = 0; channel < 3; channel++) {
      if (band < 8) values.push(((bits(8 * (wide * channel + band), 8) - 128) / 127) * scale);
      else values.push(((bits(192 + 49 * channel + 7 * (band - 8), 7) - 64) / 63) * scale);
    }
  }
  return { values, scale };
}


/** Records of a frame of a moving scene beside its exact arrays, nodes applied; the largest errors go into `worst`. */
export function unpackFrame(group, frame, { records, boxes, sh }, arrays, worst) {
  const { layout, shDegree } = group;
  const nodes = group.nodes(frame);
  // Arrays hold those that are there, in the order of the base.
  const rows = new Map();
  for (let i = 0, row = 0; i < group.count; i++) if (group.lives(i, frame)) rows.set(i, row++);
  assert.equal(rows.size, arrays.count);
  const words = [0, 3, 7, 11][shDegree];
  let there = 0;
  for (let block = 0; block < layout.blocks; block++) {
    const node = layout.nodes[block];
    const m = node ? nodes.subarray(15 * (node - 1), 15 * node) : [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    const turn = (v) => [0, 3, 6].map((r) => m[r] * v[0] + m[r + 1] * v[1] + m[r + 2] * v[2]);
    for (let place = 0; place < BLOCK; place++) {
      const at = BLOCK * block + place;
      const i = place < layout.counts[block] ? (layout.sources ? layout.sources[at] : at) : -1;
      const one = unpack(records, boxes, at);
      if (i < 0 || !rows.has(i)) {
        assert.equal(one.alpha, 0, `place ${place} of block ${block} is empty`);
        continue;
      }
      const row = rows.get(i);
      there++;
      const moved = turn(one.position.map((x, k) => x - m[9 + k])).map((x, k) => x + m[12 + k]);
      const step = Math.hypot(...one.steps);
      for (let k = 0; k < 3; k++) {
        const x = arrays.means[3 * row + k];
        worst.position = Math.max(worst.position, (Math.abs(moved[k] - x) - 4e-7 * Math.abs(x)) / step);
        const color = 0.5 + SH_C0 * arrays.sh0[3 * row + k];
        worst.color = Math.max(worst.color, (Math.abs(one.color[k] - color) - 1e-6) / one.colorStep[k]);
      }
      worst.alpha = Math.max(worst.alpha, Math.abs(one.alpha - arrays.alphas[row]));
      const [xx, xy, xz, yy, yz, zz] = one.covariance;
      const columns = [turn([xx, xy, xz]), turn([xy, yy, yz]), turn([xz, yz, zz])];
      const full = [0, 1, 2].map((r) => turn(columns.map((column) => column[r])));
      const exact = arrays.covariances.subarray(6 * row, 6 * row + 6);
      const size = exact[0] + exact[3] + exact[5];
      [full[0][0], full[0][1], full[0][2], full[1][1], full[1][2], full[2][2]].forEach((x, k) => {
        worst.covariance = Math.max(worst.covariance, Math.abs(x - exact[k]) / size);
      });
      if (!shDegree || node) continue;
      const own = Uint32Array.from({ length: words }, (_, k) => sh[k >> 2][4 * at + (k & 3)]);
      const { values, scale } = unpackSh(own, words, shDegree, 0);
      values.forEach((x, k) => {
        const away = Math.abs(x - arrays.shN[values.length * row + k]);
        worst.sh = Math.max(worst.sh, away / scale);
      });
    }
  }
  assert.equal(there, arrays.count);
}
