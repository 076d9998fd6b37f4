// From integers to attributes (bitstreams/SPEC.md, section 5): exact arrays, or records of 16 to 60 bytes for a GPU.

import { BLOCK, POWERS, WINDOW } from "./tile.js";

/** @typedef {import("./parameters.js").Parameters} Parameters */
/** @typedef {import("./tile.js").LayerDecoder} LayerDecoder */

/** 2^(i / 1024), from square roots and products alone. */
export const EXP2 = new Float64Array(1024).fill(1);
for (let k = 0, root = 2; k < 10; k++) {
  root = Math.sqrt(root);
  for (let i = 0; i < 1024; i++) if (i & (512 >> k)) EXP2[i] *= root;
}

/**
 * 2^(t / 1024) of an integer, the exponent held to -500..500.
 * @param {number} t
 */
export function exp2(t) {
  if (t >= 501 * 1024) return POWERS[1600];
  if (t < -500 * 1024) return POWERS[600];
  return EXP2[t & 1023] * POWERS[1100 + (t >> 10)];
}

const LOWEST_ALPHA = 1 / 4096;
const HIGHEST_ALPHA = 4095 / 4096;
/** Zeroth basis function: what sh0 is multiplied by to be added to a colour. */
export const SH_C0 = 0.28209479177387814;

/**
 * Attributes of many Gaussians, exact to the bit. SH coefficients come apart from them: 3 numbers (red, green, blue) a
 * basis function, those of a Gaussian together.
 * @typedef {object} Arrays
 * @property {Float32Array} means 3 a Gaussian, world units
 * @property {Float64Array} covariances 6 a Gaussian: xx, xy, xz, yy, yz, zz
 * @property {Float64Array} alphas opacity after the sigmoid
 * @property {Float32Array} sh0 3 a Gaussian: red, green, blue
 */

/**
 * @param {number} count
 * @returns {Arrays}
 */
export function newArrays(count) {
  return {
    means: new Float32Array(3 * count),
    covariances: new Float64Array(6 * count),
    alphas: new Float64Array(count),
    sh0: new Float32Array(3 * count),
  };
}

/**
 * A block of Gaussians as integers: rows of 12 streams, the first WINDOW of them those before the block, and positions.
 * @typedef {{ values: Int32Array, means: Float64Array }} Rows
 */

/**
 * Arrays of a block.
 * @param {Parameters} parameters
 * @param {Rows} rows
 * @param {number} size
 * @param {number} blur
 * @param {Arrays} out
 * @param {number} first Gaussian of `out` that the block's first one is
 */
export function writeArrays(parameters, { values, means }, size, blur, out, first) {
  const { sizeStep, shapeStep, opacityStep, colorStep, colorBasis: basis } = parameters;
  const { covariances, alphas, sh0 } = out;
  const square = blur * blur;
  out.means.set(means.subarray(0, 3 * size), 3 * first);
  for (let i = 0; i < size; i++) {
    const v = 12 * (WINDOW + i);
    const r1 = exp2(values[v + 2] * sizeStep);
    const r2 = exp2(values[v + 3] * sizeStep);
    const r3 = exp2(values[v + 4] * sizeStep);
    const b = values[v + 5] * shapeStep * r2;
    const c = values[v + 6] * shapeStep * r3;
    const f = values[v + 7] * shapeStep * r3;
    const at = 6 * (first + i);
    covariances[at] = r1 * r1 - square;
    covariances[at + 1] = r1 * b;
    covariances[at + 2] = r1 * c;
    covariances[at + 3] = b * b + r2 * r2 - square;
    covariances[at + 4] = b * c + r2 * f;
    covariances[at + 5] = c * c + f * f + r3 * r3 - square;
    alphas[first + i] = alphaOf(values[v + 8], opacityStep);
    const x = values[v + 9] * colorStep;
    const y = values[v + 10] * colorStep;
    const z = values[v + 11] * colorStep;
    const to = 3 * (first + i);
    sh0[to] = basis[0] * x + basis[1] * y + basis[2] * z;
    sh0[to + 1] = basis[3] * x + basis[4] * y + basis[5] * z;
    sh0[to + 2] = basis[6] * x + basis[7] * y + basis[8] * z;
  }
}

/**
 * Make Gaussians look as they should while higher levels of their tile are missing (SPEC.md, section 3.10).
 * @param {Arrays} arrays
 * @param {{ grow: number, gain: number }} look
 */
export function applyLook({ covariances, alphas }, { grow, gain }) {
  const factor = exp2(2 * grow);
  if (grow !== 0) for (let k = 0; k < covariances.length; k++) covariances[k] *= factor;
  const fade = gain / 1024;
  if (gain !== 1024) for (let k = 0; k < alphas.length; k++) alphas[k] = Math.min(alphas[k] * fade, HIGHEST_ALPHA);
}

/**
 * The Gaussians from `first` on, as views.
 * @param {Arrays} arrays
 * @param {number} first
 * @param {number} count
 * @returns {Arrays}
 */
export function viewOf({ means, covariances, alphas, sh0 }, first, count) {
  const end = first + count;
  return {
    means: means.subarray(3 * first, 3 * end),
    covariances: covariances.subarray(6 * first, 6 * end),
    alphas: alphas.subarray(first, end),
    sh0: sh0.subarray(3 * first, 3 * end),
  };
}

/**
 * @param {number} value
 * @param {number} opacityStep
 */
export function alphaOf(value, opacityStep) {
  const alpha = exp2(-(value > 0 ? value : 0) * opacityStep);
  return alpha < LOWEST_ALPHA ? LOWEST_ALPHA : alpha > HIGHEST_ALPHA ? HIGHEST_ALPHA : alpha;
}

/** Terms that `ShTransform` adds at a time: one load and one store of a sum for all of them. */
const TERMS = 4;

/** SH coefficients of one Gaussian after the other. */
class ShTransform {
  /**
   * @param {Parameters} parameters
   * @param {LayerDecoder[]} layers those that there are, in ascending order
   */
  constructor(parameters, layers) {
    this.parameters = parameters;
    this.layers = layers;
    this.bands = (parameters.shDegree + 1) ** 2 - 1;
    // Of each colour component the terms that are not 0: value, and where its row of the band basis begins.
    this.terms = new Float64Array(3 * 16);
    this.rows = new Int32Array(3 * 16);
    this.sizes = new Int32Array(3);
    /** Basis function by basis function, for each colour component. */
    this.mixed = new Float64Array(3 * this.bands);
    /** Coefficients, three channels a basis function. */
    this.out = new Float64Array(3 * this.bands);
  }

  /** @param {number} i Gaussian of the block */
  run(i) {
    const { layers, bands, terms, rows, sizes, mixed, out } = this;
    const { shBandBasis: basis, shColorBasis: c, shStep } = this.parameters;
    sizes[0] = sizes[1] = sizes[2] = 0;
    for (let l = 0; l < layers.length; l++) {
      const { first, width, values } = layers[l];
      const row = width * (WINDOW + i);
      let from = (bands * (first - 12)) / 3;
      for (let w = 0; w < width; w += 3, from += bands) {
        for (let j = 0; j < 3; j++) {
          const v = values[row + w + j];
          if (v === 0) continue;
          const at = 16 * j + sizes[j]++;
          terms[at] = v * shStep;
          rows[at] = from;
        }
      }
    }
    for (let j = 0; j < 3; j++) {
      const to = bands * j;
      const end = 16 * j + sizes[j];
      // Terms of 0 fill the last group; adding them changes nothing.
      for (let at = end; at & (TERMS - 1); at++) terms[at] = rows[at] = 0;
      if (end === 16 * j) mixed.fill(0, to, to + bands);
      for (let at = 16 * j; at < end; at += TERMS) {
        const x0 = terms[at];
        const x1 = terms[at + 1];
        const x2 = terms[at + 2];
        const x3 = terms[at + 3];
        const r0 = rows[at];
        const r1 = rows[at + 1];
        const r2 = rows[at + 2];
        const r3 = rows[at + 3];
        const before = at === 16 * j ? 0 : 1;
        for (let band = 0; band < bands; band++) {
          const sum = before ? mixed[to + band] : 0;
          mixed[to + band] =
            sum + basis[r0 + band] * x0 + basis[r1 + band] * x1 + basis[r2 + band] * x2 + basis[r3 + band] * x3;
        }
      }
    }
    const [c0, c1, c2, c3, c4, c5, c6, c7, c8] = c;
    for (let band = 0; band < bands; band++) {
      const x = mixed[band];
      const y = mixed[bands + band];
      const z = mixed[2 * bands + band];
      out[3 * band] = c0 * x + c1 * y + c2 * z;
      out[3 * band + 1] = c3 * x + c4 * y + c5 * z;
      out[3 * band + 2] = c6 * x + c7 * y + c8 * z;
    }
  }
}

/**
 * SH coefficients of a block.
 * @param {Parameters} parameters
 * @param {LayerDecoder[]} layers
 * @param {number} size
 * @param {Float32Array} shN
 * @param {number} first
 */
export function writeShArrays(parameters, layers, size, shN, first) {
  const transform = new ShTransform(parameters, layers);
  const width = 3 * transform.bands;
  for (let i = 0; i < size; i++) {
    transform.run(i);
    shN.set(transform.out, width * (first + i));
  }
}

/**
 * Gaussians packed for a GPU. A *record* is four words, lowest bits first:
 *
 *     x 16, y 16 | z 16, size1 8, size2 8 | size3 8, w21 8, w31 8, w32 8 | red 8, green 8, blue 8, alpha 8
 *
 * Every `BLOCK` records have a *box* of 16 floats (`Box` names them) to unpack with:
 *
 *     position = low + q * step          R_j = exp2(sizeLow + q * sizeStep)      colour = colorLow + q * colorStep
 *     |w| = (the float with the bits 0x3f800000 + |q - 127| * shapeStep) - 1, negative for q < 127
 *     covariance = A A^T - blur2 * I  with  A = [[R_1, 0, 0], [w21 R_2, R_2, 0], [w31 R_3, w32 R_3, R_3]]
 *     alpha = q / 255
 *
 * `colour` is 0.5 + C0 * sh0, not held to 0..1.
 *
 * SH coefficients come apart from them, 3, 7 or 11 words a Gaussian: a bit string, lowest bits first. It has 8 bits for
 * each of the first eight basis functions (or three), red of all, then green, then blue; then 7 bits for each of the
 * others, in the same order; the top byte of the last word is the scale's. With scale = the float with the bits
 * (byte + 856) << 20 a coefficient is (q - 128) / 127 * scale, or (q - 64) / 63 * scale.
 * @typedef {object} Records
 * @property {Uint32Array} records 4 words a Gaussian
 * @property {Float32Array} boxes 16 numbers for each BLOCK Gaussians
 */

/** Words of packed SH coefficients a Gaussian, by SH degree. */
export const SH_WORDS = [0, 3, 7, 11];
const SCALE_BASE = 856;
const ONE = 0x3f800000;

/**
 * @param {number} count
 * @returns {Records}
 */
export function newRecords(count) {
  return { records: new Uint32Array(4 * count), boxes: new Float32Array(16 * Math.ceil(count / BLOCK)) };
}

const floats = new Float32Array(1);
const bits = new Int32Array(floats.buffer);
const colors = new Float64Array(3 * BLOCK);
const lows = new Float64Array(8);
const highs = new Float64Array(8);
const scales = new Float64Array(8);

/**
 * @param {number} low
 * @param {number} high
 * @param {number} levels
 */
export function stepOf(low, high, levels) {
  const step = Math.fround((high - low) / levels);
  return step > 0 && step < Infinity ? step : 1;
}

/**
 * Records of a block, without SH.
 * @param {Parameters} parameters
 * @param {Rows} rows
 * @param {number} size
 * @param {number} blur
 * @param {Records} out
 * @param {number} first Gaussian of `out` that the block's first one is, a multiple of BLOCK
 */
export function writeRecords(parameters, { values, means }, size, blur, out, first) {
  const { sizeStep, shapeStep, opacityStep, colorStep, colorBasis: basis } = parameters;
  const { records, boxes } = out;
  // What is quantized: three axes, size, three channels. Ranges first.
  lows.fill(Infinity);
  highs.fill(-Infinity);
  let widest = 0;
  for (let i = 0; i < size; i++) {
    const v = 12 * (WINDOW + i);
    const x = values[v + 9] * colorStep;
    const y = values[v + 10] * colorStep;
    const z = values[v + 11] * colorStep;
    for (let k = 0; k < 3; k++) {
      const at = 3 * i + k;
      const mean = means[at];
      if (mean < lows[k]) lows[k] = mean;
      if (mean > highs[k]) highs[k] = mean;
      const value = values[v + 2 + k];
      if (value < lows[3]) lows[3] = value;
      if (value > highs[3]) highs[3] = value;
      const slant = Math.abs(values[v + 5 + k]);
      if (slant > widest) widest = slant;
      const color = 0.5 + SH_C0 * (basis[3 * k] * x + basis[3 * k + 1] * y + basis[3 * k + 2] * z);
      colors[at] = color;
      if (color < lows[4 + k]) lows[4 + k] = color;
      if (color > highs[4 + k]) highs[4 + k] = color;
    }
  }
  lows[3] *= sizeStep / 1024;
  highs[3] *= sizeStep / 1024;
  const box = (16 * first) / BLOCK;
  for (let k = 0; k < 7; k++) {
    const low = Math.fround(lows[k]);
    const step = stepOf(low, highs[k], k < 3 ? 65535 : 255);
    lows[k] = low;
    scales[k] = 1 / step;
    boxes[box + (k < 3 ? k : k === 3 ? 6 : k + 5)] = low;
    boxes[box + (k < 3 ? k + 3 : k === 3 ? 7 : k + 8)] = step;
  }
  floats[0] = widest * shapeStep + 1;
  const shape = Math.max(1, Math.ceil((bits[0] - ONE) / 127));
  boxes[box + 8] = shape;
  boxes[box + 15] = blur * blur;

  const [lowX, lowY, lowZ, lowSize, lowR, lowG, lowB] = lows;
  const [perX, perY, perZ, , perR, perG, perB] = scales;
  const perSize = (scales[3] * sizeStep) / 1024;
  const sizeAt = 0.5 - lowSize * scales[3];
  for (let i = 0; i < size; i++) {
    const v = 12 * (WINDOW + i);
    const at = 4 * (first + i);
    const x = held((means[3 * i] - lowX) * perX + 0.5, 65535);
    const y = held((means[3 * i + 1] - lowY) * perY + 0.5, 65535);
    const z = held((means[3 * i + 2] - lowZ) * perZ + 0.5, 65535);
    const s1 = held(values[v + 2] * perSize + sizeAt, 255);
    const s2 = held(values[v + 3] * perSize + sizeAt, 255);
    const s3 = held(values[v + 4] * perSize + sizeAt, 255);
    const w1 = slantOf(values[v + 5] * shapeStep, shape);
    const w2 = slantOf(values[v + 6] * shapeStep, shape);
    const w3 = slantOf(values[v + 7] * shapeStep, shape);
    const r = held((colors[3 * i] - lowR) * perR + 0.5, 255);
    const g = held((colors[3 * i + 1] - lowG) * perG + 0.5, 255);
    const b = held((colors[3 * i + 2] - lowB) * perB + 0.5, 255);
    const a = (alphaOf(values[v + 8], opacityStep) * 255 + 0.5) | 0;
    records[at] = x | (y << 16);
    records[at + 1] = z | (s1 << 16) | (s2 << 24);
    records[at + 2] = s3 | (w1 << 8) | (w2 << 16) | (w3 << 24);
    records[at + 3] = r | (g << 8) | (b << 16) | (a << 24);
  }
}

/**
 * @param {number} value
 * @param {number} highest
 */
export function held(value, highest) {
  return value < 0 ? 0 : value > highest ? highest : value | 0;
}

/**
 * @param {number} w
 * @param {number} step
 */
export function slantOf(w, step) {
  floats[0] = Math.abs(w) + 1;
  const q = Math.min(127, ((bits[0] - ONE) / step + 0.5) | 0);
  return w < 0 ? 127 - q : 127 + q;
}

/**
 * SH coefficients of a block, packed.
 * @param {Parameters} parameters
 * @param {LayerDecoder[]} layers
 * @param {number} size
 * @param {Uint32Array} sh
 * @param {number} first
 */
export function writeShRecords(parameters, layers, size, sh, first) {
  const shWords = SH_WORDS[parameters.shDegree];
  const transform = new ShTransform(parameters, layers);
  for (let i = 0; i < size; i++) {
    transform.run(i);
    packSh(transform.out, sh, shWords * (first + i));
  }
}

/**
 * SH coefficients of a Gaussian, packed.
 * @param {Float64Array} coefficients three channels a basis function
 * @param {Uint32Array} sh
 * @param {number} at word that they begin at
 */
export function packSh(coefficients, sh, at) {
  const bands = coefficients.length / 3;
  let most = 0;
  for (let k = 0; k < 3 * bands; k++) {
    const x = Math.abs(coefficients[k]);
    if (x > most) most = x;
  }
  floats[0] = most;
  const code = Math.min(255, Math.max(0, ((bits[0] + 0xfffff) >> 20) - SCALE_BASE));
  bits[0] = (code + SCALE_BASE) << 20;
  const scale = floats[0];
  let word = 0;
  let shift = 0;
  for (let from = 0; from < bands; from += 8) {
    const width = from ? 7 : 8;
    const per = (from ? 63 : 127) / scale;
    const middle = (from ? 64 : 128) + 0.5;
    for (let channel = 0; channel < 3; channel++) {
      for (let band = from; band < Math.min(bands, from + 8); band++) {
        const q = held(coefficients[3 * band + channel] * per + middle, 2 ** width - 1);
        word |= q << shift;
        shift += width;
        if (shift >= 32) {
          sh[at++] = word;
          shift -= 32;
          word = shift ? q >>> (width - shift) : 0;
        }
      }
    }
  }
  sh[at] = word | (code << 24);
}
