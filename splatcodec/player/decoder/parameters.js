// The PARM chunk: what the tiles of a scene share (bitstreams/SPEC.md, section 3.1), laid out for the loops of tile.js.

import { SplcError } from "./container.js";
import { IntegerList, readTables } from "./entropy.js";

const HEAD_BYTES = 28;
const CELLS = [256, 256, 256, 1024];
const MATRIX_LIMIT = 8192;
/** First stream of each group of streams, and the number of streams. */
const GROUPS = [0, 1, 2, 5, 8, 9, 12, 21, 36, 57];
/** Number of streams by SH degree; streams of layer k go from STREAMS[k - 1] to STREAMS[k]. */
export const STREAMS = [12, 21, 36, 57];
/** Values a row of features has: 12 means, 12 nearest, 12 own, depth. */
export const FEATURES = 37;

const levelOf = (/** @type {number} */ x) => {
  if (x < 4) return x;
  const b = 32 - Math.clz32(x);
  return 2 * b - 2 + ((x >> (b - 2)) & 1);
};
const level = (/** @type {number} */ x, /** @type {number} */ n) => Math.min(levelOf(x), n - 1);

/**
 * What `near` and `own`, held to 255, add to a context cell, by context mode: all levels are at their top by then.
 */
export const NEAR_CELLS = new Uint8Array(4 * 256);
export const OWN_CELLS = new Uint8Array(4 * 256);
for (let x = 0; x < 256; x++) {
  NEAR_CELLS[x] = level(x, 16);
  NEAR_CELLS[256 + x] = 8 * level(x, 16);
  NEAR_CELLS[768 + x] = 4 * level(x, 8);
  OWN_CELLS[256 + x] = level(x, 8);
  OWN_CELLS[512 + x] = level(x, 16);
  OWN_CELLS[768 + x] = level(x, 8) >> 1;
}

/**
 * @typedef {object} Parameters
 * @property {number} shDegree
 * @property {Uint8Array} trellis next state, by 2 * state + parity of the index
 * @property {number} sizeStep 1/1024 octaves of sqrt(D) a base unit
 * @property {number} opacityStep 1/1024 octaves of opacity a base unit
 * @property {number} precision
 * @property {number} shapeStep
 * @property {number} colorStep
 * @property {number} shStep
 * @property {Float64Array} colorBasis 3 x 3, row = channel
 * @property {Float64Array} shColorBasis 3 x 3, row = channel
 * @property {Float64Array} shBandBasis component by component: 15 x (K-1), number of the component first
 * @property {Uint8Array} first see `Tables`
 * @property {Uint16Array} starts see `Tables`
 * @property {Uint8Array} maps context maps: tables of each cell, for quantizer 0 and 1
 * @property {Uint16Array} bases 16 a stream: half of where in `maps` the cells of a step exponent begin
 * @property {Int32Array} modes 256 * context mode of each stream
 * @property {Int32Array} terms 2 a stream: -1 if the magnitude of the stream before, and the one before that, count
 * @property {Float64Array} bias of each stream, with the half that rounds
 * @property {Int32Array} begin 58: where the features of each of streams 0 to 11 begin
 * @property {Int32Array} sources of each feature of streams 0 to 11: which of the 37
 * @property {Float64Array} coefficients of them
 * @property {Float64Array} shCoefficients 2 a stream from 12 on: of the mean, of the nearest
 */

/**
 * @param {Uint8Array} bytes the chunk
 * @returns {Parameters}
 */
export function parseParameters(bytes) {
  if (bytes.length < HEAD_BYTES) throw new SplcError("truncated", "the parameters are cut off", bytes.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const shDegree = bytes[0];
  const sizeStep = view.getUint16(4, true);
  const opacityStep = view.getUint16(6, true);
  const precision = view.getInt32(8, true);
  const steps = [12, 16, 20].map((at) => view.getFloat32(at, true));
  const bad = (/** @type {number} */ step) => step < 1 || step > 4096;
  if (shDegree > 3 || bad(sizeStep) || bad(opacityStep) || Math.abs(precision) > 2 ** 20) {
    throw new SplcError("format", "a parameter is out of range", 0);
  }
  // Not above 0 is also NaN.
  if (steps.some((step) => !(step > 0 && step < 1e30))) throw new SplcError("format", "a step is out of range", 12);
  const length = view.getUint32(24, true);
  if (length > bytes.length - HEAD_BYTES) throw new SplcError("truncated", "the integer list is cut off", 24);
  const list = new IntegerList(bytes, HEAD_BYTES, length);

  const matrix = (/** @type {number} */ size) =>
    Float64Array.from({ length: size }, () => list.next(0, -MATRIX_LIMIT, MATRIX_LIMIT, "a basis") / 2048);
  const colorBasis = matrix(9);
  const bands = (shDegree + 1) ** 2 - 1;
  const shColorBasis = shDegree ? matrix(9) : new Float64Array(9);
  const rows = shDegree ? matrix(bands * bands) : new Float64Array(0);
  const shBandBasis = new Float64Array(bands * bands);
  for (let k = 0; k < bands; k++) for (let b = 0; b < bands; b++) shBandBasis[k * bands + b] = rows[b * bands + k];

  const numTables = list.next(1, 1, 256, "the number of tables");
  const numStreams = STREAMS[shDegree];
  const maps = new Uint8Array(numStreams * 1024);
  const bases = new Uint16Array(numStreams * 16);
  const modes = new Int32Array(numStreams);
  const terms = new Int32Array(numStreams * 2);
  const bias = new Float64Array(numStreams);
  const begin = new Int32Array(13);
  /** @type {number[]} */
  const sources = [];
  /** @type {number[]} */
  const coefficients = [];
  const shCoefficients = new Float64Array(numStreams * 2);
  let mapAt = 0;
  let mapSize = 0;
  for (let s = 0; s < numStreams; s++) {
    const numFeatures = list.next(1, 0, 16, "the number of features");
    bias[s] = list.next(4, -(2 ** 29), 2 ** 29, "a bias") + 2048;
    if (s < 12) begin[s] = sources.length;
    for (let f = 0; f < numFeatures; f++) {
      const code = list.next(2, 0, 4 * numStreams - 1, "a feature");
      const coefficient = list.next(3, -(2 ** 20), 2 ** 20, "a coefficient");
      const kind = code & 3;
      const source = code >> 2;
      if (source > s || (kind === 2 && source === s) || (s >= 12 && (kind > 1 || source !== s))) {
        throw new SplcError("format", "a feature reads a later stream");
      }
      if (s >= 12) {
        shCoefficients[2 * s + kind] += coefficient;
      } else {
        sources.push(kind === 3 ? 36 : 12 * kind + source);
        coefficients.push(coefficient);
      }
    }
    const mode = list.next(5, 0, 3, "a context mode");
    const scale = mode === 3 ? list.next(7, 0, 2 ** 28, "a scale") : 0;
    if (list.next(5, 0, 1, "a flag")) {
      if (mapSize !== CELLS[mode]) throw new SplcError("format", "a context map's size");
    } else {
      mapAt += mapSize;
      mapSize = CELLS[mode];
      let table = 0;
      for (let cell = 0; cell < mapSize; cell++) {
        table += list.next(6, -256, 256, "a context map");
        if (table < 0 || table >= numTables) throw new SplcError("format", "a context map's table");
        // Cells of quantizer 1 come after those of quantizer 0.
        maps[mapAt + 2 * cell - (2 * cell < mapSize ? 0 : mapSize - 1)] = table;
      }
    }
    modes[s] = mode << 8;
    for (let e = 0; e < 16; e++) {
      const first = mode === 3 ? 32 * level(scale >> e, 16) : mode === 1 ? 0 : 16 * Math.min(e, 7);
      bases[16 * s + e] = mapAt / 2 + first;
    }
    const inGroup = s - Math.max(...GROUPS.filter((group) => group <= s));
    terms[2 * s] = inGroup > 0 ? -1 : 0;
    terms[2 * s + 1] = inGroup > 1 ? -1 : 0;
  }
  begin[12] = sources.length;
  list.coder.finish();
  const end = HEAD_BYTES + length;
  let tables;
  try {
    tables = readTables(bytes.subarray(end), numTables);
  } catch (error) {
    if (error instanceof SplcError) error.offset = end + (error.offset ?? 0);
    throw error;
  }
  return {
    shDegree, sizeStep, opacityStep, precision, shapeStep: steps[0], colorStep: steps[1], shStep: steps[2],
    trellis: Uint8Array.from({ length: 512 }, (_, k) => (k >> 2) ^ (k & 2 && bytes[1]) ^ (k & 1 && bytes[2])),
    colorBasis, shColorBasis, shBandBasis, ...tables, maps: maps.slice(0, mapAt + mapSize), bases, modes, terms, bias,
    begin, sources: Int32Array.from(sources), coefficients: Float64Array.from(coefficients), shCoefficients,
  };
}
