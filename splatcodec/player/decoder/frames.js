// Frames of a group with motion (bitstreams/SPEC.md, 7.7): exact arrays, or what changes of records for a GPU.
//
// For a GPU Gaussians are laid out in blocks of 256 that have one node each, and in which either all rest or any may
// move. Nodes are left to whoever draws, as one matrix and shift for each: so what rests or moves rigidly costs nothing
// in a frame, and only blocks with tracks are packed anew.

import { alphaOf, exp2, packSh, SH_C0, SH_WORDS } from "./reconstruct.js";
import { COLOR, OPACITY, POSITION, SH, SIZE, TRACKS, TURN } from "./motion.js";
import { axesOf, newUpdate, Packer, putSh } from "./packing.js";
import { BLOCK } from "./tile.js";

/** @typedef {import("./base.js").Base} Base */
/** @typedef {import("./base.js").BaseTile} BaseTile */
/** @typedef {import("./motion.js").Motion} Motion */
/** @typedef {import("./motion.js").Trajectories} Trajectories */
/** @typedef {import("./parameters.js").Parameters} Parameters */
/** @typedef {import("./packing.js").Update} Update */

const ONE = 4096;
const LN2_1024 = Math.LN2 / 1024;
const [RESTS, CHANGES, MOVES] = [0, 1, 2];

/**
 * Attributes of a frame, those of SPEC.md that are promised exact to the bit: means, alphas, sh0, and where no node turns
 * them covariances of what rests and shN.
 * @typedef {object} FrameArrays
 * @property {number} count
 * @property {Float32Array} means 3 a Gaussian, world units
 * @property {Float64Array} covariances 6 a Gaussian: xx, xy, xz, yy, yz, zz
 * @property {Float64Array} alphas opacity after the sigmoid
 * @property {Float32Array} sh0 3 a Gaussian
 * @property {Float32Array} shN 3 a basis function
 */

/** Turns streams of SH components into coefficients (SPEC.md, section 5). */
class ShTransform {
  /** @param {number} shDegree */
  constructor(shDegree) {
    this.bands = (shDegree + 1) ** 2 - 1;
    /** Components times their step, three colour components each. */
    this.terms = new Float64Array(3 * this.bands);
    this.mixed = new Float64Array(3 * this.bands);
    this.out = new Float64Array(3 * this.bands);
  }

  /** @param {Parameters} parameters */
  run({ shBandBasis: basis, shColorBasis: c }) {
    const { bands, terms, mixed, out } = this;
    mixed.fill(0);
    for (let k = 0; k < bands; k++) {
      for (let j = 0; j < 3; j++) {
        const x = terms[3 * k + j];
        if (x === 0) continue;
        for (let b = 0; b < bands; b++) mixed[bands * j + b] += basis[bands * k + b] * x;
      }
    }
    for (let b = 0; b < bands; b++) {
      const x = mixed[b];
      const y = mixed[bands + b];
      const z = mixed[2 * bands + b];
      out[3 * b] = c[0] * x + c[1] * y + c[2] * z;
      out[3 * b + 1] = c[3] * x + c[4] * y + c[5] * z;
      out[3 * b + 2] = c[6] * x + c[7] * y + c[8] * z;
    }
  }
}

/** A decoded group with motion. */
export class MotionGroup {
  /**
   * @param {Base} base
   * @param {Motion} motion
   * @param {Trajectories} paths
   */
  constructor(base, motion, paths) {
    this.base = base;
    this.motion = motion;
    this.paths = paths;
    this.coding = "motion";
    this.numFrames = motion.numFrames;
    this.count = base.count;
    this.shDegree = base.shDegree;
    this.numNodes = motion.numNodes;
    this.sh = new ShTransform(base.shDegree);
    this.packer = new Packer();
    this.covariance = new Float64Array(6);
    /** Values of the shapes of each track in a frame. @type {Float64Array[]} */
    this.at = motion.counts.map((count) => new Float64Array(count));
    /** @type {ReturnType<MotionGroup["makeLayout"]> | null} */
    this.laidOut = null;
  }

  /** @param {number} frame */
  setFrame(frame) {
    const { shapes, counts, numFrames } = this.motion;
    for (let t = 0; t < TRACKS; t++) for (let j = 0; j < counts[t]; j++) this.at[t][j] = shapes[t][j * numFrames + frame];
  }

  /**
   * D of a component of a track, in 1/4096 units, without events.
   * @param {number} i
   * @param {number} t
   * @param {number} c
   */
  track(i, t, c) {
    const { values, width } = this.paths;
    const at = this.at[t];
    const step = this.motion.components[t];
    let column = i * width + this.motion.columns[t] + c;
    let total = 0;
    for (let j = 0; j < at.length; j++, column += step) total += at[j] * values[column];
    return total;
  }

  /**
   * Whether a Gaussian is there in a frame.
   * @param {number} i
   * @param {number} frame
   */
  lives(i, frame) {
    return this.paths.births[i] <= frame && frame < this.paths.deaths[i];
  }

  /** @param {number} i */
  hasEvents(i) {
    return this.motion.hasEvents && this.paths.eventStarts[i + 1] > this.paths.eventStarts[i];
  }

  /**
   * Opacity after the sigmoid.
   * @param {number} i
   * @param {number} frame
   * @param {BaseTile} tile
   */
  alpha(i, frame, { parameters }) {
    const { paths } = this;
    const value = this.base.values[12 * i + 8];
    const moves = (paths.masks[i] >> OPACITY) & 1;
    const eventful = this.hasEvents(i);
    if (!moves && !eventful) return alphaOf(value, parameters.opacityStep);
    let d = moves ? this.track(i, OPACITY, 0) : 0;
    if (eventful) d += paths.changes(i, OPACITY, 0, frame) * ONE;
    return alphaOf(value + Math.floor((d + 2048) / ONE), parameters.opacityStep);
  }

  /**
   * The three components of colour.
   * @param {number} i
   * @param {number} frame
   * @param {BaseTile} tile
   * @param {Float64Array} out colour of red, green, blue
   * @param {number} at
   */
  color(i, frame, { parameters }, out, at) {
    const { paths } = this;
    const { values } = this.base;
    const { colorStep, colorBasis: basis } = parameters;
    const moves = (paths.masks[i] >> COLOR) & 1;
    const eventful = this.hasEvents(i);
    const v = 12 * i + 9;
    let x = values[v];
    let y = values[v + 1];
    let z = values[v + 2];
    if (moves || eventful) {
      const changed = (/** @type {number} */ c) =>
        ((moves ? this.track(i, COLOR, c) : 0) + (eventful ? paths.changes(i, COLOR, c, frame) * ONE : 0)) / ONE;
      x += changed(0);
      y += changed(1);
      z += changed(2);
    }
    x *= colorStep;
    y *= colorStep;
    z *= colorStep;
    out[at] = basis[0] * x + basis[1] * y + basis[2] * z;
    out[at + 1] = basis[3] * x + basis[4] * y + basis[5] * z;
    out[at + 2] = basis[6] * x + basis[7] * y + basis[8] * z;
  }

  /**
   * SH coefficients, before a node turns them, into `this.sh.out`.
   * @param {number} i
   * @param {number} frame
   * @param {BaseTile} tile
   */
  harmonics(i, frame, { parameters }) {
    const { sh, base, paths } = this;
    const { terms } = sh;
    const moves = (paths.masks[i] >> SH) & 1;
    const eventful = this.hasEvents(i);
    const from = terms.length * i;
    for (let k = 0; k < terms.length; k++) {
      let v = base.sh[from + k];
      if (moves || eventful) {
        v += ((moves ? this.track(i, SH, k) : 0) + (eventful ? paths.changes(i, SH, k, frame) * ONE : 0)) / ONE;
      }
      terms[k] = v * parameters.shStep;
    }
    sh.run(parameters);
  }

  /**
   * Exact covariance of the base, in `this.covariance`.
   * @param {number} i
   * @param {BaseTile} tile
   * @param {number} blur2 what is taken away from the diagonal
   */
  baseCovariance(i, { parameters }, blur2) {
    const { covariance } = this;
    const { values } = this.base;
    const { sizeStep, shapeStep } = parameters;
    const v = 12 * i;
    const r1 = exp2(values[v + 2] * sizeStep);
    const r2 = exp2(values[v + 3] * sizeStep);
    const r3 = exp2(values[v + 4] * sizeStep);
    const b = values[v + 5] * shapeStep * r2;
    const c = values[v + 6] * shapeStep * r3;
    const f = values[v + 7] * shapeStep * r3;
    covariance[0] = r1 * r1 - blur2;
    covariance[1] = r1 * b;
    covariance[2] = r1 * c;
    covariance[3] = b * b + r2 * r2 - blur2;
    covariance[4] = b * c + r2 * f;
    covariance[5] = c * c + f * f + r3 * r3 - blur2;
  }

  /**
   * The turn of a Gaussian's own track, nine numbers by rows.
   * @param {number} i
   * @param {Float64Array} m
   */
  turn(i, m) {
    const unit = this.motion.turnStep;
    const x = (this.track(i, TURN, 0) / ONE) * unit;
    const y = (this.track(i, TURN, 1) / ONE) * unit;
    const z = (this.track(i, TURN, 2) / ONE) * unit;
    const s = 2 / (1 + x * x + y * y + z * z);
    m[0] = 1 - s * (y * y + z * z);
    m[1] = s * (x * y - z);
    m[2] = s * (x * z + y);
    m[3] = s * (x * y + z);
    m[4] = 1 - s * (x * x + z * z);
    m[5] = s * (y * z - x);
    m[6] = s * (x * z - y);
    m[7] = s * (y * z + x);
    m[8] = 1 - s * (x * x + y * y);
  }

  /**
   * Covariance with the Gaussian's own turn and sizes, in `this.covariance`.
   * @param {number} i
   * @param {BaseTile} tile
   * @param {number} blur2 what it has more than the covariance on its diagonal
   */
  movedCovariance(i, tile, blur2) {
    const { covariance, paths } = this;
    const mask = paths.masks[i];
    if (!((mask >> SIZE) & 1)) {
      this.baseCovariance(i, tile, tile.blur * tile.blur - blur2);
      if ((mask >> TURN) & 1) {
        this.turn(i, turning);
        turnCovariance(turning, covariance);
      }
      return;
    }
    const { axes, scales } = this.axes(i, tile);
    const m = turning;
    m.fill(0);
    m[0] = m[4] = m[8] = 1;
    if ((mask >> TURN) & 1) this.turn(i, m);
    // A component belongs to the axis of its rank among the sizes of the base; of equal ones the first comes first.
    const [s0, s1, s2] = [scales[3 * i], scales[3 * i + 1], scales[3 * i + 2]];
    const ranks = [
      (s1 < s0 ? 1 : 0) + (s2 < s0 ? 1 : 0),
      (s0 <= s1 ? 1 : 0) + (s2 < s1 ? 1 : 0),
      (s0 <= s2 ? 1 : 0) + (s1 <= s2 ? 1 : 0),
    ];
    covariance[0] = covariance[3] = covariance[5] = blur2;
    covariance[1] = covariance[2] = covariance[4] = 0;
    for (let axis = 0; axis < 3; axis++) {
      const size = this.track(i, SIZE, ranks[axis]);
      const sigma = Math.exp(scales[3 * i + axis] + (size / ONE) * tile.parameters.sizeStep * LN2_1024);
      const [x, y, z] = [axes[9 * i + axis], axes[9 * i + 3 + axis], axes[9 * i + 6 + axis]];
      const a = sigma * (m[0] * x + m[1] * y + m[2] * z);
      const b = sigma * (m[3] * x + m[4] * y + m[5] * z);
      const c = sigma * (m[6] * x + m[7] * y + m[8] * z);
      covariance[0] += a * a;
      covariance[1] += a * b;
      covariance[2] += a * c;
      covariance[3] += b * b;
      covariance[4] += b * c;
      covariance[5] += c * c;
    }
  }

  /**
   * Axes and sizes of the base, found when they are needed first.
   * @param {number} i
   * @param {BaseTile} tile
   */
  axes(i, tile) {
    const { base } = this;
    const { count } = base;
    const shapes = (base.shapes ??= {
      known: new Uint8Array(count), axes: new Float32Array(9 * count), scales: new Float32Array(3 * count),
    });
    if (!shapes.known[i]) {
      shapes.known[i] = 1;
      this.baseCovariance(i, tile, tile.blur * tile.blur);
      axesOf(this.covariance, Math.max(tile.blur / 16, 1e-30), shapes.axes, shapes.scales, i);
    }
    return shapes;
  }

  /**
   * All Gaussians of a frame, nodes applied.
   * @param {number} frame of the group
   * @returns {Promise<FrameArrays>}
   */
  async arrays(frame) {
    const { base, motion, paths } = this;
    this.setFrame(frame);
    let count = 0;
    for (let i = 0; i < base.count; i++) if (this.lives(i, frame)) count++;
    const bands = (base.shDegree + 1) ** 2 - 1;
    const out = {
      count, means: new Float32Array(3 * count), covariances: new Float64Array(6 * count),
      alphas: new Float64Array(count), sh0: new Float32Array(3 * count), shN: new Float32Array(3 * bands * count),
    };
    const turns = bands ? nodeTurns(this, frame) : [];
    const color = new Float64Array(3);
    let to = 0;
    for (const tile of base.tiles) {
      for (let i = tile.start; i < tile.start + tile.count; i++) {
        if (!this.lives(i, frame)) continue;
        const node = paths.nodes[i];
        const n = 15 * (motion.numNodes * frame + node - 1);
        const m = motion.nodes;
        let [x, y, z] = [base.means[3 * i], base.means[3 * i + 1], base.means[3 * i + 2]];
        if (paths.masks[i] & 1) {
          x += (this.track(i, POSITION, 0) / ONE) * motion.positionStep;
          y += (this.track(i, POSITION, 1) / ONE) * motion.positionStep;
          z += (this.track(i, POSITION, 2) / ONE) * motion.positionStep;
        }
        if (node) {
          const [dx, dy, dz] = [x - m[n + 9], y - m[n + 10], z - m[n + 11]];
          x = m[n] * dx + m[n + 1] * dy + m[n + 2] * dz + m[n + 12];
          y = m[n + 3] * dx + m[n + 4] * dy + m[n + 5] * dz + m[n + 13];
          z = m[n + 6] * dx + m[n + 7] * dy + m[n + 8] * dz + m[n + 14];
        }
        out.means.set([x, y, z], 3 * to);
        this.movedCovariance(i, tile, 0);
        if (node) turnCovariance(m.subarray(n, n + 9), this.covariance);
        out.covariances.set(this.covariance, 6 * to);
        out.alphas[to] = this.alpha(i, frame, tile);
        this.color(i, frame, tile, color, 0);
        out.sh0.set(color, 3 * to);
        if (bands) {
          this.harmonics(i, frame, tile);
          if (node) turnHarmonics(turns[node - 1], this.sh.out);
          out.shN.set(this.sh.out, 3 * bands * to);
        }
        to++;
      }
    }
    return out;
  }

  // --- for a GPU ---------------------------------------------------------------------------------------------------

  /** How Gaussians are laid out in blocks. */
  get layout() {
    return (this.laidOut ??= this.makeLayout());
  }

  makeLayout() {
    const { base, motion, paths } = this;
    const { numFrames } = motion;
    const kinds = new Uint8Array(base.count);
    /** @type {Map<string, number[]>} */
    const groups = new Map();
    for (const tile of base.tiles) {
      // Tiles of one scene with one blur may share blocks.
      const scene = base.tiles.findIndex(({ parameters, blur }) => parameters === tile.parameters && blur === tile.blur);
      for (let i = tile.start; i < tile.start + tile.count; i++) {
        const partial = paths.births[i] > 0 || paths.deaths[i] < numFrames;
        kinds[i] = paths.masks[i] ? MOVES : partial || this.hasEvents(i) ? CHANGES : RESTS;
        const key = `${scene}/${paths.nodes[i]}/${kinds[i]}`;
        const list = groups.get(key);
        if (list) list.push(i);
        else groups.set(key, [i]);
      }
    }
    let blocks = 0;
    for (const list of groups.values()) blocks += Math.ceil(list.length / BLOCK);
    const sources = new Int32Array(BLOCK * blocks).fill(-1);
    const counts = new Uint16Array(blocks);
    const nodes = new Uint8Array(blocks);
    const blockKinds = new Uint8Array(blocks);
    /** Of each block how often something changed up to a frame, SH coefficients or not. */
    const changes = new Uint16Array(blocks * numFrames);
    const shMoves = new Uint8Array(blocks);
    /** @type {BaseTile[]} */
    const tiles = [];
    let block = 0;
    for (const list of groups.values()) {
      for (let at = 0; at < list.length; at += BLOCK, block++) {
        const some = list.slice(at, at + BLOCK);
        sources.set(some, BLOCK * block);
        counts[block] = some.length;
        nodes[block] = paths.nodes[some[0]];
        blockKinds[block] = kinds[some[0]];
        tiles.push(/** @type {BaseTile} */ (base.tiles.find(({ start, count }) => some[0] >= start && some[0] < start + count)));
        for (const i of some) {
          if ((paths.masks[i] >> SH) & 1) shMoves[block] |= 1;
          if (paths.births[i]) changes[block * numFrames + Math.min(paths.births[i], numFrames - 1)]++;
          if (paths.deaths[i] < numFrames) changes[block * numFrames + paths.deaths[i]]++;
          if (!this.hasEvents(i)) continue;
          for (let k = paths.eventStarts[i]; k < paths.eventStarts[i + 1]; k++) {
            changes[block * numFrames + paths.eventFrames[k]]++;
            if (paths.eventTracks[k] === SH) shMoves[block] |= 2;
          }
        }
        for (let f = 1; f < numFrames; f++) changes[block * numFrames + f] += changes[block * numFrames + f - 1];
      }
    }
    return { blocks, sources, counts, nodes, kinds: blockKinds, changes, shMoves, tiles };
  }

  /**
   * Records of a frame: all blocks, or those that differ from what was given for another frame.
   * @param {number} frame
   * @param {number | null} since the frame that is there; null: none
   * @returns {Promise<Update>}
   */
  async update(frame, since) {
    const { base, numFrames } = this;
    const { blocks, changes, kinds, shMoves, tiles } = this.layout;
    /** @type {number[]} */
    const wanted = [];
    /** @type {number[]} */
    const shWanted = [];
    for (let b = 0; b < blocks; b++) {
      const changed = since === null || changes[b * numFrames + frame] !== changes[b * numFrames + since];
      const moved = since !== frame && kinds[b] === MOVES;
      if (changed || moved) wanted.push(b);
      if (base.shDegree && (since === null || (shMoves[b] & 1 && moved) || (shMoves[b] & 2 && changed))) shWanted.push(b);
    }
    this.setFrame(frame);
    const out = newUpdate(wanted.length, shWanted.length, base.shDegree);
    out.blocks.set(wanted);
    out.shBlocks.set(shWanted);
    wanted.forEach((block, k) => this.packBlock(block, frame, tiles[block], out, k));
    const words = SH_WORDS[base.shDegree];
    const packed = shWanted.length ? this.packedSh() : new Uint32Array(0);
    const own = new Uint32Array(words);
    shWanted.forEach((block, k) => {
      const { sources, counts } = this.layout;
      for (let place = 0; place < counts[block]; place++) {
        const i = sources[BLOCK * block + place];
        let from = packed.subarray(words * i, words * (i + 1));
        if ((this.paths.masks[i] >> SH) & 1 || (shMoves[block] & 2 && this.hasEvents(i))) {
          this.harmonics(i, frame, tiles[block]);
          packSh(this.sh.out, own, 0);
          from = own;
        }
        putSh(from, out.sh, BLOCK * k + place);
      }
    });
    return out;
  }

  /** Packed SH coefficients of the base, kept with it. */
  packedSh() {
    const { base, sh } = this;
    if (base.packedSh) return base.packedSh;
    const words = SH_WORDS[base.shDegree];
    const packed = new Uint32Array(words * base.count);
    const { terms } = sh;
    for (const { start, count, parameters } of base.tiles) {
      for (let i = start; i < start + count; i++) {
        for (let k = 0; k < terms.length; k++) terms[k] = base.sh[terms.length * i + k] * parameters.shStep;
        sh.run(parameters);
        packSh(sh.out, packed, words * i);
      }
    }
    base.packedSh = packed;
    return packed;
  }

  /**
   * @param {number} block
   * @param {number} frame
   * @param {BaseTile} tile
   * @param {Update} out
   * @param {number} to its place in `out`
   */
  packBlock(block, frame, tile, out, to) {
    const { base, motion, packer, paths, covariance } = this;
    const { sources, counts } = this.layout;
    const { sizeStep, shapeStep } = tile.parameters;
    const { means, sizes, slants, colors, alphas } = packer;
    const count = counts[block];
    const octave = sizeStep / 1024;
    const step = motion.positionStep / ONE;
    packer.count = count;
    for (let place = 0; place < count; place++) {
      const i = sources[BLOCK * block + place];
      const mask = paths.masks[i];
      const at = 3 * place;
      for (let k = 0; k < 3; k++) {
        means[at + k] = base.means[3 * i + k];
        if (mask & 1) means[at + k] += this.track(i, POSITION, k) * step;
      }
      if (mask & ((1 << TURN) | (1 << SIZE))) {
        this.movedCovariance(i, tile, tile.blur * tile.blur);
        packer.shape(at, covariance[0], covariance[1], covariance[2], covariance[3], covariance[4], covariance[5]);
      } else {
        const v = 12 * i + 2;
        for (let k = 0; k < 3; k++) {
          sizes[at + k] = base.values[v + k] * octave;
          slants[at + k] = base.values[v + 3 + k] * shapeStep;
        }
      }
      alphas[place] = this.lives(i, frame) ? this.alpha(i, frame, tile) : 0;
      this.color(i, frame, tile, colors, at);
      for (let k = 0; k < 3; k++) colors[at + k] = 0.5 + SH_C0 * colors[at + k];
    }
    packer.write(tile.blur * tile.blur, out.records, out.boxes, to);
  }

  /**
   * Nodes of a frame, 15 numbers each: matrix by rows, pivot, pivot plus shift.
   * @param {number} frame
   */
  nodes(frame) {
    const { numNodes, nodes } = this.motion;
    return nodes.slice(15 * numNodes * frame, 15 * numNodes * (frame + 1));
  }

  close() {}
}

const turning = new Float64Array(9);

/**
 * M C M^T, in place.
 * @param {ArrayLike<number>} m
 * @param {Float64Array} c
 */
function turnCovariance(m, c) {
  const [xx, xy, xz, yy, yz, zz] = c;
  const row = (/** @type {number} */ k) => {
    const [x, y, z] = [m[k], m[k + 1], m[k + 2]];
    return [x * xx + y * xy + z * xz, x * xy + y * yy + z * yz, x * xz + y * yz + z * zz];
  };
  const [a, b, d] = [row(0), row(3), row(6)];
  const times = (/** @type {number[]} */ r, /** @type {number} */ k) => r[0] * m[k] + r[1] * m[k + 1] + r[2] * m[k + 2];
  c[0] = times(a, 0);
  c[1] = times(a, 3);
  c[2] = times(a, 6);
  c[3] = times(b, 3);
  c[4] = times(b, 6);
  c[5] = times(d, 6);
}

// --- turning SH coefficients ---------------------------------------------------------------------------------------

/**
 * Harmonics of a band in a direction, in the order and signs of 3DGS files, up to a factor.
 * @param {number} degree 1 to 3
 * @param {number[]} direction
 */
function harmonicsOf(degree, [x, y, z]) {
  const [xx, yy, zz] = [x * x, y * y, z * z];
  const [r3, r6, r10, r15] = [3, 6, 10, 15].map(Math.sqrt);
  if (degree === 1) return [-y, z, -x];
  if (degree === 2) return [r3 * x * y, -r3 * y * z, zz - 0.5 * (xx + yy), -r3 * x * z, 0.5 * r3 * (xx - yy)];
  return [
    (-r10 / 4) * y * (3 * xx - yy), r15 * x * y * z, (-r6 / 4) * y * (4 * zz - xx - yy), 0.5 * z * (2 * zz - 3 * xx - 3 * yy),
    (-r6 / 4) * x * (4 * zz - xx - yy), (r15 / 2) * z * (xx - yy), (-r10 / 4) * x * (xx - 3 * yy),
  ];
}

/**
 * Matrices of bands 1 to `shDegree` that turn coefficients as `m` turns Gaussians: a band is closed under turning, so
 * values in more directions than it has coefficients fix its matrix.
 * @param {ArrayLike<number>} m
 * @param {number} shDegree
 * @returns {number[][][]}
 */
function bandMatrices(m, shDegree) {
  const directions = Array.from({ length: 64 }, (_, k) => {
    const z = 1 - (2 * (k + 0.5)) / 64;
    const across = Math.sqrt(1 - z * z);
    const turn = (k + 0.5) * Math.PI * (3 - Math.sqrt(5));
    return [across * Math.cos(turn), across * Math.sin(turn), z];
  });
  return Array.from({ length: shDegree }, (_, band) => {
    const size = 2 * band + 3;
    // Normal equations, the right sides beside them, solved by elimination.
    const rows = Array.from({ length: size }, () => new Array(2 * size).fill(0));
    for (const d of directions) {
      const before = [0, 1, 2].map((k) => m[k] * d[0] + m[3 + k] * d[1] + m[6 + k] * d[2]);
      const [y, turned] = [harmonicsOf(band + 1, d), harmonicsOf(band + 1, before)];
      for (let i = 0; i < size; i++) {
        for (let j = 0; j < size; j++) {
          rows[i][j] += y[i] * y[j];
          rows[i][size + j] += y[i] * turned[j];
        }
      }
    }
    for (let i = 0; i < size; i++) {
      const pivot = rows[i][i];
      for (let j = 0; j < 2 * size; j++) rows[i][j] /= pivot;
      for (let k = 0; k < size; k++) {
        const factor = rows[k][i];
        if (k !== i) for (let j = 0; j < 2 * size; j++) rows[k][j] -= factor * rows[i][j];
      }
    }
    return rows.map((row) => row.slice(size));
  });
}

/**
 * @param {MotionGroup} group
 * @param {number} frame
 */
function nodeTurns({ motion: { nodes, numNodes }, shDegree }, frame) {
  return Array.from({ length: numNodes }, (_, k) => {
    const at = 15 * (numNodes * frame + k);
    return bandMatrices(nodes.subarray(at, at + 9), shDegree);
  });
}

/**
 * @param {number[][][]} bands
 * @param {Float64Array} coefficients three channels a basis function, turned in place
 */
function turnHarmonics(bands, coefficients) {
  const old = coefficients.slice();
  let first = 0;
  for (const matrix of bands) {
    matrix.forEach((row, a) => {
      for (let channel = 0; channel < 3; channel++) {
        coefficients[3 * (first + a) + channel] = row.reduce((sum, x, b) => sum + x * old[3 * (first + b) + channel], 0);
      }
    });
    first += matrix.length;
  }
}
