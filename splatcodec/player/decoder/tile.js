// TILE and SHC chunks: octree, neighbours, streams, positions (bitstreams/SPEC.md, sections 3.2 to 3.8).
//
// The loops here are where decoding spends its time. They go Gaussian by Gaussian over rows of a small window, 16 rows
// of history and a block of new ones, and make no objects.

import { MAX_TILE, SplcError } from "./container.js";
import { Coder, newModels } from "./entropy.js";
import { FEATURES, NEAR_CELLS, OWN_CELLS, STREAMS } from "./parameters.js";

/** @typedef {import("./parameters.js").Parameters} Parameters */

export const HEAD_BYTES = 32;
export const LAYER_HEAD_BYTES = 8;
const MAX_DEPTH = 21;
export const WINDOW = 16;
/** Gaussians decoded at a time, before they are turned into results. */
export const BLOCK = 256;
const ROWS = WINDOW + BLOCK;
const LIMIT = 2 ** 28;

/** Number of ones of a byte. */
export const ONES = new Uint8Array(256);
for (let v = 1; v < 256; v++) ONES[v] = ONES[v >> 1] + (v & 1);
/** First model of a leaf bit, by mask of face neighbours (bit 2 * axis, + 1 for the upper). */
export const LEAF_MODELS = Uint8Array.from({ length: 64 }, (_, mask) => 8 * Math.min(ONES[mask], 3));
/** Model of a child bit but for b and s, by 8 * mask of face neighbours + child number. */
export const CHILD_MODELS = new Int32Array(64 * 8);
for (let mask = 0; mask < 64; mask++) {
  for (let child = 0; child < 8; child++) {
    let outside = 0;
    for (let axis = 0; axis < 3; axis++) outside += (mask >> (2 * axis + ((child >> axis) & 1))) & 1;
    CHILD_MODELS[8 * mask + child] = 32 + 16 * outside + ONES[child];
  }
}
const COUNT_MODELS = 288;
const NUM_MODELS = COUNT_MODELS + 64;

/** 2^k at index k + 1100, exact; below 2^-1074 it is 0. */
export const POWERS = new Float64Array(2200);
POWERS[1100] = 1;
for (let k = 1; k < 1100; k++) {
  POWERS[1100 + k] = POWERS[1099 + k] * 2;
  POWERS[1100 - k] = POWERS[1101 - k] / 2;
}

/**
 * How Gaussians look while higher levels of their tile are missing: standard deviations times 2^(grow / 1024),
 * opacities times gain / 1024 and held to 4095 / 4096.
 * @typedef {object} Look
 * @property {number} grow
 * @property {number} gain
 */

/**
 * What a TILE chunk says before its Gaussians. `own` and `under`: how the levels to this one, and level 0, look without
 * higher ones.
 * @typedef {object} TileHead
 * @property {number} logStates
 * @property {number} exponent
 * @property {number} blur world units
 * @property {Float64Array} origin
 * @property {Look} own
 * @property {Look} under
 * @property {number} length of the rANS stream
 */

/**
 * @param {Uint8Array} bytes the chunk
 * @param {number} count Gaussians
 * @returns {TileHead}
 */
export function parseTileHead(bytes, count) {
  if (bytes.length < HEAD_BYTES) throw new SplcError("truncated", "the tile's header is cut off", bytes.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEAD_BYTES);
  const look = (/** @type {number} */ at) => ({ grow: view.getInt16(at, true), gain: view.getUint16(at + 2, true) });
  const head = {
    logStates: bytes[0],
    exponent: view.getInt16(2, true),
    blur: view.getFloat32(4, true),
    origin: Float64Array.from([8, 12, 16], (at) => view.getFloat32(at, true)),
    own: look(20),
    under: look(24),
    length: view.getUint32(28, true),
  };
  checkTools(bytes);
  const sound = head.blur >= 0 && head.blur < 1e30 && head.origin.every((x) => Math.abs(x) < 1e38);
  const looks = [head.own, head.under].every(({ grow, gain }) => Math.abs(grow) <= 8192 && gain > 0);
  if (!sound || !looks || Math.abs(head.exponent) > 1000) {
    throw new SplcError("format", "the tile's header is damaged", 2);
  }
  if (count < 1 || count > MAX_TILE || count > 8 * bytes.length) {
    throw new SplcError("format", `${count} Gaussians in ${bytes.length} bytes`, 0);
  }
  return head;
}

/** @param {Uint8Array} bytes the chunk */
export function parseLayerHead(bytes) {
  if (bytes.length < LAYER_HEAD_BYTES) throw new SplcError("truncated", "the header is cut off", bytes.length);
  checkTools(bytes);
  return { logStates: bytes[0], length: new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint32(4, true) };
}

/** @param {Uint8Array} bytes */
function checkTools(bytes) {
  if (bytes[0] > 5) throw new SplcError("format", "too many rANS states", 0);
  if (bytes[1] === 1) throw new SplcError("unsupported", "context mixing (mixing-1), the archive profile", 1);
  if (bytes[1]) throw new SplcError("format", `coding tools ${bytes[1]} that do not exist`, 1);
}

/**
 * The cells of one depth of an octree, numbered from 1; 0 stands for a cell that does not exist.
 * @typedef {object} Depth
 * @property {Int32Array} near six face neighbours of each: 2 * axis, + 1 for the upper
 * @property {Uint8Array} masks which of them exist
 * @property {Uint8Array} families children of the parent
 * @property {Uint8Array} occupancies mask of children; a leaf has none
 * @property {Int32Array} firsts number of the first child, or of a leaf's Gaussians
 */

/**
 * @param {number} cells
 * @returns {Depth}
 */
function newDepth(cells) {
  const bytes = () => new Uint8Array(cells + 1);
  const near = new Int32Array(6 * cells + 6);
  return { near, masks: bytes(), families: bytes(), occupancies: bytes(), firsts: new Int32Array(cells + 1) };
}

/**
 * Face neighbours of the cells of the next depth, from those of their parents.
 * @param {Depth} depth
 * @param {Depth} next
 */
function link({ near, occupancies, firsts }, next) {
  let out = 0;
  for (let k = 1; k < occupancies.length; k++) {
    const occupancy = occupancies[k];
    for (let child = 0; child < 8; child++) {
      if (!((occupancy >> child) & 1)) continue;
      out++;
      let around = 0;
      for (let axis = 0; axis < 3; axis++) {
        const other = child ^ (1 << axis);
        const below = (1 << other) - 1;
        // On one side lies a child of the parent's neighbour, on the other a sibling.
        const outer = 2 * axis + ((child >> axis) & 1);
        const inner = outer ^ 1;
        const cousin = near[6 * k + outer];
        const there = -((occupancies[cousin] >> other) & 1);
        const beside = -((occupancy >> other) & 1);
        next.near[6 * out + outer] = (firsts[cousin] + ONES[occupancies[cousin] & below]) & there;
        next.near[6 * out + inner] = (firsts[k] + ONES[occupancy & below]) & beside;
        around |= (there & (1 << outer)) | (beside & (1 << inner));
      }
      next.masks[out] = around;
      next.families[out] = ONES[occupancy];
    }
  }
}

/** A window of rows of streams, 16 of history and a block of new ones, and where they come from. */
class Rows {
  /**
   * @param {Parameters} parameters
   * @param {number} width streams of a row
   */
  constructor(parameters, width) {
    this.parameters = parameters;
    this.width = width;
    this.coder = new Coder();
    this.values = new Int32Array(width * ROWS);
    this.magnitudes = new Int32Array(width * ROWS);
    /** State of each stream's trellis. */
    this.states = new Uint8Array(STREAMS[3]);
    this.done = 0;
  }

  reset() {
    this.values.fill(0);
    this.magnitudes.fill(0);
    this.states.fill(0);
    this.done = 0;
  }

  /**
   * The next block of Gaussians: rows WINDOW.. of `values`.
   * @param {number} size 0 at the end, which is checked then
   * @param {any} links see `TileDecoder.next`
   */
  advance(size, links) {
    if (size === 0) return this.coder.finish();
    if (this.done) this.slide();
    /** @type {any} */ (this).decodeBlock(size, links);
    this.coder.check();
    this.done += size;
  }

  /** After a full block: its last rows are the new history. */
  slide() {
    this.values.copyWithin(0, this.width * BLOCK);
    this.magnitudes.copyWithin(0, this.width * BLOCK);
  }

  /**
   * The next value.
   * @param {number} s stream
   * @param {number} e step exponent
   * @param {number} total of the prediction
   * @param {number} near magnitudes of the neighbours
   * @param {number} own magnitudes of the streams before
   * @param {number} at place in `values`
   */
  step(s, e, total, near, own, at) {
    const { first, starts, maps, bases, modes, trellis } = this.parameters;
    const state = this.states[s];
    const odd = state & 1;
    const cell =
      bases[16 * s + e] +
      NEAR_CELLS[modes[s] + Math.min(near >> e, 255)] +
      OWN_CELLS[modes[s] + Math.min((2 * own) >> e, 255)];
    const r = held(this.coder.value(first, starts, maps[2 * cell + odd]), 134217728 >> e);
    let point = r;
    // Classes are coded as they are.
    if (s > 1) {
      point += r - odd * Math.sign(r);
      this.states[s] = trellis[2 * state + (r & 1)];
    }
    this.magnitudes[at] = Math.abs(r) << e;
    this.values[at] = held(held(Math.floor(total / 4096), LIMIT) + (point << e), LIMIT);
  }
}

/**
 * @param {number} x
 * @param {number} limit
 */
function held(x, limit) {
  return x > limit ? limit : x < -limit ? -limit : x;
}

/** Decodes the chunks of one tile after the other; keeps its buffers. */
export class TileDecoder extends Rows {
  /** @param {Parameters} parameters */
  constructor(parameters) {
    super(parameters, 12);
    // Leaves in depth-first order: cell at the leaf's own depth, depth, Gaussians.
    this.leafX = this.leafY = this.leafZ = this.leafCount = new Int32Array(0);
    this.leafDepth = new Uint8Array(0);

    /** Leaf centres. */
    this.centers = new Float64Array(3 * ROWS);
    /** Positions of the block's Gaussians, not rounded to f32 yet. */
    this.means = new Float64Array(3 * BLOCK);
    this.features = new Float64Array(FEATURES);
    this.nears = new Int32Array(12);
    this.models = new Int32Array(NUM_MODELS);
    /** @type {TileHead | null} */
    this.head = null;
    this.count = 0;
    /** Next leaf, and how many of its Gaussians are done. */
    this.leaf = this.leafDone = 0;
    /** Gaussians that no leaf holds yet. */
    this.open = 0;
  }

  /**
   * Begin a TILE chunk: header and octree.
   * @param {Uint8Array} bytes the chunk
   * @param {number} count
   * @returns {TileHead}
   */
  start(bytes, count) {
    const head = parseTileHead(bytes, count);
    this.coder.start(bytes, HEAD_BYTES, head.length, head.logStates);
    this.head = head;
    this.count = count;
    this.leafDone = 0;
    try {
      this.decodeOctree(count);
    } catch (error) {
      if (error instanceof SplcError) error.offset ??= HEAD_BYTES;
      throw error;
    }
    this.reset();
    return head;
  }

  /**
   * The octree of `count` Gaussians, into the leaf arrays.
   * @param {number} count
   */
  decodeOctree(count) {
    this.models.set(newModels(NUM_MODELS));
    let depth = newDepth(1);
    depth.families[1] = 1;
    const tree = [depth];
    let open = count;
    for (;;) {
      const children = this.decodeDepth(depth, tree.length > MAX_DEPTH, open);
      open = this.open;
      if (!children) break;
      const next = newDepth(children);
      link(depth, next);
      // Needed no more.
      depth.near = next.near.subarray(0, 0);
      tree.push((depth = next));
    }
    if (open) throw new SplcError("format", "the octree holds too few Gaussians");
    this.leafX = new Int32Array(count);
    this.leafY = new Int32Array(count);
    this.leafZ = new Int32Array(count);
    this.leafCount = new Int32Array(count);
    this.leafDepth = new Uint8Array(count);
    this.leaf = 0;
    this.walk(tree, 0, 1, 0, 0, 0);
    this.leaf = 0;
  }

  /**
   * Leaf bits, counts and children of all cells of one depth.
   * @param {Depth} depth
   * @param {boolean} last whether all cells must be leaves
   * @param {number} open Gaussians that no leaf holds yet; after this in `this.open`
   * @returns {number} cells of the next depth
   */
  decodeDepth({ near, masks, families, occupancies, firsts }, last, open) {
    const { coder, models } = this;
    let children = 0;
    for (let k = 1; k < masks.length; k++) {
      const around = masks[k];
      let occupancy = 0;
      if (last || coder.bit(models, LEAF_MODELS[around] + families[k] - 1)) {
        const inside = coder.gamma(models, COUNT_MODELS) + 1;
        if (inside > open - children) throw new SplcError("format", "the octree is damaged");
        open -= inside;
        firsts[k] = inside;
      } else {
        const lowX = occupancies[near[6 * k]] & 0xaa;
        const lowY = occupancies[near[6 * k + 2]] & 0xcc;
        const lowZ = occupancies[near[6 * k + 4]] & 0xf0;
        let ones = 0;
        for (let child = 0; child < 8; child++) {
          // Bit c of each is the adjacent cell already known of child c with that axis' bit flipped.
          const beside =
            ((((occupancy & 0x55) | lowX) >> (child ^ 1)) & 1) +
            ((((occupancy & 0x33) | lowY) >> (child ^ 2)) & 1) +
            ((((occupancy & 0x0f) | lowZ) >> (child ^ 4)) & 1);
          const index = CHILD_MODELS[8 * around + child] + 64 * beside + 4 * Math.min(ones, 3);
          // The last one is not coded if none was before.
          const one = child === 7 && ones === 0 ? 1 : coder.bit(models, index);
          occupancy |= one << child;
          ones += one;
        }
        firsts[k] = 1 + children;
        children += ones;
        // Every cell holds at least one Gaussian.
        if (children > open) throw new SplcError("format", "the octree is damaged");
      }
      occupancies[k] = occupancy;
      coder.check();
    }
    this.open = open;
    return children;
  }

  /**
   * Leaves of a cell in depth-first order.
   * @param {Depth[]} tree
   * @param {number} depth
   * @param {number} cell
   * @param {number} x
   * @param {number} y
   * @param {number} z
   */
  walk(tree, depth, cell, x, y, z) {
    const { occupancies, firsts } = tree[depth];
    let next = firsts[cell];
    let rest = occupancies[cell];
    if (rest === 0) {
      const leaf = this.leaf++;
      this.leafX[leaf] = x;
      this.leafY[leaf] = y;
      this.leafZ[leaf] = z;
      this.leafDepth[leaf] = depth;
      this.leafCount[leaf] = next;
    }
    for (; rest; rest &= rest - 1) {
      const child = 31 - Math.clz32(rest & -rest);
      this.walk(tree, depth + 1, next++, 2 * x + (child & 1), 2 * y + ((child >> 1) & 1), 2 * z + (child >> 2));
    }
  }

  /**
   * The next block of Gaussians: rows WINDOW.. of `values`, and `means`.
   * @param {Int32Array | null} links out, of every Gaussian of the tile: distances of its neighbours less 1, 4 bits
   *     each, nearest lowest; colour class above them. What `LayerDecoder` needs.
   * @returns {number} how many, 0 at the end of the chunk, which is checked then
   */
  next(links) {
    const size = Math.min(BLOCK, this.count - this.done);
    this.advance(size, links);
    return size;
  }

  slide() {
    super.slide();
    this.centers.copyWithin(0, 3 * BLOCK);
  }

  /**
   * @param {number} size
   * @param {Int32Array | null} links
   */
  decodeBlock(size, links) {
    const head = /** @type {TileHead} */ (this.head);
    const { terms, bias, begin, sources, coefficients, sizeStep, precision } = this.parameters;
    const { values, magnitudes, centers, means, features, nears, coder } = this;
    const { leafX, leafY, leafZ, leafDepth, leafCount } = this;
    const { origin, exponent } = head;
    const cells = [0, 0, 0];
    let leaf = this.leaf;
    let leafDone = this.leafDone;
    const before = Math.min(this.done, WINDOW);
    for (let i = 0; i < size; i++) {
      const row = WINDOW + i;
      const depth = leafDepth[leaf];
      const cellX = (cells[0] = leafX[leaf]);
      const cellY = (cells[1] = leafY[leaf]);
      const cellZ = (cells[2] = leafZ[leaf]);
      if (++leafDone === leafCount[leaf]) {
        leaf++;
        leafDone = 0;
      }
      const half = 1 << (MAX_DEPTH - depth);
      const centerX = (2 * cellX + 1) * half;
      const centerY = (2 * cellY + 1) * half;
      const centerZ = (2 * cellZ + 1) * half;
      centers[3 * row] = centerX;
      centers[3 * row + 1] = centerY;
      centers[3 * row + 2] = centerZ;

      // The four nearest of the Gaussians before: d distance, k how far back.
      let d0 = Infinity;
      let d1 = Infinity;
      let d2 = Infinity;
      let d3 = Infinity;
      let k0 = 1;
      let k1 = 0;
      let k2 = 0;
      let k3 = 0;
      const furthest = Math.min(before + i, WINDOW);
      for (let k = 1; k <= furthest; k++) {
        const c = 3 * (row - k);
        const dx = centers[c] - centerX;
        const dy = centers[c + 1] - centerY;
        const dz = centers[c + 2] - centerZ;
        const d = dx * dx + dy * dy + dz * dz;
        if (d < d3) {
          if (d < d1) {
            d3 = d2;
            k3 = k2;
            d2 = d1;
            k2 = k1;
            if (d < d0) {
              d1 = d0;
              k1 = k0;
              d0 = d;
              k0 = k;
            } else {
              d1 = d;
              k1 = k;
            }
          } else if (d < d2) {
            d3 = d2;
            k3 = k2;
            d2 = d;
            k2 = k;
          } else {
            d3 = d;
            k3 = k;
          }
        }
      }
      if (furthest < 4) {
        // Where there are fewer the nearest is repeated; before Gaussian 0 lie rows of zeros.
        if (furthest < 2) k1 = k0;
        if (furthest < 3) k2 = k0;
        k3 = k0;
      }
      const a = 12 * (row - k0);
      const b = 12 * (row - k1);
      const c = 12 * (row - k2);
      const d = 12 * (row - k3);
      for (let s = 0; s < 12; s++) {
        const nearest = values[a + s];
        features[s] = (nearest + values[b + s] + values[c + s] + values[d + s]) >> 2;
        features[12 + s] = nearest;
        nears[s] = magnitudes[a + s] + magnitudes[b + s] + magnitudes[c + s] + magnitudes[d + s];
      }
      features[36] = 256 * depth;

      const out = 12 * row;
      let e = 0;
      let g = 0;
      let m1 = 0;
      let m2 = 0;
      let f = 0;
      for (let s = 0; s < 12; s++) {
        let total = bias[s];
        for (const last = begin[s + 1]; f < last; f++) total += coefficients[f] * features[sources[f]];
        this.step(s, e, total, nears[s], (m1 & terms[2 * s]) + (m2 & terms[2 * s + 1]), out + s);
        const v = (features[24 + s] = values[out + s]);
        m2 = m1;
        m1 = magnitudes[out + s];
        if (s < 2) {
          if (v < 0 || v > 15) throw new SplcError("format", "a class is out of range", HEAD_BYTES);
          if (s) e = g;
          else g = v;
        } else if (s === 8) {
          e = values[out + 1];
        }
      }
      coder.check();

      // Position: plain bits of each axis, as many as the Gaussian's own size asks for.
      const edge = POWERS[1100 + exponent - depth];
      const want = 1024 * (exponent - depth - g) - precision;
      for (let axis = 0; axis < 3; axis++) {
        const bits = Math.min(Math.max(Math.ceil((want - values[out + 2 + axis] * sizeStep) / 1024), 0), 30);
        const q = coder.rawBits(bits);
        means[3 * i + axis] = origin[axis] + (cells[axis] + (q + 0.5) * POWERS[1100 - bits]) * edge;
      }
      if (links) {
        links[this.done + i] = (k0 - 1) | ((k1 - 1) << 4) | ((k2 - 1) << 8) | ((k3 - 1) << 12) | (e << 16);
      }
    }
    this.leaf = leaf;
    this.leafDone = leafDone;
  }
}

/** Decodes the SHC chunks of a tile, block by block, with the `links` of its TILE chunk. */
export class LayerDecoder extends Rows {
  /**
   * @param {Parameters} parameters
   * @param {number} layer 1 to 3
   */
  constructor(parameters, layer) {
    super(parameters, STREAMS[layer] - STREAMS[layer - 1]);
    this.layer = layer;
    /** First stream of the layer. */
    this.first = STREAMS[layer - 1];
  }

  /** @param {Uint8Array} bytes the chunk */
  start(bytes) {
    const { length, logStates } = parseLayerHead(bytes);
    this.coder.start(bytes, LAYER_HEAD_BYTES, length, logStates);
    this.reset();
  }

  /**
   * @param {number} size
   * @param {Int32Array} links
   */
  decodeBlock(size, links) {
    const { bias, shCoefficients } = this.parameters;
    const { values, magnitudes, width, done } = this;
    for (let i = 0; i < size; i++) {
      const link = links[done + i];
      const out = width * (WINDOW + i);
      const a = out - width * (1 + (link & 15));
      const b = out - width * (1 + ((link >> 4) & 15));
      const c = out - width * (1 + ((link >> 8) & 15));
      const d = out - width * (1 + ((link >> 12) & 15));
      const e = link >> 16;
      let m1 = 0;
      let m2 = 0;
      for (let w = 0; w < width; w++) {
        const s = this.first + w;
        const nearest = values[a + w];
        const mean = (nearest + values[b + w] + values[c + w] + values[d + w]) >> 2;
        const total = bias[s] + shCoefficients[2 * s] * mean + shCoefficients[2 * s + 1] * nearest;
        const near = magnitudes[a + w] + magnitudes[b + w] + magnitudes[c + w] + magnitudes[d + w];
        this.step(s, e, total, near, m1 + m2, out + w);
        m2 = m1;
        m1 = magnitudes[out + w];
      }
      this.coder.check();
    }
  }
}
