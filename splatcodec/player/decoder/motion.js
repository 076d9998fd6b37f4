// Motion of a group: shapes, nodes and tracks, from MOTN and TRAJ chunks (bitstreams/SPEC.md, 7.4 to 7.6).

import { SplcError } from "./container.js";
import { Coder, IntegerList, newModels, readTables } from "./entropy.js";

/** @typedef {import("./base.js").Base} Base */
/** @typedef {import("./base.js").BaseTile} BaseTile */

export const POSITION = 0;
export const TURN = 1;
export const SIZE = 2;
export const OPACITY = 3;
export const COLOR = 4;
export const SH = 5;
export const TRACKS = 6;
const HEAD_BYTES = 32;
const TRAJ_HEAD_BYTES = 12;
const CELLS = 32;
const [MAX_NODES, MAX_SHAPES, MAX_BIAS] = [255, 64, 2 ** 20];
const [MAX_SHAPE, MAX_TURN, MAX_SHIFT, MAX_WEIGHT] = [2 ** 17, 2 ** 18, 2 ** 28, 8192];
const NUM_MODELS = 696;
const [NODE, TRACK, LIFE, BIRTH, DEATH, EVENT, EVENTS, WAIT, KIND, DELTA] = [8, 72, 168, 176, 240, 304, 312, 376, 440, 504];
const FIRST_EVENT_TRACK = 3;
const LIMIT = 2 ** 24;
const NONE_NEAR = 7;
/** Sizes of residuals are kept to this; their level is the highest long before. */
const MOST_SIZE = 2 ** 30;
const RANGE = 2 ** 31;

/** @param {number} shDegree @returns {number[]} components of the six tracks */
export const componentsOf = (shDegree) => [3, 3, 3, 1, 3, 3 * ((shDegree + 1) ** 2 - 1)];

/**
 * What the tiles of a group share.
 * @typedef {object} Motion
 * @property {number} numFrames
 * @property {Int32Array[]} shapes of each track, one after another, a number a frame, in 1/4096
 * @property {number[]} counts shapes of each track
 * @property {number[]} components of each track
 * @property {number[]} columns where the coefficients of each track begin in a Gaussian's row; the last is its width
 * @property {number} numNodes
 * @property {Float64Array} nodes 15 numbers a frame and node: matrix by rows, pivot, pivot plus shift, world units
 * @property {number} positionBias
 * @property {number} positionStep
 * @property {number} turnStep
 * @property {boolean} hasEvents
 * @property {Int32Array} weights of the predictions of all shapes, in 1/4096
 * @property {Uint8Array} maps 32 cells a shape
 * @property {import("./entropy.js").Tables} tables
 */

/**
 * Read a MOTN chunk.
 * @param {Uint8Array} bytes
 * @param {number} numFrames
 * @param {number} shDegree
 * @returns {Motion}
 */
export function parseMotion(bytes, numFrames, shDegree) {
  if (bytes.length < HEAD_BYTES) throw new SplcError("truncated", "the header is cut off", bytes.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const numNodes = view.getUint16(0, true);
  const positionBias = view.getInt32(4, true);
  const [positionStep, turnStep, nodeStep] = [8, 12, 16].map((at) => view.getFloat32(at, true));
  const counts = [...bytes.subarray(20, 26)];
  const numTables = view.getUint16(26, true);
  const length = view.getUint32(28, true);
  const steps = [positionStep, turnStep, nodeStep].every((step) => step > 0 && step < 1e30);
  if (numNodes > MAX_NODES || bytes[2] > 1 || Math.abs(positionBias) > MAX_BIAS || !steps || numTables < 1 || numTables > 256) {
    throw new SplcError("format", "a parameter of the motion is out of range", 0);
  }
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (Math.max(...counts) > numFrames || total > MAX_SHAPES || (counts[SH] && !shDegree)) {
    throw new SplcError("format", "the number of shapes is out of range", 20);
  }
  if (length > bytes.length - HEAD_BYTES) throw new SplcError("truncated", "the parameters of the motion are cut off", 28);
  const list = new IntegerList(bytes, HEAD_BYTES, length);
  /** @type {(kind: number, start: number, limit: number, what: string, out: Int32Array | Float64Array, from: number) => void} */
  const series = (kind, start, limit, what, out, from) => {
    let [before, last] = [start, start];
    for (let f = 0; f < numFrames; f++) {
      const value = list.next(kind, -RANGE, RANGE, what) + 2 * last - before;
      if (Math.abs(value) > limit) throw new SplcError("format", `${what} is out of range`);
      [before, last] = [last, value];
      out[from + f] = value;
    }
  };
  const shapes = counts.map((count) => {
    const out = new Int32Array(count * numFrames);
    for (let j = 0; j < count; j++) series(0, 0, MAX_SHAPE, "a shape", out, j * numFrames);
    return out;
  });
  const nodes = new Float64Array(15 * numNodes * numFrames);
  const turns = new Float64Array(4 * numFrames);
  const shifts = new Float64Array(3 * numFrames);
  for (let k = 0; k < numNodes; k++) {
    const pivot = [0, 1, 2].map(() => list.next(1, -MAX_SHIFT, MAX_SHIFT, "a pivot") * nodeStep);
    for (let axis = 0; axis < 4; axis++) series(2, axis ? 0 : 65536, MAX_TURN, "a turn of a node", turns, axis * numFrames);
    for (let axis = 0; axis < 3; axis++) series(3, 0, MAX_SHIFT, "a shift of a node", shifts, axis * numFrames);
    for (let f = 0; f < numFrames; f++) {
      let [w, x, y, z] = [0, 1, 2, 3].map((axis) => turns[axis * numFrames + f]);
      const norm = Math.sqrt(w * w + x * x + y * y + z * z);
      if (norm === 0) throw new SplcError("format", "a node has a quaternion of zeros");
      [w, x, y, z] = [w / norm, x / norm, y / norm, z / norm];
      nodes.set(
        [
          1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
          2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
          2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
          ...pivot, ...pivot.map((p, axis) => p + shifts[axis * numFrames + f] * nodeStep),
        ],
        15 * (numNodes * f + k),
      );
    }
  }
  const weights = Int32Array.from({ length: total }, () => list.next(4, 0, MAX_WEIGHT, "a weight"));
  const maps = new Uint8Array(CELLS * total);
  let table = 0;
  for (let k = 0; k < maps.length; k++) {
    table += list.next(5, -256, 256, "a context map");
    if (table < 0 || table >= numTables) throw new SplcError("format", "a context map names a table that does not exist");
    maps[k] = table;
  }
  list.coder.finish();
  const tables = readTables(bytes.subarray(HEAD_BYTES + length), numTables);
  const components = componentsOf(shDegree);
  const columns = [0];
  for (let t = 0; t < TRACKS; t++) columns.push(columns[t] + counts[t] * components[t]);
  return {
    numFrames, shapes, counts, components, columns, numNodes, nodes, positionBias, positionStep, turnStep,
    hasEvents: bytes[2] === 1, weights, maps, tables,
  };
}

/** Motion of all Gaussians of a group's base, in its order. */
export class Trajectories {
  /**
   * @param {Motion} motion
   * @param {number} count Gaussians
   */
  constructor(motion, count) {
    const width = motion.columns[TRACKS];
    this.width = width;
    /** Node of each, 0 = none. */
    this.nodes = new Uint8Array(count);
    /** Bit t = has track t. */
    this.masks = new Uint8Array(count);
    /** There in frames births <= f < deaths. */
    this.births = new Uint16Array(count);
    this.deaths = new Uint16Array(count).fill(motion.numFrames);
    /** A row of coefficients each, base units. */
    this.values = new Int32Array(count * width);
    /** Its events are eventStarts[i] .. eventStarts[i + 1] - 1 of the next. */
    this.eventStarts = new Uint32Array(count + 1);
    this.numEvents = 0;
    this.eventFrames = new Uint8Array(0);
    this.eventTracks = new Uint8Array(0);
    /** Where the deltas of each event begin. */
    this.deltaStarts = new Uint32Array(0);
    this.numDeltas = 0;
    this.deltas = new Int32Array(0);
  }

  /**
   * @param {number} frame
   * @param {number} track
   */
  addEvent(frame, track) {
    const k = this.numEvents++;
    if (k >= this.eventFrames.length) {
      this.eventFrames = grown(this.eventFrames, k);
      this.eventTracks = grown(this.eventTracks, k);
      this.deltaStarts = grown(this.deltaStarts, k);
    }
    this.eventFrames[k] = frame;
    this.eventTracks[k] = track;
    this.deltaStarts[k] = this.numDeltas;
  }

  /** @param {number} delta */
  addDelta(delta) {
    if (this.numDeltas >= this.deltas.length) this.deltas = grown(this.deltas, this.numDeltas);
    this.deltas[this.numDeltas++] = delta;
  }

  /**
   * Sum of the deltas of a Gaussian's events of a track, up to a frame.
   * @param {number} i
   * @param {number} track
   * @param {number} component
   * @param {number} frame
   */
  changes(i, track, component, frame) {
    let total = 0;
    for (let k = this.eventStarts[i]; k < this.eventStarts[i + 1]; k++) {
      if (this.eventTracks[k] === track && this.eventFrames[k] <= frame) total += this.deltas[this.deltaStarts[k] + component];
    }
    return total;
  }
}

/**
 * @template {Uint8Array | Uint32Array | Int32Array} T
 * @param {T} array
 * @param {number} used
 * @returns {T}
 */
function grown(array, used) {
  const larger = /** @type {T} */ (new /** @type {any} */ (array.constructor)(Math.max(256, 2 * used)));
  larger.set(array);
  return larger;
}

/**
 * 0 to 6: small numbers themselves, larger ones by their octave and its half.
 * @param {number} x
 */
function level(x) {
  return x < 4 ? x : x < 6 ? 4 : x < 8 ? 5 : 6;
}

/**
 * Decode the TRAJ chunk of a tile.
 * @param {Motion} motion
 * @param {Uint8Array} bytes
 * @param {Base} base
 * @param {BaseTile} tile
 * @param {Trajectories} out
 * @param {Coder} coder
 */
export function decodeTrajectories(motion, bytes, base, tile, out, coder) {
  if (bytes.length < TRAJ_HEAD_BYTES) throw new SplcError("truncated", "the chunk's header is cut off", bytes.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const announced = view.getUint32(4, true);
  const { numFrames, numNodes, hasEvents, counts, components, columns, weights, maps } = motion;
  if (bytes[0] > 5 || announced > 8 * bytes.length || (announced && !hasEvents)) {
    throw new SplcError("format", "the chunk's header is damaged", 0);
  }
  coder.start(bytes, TRAJ_HEAD_BYTES, view.getUint32(8, true), bytes[0]);
  try {
    decodeTile();
    coder.finish();
  } catch (error) {
    if (error instanceof SplcError) error.offset ??= TRAJ_HEAD_BYTES;
    throw error;
  }

  function decodeTile() {
    const { first, starts } = motion.tables;
    const { values: base12, links } = base;
    const { start, count } = tile;
    const { sizeStep } = tile.parameters;
    const { nodes, masks, births, deaths, values, width } = out;
    const models = newModels(NUM_MODELS);
    const sizes = new Int32Array(count * width);
    // Whether a Gaussian does not live through the group, whether it has events.
    const partial = new Uint8Array(count);
    const eventful = new Uint8Array(count);
    const before = out.numEvents;
    const outOfRange = () => new SplcError("format", "the motion of a Gaussian is out of range");
    const number = (/** @type {number} */ model) => {
      const value = coder.gamma(models, model);
      coder.check();
      return value;
    };
    const near = new Int32Array(4);
    const exponents = new Int32Array(TRACKS);
    for (let k = 0; k < count; k++) {
      const i = start + k;
      const link = links[i];
      const a = k - 1 - (link & 15);
      const b = k - 1 - ((link >> 4) & 15);
      const c = k - 1 - ((link >> 8) & 15);
      const d = k - 1 - ((link >> 12) & 15);
      const some = k > 0;
      let node = 0;
      if (numNodes > 0) {
        let agree = 0;
        let likely = 0;
        if (some) {
          likely = nodes[start + a];
          agree = 1;
          if (nodes[start + b] === likely) agree++;
          if (nodes[start + c] === likely) agree++;
          if (nodes[start + d] === likely) agree++;
        }
        node = coder.bit(models, agree) ? likely : number(NODE);
        if (node > numNodes) throw outOfRange();
        nodes[i] = node;
      }
      let mask = 0;
      const ma = some ? masks[start + a] : 0;
      const mb = some ? masks[start + b] : 0;
      const mc = some ? masks[start + c] : 0;
      const md = some ? masks[start + d] : 0;
      for (let t = 0; t < TRACKS; t++) {
        if (counts[t] === 0) continue;
        const leads = (ma >> t) & 1;
        const agree = leads + ((mb >> t) & 1) + ((mc >> t) & 1) + ((md >> t) & 1);
        mask |= coder.bit(models, TRACK + 16 * t + 2 * agree + leads) << t;
      }
      masks[i] = mask;
      if (coder.bit(models, LIFE + (some ? partial[a] + partial[b] + partial[c] + partial[d] : 0))) {
        partial[k] = 1;
        const birth = number(BIRTH);
        const rest = number(DEATH);
        if (birth > numFrames - rest) throw outOfRange();
        births[i] = birth;
        deaths[i] = numFrames - rest;
      }
      const g = base12[12 * i];
      const tint = base12[12 * i + 1];
      const octaves = Math.floor(((base12[12 * i + 2] + base12[12 * i + 3] + base12[12 * i + 4]) * sizeStep) / 3072);
      exponents[POSITION] = Math.max(0, Math.min(20, octaves + g + motion.positionBias));
      exponents[TURN] = g;
      exponents[SIZE] = exponents[OPACITY] = g + 1;
      exponents[COLOR] = exponents[SH] = tint + 1;
      if (hasEvents) {
        out.eventStarts[i] = out.numEvents;
        if (coder.bit(models, EVENT + (some ? eventful[a] + eventful[b] + eventful[c] + eventful[d] : 0))) {
          eventful[k] = 1;
          const more = number(EVENTS) + 1;
          if (out.numEvents + more > before + announced) throw outOfRange();
          let frame = 0;
          for (let n = 0; n < more; n++) {
            frame += number(WAIT);
            const kind = number(KIND);
            if (frame < 1 || frame >= numFrames || kind > TRACKS - 1 - FIRST_EVENT_TRACK) throw outOfRange();
            const track = kind + FIRST_EVENT_TRACK;
            out.addEvent(frame, track);
            for (let c = 0; c < components[track]; c++) {
              const code = number(DELTA + 64 * kind);
              const value = (code & 1 ? -(code + 1) / 2 : code / 2) * (1 << exponents[track]);
              if (Math.abs(value) > LIMIT) throw outOfRange();
              out.addDelta(value);
            }
          }
        }
      }
      coder.check();
      let shape = 0;
      for (let t = 0; t < TRACKS; t++) {
        if (!((mask >> t) & 1)) {
          shape += counts[t];
          continue;
        }
        const step = 1 << exponents[t];
        let n = 0;
        if (some) {
          if ((ma >> t) & 1 && nodes[start + a] === node) near[n++] = a;
          if ((mb >> t) & 1 && nodes[start + b] === node) near[n++] = b;
          if ((mc >> t) & 1 && nodes[start + c] === node) near[n++] = c;
          if ((md >> t) & 1 && nodes[start + d] === node) near[n++] = d;
        }
        let last = 0;
        let older = 0;
        for (let j = 0; j < counts[t]; j++, shape++) {
          const weight = weights[shape];
          for (let c = 0; c < components[t]; c++) {
            const column = columns[t] + j * components[t] + c;
            let p = 0;
            let around = NONE_NEAR;
            if (n) {
              let sum = 0;
              let size = 0;
              for (let m = 0; m < n; m++) {
                sum += values[(start + near[m]) * width + column];
                size += sizes[near[m] * width + column];
              }
              p = Math.floor((weight * Math.floor(sum / n) + 2048) / 4096);
              around = level(Math.floor(Math.floor((4 * size) / n) / step));
            }
            const own = last + older;
            const cell = 32 * shape + 4 * around + (own === 0 ? 0 : own < 3 ? 1 : own < 7 ? 2 : 3);
            const r = coder.value(first, starts, maps[cell]);
            const value = p + r * step;
            values[i * width + column] = value > LIMIT ? LIMIT : value < -LIMIT ? -LIMIT : value;
            older = last;
            last = r < 0 ? -r : r;
            sizes[k * width + column] = Math.min(Math.min(last, LIMIT) * step, MOST_SIZE);
          }
          coder.check();
        }
      }
    }
    if (out.numEvents !== before + announced) throw outOfRange();
    out.eventStarts[start + count] = out.numEvents;
  }
}
