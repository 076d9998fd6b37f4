// Gaussians of a frame packed for a GPU, as `Records` of reconstruct.js says, from floating-point numbers.
//
// A packer is filled Gaussian by Gaussian, up to a block of 256, and then writes the block. Shapes come as the lower
// triangular factor A of the covariance plus blur^2, or as axes with standard deviations.

import { held, slantOf, stepOf } from "./reconstruct.js";
import { BLOCK } from "./tile.js";

/**
 * What changes in the picture from one frame to another.
 * @typedef {object} Update
 * @property {Int32Array} blocks numbers of the blocks that follow, ascending
 * @property {Uint32Array} records 4 words for each of their 256 places
 * @property {Float32Array} boxes 16 numbers for each of them
 * @property {Int32Array} shBlocks numbers of the blocks whose SH coefficients follow
 * @property {Uint32Array[]} sh for each texel of four words: those of the 256 places of each of these blocks
 */

const floats = new Float32Array(1);
const bits = new Int32Array(floats.buffer);
const ONE = 0x3f800000;
/** log2 of the least diagonal that a factor has. */
const LEAST = -400;

/** One block on its way into records. */
export class Packer {
  constructor() {
    this.count = 0;
    this.means = new Float64Array(3 * BLOCK);
    /** log2 of the diagonal. */
    this.sizes = new Float64Array(3 * BLOCK);
    this.slants = new Float64Array(3 * BLOCK);
    this.colors = new Float64Array(3 * BLOCK);
    this.alphas = new Float64Array(BLOCK);
    this.lows = new Float64Array(7);
    this.highs = new Float64Array(7);
  }

  /**
   * The factor of a covariance, blur^2 in it: the lower triangle xx, xy, xz, yy, yz, zz.
   * @param {number} at 3 * place in the block
   * @param {number} xx
   * @param {number} xy
   * @param {number} xz
   * @param {number} yy
   * @param {number} yz
   * @param {number} zz
   */
  shape(at, xx, xy, xz, yy, yz, zz) {
    const { sizes, slants } = this;
    const a = Math.sqrt(xx);
    const b = xy / a;
    const c = xz / a;
    const d = yy - b * b;
    const r2 = Math.sqrt(d > 1e-14 * yy ? d : 1e-14 * yy);
    const f = (yz - c * b) / r2;
    const e = zz - c * c - f * f;
    const r3 = Math.sqrt(e > 1e-14 * zz ? e : 1e-14 * zz);
    sizes[at] = Math.log2(a);
    sizes[at + 1] = Math.log2(r2);
    sizes[at + 2] = Math.log2(r3);
    slants[at] = b / r2;
    slants[at + 1] = c / r3;
    slants[at + 2] = f / r3;
  }

  /**
   * Write the block.
   * @param {number} blur2 what the factors have beyond the covariances
   * @param {Uint32Array} records
   * @param {Float32Array} boxes
   * @param {number} block its place in both
   */
  write(blur2, records, boxes, block) {
    const { count, means, sizes, slants, colors, alphas, lows, highs } = this;
    lows.fill(Infinity);
    highs.fill(-Infinity);
    let widest = 0;
    for (let i = 0; i < count; i++) {
      for (let k = 0; k < 3; k++) {
        const mean = means[3 * i + k];
        if (mean < lows[k]) lows[k] = mean;
        if (mean > highs[k]) highs[k] = mean;
        const color = colors[3 * i + k];
        if (color < lows[4 + k]) lows[4 + k] = color;
        if (color > highs[4 + k]) highs[4 + k] = color;
        const size = sizes[3 * i + k];
        if (size < lows[3]) lows[3] = size;
        if (size > highs[3]) highs[3] = size;
        const slant = Math.abs(slants[3 * i + k]);
        if (slant > widest) widest = slant;
      }
    }
    if (!(lows[3] > LEAST)) lows[3] = LEAST;
    const box = 16 * block;
    const places = [0, 1, 2, 6, 9, 10, 11];
    const per = highs;
    for (let k = 0; k < 7; k++) {
      const low = Math.fround(lows[k]);
      const step = stepOf(low, highs[k], k < 3 ? 65535 : 255);
      boxes[box + places[k]] = low;
      boxes[box + (k === 3 ? 7 : places[k] + 3)] = step;
      lows[k] = low;
      per[k] = 1 / step;
    }
    floats[0] = widest + 1;
    const shape = Math.max(1, Math.ceil((bits[0] - ONE) / 127));
    boxes[box + 8] = shape;
    boxes[box + 15] = blur2;
    let to = 4 * BLOCK * block;
    for (let i = 0; i < count; i++, to += 4) {
      const k = 3 * i;
      const x = held((means[k] - lows[0]) * per[0] + 0.5, 65535);
      const y = held((means[k + 1] - lows[1]) * per[1] + 0.5, 65535);
      const z = held((means[k + 2] - lows[2]) * per[2] + 0.5, 65535);
      const s1 = held((sizes[k] - lows[3]) * per[3] + 0.5, 255);
      const s2 = held((sizes[k + 1] - lows[3]) * per[3] + 0.5, 255);
      const s3 = held((sizes[k + 2] - lows[3]) * per[3] + 0.5, 255);
      const r = held((colors[k] - lows[4]) * per[4] + 0.5, 255);
      const g = held((colors[k + 1] - lows[5]) * per[5] + 0.5, 255);
      const b = held((colors[k + 2] - lows[6]) * per[6] + 0.5, 255);
      records[to] = x | (y << 16);
      records[to + 1] = z | (s1 << 16) | (s2 << 24);
      records[to + 2] =
        s3 | (slantOf(slants[k], shape) << 8) | (slantOf(slants[k + 1], shape) << 16) | (slantOf(slants[k + 2], shape) << 24);
      records[to + 3] = r | (g << 8) | (b << 16) | (((alphas[i] * 255 + 0.5) | 0) << 24);
    }
    records.fill(0, to, 4 * BLOCK * (block + 1));
  }
}

/**
 * Room for an update of so many blocks.
 * @param {number} blocks
 * @param {number} shBlocks
 * @param {number} shDegree its texels of SH words a Gaussian
 * @returns {Update}
 */
export function newUpdate(blocks, shBlocks, shDegree) {
  return {
    blocks: new Int32Array(blocks), records: new Uint32Array(4 * BLOCK * blocks), boxes: new Float32Array(16 * blocks),
    shBlocks: new Int32Array(shBlocks), sh: Array.from({ length: shDegree }, () => new Uint32Array(4 * BLOCK * shBlocks)),
  };
}

/**
 * Put packed SH words of a Gaussian into texels.
 * @param {Uint32Array} words
 * @param {Uint32Array[]} sh
 * @param {number} place
 */
export function putSh(words, sh, place) {
  for (let texel = 0; texel < sh.length; texel++) {
    const out = sh[texel];
    for (let k = 0; k < 4; k++) out[4 * place + k] = 4 * texel + k < words.length ? words[4 * texel + k] : 0;
  }
}

/** Sweeps of Jacobi rotations; far more than are needed. */
const SWEEPS = 12;
const a = new Float64Array(9);
const v = new Float64Array(9);

/**
 * Axes and natural logarithms of standard deviations of a covariance, by Jacobi rotations.
 * @param {ArrayLike<number>} covariance xx, xy, xz, yy, yz, zz
 * @param {number} smallest standard deviation there may be
 * @param {Float32Array} axes out, 9 numbers: column k is axis k
 * @param {Float32Array} scales out, 3 numbers
 * @param {number} place Gaussian of both
 */
export function axesOf(covariance, smallest, axes, scales, place) {
  a[0] = covariance[0];
  a[1] = a[3] = covariance[1];
  a[2] = a[6] = covariance[2];
  a[4] = covariance[3];
  a[5] = a[7] = covariance[4];
  a[8] = covariance[5];
  v.fill(0);
  v[0] = v[4] = v[8] = 1;
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const off = Math.abs(a[1]) + Math.abs(a[2]) + Math.abs(a[5]);
    if (off <= 1e-14 * (Math.abs(a[0]) + Math.abs(a[4]) + Math.abs(a[8]))) break;
    for (let p = 0; p < 2; p++) {
      for (let q = p + 1; q < 3; q++) {
        const entry = a[3 * p + q];
        if (entry === 0) continue;
        const theta = (a[4 * q] - a[4 * p]) / (2 * entry);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1);
        const s = t * c;
        const r = 3 - p - q;
        a[4 * p] -= t * entry;
        a[4 * q] += t * entry;
        a[3 * p + q] = a[3 * q + p] = 0;
        const [x, y] = [a[3 * r + p], a[3 * r + q]];
        a[3 * r + p] = a[3 * p + r] = c * x - s * y;
        a[3 * r + q] = a[3 * q + r] = s * x + c * y;
        for (let k = 0; k < 9; k += 3) {
          const [z, w] = [v[k + p], v[k + q]];
          v[k + p] = c * z - s * w;
          v[k + q] = s * z + c * w;
        }
      }
    }
  }
  axes.set(v, 9 * place);
  const least = smallest * smallest;
  for (let k = 0; k < 3; k++) scales[3 * place + k] = 0.5 * Math.log(Math.max(a[4 * k], least));
}
