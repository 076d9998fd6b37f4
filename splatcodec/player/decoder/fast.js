// The loops of tile.js, and SH coefficients, in WebAssembly: kernel.js, made from tools/player_kernel/kernel.src.

import { MAX_TILE, SplcError } from "./container.js";
import { checkStream, RAW_SLACK, STEPS } from "./entropy.js";
import * as AT from "./kernel.js";
import { NEAR_CELLS, OWN_CELLS, STREAMS } from "./parameters.js";
import { EXP2, SH_WORDS, writeArrays } from "./reconstruct.js";
import {
  BLOCK, CHILD_MODELS, HEAD_BYTES, LAYER_HEAD_BYTES, LEAF_MODELS, ONES, parseLayerHead, parseTileHead, POWERS, WINDOW,
} from "./tile.js";

/** @typedef {import("./parameters.js").Parameters} Parameters */
/** @typedef {import("./reconstruct.js").Arrays} Arrays */
/** @typedef {import("./reconstruct.js").Records} Records */

/** Functions of the module. @typedef {Record<string, (...args: number[]) => number>} Run */

const PAGE = 65536;
/** Bytes of a row of the streams of a layer, padded to vectors. */
const STRIDES = [48, 48, 64, 96];
const VALUES = [AT.VALUES, AT.VALUES1, AT.VALUES2, AT.VALUES3];
const ROWS = WINDOW + BLOCK;
/** Bytes before the values: states of the trellis. */
const STATES = 96;
/** Bytes of a cell of the tree, of a cell of a depth; those are more than the 20 of a leaf. */
const NODE_BYTES = 8;
const CELL_BYTES = 28;

/** @type {Promise<WebAssembly.Module | null> | null} */
let compiled = null;

/** The module; null where WebAssembly is not to be had (an old browser, a page's security policy). */
async function compile() {
  try {
    const deflated = Uint8Array.from(atob(AT.KERNEL), (c) => c.charCodeAt(0));
    const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
    return await WebAssembly.compile(await new Response(stream).arrayBuffer());
  } catch {
    return null;
  }
}

/**
 * An engine as PlainEngine of tile.js, or null where it cannot be had.
 * @param {Parameters} parameters
 */
export async function makeFastEngine(parameters) {
  const module = await (compiled ??= compile());
  if (!module) return null;
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  return new FastEngine(memory, /** @type {Run} */ (exports), parameters);
}

export class FastEngine {
  /**
   * @param {WebAssembly.Memory} memory
   * @param {Run} run
   * @param {Parameters} parameters
   */
  constructor(memory, run, parameters) {
    this.memory = memory;
    this.run = run;
    this.parameters = parameters;
    this.u8 = new Uint8Array(memory.buffer);
    this.i32 = new Int32Array(memory.buffer);
    const { maps, first, starts, trellis } = parameters;
    let at = AT.END;
    const place = (/** @type {number} */ bytes) => {
      at += bytes;
      return at - bytes;
    };
    const trellisAt = place(512);
    const mapsAt = place((2 * maps.length + 15) & -16);
    const firstAt = place(first.length);
    const startsAt = place(starts.byteLength + 16);
    /** Where what a chunk needs begins. */
    this.free = at;
    this.count = this.done = this.blur = 0;
    this.reserve(at);
    this.put(AT.ONES, ONES);
    this.put(AT.LEAF_MODELS, LEAF_MODELS);
    this.put(AT.STEPS, Uint16Array.from(STEPS));
    this.put(AT.CHILD_MODELS, Uint16Array.from(CHILD_MODELS));
    this.put(AT.NEAR_CELLS, NEAR_CELLS.map((cells) => 2 * cells));
    this.put(AT.OWN_CELLS, OWN_CELLS.filter((_, k) => k % 2 === 0).map((cells) => 2 * cells));
    this.put(AT.EXP2, EXP2);
    this.put(AT.POWERS, POWERS);
    this.put(AT.WEIGHTS, Int16Array.of(1, 128, 1, 128, 1, 128, 1, 0));
    this.put(AT.KEYS, BigInt64Array.from({ length: 16 }, (_, k) => BigInt(15 - k)));
    this.put(mapsAt, Uint16Array.from(maps, (table) => 128 * table));
    this.put(firstAt, first);
    this.put(startsAt, starts);
    this.put(trellisAt, trellis);
    this.putParameters(firstAt, startsAt, mapsAt, trellisAt);
  }

  /**
   * @param {number} firstAt
   * @param {number} startsAt
   * @param {number} mapsAt
   * @param {number} trellisAt
   */
  putParameters(firstAt, startsAt, mapsAt, trellisAt) {
    const p = this.parameters;
    const { shDegree } = p;
    const steps = [p.sizeStep, p.precision, p.shStep, p.shapeStep, p.opacityStep, p.colorStep];
    this.put(AT.SCENE, Float64Array.of(...steps, ...p.colorBasis, ...p.shColorBasis));
    const bands = (shDegree + 1) ** 2 - 1;
    this.put(AT.FIRST, Int32Array.of(firstAt, startsAt, 0, bands));
    for (let k = 0; k < bands; k++) this.put(AT.BAND_BASIS + 192 * k, p.shBandBasis.slice(bands * k, bands * (k + 1)));
    let end = AT.FEATURE_LIST;
    for (let s = 0; s < STREAMS[shDegree]; s++) {
      // Features come in pairs; the last of an odd number has a companion of coefficient 0.
      for (let f = p.begin[s]; f < p.begin[s + 1]; f++) {
        this.put(end, Int32Array.of(p.coefficients[f], AT.FEATURES + 4 * p.sources[f], 0, AT.FEATURES));
        end += 8;
      }
      end = (end + 15) & -16;
      const at = AT.STREAMS + 128 * s;
      this.put(at, Int32Array.from(p.bases.subarray(16 * s, 16 * s + 16), (base) => mapsAt + 4 * base));
      const mode = p.modes[s];
      // Classes stay in state 0: there memory is zeros.
      const rest = [...p.terms.subarray(2 * s, 2 * s + 2), s < 2 ? 0 : trellisAt];
      this.put(at + AT.NEAR_AT, Int32Array.of(AT.NEAR_CELLS + mode, AT.OWN_CELLS + mode / 2, end, ...rest));
      this.put(at + AT.BIAS, BigInt64Array.of(BigInt(p.bias[s])));
      if (s < 12) continue;
      const layer = STREAMS.findIndex((end) => s < end);
      const steps = AT.LAYER_STEPS + 576 * (layer - 1) + 8 * (s - STREAMS[layer - 1]);
      this.put(steps, p.bias.slice(s, s + 1));
      this.put(steps + 192, p.shCoefficients.slice(2 * s, 2 * s + 1));
      this.put(steps + 384, p.shCoefficients.slice(2 * s + 1, 2 * s + 2));
    }
  }

  /**
   * @param {number} at
   * @param {ArrayBufferView} array
   */
  put(at, array) {
    this.u8.set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength), at);
  }

  /** @param {number} end bytes of memory that there must be */
  reserve(end) {
    const missing = end - this.u8.length;
    if (missing > 0) this.memory.grow(Math.ceil(missing / PAGE));
    if (this.u8.buffer !== this.memory.buffer) {
      this.u8 = new Uint8Array(this.memory.buffer);
      this.i32 = new Int32Array(this.memory.buffer);
    }
  }

  /**
   * Put a chunk into memory and begin to read it.
   * @param {number} which coder: 0 for a TILE, else the layer
   * @param {Uint8Array} bytes
   * @param {number} at where it goes
   * @param {number} from where the rANS stream begins in it
   * @param {number} length of the rANS stream
   * @param {number} logStates
   * @returns {number} address after it
   */
  startCoder(which, bytes, at, from, length, logStates) {
    checkStream(bytes, from, length, logStates);
    const end = at + bytes.length;
    this.reserve(end + RAW_SLACK);
    this.u8.set(bytes, at);
    const coder = AT.CODERS + 256 * which;
    const states = 4 << logStates;
    this.u8.copyWithin(coder, at + from, at + from + states);
    const raw = at + from + length;
    this.i32.set([states - 4, 0, at + from + states, raw, 0, raw, 8 * (end - raw)], (coder + AT.MASK) / 4);
    return (end + RAW_SLACK + 15) & -16;
  }

  /**
   * Check that a rANS stream ends here.
   * @param {number} which
   */
  finish(which) {
    const coder = (AT.CODERS + 256 * which) / 4;
    const [mask, , at, last] = this.i32.subarray(coder + 32);
    let whole = at === last;
    for (let k = 0; k <= mask / 4; k++) whole &&= this.i32[coder + k] === PAGE;
    if (!whole) throw new SplcError("format", "the rANS stream does not end where its symbols do");
  }

  /**
   * Begin a TILE chunk: header and octree.
   * @param {Uint8Array} bytes
   * @param {number} count
   */
  start(bytes, count) {
    const head = parseTileHead(bytes, count);
    const leaves = this.startCoder(0, bytes, this.free, HEAD_BYTES, head.length, head.logStates);
    this.count = count;
    this.done = 0;
    this.put(AT.ORIGIN, Float64Array.of(...head.origin, head.blur));
    try {
      this.decodeOctree(count, leaves);
    } catch (error) {
      if (error instanceof SplcError) error.offset ??= HEAD_BYTES;
      throw error;
    }
    this.i32.set([head.exponent, leaves, 0, 0], AT.EXPONENT / 4);
    this.u8.fill(0, AT.VALUES - STATES, AT.VALUES + WINDOW * STRIDES[0]);
    this.u8.fill(0, AT.VALUES + ROWS * STRIDES[0], AT.VALUES + (ROWS + WINDOW) * STRIDES[0]);
    // Rows before the first Gaussian are too far away to be neighbours.
    for (let axis = 0; axis < 3; axis++) this.put(AT.CENTERS + axis * AT.CENTER, new Float64Array(WINDOW).fill(1e9));
    this.blur = head.blur;
    return head;
  }

  /**
   * @param {number} count
   * @param {number} leaves address
   */
  decodeOctree(count, leaves) {
    const { run } = this;
    // Leaves are written once all depths are done with.
    const levels = [leaves, (leaves + CELL_BYTES * count + 7) & -8];
    // The cell that does not exist, then all others, breadth first.
    const none = (levels[1] + CELL_BYTES * count + 7) & -8;
    const root = none + NODE_BYTES;
    this.reserve(root + NODE_BYTES);
    this.put(AT.MODELS, new Int32Array(352).fill(32768 << 7));
    this.i32.fill(0, none / 4, root / 4);
    this.i32.set([none, none, none, none, none, none, 256], levels[0] / 4);
    let start = root;
    let open = count;
    for (let depth = 0, cells = 1; cells > 0; depth++) {
      const children = run.decodeDepth(depth, start, cells, open, levels[depth & 1]);
      if (children < 0) throw new SplcError("format", "the octree is damaged");
      open = this.i32[AT.OPEN / 4];
      const next = start + NODE_BYTES * cells;
      this.reserve(next + NODE_BYTES * children);
      if (children) run.linkDepth(start, cells, levels[depth & 1], levels[~depth & 1], none);
      start = next;
      cells = children;
    }
    if (open) throw new SplcError("format", "the octree holds too few Gaussians");
    run.walk(root, leaves);
  }

  /**
   * Decode the next block of Gaussians.
   * @param {Int32Array | null} links out, see tile.js
   * @returns {number} how many, 0 at the end of the chunk, which is checked then
   */
  next(links) {
    const size = Math.min(BLOCK, this.count - this.done);
    if (size === 0) {
      this.finish(0);
      return 0;
    }
    if (this.done) {
      this.slide(0);
      for (let axis = 0; axis < 3; axis++) {
        const at = AT.CENTERS + axis * AT.CENTER;
        this.u8.copyWithin(at, at + 8 * BLOCK, at + 8 * ROWS);
      }
    }
    const failed = this.run.decodeTile(size);
    if (failed === -2) throw new SplcError("format", "a class is out of range", HEAD_BYTES);
    if (failed) throw new SplcError("truncated", "the chunk ends before its last symbol");
    links?.set(this.i32.subarray(AT.LINKS / 4, AT.LINKS / 4 + size), this.done);
    this.done += size;
    return size;
  }

  /**
   * Make the last rows of a block the history of the next one.
   * @param {number} which
   */
  slide(which) {
    const stride = STRIDES[which];
    for (const at of [VALUES[which], VALUES[which] + ROWS * stride]) {
      this.u8.copyWithin(at, at + BLOCK * stride, at + ROWS * stride);
    }
  }

  /**
   * Begin SHC chunks of one tile.
   * @param {(Uint8Array | null)[]} chunks of layers 1 to 3
   * @param {(layer: number, work: () => void) => void} guard names the layer where something fails
   */
  startLayers(chunks, guard) {
    let at = this.free;
    chunks.forEach((bytes, k) => {
      if (!bytes) return;
      guard(k + 1, () => {
        const { length, logStates } = parseLayerHead(bytes);
        at = this.startCoder(k + 1, bytes, at, LAYER_HEAD_BYTES, length, logStates);
      });
      const stride = STRIDES[k + 1];
      for (const from of [VALUES[k + 1], VALUES[k + 1] + ROWS * stride]) {
        this.u8.fill(0, from - STATES, from + WINDOW * stride);
      }
    });
  }

  /**
   * Decode the next block of a layer.
   * @param {number} layer
   * @param {number} size 0 at the end
   * @param {Int32Array} links
   * @param {number} done Gaussians before
   */
  nextLayer(layer, size, links, done) {
    if (size === 0) return this.finish(layer);
    if (done) this.slide(layer);
    this.i32.set(links.subarray(done, done + size), AT.LINKS / 4);
    const failed = this.run.decodeLayer(
      AT.CODERS + 256 * layer, size, AT.STREAMS + 128 * STREAMS[layer - 1], 4 * (STREAMS[layer] - STREAMS[layer - 1]),
      VALUES[layer], STRIDES[layer], ROWS * STRIDES[layer], AT.LAYER_STEPS + 576 * (layer - 1),
    );
    if (failed) throw new SplcError("truncated", "the chunk ends before its last symbol");
  }

  /**
   * The block just decoded as integers.
   * @param {number} which 0 for streams 0 to 11, else the layer
   */
  rows(which) {
    const stride = STRIDES[which];
    const values = new Int32Array(this.memory.buffer, VALUES[which] + WINDOW * stride, (BLOCK * stride) / 4);
    return { values, stride: stride / 4, means: new Float64Array(this.memory.buffer, AT.MEANS, 3 * BLOCK) };
  }

  /**
   * @param {Arrays} out
   * @param {number} first
   * @param {number} size
   */
  writeArrays(out, first, size) {
    const { buffer } = this.memory;
    const values = new Int32Array(buffer, AT.VALUES, 12 * ROWS);
    writeArrays(this.parameters, { values, means: new Float64Array(buffer, AT.MEANS) }, size, this.blur, out, first);
  }

  /**
   * @param {Records} out
   * @param {number} first
   * @param {number} size
   */
  writeRecords({ records, boxes }, first, size) {
    this.run.writeRecords(size);
    records.set(new Uint32Array(this.memory.buffer, AT.OUT, 4 * size), 4 * first);
    boxes.set(new Float32Array(this.memory.buffer, AT.BOX, 16), (16 * first) / BLOCK);
  }

  /**
   * @param {number} layers bit k - 1 for layer k
   * @param {Float32Array} shN
   * @param {number} first
   * @param {number} size
   */
  writeShArrays(layers, shN, first, size) {
    this.run.writeShArrays(size, layers);
    const width = 3 * ((this.parameters.shDegree + 1) ** 2 - 1);
    shN.set(new Float32Array(this.memory.buffer, AT.OUT, width * size), width * first);
  }

  /**
   * @param {number} layers bit k - 1 for layer k
   * @param {Uint32Array} sh
   * @param {number} first
   * @param {number} size
   */
  writeShRecords(layers, sh, first, size) {
    const words = SH_WORDS[this.parameters.shDegree];
    this.run.writeShRecords(size, layers, words);
    sh.set(new Uint32Array(this.memory.buffer, AT.OUT, words * size), words * first);
  }
}
