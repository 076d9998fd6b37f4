// One scene while it loads: which parts there are, where their blocks lie in the textures, what is shown, what to fetch.
//
//     loader (Worker) -> parts -> blocks in textures (renderer) and in the sorter (Worker) -> order -> renderer
//
// A tile is shown by levels 0 to l, as many as are there without a gap, and without level 0 once all are there. What
// changes in a picture changes when the order that goes with it arrives, so that no frame shows half of a change.

import { BLOCK, SH_TEXELS } from "./renderer.js";

/** @typedef {import("./camera.js").View} View */
/** @typedef {import("./renderer.js").Renderer} Renderer */
/** @typedef {import("./decoder/index.js").Look} Look */

/**
 * What the loader says of a file that it has opened.
 * @typedef {object} Facts
 * @property {string} version
 * @property {number} size bytes
 * @property {number} numGaussians
 * @property {number} shDegree
 * @property {import("./decoder/index.js").LevelEntry[]} levels
 * @property {{ level: number, tile: number, count: number, bytes: number, last: boolean }[]} parts
 * @property {Record<string, unknown>} meta
 * @property {Float32Array | null} boxes
 * @property {boolean} growing the server ignores ranges
 */

/**
 * A part on its way or in the textures.
 * @typedef {object} Place
 * @property {number} index
 * @property {number} level
 * @property {number} tile
 * @property {number} count
 * @property {{ block: number, blocks: number }[]} runs where its blocks are; empty while none of it is there
 * @property {number} records how many of its Gaussians are there
 * @property {number} coefficients the same of their SH coefficients
 * @property {Look} look of the tile if this is its highest level
 * @property {Look | null} under the same of level 0 below; null if it is not shown any more
 * @property {"absent" | "asked" | "there"} state
 * @property {boolean} sh whether its SH coefficients are there, all of them
 * @property {boolean} shown
 * @property {boolean} damaged
 */

/**
 * A slice of a part: records or SH coefficients.
 * @typedef {object} Slice
 * @property {number} index
 * @property {number} first Gaussian of it, whole blocks after that of the part
 * @property {{ records: Uint32Array, boxes: Float32Array }} [records]
 * @property {Uint32Array} [sh] texel by texel
 * @property {Look} look with records
 * @property {Look | null} under
 * @property {number} bytes
 * @property {number} received
 * @property {number} held bytes that the loader has, this slice included
 * @property {number} decoder bytes that WebAssembly has taken to decode
 */

/** Of a part that is not there; its runs are replaced, never changed. */
const NOTHING = Object.freeze({ runs: [], records: 0, coefficients: 0, state: "absent", sh: false });
const NEUTRAL = Object.freeze({ grow: 0, gain: 1024 });
/** Gaussians of the thumbnail that say where the scene is. */
const SAMPLES = 1024;

/**
 * @typedef {object} SceneEvents
 * @property {(facts: Facts) => void} opened
 * @property {() => void} changed a frame is to be drawn
 * @property {(message: string) => void} notice
 * @property {(error: { message: string, code: string }) => void} damage a part cannot be shown
 * @property {(error: { message: string, code: string }) => void} failed
 * @property {(received: number) => void} complete all that is wanted is there
 * @property {() => void} [told] something else is to be said
 * @property {() => void} [moving] the scene moves: a Clip (clip.js) takes its place
 */

export class Scene {
  /**
   * @param {Renderer} renderer
   * @param {number} budget Gaussians that may be in the textures
   * @param {SceneEvents} events
   * @param {{ loader: Worker, sorter: Worker }} workers that nobody else uses
   */
  constructor(renderer, budget, events, { loader, sorter }) {
    this.renderer = renderer;
    this.budget = budget;
    this.events = events;
    /** @type {Facts | null} */
    this.facts = null;
    /** @type {Place[]} */
    this.places = [];
    /** Places of each tile by level. @type {Map<number, Place[]>} */
    this.tiles = new Map();
    this.capacity = 0;
    this.used = new Uint8Array(0);
    /** What has arrived and waits for blocks. @type {Slice[]} */
    this.uploads = [];
    /** Numbers the states that an order may belong to. */
    this.version = 0;
    /** What to do when the order of a version arrives. @type {{ version: number, work: () => void }[]} */
    this.deferred = [];
    this.sorting = false;
    this.stale = true;
    /** @type {ArrayBuffer | undefined} */
    this.spare = undefined;
    /** @type {View | null} */
    this.view = null;
    this.tangents = [1, 1, 1, 1];
    this.planned = 0;
    this.received = 0;
    this.closed = false;
    this.sortMs = 0;
    this.drawnBlocks = 0;
    this.peakBytes = this.decoderBytes = 0;
    /** Position and opacity of some Gaussians of the thumbnail. @type {number[]} */
    this.samples = [];
    /** The part that samples are of, if there are no thumbnails. @type {Place | null} */
    this.sampled = null;
    this.loader = loader;
    this.sorter = sorter;
    this.loader.onmessage = ({ data }) => this.hear(data);
    this.sorter.onmessage = ({ data }) => this.sorted(data);
    for (const worker of [this.loader, this.sorter]) {
      worker.onerror = (event) => {
        event.preventDefault?.();
        events.failed({ message: `a part of the player cannot be loaded: ${event.message ?? "no reason given"}`, code: "internal" });
      };
    }
  }

  /** @param {Omit<import("./loader.js").LoaderQuestion, "ask">} input */
  open(input) {
    this.loader.postMessage({ ask: "open", ...input });
  }

  /** @param {any} message of the loader */
  hear(message) {
    if (this.closed) return;
    const { say } = message;
    if (say === "opened") this.opened(message);
    else if (say === "moving") this.events.moving?.();
    else if (say === "part") this.arrived(message);
    else if (say === "notice") this.events.notice(message.message);
    else if (say === "damage") this.damaged(message);
    else if (say === "error") this.events.failed(message.error);
    else if (say === "complete" && message.plan === this.planned) {
      this.received = message.received;
      this.events.complete(message.received);
    }
  }

  /** @param {Facts} facts */
  opened(facts) {
    this.facts = facts;
    this.places = facts.parts.map(({ level, tile, count }, index) => ({
      index, level, tile, count, runs: [], records: 0, coefficients: 0, look: NEUTRAL, under: NEUTRAL, state: "absent", sh: false, shown: false, damaged: false,
    }));
    for (const place of this.places) {
      const levels = this.tiles.get(place.tile) ?? [];
      this.tiles.set(place.tile, levels);
      levels[place.level] = place;
    }
    this.makeRoom();
    this.events.opened(facts);
  }

  /** Textures and sorter for all there is, or as much as the budget allows. */
  makeRoom() {
    const facts = /** @type {Facts} */ (this.facts);
    const blocks = this.places.reduce((sum, { count }) => sum + Math.ceil(count / BLOCK), 0);
    this.renderer.resize(Math.min(blocks, Math.ceil(this.budget / BLOCK)), facts.shDegree);
    this.capacity = this.renderer.capacity;
    this.used = new Uint8Array(this.capacity);
    this.sorter.postMessage({ ask: "size", capacity: this.capacity });
  }

  /** A lost context is back: everything has to come again, from the cache if there is one. */
  restore() {
    if (!this.facts) return;
    this.uploads = [];
    this.deferred = [];
    const lost = this.places.filter(({ state }) => state !== "absent").map(({ index }) => index);
    for (const place of this.places) Object.assign(place, { ...NOTHING, shown: false });
    this.makeRoom();
    this.plan(lost);
  }

  /**
   * Choose what shall be there, by what the camera sees, and ask for it.
   * @param {number[]} [lost]
   */
  plan(lost = []) {
    const { facts, view } = this;
    if (!facts || this.closed) return;
    const seen = new Map([...this.tiles.keys()].map((tile) => [tile, view ? this.sizeOf(tile, view) : 1]));
    const sizeOf = (/** @type {Place} */ place) => seen.get(place.tile) ?? 0;
    // Thumbnails first, then what is seen, large tiles of it before small ones if not all fit.
    const group = (/** @type {Place} */ place) => (place.level === 0 ? 0 : sizeOf(place) > 0 ? 1 : 2);
    const wanted = this.places.filter(({ damaged }) => !damaged);
    wanted.sort((a, b) => group(a) - group(b) || a.level - b.level || sizeOf(b) - sizeOf(a) || a.index - b.index);
    let room = this.capacity;
    /** @type {number[][]} */
    const groups = [[], [], []];
    /** Highest level of a tile that fits, so that none has a gap. @type {Set<number>} */
    const full = new Set();
    const kept = new Set();
    for (const place of wanted) {
      const blocks = Math.ceil(place.count / BLOCK);
      if (full.has(place.tile)) continue;
      if (blocks > room) {
        full.add(place.tile);
        continue;
      }
      room -= blocks;
      kept.add(place);
      groups[group(place)].push(place.index);
    }
    // What is not wanted any more goes only where there is no room for all.
    if (kept.size < wanted.length) {
      for (const place of this.places) if (!kept.has(place) && place.state !== "absent") lost.push(place.index), this.drop(place);
    }
    for (const indices of groups) for (const index of indices) if (this.places[index].state === "absent") this.places[index].state = "asked";
    this.loader.postMessage({ ask: "plan", groups, id: ++this.planned, lost });
  }

  /**
   * How large a tile is in the picture: the angle of its box, 0 if it is not seen.
   * @param {number} tile
   * @param {View} view
   */
  sizeOf(tile, { position, rows }) {
    const { boxes } = /** @type {Facts} */ (this.facts);
    if (!boxes || 6 * tile + 6 > boxes.length) return 1;
    const offset = [0, 0, 0];
    let radius = 0;
    for (let k = 0; k < 3; k++) {
      const [low, high] = [boxes[6 * tile + k], boxes[6 * tile + 3 + k]];
      offset[k] = (low + high) / 2 - position[k];
      radius += ((high - low) / 2) ** 2;
    }
    radius = Math.sqrt(radius);
    const distance = Math.hypot(...offset);
    if (!(distance > radius)) return 10;
    const [x, y, z] = [0, 3, 6].map((r) => rows[r] * offset[0] + rows[r + 1] * offset[1] + rows[r + 2] * offset[2]);
    const [left, right, top, bottom] = this.tangents;
    const out = (/** @type {number} */ along, /** @type {number} */ tangent) =>
      along - tangent * z > radius * Math.sqrt(1 + tangent * tangent);
    if (out(-x, left) || out(x, right) || out(-y, top) || out(y, bottom) || z + radius < 0) return 0;
    return radius / distance;
  }

  /** @param {Slice} slice */
  arrived(slice) {
    this.received = slice.received;
    this.decoderBytes = slice.decoder;
    this.peakBytes = Math.max(this.peakBytes, slice.held + this.cpuBytes);
    this.uploads.push(slice);
    this.upload();
    if (this.uploads.length) this.events.changed();
  }

  /** @param {{ part?: number, error: { message: string, code: string } }} message */
  damaged({ part, error }) {
    const place = part === undefined ? undefined : this.places[part];
    if (place && place.state !== "there") {
      // No order names its blocks yet.
      for (const { block, blocks } of place.runs) this.used.fill(0, block, block + blocks);
      Object.assign(place, NOTHING, { damaged: true });
    }
    this.events.damage(error);
  }

  /** Upload what has arrived; returns whether there is more. */
  upload() {
    for (let slice; (slice = this.uploads[0]); this.uploads.shift()) {
      const { first, records, sh, bytes } = slice;
      const place = this.places[slice.index];
      // What was given up and asked for again may come twice: what is there already, or follows a gap, is left out.
      if (records && place.state === "asked" && first === place.records) {
        // Blocks that were given up are free when no order names them any more.
        if (!first && this.free < Math.ceil(place.count / BLOCK)) return true;
        this.uploadRecords(place, slice, records);
      } else if (sh && place.state === "there" && first === place.coefficients) {
        this.uploadSh(place, first, sh);
      }
      this.loader.postMessage({ ask: "ack", bytes });
    }
    return false;
  }

  /** Blocks that are free. */
  get free() {
    return this.used.reduce((sum, used) => sum - used, this.capacity);
  }

  /** Bytes that are kept beside records: the sorter's, and the order, there and in a texture. */
  get cpuBytes() {
    return this.capacity * (10 * BLOCK + 68) + this.renderer.orderBytes;
  }

  /**
   * @param {Place} place
   * @param {Slice} slice
   * @param {{ records: Uint32Array, boxes: Float32Array }} given
   */
  uploadRecords(place, { first, look, under }, { records, boxes }) {
    const { renderer } = this;
    const size = records.length / 4;
    if (!first) place.runs = this.allocate(Math.ceil(place.count / BLOCK));
    this.sampled ??= place;
    if (place.level === 0 || this.sampled === place) this.sample(place, records, boxes);
    const blocks = [];
    for (const { block, blocks: own, from } of pieces(place, first, size)) {
      renderer.upload("records", block, Math.min(BLOCK * own, size - BLOCK * from), BLOCK, records, 4 * BLOCK * from);
      renderer.upload("boxes", block, 4 * own, 4, boxes, 16 * from);
      for (let k = 0; k < own; k++) blocks.push(block + k);
    }
    this.sorter.postMessage({ ask: "put", blocks: Int32Array.from(blocks), records, boxes }, [records.buffer, boxes.buffer]);
    place.records += size;
    if (place.records < place.count) return;
    Object.assign(place, { look, under, state: "there" });
    this.reconsider(place.tile);
  }

  /**
   * @param {Place} place
   * @param {number} first
   * @param {Uint32Array} sh
   */
  uploadSh(place, first, sh) {
    const texels = SH_TEXELS[/** @type {Facts} */ (this.facts).shDegree];
    const size = sh.length / (4 * texels);
    for (const { block, blocks, from } of pieces(place, first, size)) {
      const count = Math.min(BLOCK * blocks, size - BLOCK * from);
      for (let k = 0; k < texels; k++) this.renderer.upload(`sh${k}`, block, count, BLOCK, sh, 4 * (size * k + BLOCK * from));
    }
    place.coefficients += size;
    if (place.coefficients < place.count) return;
    place.sh = true;
    this.applyLook(place);
    this.events.changed();
  }

  /**
   * Free blocks, in as few runs as can be.
   * @param {number} blocks
   */
  allocate(blocks) {
    const runs = [];
    const { used } = this;
    const find = (/** @type {number} */ least) => {
      for (let at = 0, size = 0; at < used.length; at++) {
        size = used[at] ? 0 : size + 1;
        if (size === least) return at + 1 - least;
      }
      return -1;
    };
    while (blocks > 0) {
      let size = blocks;
      let block = find(size);
      while (block < 0 && size > 1) block = find((size = Math.ceil(size / 2)));
      if (block < 0) throw new Error("no block is free");
      used.fill(1, block, block + size);
      runs.push({ block, blocks: size });
      blocks -= size;
    }
    return runs;
  }

  /**
   * Take a part out of the picture; its blocks are free when no order names them any more.
   * @param {Place} place
   */
  drop(place) {
    const { runs } = place;
    this.hide(place);
    Object.assign(place, NOTHING);
    if (runs.length) this.defer(() => runs.forEach(({ block, blocks }) => this.used.fill(0, block, block + blocks)));
    this.reconsider(place.tile);
  }

  /** @param {() => void} work */
  defer(work) {
    this.stale = true;
    this.deferred.push({ version: ++this.version, work });
  }

  /** @param {Place} place */
  blocksOf(place) {
    return Int32Array.from(place.runs.flatMap(({ block, blocks }) => Array.from({ length: blocks }, (_, k) => block + k)));
  }

  /** @param {Place} place */
  hide(place) {
    if (place.shown) this.sorter.postMessage({ ask: "show", blocks: this.blocksOf(place), shown: false });
    place.shown = false;
  }

  /**
   * Show what there is of a tile.
   * @param {number} tile
   */
  reconsider(tile) {
    const levels = this.tiles.get(tile) ?? [];
    let top = 0;
    // Levels may be missing from a file: what is not in it makes no gap.
    for (let level = 1; level < levels.length; level++) {
      if (!levels[level]) continue;
      if (levels[level].state !== "there") break;
      top = level;
    }
    for (const place of levels) {
      if (!place || place.state !== "there") continue;
      const shown = place.level ? place.level <= top : top === 0 || top < levels.length - 1;
      if (shown && !place.shown) {
        this.sorter.postMessage({ ask: "show", blocks: this.blocksOf(place), shown: true });
        place.shown = true;
      } else if (!shown) {
        this.hide(place);
      }
    }
    this.defer(() => {
      for (const place of levels) if (place?.state === "there") this.applyLook(place);
    });
    this.events.changed();
  }

  /** @param {Place} place */
  applyLook(place) {
    const levels = this.tiles.get(place.tile) ?? [];
    let top = place;
    for (const other of levels) if (other?.shown && other.level >= top.level) top = other;
    const { grow, gain } = place.level ? top.look : (top.under ?? NEUTRAL);
    for (const { block, blocks } of place.runs) {
      this.renderer.setLook(block, blocks, grow / 1024, gain / 1024, place.sh);
    }
  }

  /**
   * The camera is here now.
   * @param {View} view
   * @param {number} width
   * @param {number} height
   */
  look(view, width, height) {
    const { position, rows, fx, fy, cx, cy } = view;
    const old = this.view;
    this.tangents = [cx / fx, (width - cx) / fx, cy / fy, (height - cy) / fy];
    if (!old || rows.some((x, k) => x !== old.rows[k]) || position.some((x, k) => x !== old.position[k]) || old.fx !== fx) {
      this.stale = true;
    }
    this.view = view;
  }

  /** Ask for a new order if the last one is out of date and none is on its way. */
  sort() {
    const { view } = this;
    if (!this.stale || this.sorting || !view || !this.capacity) return;
    this.sorting = true;
    this.stale = false;
    const { position, rows, near } = view;
    const message = { ask: "sort", id: this.version, spare: this.spare, view: { position, rows, near, tangents: this.tangents } };
    this.sorter.postMessage(message, this.spare ? [this.spare] : []);
    this.spare = undefined;
  }

  /** @param {{ id: number, order: Uint32Array, count: number, blocks: number, ms: number }} answer */
  sorted({ id, order, count, blocks, ms }) {
    this.sorting = false;
    if (this.closed || this.renderer.gl.isContextLost()) return;
    this.sortMs = ms;
    this.drawnBlocks = blocks;
    this.renderer.setOrder(order, count);
    this.spare = /** @type {ArrayBuffer} */ (order.buffer);
    const due = this.deferred.filter(({ version }) => version <= id);
    this.deferred = this.deferred.filter(({ version }) => version > id);
    for (const { work } of due) work();
    this.events.changed();
  }

  /** Whether everything that is wanted is in the picture. */
  get settled() {
    const asked = this.places.some(({ state }) => state === "asked");
    return !!this.facts && !asked && !this.uploads.length && !this.sorting && !this.stale;
  }

  /** Gaussians that are in the picture, seen or not. */
  get shownGaussians() {
    return this.places.reduce((sum, { shown, count }) => sum + (shown ? count : 0), 0);
  }

  /** Whether the thumbnails are there, or, in a file without any, the first part is. */
  get hasPicture() {
    const first = this.places.filter(({ level }) => level === 0);
    if (!first.length) return this.places.some(({ state }) => state === "there");
    return first.every(({ state, damaged }) => damaged || state === "there");
  }

  /**
   * Some Gaussians of the thumbnail, for the extent.
   * @param {Place} place
   * @param {Uint32Array} records
   * @param {Float32Array} boxes
   */
  sample({ count }, records, boxes) {
    const step = Math.max(1, Math.ceil(count / Math.max(64, SAMPLES / Math.max(1, this.tiles.size))));
    for (let i = 0; 4 * i < records.length && this.samples.length < 4 * SAMPLES; i += step) {
      const [a, b, , d] = records.subarray(4 * i, 4 * i + 4);
      const box = 16 * Math.floor(i / BLOCK);
      const q = [a & 65535, a >>> 16, b & 65535];
      for (let k = 0; k < 3; k++) this.samples.push(boxes[box + k] + q[k] * boxes[box + 3 + k]);
      this.samples.push((d >>> 24) / 255);
    }
  }

  /** Where the scene is. */
  extent() {
    return extentOf(this.samples);
  }

  /** @param {boolean} paused */
  pause(paused) {
    this.loader.postMessage({ ask: "pause", paused });
  }

  close() {
    this.closed = true;
    this.loader.terminate();
    this.sorter.terminate();
    this.uploads = [];
    this.places = [];
    this.tiles.clear();
    this.spare = undefined;
  }
}

/**
 * Where Gaussians of a part lie: runs of blocks, and how many blocks of those asked for come before each.
 * @param {Place} place
 * @param {number} first a multiple of the size of blocks
 * @param {number} size
 */
function pieces({ runs }, first, size) {
  const [low, high] = [first / BLOCK, Math.ceil((first + size) / BLOCK)];
  const found = [];
  let at = 0;
  for (const { block, blocks } of runs) {
    const [from, to] = [Math.max(low, at), Math.min(high, at + blocks)];
    if (from < to) found.push({ block: block + from - at, blocks: to - from, from: from - low });
    at += blocks;
  }
  return found;
}

/**
 * Where the scene is: the box that 5 to 95 % of the opacity lie in on each axis, what lies far outside left out.
 * @param {number[]} samples position and opacity of some Gaussians
 * @returns {{ center: [number, number, number], radius: number }}
 */
export function extentOf(samples) {
  const count = samples.length / 4;
  const axes = [0, 1, 2].map((axis) => Float64Array.from({ length: count }, (_, k) => samples[4 * k + axis]));
  const weights = Float64Array.from({ length: count }, (_, k) => samples[4 * k + 3]);
  /** Values under which lie these shares of the opacity. @type {(values: Float64Array, shares: number[]) => number[]} */
  const among = (values, shares) => {
    const order = Uint32Array.from(values, (_, k) => k).sort((a, b) => values[a] - values[b]);
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return shares.map((share) => {
      let left = share * total;
      for (const k of order) if (weights[k] && (left -= weights[k]) <= 0) return values[k];
      return count ? values[order[count - 1]] : 0;
    });
  };
  const [x, y, z] = axes.map((values) => among(values, [0.5])[0]);
  const distances = weights.map((_, k) => Math.hypot(axes[0][k] - x, axes[1][k] - y, axes[2][k] - z));
  const [usual] = among(distances, [0.5]);
  for (let k = 0; k < count; k++) if (distances[k] > 6 * usual) weights[k] = 0;
  const ends = axes.map((values) => among(values, [0.05, 0.95]));
  const low = ends.map((pair) => pair[0]);
  const high = ends.map((pair) => pair[1]);
  const center = /** @type {[number, number, number]} */ (low.map((x, k) => (x + high[k]) / 2));
  const radius = Math.hypot(...low.map((x, k) => (high[k] - x) / 2));
  return { center, radius: radius > 1e-30 && radius < 1e30 ? radius : 1 };
}
