// rANS, adaptive bits, integer lists and tables (bitstreams/SPEC.md, section 2).

import { SplcError } from "./container.js";

const RANS_LOW = 1 << 16;
/** Words that may be read past the end before it is noticed: more than the symbols of one Gaussian or octree cell. */
const WORD_SLACK = 96;
/** The same in bytes for plain bits: more than the raw bits of 21 tokens. */
export const RAW_SLACK = 256;
const LITTLE_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** Step towards a coded bit after n bits, 15 fractional bits. */
export const STEPS = Int32Array.from({ length: 97 }, (_, n) => Math.floor(65536 / (2 * n + 3)));

/**
 * Adaptive models at their start, probability * 128 + number of bits seen.
 * @param {number} count
 */
export const newModels = (count) => new Int32Array(count).fill(32768 << 7);

/**
 * Check that a rANS stream can begin.
 * @param {Uint8Array} bytes the chunk
 * @param {number} from where the stream begins
 * @param {number} length of it
 * @param {number} logStates
 */
export function checkStream(bytes, from, length, logStates) {
  if (length > bytes.length - from) throw new SplcError("truncated", "the rANS stream is cut off", from);
  if (length < 4 << logStates) throw new SplcError("truncated", "the rANS stream is cut off", from);
  if (length & 1) throw new SplcError("format", "the rANS stream has an odd number of bytes", from);
  for (let b = from; b < from + (4 << logStates); b += 4) {
    if (!(bytes[b + 2] | bytes[b + 3])) throw new SplcError("format", "a rANS state is out of range", b);
  }
}

/**
 * One rANS stream and the plain bits behind it. Buffers are kept from chunk to chunk. Reading runs a little past the
 * end without harm; `check` must follow soon.
 */
export class Coder {
  constructor() {
    this.states = new Int32Array(32);
    this.mask = 0;
    /** Number of symbols so far, modulo 2^31: only its low bits matter. */
    this.count = 0;
    this.words = new Uint16Array(WORD_SLACK);
    this.numWords = 0;
    /** Next word. */
    this.at = 0;
    this.raw = new Uint8Array(RAW_SLACK);
    this.lastBit = 0;
    /** Next plain bit. */
    this.position = 0;
  }

  /**
   * @param {Uint8Array} bytes the chunk
   * @param {number} from where the rANS stream begins
   * @param {number} length of it
   * @param {number} logStates
   */
  start(bytes, from, length, logStates) {
    checkStream(bytes, from, length, logStates);
    const numStates = 1 << logStates;
    this.mask = numStates - 1;
    this.count = this.at = this.position = 0;
    for (let k = 0; k < numStates; k++) {
      const b = from + 4 * k;
      this.states[k] = bytes[b] | (bytes[b + 1] << 8) | (bytes[b + 2] << 16) | (bytes[b + 3] << 24);
    }
    const first = from + 4 * numStates;
    this.numWords = (from + length - first) >> 1;
    if (this.words.length < this.numWords + WORD_SLACK) this.words = new Uint16Array(this.numWords + WORD_SLACK);
    if (LITTLE_ENDIAN) new Uint8Array(this.words.buffer).set(bytes.subarray(first, from + length));
    else for (let k = 0; k < this.numWords; k++) this.words[k] = bytes[first + 2 * k] | (bytes[first + 2 * k + 1] << 8);
    const raw = bytes.subarray(from + length);
    if (this.raw.length < raw.length + RAW_SLACK) this.raw = new Uint8Array(raw.length + RAW_SLACK);
    this.raw.set(raw);
    this.lastBit = 8 * raw.length;
    return this;
  }

  /** Complain if anything was read that is not there. */
  check() {
    if (this.at > this.numWords) throw new SplcError("truncated", "the rANS stream ends before its last symbol");
    if (this.position > this.lastBit) throw new SplcError("truncated", "the plain bits end before the last one");
  }

  /** Check that the rANS stream ends here. */
  finish() {
    this.check();
    let whole = this.at === this.numWords;
    for (let k = 0; k <= this.mask; k++) whole &&= this.states[k] === RANS_LOW;
    if (!whole) throw new SplcError("format", "the rANS stream does not end where its symbols do");
  }

  /**
   * Consume the symbol with the interval [start, start + freq).
   * @param {number} x state
   * @param {number} freq
   * @param {number} start
   */
  advance(x, freq, start) {
    x = (Math.imul(freq, x >>> 12) + (x & 4095) - start) | 0;
    // Without a branch: whether a word is needed cannot be foreseen.
    const need = ((x >>> 16) - 1) >> 31;
    this.states[this.count & this.mask] = (x << (need & 16)) | (this.words[this.at] & need);
    this.at -= need;
    this.count++;
  }

  /**
   * One adaptive bit.
   * @param {Int32Array} models
   * @param {number} index
   */
  bit(models, index) {
    const x = this.states[this.count & this.mask];
    const model = models[index];
    const p = model >>> 7;
    const n = model & 127;
    const q = p >>> 4 || 1;
    const one = (x & 4095) < q ? 1 : 0;
    this.advance(x, one ? q : 4096 - q, one ? 0 : q);
    models[index] = ((p + (((one * 65535 - p) * STEPS[n]) >> 15)) << 7) | (n < 96 ? n + 1 : 96);
    return one;
  }

  /**
   * The signed value of one token and its raw bits.
   * @param {Uint8Array} first see `Tables`
   * @param {Uint16Array} starts
   * @param {number} table
   */
  value(first, starts, table) {
    const x = this.states[this.count & this.mask];
    const slot = x & 4095;
    let token = first[(table << 7) + (slot >> BUCKET_BITS)];
    const at = table << 8;
    while (slot >= starts[at + token + 1]) token++;
    const start = starts[at + token];
    this.advance(x, starts[at + token + 1] - start, start);
    if (token >= 16) {
      const bits = ((token - 16) >> 2) + 2;
      token = ((4 + (token & 3)) << bits) | this.rawBits(bits);
    }
    return (token >>> 1) ^ -(token & 1);
  }

  /**
   * Plain bits behind the rANS stream.
   * @param {number} count 0 to 30
   */
  rawBits(count) {
    const { raw, position } = this;
    const byte = position >>> 3;
    const shift = position & 7;
    this.position += count;
    const word = (raw[byte] << 24) | (raw[byte + 1] << 16) | (raw[byte + 2] << 8) | raw[byte + 3];
    return ((word << shift) | (raw[byte + 4] >> (8 - shift))) >>> 1 >>> (31 - count);
  }

  /** One plain bit of the rANS stream. */
  half() {
    const x = this.states[this.count & this.mask];
    const one = (x & 2048) === 0 ? 1 : 0;
    this.advance(x, 2048, one ? 0 : 2048);
    return one;
  }

  /**
   * Adaptive Exp-Golomb: a number from 0 to 2^31 - 2.
   * @param {Int32Array} models
   * @param {number} base
   */
  gamma(models, base) {
    let length = 0;
    while (this.bit(models, base + length)) {
      if (++length > 30) throw new SplcError("format", "a number is too large");
    }
    let w = 1;
    if (length) w = 2 + this.bit(models, base + 32 + length);
    for (let k = 1; k < length; k++) w = 2 * w + this.half();
    return w - 1;
  }
}

/** A list of signed integers, each under a kind. */
export class IntegerList {
  /**
   * @param {Uint8Array} bytes
   * @param {number} from
   * @param {number} length
   */
  constructor(bytes, from, length) {
    this.coder = new Coder().start(bytes.subarray(0, from + length), from, length, 0);
    this.models = newModels(16 * 64);
  }

  /**
   * @param {number} kind
   * @param {number} low
   * @param {number} high
   * @param {string} what
   */
  next(kind, low, high, what) {
    const zigzag = this.coder.gamma(this.models, 64 * kind);
    this.coder.check();
    const value = zigzag & 1 ? -(zigzag + 1) / 2 : zigzag / 2;
    if (value < low || value > high) throw new SplcError("format", `${what} is out of range`);
    return value;
  }
}

/**
 * Frequencies of one table.
 * @param {Float64Array} weights 128 integers
 */
function frequenciesOf(weights) {
  let total = 0;
  let largest = 0;
  for (let a = 0; a < 128; a++) {
    total += weights[a];
    if (weights[a] > weights[largest]) largest = a;
  }
  if (total === 0) throw new SplcError("format", "a table has no tokens");
  const freq = new Int32Array(128);
  let missing = 4096;
  for (let a = 0; a < 128; a++) {
    if (weights[a]) missing -= freq[a] = Math.max(1, Math.floor((weights[a] * 4096) / total));
  }
  freq[largest] += missing;
  if (freq[largest] < 1) throw new SplcError("format", "a table's weight is out of range");
  return freq;
}

/** Slots that one entry of `Tables.first` stands for, as a power of two. */
export const BUCKET_BITS = 5;

/**
 * Tables, ready to decode with. Small, so that a hundred of them stay in the processor's nearest cache: the token of a
 * slot is looked for from the first token of its bucket of 32 slots on.
 * @typedef {object} Tables
 * @property {Uint8Array} first 128 a table: token of the first slot of each bucket
 * @property {Uint16Array} starts 256 a table: slot where each token begins; after the last one 4096
 */

/**
 * @param {Uint8Array} bytes
 * @param {number} count
 * @returns {Tables}
 */
export function readTables(bytes, count) {
  const coder = new Coder().start(bytes, 0, bytes.length, 0);
  const models = newModels(328);
  const first = new Uint8Array(128 * count);
  const starts = new Uint16Array(256 * count).fill(4096);
  const weights = new Float64Array(128);
  for (let t = 0; t < count; t++) {
    const last = coder.gamma(models, 264);
    if (last > 127) throw new SplcError("format", "a table has too many tokens");
    weights.fill(0);
    let exponent = 8;
    let z = 0;
    for (let a = 0; a <= last; a++) {
      if (a < last && !coder.bit(models, z + 2 * Math.min(a >> 3, 3))) {
        z = 1;
        continue;
      }
      z = 0;
      const step = coder.gamma(models, 8 + 64 * Math.min(a >> 2, 3));
      exponent += step & 1 ? -(step + 1) / 2 : step / 2;
      if (exponent < 0 || exponent > 12) throw new SplcError("format", "a table's weight is out of range");
      weights[a] = 2 ** exponent;
      for (let k = 1; k <= Math.min(exponent, 2); k++) weights[a] += coder.half() * 2 ** (exponent - k);
    }
    coder.check();
    const freq = frequenciesOf(weights);
    let start = 0;
    let bucket = 0;
    for (let a = 0; a < 128; a++) {
      starts[256 * t + a] = start;
      start += freq[a];
      for (; bucket << BUCKET_BITS < start; bucket++) first[128 * t + bucket] = a;
    }
  }
  coder.finish();
  return { first, starts };
}
