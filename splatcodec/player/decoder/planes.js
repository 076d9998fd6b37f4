// Video groups (bitstreams/SPEC.md, 7.8 and 7.9): planes of integers, of which some are tiles of a video's pictures.
//
// What decodes pictures is given from outside: WebCodecs in a page (pictures.js), anything in a test. The planes' values
// become exact arrays, or records for a GPU.

import { crc32, SplcError, TocReader } from "./container.js";
import { decodeColumns } from "./columns.js";
import { newUpdate, Packer, putSh } from "./packing.js";
import { packSh, SH_C0, SH_WORDS } from "./reconstruct.js";
import { BLOCK } from "./tile.js";

/** @typedef {import("./frames.js").FrameArrays} FrameArrays */
/** @typedef {import("./packing.js").Update} Update */

const HEAD_BYTES = 52;
const MAX_FRAMES = 256;
const MAX_CELLS = 2 ** 24;
const MAX_FUNCTIONS = 32;
const MAX_VALUE = 2 ** 24;
const MAX_VALUES_A_BYTE = 24_000;
const MAX_SIDE = 4096;
const MAX_SAMPLES = 36_864 * 256;
const [STILL, TILE] = [1, 2];
const CODECS = ["", "h264", "hevc", "av1"];
const LOGIT_LIMIT = 1e-6;
/** A block's factors have a blur of this share of its smallest Gaussian, so that thin ones keep their steps fine. */
const BLUR = 1 / 64;

/**
 * A video's packets, as WebCodecs takes them.
 * @typedef {object} VideoStream
 * @property {string} codec "h264", "hevc" or "av1"
 * @property {string} codecString RFC 6381
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array} description
 * @property {Uint8Array[]} packets one a picture, the first one a key frame
 */

/**
 * Gives pictures in order.
 * @typedef {object} Pictures
 * @property {() => Promise<{ luma: Uint8Array, stride: number }>} next the next picture; valid until the one after it
 * @property {() => void} close
 */

/** @typedef {(stream: VideoStream) => Pictures} OpenPictures */

/**
 * @typedef {object} Plane
 * @property {string} name
 * @property {number} low
 * @property {number} high
 * @property {boolean} still whether it has one
 * @property {number} set of functions, -1 for none
 * @property {number} multiplier of its tile, 0 for none
 * @property {number} tile number of its tile
 * @property {Int32Array} base its still, or empty
 * @property {Int32Array[]} coefficients of the functions
 * @property {Int32Array} values in the frame that was asked for last
 */

/** Reads a payload; what is wrong is said with its place. */
class Cursor extends TocReader {
  /** @param {number} count */
  bytes(count) {
    if (count > this.toc.length - this.at) throw new SplcError("truncated", "the group is cut off", this.at);
    this.at += count;
    return this.toc.subarray(this.at - count, this.at);
  }

  /**
   * @param {number} least
   * @param {number} most
   * @param {string} what
   */
  number(least, most, what) {
    const { at } = this;
    const value = this.varint();
    if (value < least || value > most) throw new SplcError("format", `${value} ${what}, expected ${least} to ${most}`, at);
    return value;
  }

  byte() {
    return this.bytes(1)[0];
  }

  i32() {
    const b = this.bytes(4);
    return b[0] | (b[1] << 8) | (b[2] << 16) | (b[3] << 24);
  }

  /** @param {number} count */
  ascii(count) {
    const text = String.fromCharCode(...this.bytes(count));
    if (!/^[\0-\x7f]*$/.test(text)) throw new SplcError("format", "text that is not ASCII", this.at);
    return text;
  }
}

/** A decoded video group, but for its pictures. */
export class VideoGroup {
  /**
   * @param {Uint8Array} payload of VGRP
   * @param {number} numFrames of the group
   * @param {{ maxBytes: number, openPictures?: OpenPictures }} options
   */
  constructor(payload, numFrames, { maxBytes, openPictures }) {
    if (payload.length < HEAD_BYTES + 8) throw new SplcError("truncated", `${payload.length} bytes are no group`, 0);
    const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
    const planes = payload.subarray(HEAD_BYTES);
    if (view.getUint32(payload.length - 4, true) !== crc32(planes.subarray(0, -4))) {
      throw new SplcError("checksum", "the checksum of the planes does not match", payload.length - 4);
    }
    this.coding = "video";
    this.shDegree = payload[1];
    if (payload[0] !== 1 || this.shDegree > 3) throw new SplcError("format", `version ${payload[0]}, SH degree ${payload[1]}`, 0);
    this.origin = [4, 12, 20].map((at) => view.getFloat64(at, true));
    this.units = [28, 32, 36, 40, 44, 48].map((at) => view.getFloat32(at, true));
    if (!this.origin.every((x) => Math.abs(x) < 1e38) || !this.units.every((x) => x > 0 && x < 1e30)) {
      throw new SplcError("format", "an origin or unit is out of range", 4);
    }
    const cursor = new Cursor(planes.subarray(0, -4));
    this.numFrames = numFrames;
    this.maxBytes = maxBytes;
    this.count = 0;
    this.width = 0;
    /** Of each set of functions: how many, and their values a frame. @type {{ size: number, values: Float64Array }[]} */
    this.sets = [];
    /** @type {Plane[]} */
    this.planes = [];
    /** @type {VideoStream | null} */
    this.stream = null;
    this.across = 0;
    try {
      this.read(cursor, numFrames);
    } catch (error) {
      if (error instanceof SplcError && error.chunk === null) error.offset = HEAD_BYTES + (error.offset ?? cursor.at);
      throw error;
    }
    this.openPictures = openPictures;
    /** @type {Pictures | null} */
    this.pictures = null;
    /** Frame whose values are there, and picture that comes next. */
    this.frame = -1;
    this.nextPicture = 0;
    /** @type {{ luma: Uint8Array, stride: number }} */
    this.picture = { luma: new Uint8Array(0), stride: 0 };
    this.numNodes = 0;
    this.packer = new Packer();
    const named = new Map(this.planes.map((plane) => [plane.name, plane]));
    const find = (/** @type {string} */ name) => {
      const plane = named.get(name);
      if (!plane) throw new SplcError("format", `the group has no plane ${name}`, HEAD_BYTES);
      return plane;
    };
    const three = (/** @type {string} */ name) => [0, 1, 2].map((k) => find(`${name} ${k}`));
    const bands = (this.shDegree + 1) ** 2 - 1;
    this.position = three("position");
    this.scale = three("scale");
    this.turn = three("turn");
    this.color = three("colour");
    this.alpha = find("alpha");
    this.harmonics = Array.from({ length: bands }, (_, band) => three(`harmonic ${band}`)).flat();
    this.used = [...this.position, ...this.scale, ...this.turn, ...this.color, this.alpha, ...this.harmonics];
    this.moves = this.used.some(changes);
    this.shMoves = this.harmonics.some(changes);
  }

  /**
   * @param {Cursor} cursor
   * @param {number} numFrames
   */
  read(cursor, numFrames) {
    if (cursor.byte() !== 1) throw new SplcError("format", "another version of planes", 0);
    const frames = cursor.number(1, MAX_FRAMES, "frames");
    if (frames !== numFrames) throw new SplcError("format", `${frames} frames of planes in a group of ${numFrames}`, cursor.at);
    const count = (this.count = cursor.number(1, MAX_CELLS, "cells"));
    this.width = cursor.number(1, count, "cells in a row");
    const numSets = cursor.number(0, 255, "sets of functions");
    for (let k = 0; k < numSets; k++) {
      const size = cursor.byte();
      if (size < 1 || size > MAX_FUNCTIONS) throw new SplcError("format", `${size} functions in a set`, cursor.at);
      const values = Float64Array.from({ length: size * frames }, () => cursor.i32());
      if (values.some((x) => Math.abs(x) > 2 ** 20)) throw new SplcError("format", "a function of time is out of range", cursor.at);
      this.sets.push({ size, values });
    }
    const numPlanes = cursor.number(1, 255, "planes");
    let tiles = 0;
    for (let k = 0; k < numPlanes; k++) {
      const plane = this.readPlane(cursor, tiles);
      if (plane.multiplier) tiles++;
      if (this.planes.some(({ name }) => name === plane.name)) throw new SplcError("format", "two planes have the same name", cursor.at);
      this.planes.push(plane);
    }
    const sizes = this.planes.map(({ still, set }) => (still ? 1 : 0) + (set >= 0 ? this.sets[set].size : 0));
    const total = sizes.reduce((sum, size) => sum + size, 0);
    const needed = count * (4 * total + 16 + 4 * numPlanes);
    if (needed > this.maxBytes) throw new SplcError("limit", `the group would need ${needed} bytes`, cursor.at);
    const coded = cursor.bytes(cursor.number(0, 2 ** 40, "bytes of columns"));
    if (total * count > MAX_VALUES_A_BYTE * coded.length) {
      throw new SplcError("format", `${total * count} values in ${coded.length} bytes`, cursor.at);
    }
    if (!total && coded.length) throw new SplcError("format", "columns that no plane has", cursor.at);
    const columns = total ? decodeColumns(coded, total, count, this.width) : [];
    for (const [k, plane] of this.planes.entries()) {
      if (plane.still) plane.base = /** @type {Int32Array} */ (columns.shift());
      plane.coefficients = columns.splice(0, sizes[k] - (plane.still ? 1 : 0));
    }
    this.readVideo(cursor, frames, tiles);
    if (cursor.at !== cursor.toc.length) throw new SplcError("format", "bytes are left over behind the group", cursor.at);
  }

  /**
   * @param {Cursor} cursor
   * @param {number} tiles before this plane
   * @returns {Plane}
   */
  readPlane(cursor, tiles) {
    const length = cursor.byte();
    if (length < 1 || length > 64) throw new SplcError("format", "a plane's name is damaged", cursor.at);
    const name = cursor.ascii(length);
    const [low, high] = [cursor.i32(), cursor.i32()];
    if (low > high || low <= -MAX_VALUE || high >= MAX_VALUE) throw new SplcError("format", `a plane from ${low} to ${high}`, cursor.at);
    const flags = cursor.byte();
    const set = cursor.byte() - 1;
    if (!flags || flags > 3 || set >= this.sets.length || (set >= 0 && !(flags & STILL))) {
      throw new SplcError("format", `plane ${name}: impossible flags or functions`, cursor.at);
    }
    const multiplier = flags & TILE ? cursor.number(1, 2 ** 20, "as multiplier") : 0;
    return {
      name, low, high, still: !!(flags & STILL), set, multiplier, tile: tiles, base: new Int32Array(0), coefficients: [],
      values: new Int32Array(0),
    };
  }

  /**
   * @param {Cursor} cursor
   * @param {number} frames
   * @param {number} tiles
   */
  readVideo(cursor, frames, tiles) {
    const codec = cursor.byte();
    if (codec >= CODECS.length) throw new SplcError("format", `video codec ${codec} is not known`, cursor.at);
    if (!codec !== !tiles) throw new SplcError("format", "tiles without a video, or a video without tiles", cursor.at);
    if (!codec) return;
    this.across = cursor.number(1, tiles, "tiles in a row");
    const up = (/** @type {number} */ x) => Math.ceil(x / 16) * 16;
    const width = this.across * up(this.width);
    const height = Math.ceil(tiles / this.across) * up(Math.ceil(this.count / this.width));
    if (Math.max(width, height) > MAX_SIDE || width * height > MAX_SAMPLES) {
      throw new SplcError("limit", `a video of ${width} x ${height}`, cursor.at);
    }
    const codecString = cursor.ascii(cursor.number(0, 64, "bytes of codec string"));
    const description = cursor.bytes(cursor.number(0, 2 ** 16, "bytes of description"));
    const lengths = Array.from({ length: frames }, () => cursor.number(1, 2 ** 32, "bytes in a packet"));
    const packets = lengths.map((length) => cursor.bytes(length));
    this.stream = { codec: CODECS[codec], codecString, width, height, description, packets };
  }

  /**
   * Bring all planes that are used to a frame.
   * @param {number} frame
   */
  async seek(frame) {
    if (frame === this.frame) return;
    if (this.stream) await this.showPicture(frame);
    for (const plane of this.used) if (this.frame < 0 || changes(plane)) this.combine(plane, frame);
    this.frame = frame;
  }

  /** @param {number} frame */
  async showPicture(frame) {
    const stream = /** @type {VideoStream} */ (this.stream);
    if (!this.openPictures) {
      throw new SplcError("unsupported", `nothing here decodes video (${stream.codecString}): WebCodecs is missing`);
    }
    if (!this.pictures || frame < this.nextPicture - 1) {
      this.pictures?.close();
      this.pictures = this.openPictures(stream);
      this.nextPicture = 0;
    }
    for (; this.nextPicture <= frame; this.nextPicture++) this.picture = await this.pictures.next();
  }

  /**
   * Values of a plane in a frame.
   * @param {Plane} plane
   * @param {number} frame
   */
  combine(plane, frame) {
    const { count } = this;
    const { base, coefficients, multiplier, low, high } = plane;
    if (!plane.values.length) plane.values = new Int32Array(count);
    const out = plane.values;
    const set = plane.set >= 0 ? this.sets[plane.set] : null;
    if (set) {
      const sums = new Float64Array(count).fill(8192);
      for (let k = 0; k < set.size; k++) {
        const f = set.values[set.size * frame + k];
        const column = coefficients[k];
        if (f) for (let i = 0; i < count; i++) sums[i] += f * column[i];
      }
      for (let i = 0; i < count; i++) out[i] = base[i] + Math.floor(sums[i] / 16384);
      if (multiplier) this.addTile(plane, out);
      else for (let i = 0; i < count; i++) out[i] = out[i] < low ? low : out[i] > high ? high : out[i];
    } else if (multiplier) {
      if (base.length) out.set(base);
      else out.fill(128);
      this.addTile(plane, out);
    } else {
      for (let i = 0; i < count; i++) out[i] = base[i] < low ? low : base[i] > high ? high : base[i];
    }
  }

  /**
   * @param {Plane} plane
   * @param {Int32Array} out
   */
  addTile({ tile, multiplier, low, high }, out) {
    const { count, width, across } = this;
    const { luma, stride } = this.picture;
    const up = (/** @type {number} */ x) => Math.ceil(x / 16) * 16;
    const top = Math.floor(tile / across) * up(Math.ceil(count / width));
    const left = (tile % across) * up(width);
    for (let first = 0, y = top; first < count; first += width, y++) {
      const last = Math.min(first + width, count);
      for (let i = first, at = y * stride + left; i < last; i++, at++) {
        const v = out[i] + multiplier * (luma[at] - 128);
        out[i] = v < low ? low : v > high ? high : v;
      }
    }
  }

  /**
   * All Gaussians of a frame.
   * @param {number} frame
   * @returns {Promise<FrameArrays>}
   */
  async arrays(frame) {
    await this.seek(frame);
    const { count, harmonics } = this;
    const [, , , , colorUnit, shUnit] = this.units;
    const out = {
      count, means: new Float32Array(3 * count), covariances: new Float64Array(6 * count),
      alphas: new Float64Array(count), sh0: new Float32Array(3 * count), shN: new Float32Array(harmonics.length * count),
    };
    const shape = new Float64Array(6);
    for (let i = 0; i < count; i++) {
      for (let k = 0; k < 3; k++) {
        out.means[3 * i + k] = this.origin[k] + this.position[k].values[i] * this.units[0];
        out.sh0[3 * i + k] = this.color[k].values[i] * colorUnit;
      }
      this.shape(i, 0, shape);
      out.covariances.set(shape, 6 * i);
      out.alphas[i] = this.alphaOf(i);
      for (let k = 0; k < harmonics.length; k++) out.shN[harmonics.length * i + k] = harmonics[k].values[i] * shUnit;
    }
    return out;
  }

  /** @param {number} i */
  alphaOf(i) {
    return Math.min(Math.max(this.alpha.values[i] * this.units[3], LOGIT_LIMIT), 1 - LOGIT_LIMIT);
  }

  /**
   * Covariance, with blur^2 on its diagonal.
   * @param {number} i
   * @param {number} blur2
   * @param {Float64Array} out
   */
  shape(i, blur2, out) {
    const [, scaleUnit, turnUnit] = this.units;
    const x = this.turn[0].values[i] * turnUnit;
    const y = this.turn[1].values[i] * turnUnit;
    const z = this.turn[2].values[i] * turnUnit;
    const n = x * x + y * y + z * z;
    // The quaternion (1 - n, 2 x, 2 y, 2 z) / (1 + n).
    const s = 2 / (1 + n);
    const w = (1 - n) / (1 + n);
    const [a, b, c] = [s * x, s * y, s * z];
    out[0] = out[3] = out[5] = blur2;
    out[1] = out[2] = out[4] = 0;
    for (let axis = 0; axis < 3; axis++) {
      const variance = Math.exp(2 * this.scale[axis].values[i] * scaleUnit);
      const p = axis === 0 ? 1 - 2 * (b * b + c * c) : axis === 1 ? 2 * (a * b - w * c) : 2 * (a * c + w * b);
      const q = axis === 0 ? 2 * (a * b + w * c) : axis === 1 ? 1 - 2 * (a * a + c * c) : 2 * (b * c - w * a);
      const r = axis === 0 ? 2 * (a * c - w * b) : axis === 1 ? 2 * (b * c + w * a) : 1 - 2 * (a * a + b * b);
      out[0] += variance * p * p;
      out[1] += variance * p * q;
      out[2] += variance * p * r;
      out[3] += variance * q * q;
      out[4] += variance * q * r;
      out[5] += variance * r * r;
    }
  }

  /** How Gaussians are laid out in blocks: as the cells are. */
  get layout() {
    const blocks = Math.ceil(this.count / BLOCK);
    const counts = Uint16Array.from({ length: blocks }, (_, k) => Math.min(BLOCK, this.count - BLOCK * k));
    return { blocks, counts, nodes: new Uint8Array(blocks) };
  }

  /**
   * Records of a frame.
   * @param {number} frame
   * @param {number | null} since the frame that is there; null: none
   * @returns {Promise<Update>}
   */
  async update(frame, since) {
    await this.seek(frame);
    const { count, harmonics, shDegree } = this;
    const blocks = Math.ceil(count / BLOCK);
    const all = since === null;
    const changed = frame !== since;
    const out = newUpdate(all || (changed && this.moves) ? blocks : 0, shDegree && (all || (changed && this.shMoves)) ? blocks : 0, shDegree);
    for (let k = 0; k < out.blocks.length; k++) this.packBlock((out.blocks[k] = k), out);
    if (out.shBlocks.length) {
      const coefficients = new Float64Array(harmonics.length);
      const words = new Uint32Array(SH_WORDS[shDegree]);
      const unit = this.units[5];
      for (let k = 0; k < blocks; k++) out.shBlocks[k] = k;
      for (let i = 0; i < count; i++) {
        for (let k = 0; k < coefficients.length; k++) coefficients[k] = harmonics[k].values[i] * unit;
        packSh(coefficients, words, 0);
        putSh(words, out.sh, i);
      }
    }
    return out;
  }

  /**
   * @param {number} block
   * @param {Update} out
   */
  packBlock(block, out) {
    const { packer, origin, position, color, scale } = this;
    const [unit, scaleUnit, , , colorUnit] = this.units;
    const { means, colors, alphas } = packer;
    const first = BLOCK * block;
    const count = Math.min(BLOCK, this.count - first);
    packer.count = count;
    let least = Infinity;
    for (let i = first; i < first + count; i++) {
      const largest = Math.max(scale[0].values[i], scale[1].values[i], scale[2].values[i]);
      if (largest < least) least = largest;
    }
    const blur = BLUR * Math.exp(least * scaleUnit);
    const blur2 = Math.fround(blur * blur);
    for (let place = 0; place < count; place++) {
      const i = first + place;
      const at = 3 * place;
      for (let k = 0; k < 3; k++) {
        means[at + k] = origin[k] + position[k].values[i] * unit;
        colors[at + k] = 0.5 + SH_C0 * (color[k].values[i] * colorUnit);
      }
      this.shape(i, blur2, covariance);
      packer.shape(at, covariance[0], covariance[1], covariance[2], covariance[3], covariance[4], covariance[5]);
      alphas[place] = this.alphaOf(i);
    }
    packer.write(blur2, out.records, out.boxes, block);
  }

  /** No nodes move here. */
  nodes() {
    return new Float64Array(0);
  }

  /**
   * Whether a Gaussian is there: all are.
   * @returns {boolean}
   */
  lives() {
    return true;
  }

  /** Let go of the video decoder. */
  close() {
    this.pictures?.close();
    this.pictures = null;
  }
}

const covariance = new Float64Array(6);

/** @param {Plane} plane */
const changes = ({ set, multiplier }) => set >= 0 || multiplier > 0;
