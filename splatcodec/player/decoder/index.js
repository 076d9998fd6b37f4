// Decoding `.splc` scenes in JavaScript: the flow on one page, and what users of the decoder call.
//
//     open(bytes, Blob, URL or stream) -> header, table of contents, PARM
//     scene.decode(...)                -> all of it, or some levels, tiles, layers
//     for await (scene.stream(...))    -> the same piece by piece, as the bytes arrive
//
//     bytes -> file.js (container.js) -> chunks -> tile.js (entropy.js, parameters.js) -> integers -> reconstruct.js -> arrays
//     where there is WebAssembly, fast.js in place of the last two

import { labelOf, located, SplcError } from "./container.js";
import "./entropy.js";
import "./fast.js";
import { OpenFile, openAs } from "./file.js";
import "./kernel.js";
import "./parameters.js";
import "./plain.js";
import { applyLook, newArrays, newRecords, SH_WORDS, viewOf } from "./reconstruct.js";
import "./source.js";
import { BLOCK } from "./tile.js";

/** @typedef {import("./container.js").ChunkEntry} ChunkEntry */
/** @typedef {import("./container.js").TilePart} TilePart */
/** @typedef {import("./reconstruct.js").Arrays} Arrays */
/** @typedef {import("./reconstruct.js").Records} Records */
/** @typedef {import("./source.js").SourceOptions} SourceOptions */
/** @typedef {import("./source.js").Input} Input */
/** @typedef {import("./plain.js").PlainEngine} PlainEngine */
/** @typedef {import("./file.js").PartEntry} PartEntry */
/** @typedef {import("./file.js").LevelEntry} LevelEntry */

/** @typedef {import("./tile.js").Look} Look */

/**
 * What to decode. What is given in several ways must hold in all of them.
 * @typedef {object} Selection
 * @property {number} [level] levels 1 to this one, and level 0 of tiles that have more; 0 = the thumbnail alone
 * @property {number[]} [tiles] numbers of the tiles
 * @property {{ level: number, tile: number }[]} [parts] just these levels of these tiles, in this order, whatever else
 *     is said here but how to decode them
 * @property {number} [maxGaussians] the longest beginning of the file, in whole chunks, with at most so many Gaussians;
 *     level 0 counts too, of all tiles that it does not reach the end of
 * @property {number[]} [region] lowest corner, then highest, world units: only tiles whose box meets it; and of the arrays
 *     of `decode` only Gaussians whose means are in it, while `stream` and records give whole tiles
 * @property {boolean} [keepGoing] leave out damaged chunks instead of failing, and say so: `decode` in `damage`, `stream` to
 *     `onNotice` at its end
 * @property {number} [shLayers] layers of SH components, 0 to 3; with 0 there are no SH coefficients at all
 * @property {"arrays" | "records"} [as] exact arrays (the default), or records for a GPU
 * @property {number} [maxBytes] refuse results that are larger, 4 GiB if not given
 */

/**
 * One level of one tile, decoded: its Gaussians, its SH coefficients, or both.
 * @typedef {object} Part
 * @property {number} level
 * @property {number} tile
 * @property {number} count Gaussians
 * @property {Look} look how it looks with the levels of the tile given so far
 * @property {Look | null} under how level 0 of the tile looks with them; null: it is not shown any more
 * @property {Arrays | null} arrays Gaussians, where arrays are asked for and they were not given before
 * @property {Records | null} records the same where records are asked for
 * @property {Float32Array | Uint32Array | null} sh SH coefficients as numbers or packed, if they are there already
 * @property {number} shLayers how many layers of SH components went into `sh`
 */

/**
 * @typedef {object} Scene
 * @property {number} count Gaussians
 * @property {number} shDegree 0 if no SH coefficients were asked for
 * @property {(Arrays & { shN: Float32Array }) | null} arrays
 * @property {Part[]} parts
 * @property {string[]} damage a line for each chunk left out, if asked to keep going
 */

const NEUTRAL = Object.freeze({ grow: 0, gain: 1024 });
const AS_IT_IS = { own: NEUTRAL, under: NEUTRAL };

/** A file that has been opened. */
export class SplcFile extends OpenFile {
  /**
   * The levels of tiles that a selection asks for, in file order.
   * @param {Selection} selection
   * @param {Float32Array | null} boxes of the tiles, where a region is asked for and the file has them
   * @returns {TilePart[]}
   */
  choose({ level, tiles, parts, maxGaussians, region, shLayers, as }, boxes) {
    const wrong = (/** @type {string} */ message) => new SplcError("parameter", message);
    const natural = (/** @type {number} */ x) => Number.isInteger(x) && x >= 0;
    if (level !== undefined && !natural(level)) throw wrong(`level ${level}`);
    if (shLayers !== undefined && !(natural(shLayers) && shLayers <= 3)) throw wrong(`${shLayers} SH layers`);
    if (![undefined, "arrays", "records"].includes(as)) throw wrong(`as ${as}`);
    if (maxGaussians !== undefined && !(maxGaussians >= 1)) throw wrong(`at most ${maxGaussians} Gaussians`);
    if (parts) {
      return parts.map(({ level, tile }) => {
        const unit = this.units.find(({ entry }) => entry.level === level && entry.tile === tile);
        if (!unit) throw wrong(`tile ${tile} has no level ${level}`);
        return unit;
      });
    }
    if (region && !(region.length === 6 && [0, 1, 2].every((k) => region[k] <= region[k + 3]))) {
      throw wrong(`region ${region}`);
    }
    let units = this.units;
    if (tiles) {
      const known = new Set(units.map(({ entry }) => entry.tile));
      for (const tile of tiles) if (!known.has(tile)) throw wrong(`there is no tile ${tile}`);
      const wanted = new Set(tiles);
      units = units.filter(({ entry }) => wanted.has(entry.tile));
    }
    if (region && boxes) {
      units = units.filter(({ entry: { tile } }) => {
        const box = boxes.subarray(6 * tile, 6 * tile + 6);
        return !box.length || [0, 1, 2].every((k) => box[k] <= region[k + 3] && box[k + 3] >= region[k]);
      });
    }
    if (level === 0) {
      const merged = units.filter(({ entry }) => entry.level === 0);
      if (this.units.length && this.units.every(({ entry }) => entry.level)) {
        throw wrong("there is no thumbnail (level 0)");
      }
      return merged;
    }
    // All of the scene does without thumbnails even where a tile has nothing else.
    if ([level, tiles, region, maxGaussians].every((x) => x === undefined)) return units.filter(({ entry }) => entry.level > 0);
    if (level !== undefined) units = units.filter(({ entry }) => entry.level <= level);
    if (maxGaussians !== undefined) units = fitting(units, maxGaussians);
    const full = new Set(units.filter(isLast).map(({ entry }) => entry.tile));
    return units.filter(({ entry }) => entry.level > 0 || !full.has(entry.tile));
  }

  /**
   * Decode piece by piece. In file order, level 0 first, so that each prefix of the bytes shows as much as it can: a
   * tile's level 0 is to be dropped when its highest level comes, which gives null for `under`. Gaussians come first, their SH coefficients when all layers
   * that are wanted have come. Looks are not applied. From a stream this is possible once.
   * @param {Selection & { everyLayer?: boolean, thumbnails?: boolean }} [options] `everyLayer`: give SH coefficients
   *     anew with each layer that arrives, not only when all that are wanted have; `thumbnails` (true if not given):
   *     level 0 of the tiles too, also where higher levels follow
   * @returns {AsyncGenerator<Part, void, void>}
   */
  async *stream(options = {}) {
    let units = this.choose(options, options.region ? await this.boxes() : null);
    if (!options.parts && (options.thumbnails ?? true)) {
      const tiles = new Set(units.map(({ entry }) => entry.tile));
      const chosen = new Set(units);
      units = this.units.filter((unit) => chosen.has(unit) || (unit.entry.level === 0 && tiles.has(unit.entry.tile)));
    }
    const session = new Session(this, units, options, false);
    const chunks = this.read(session.entries(!!options.parts), isEverything(options), options.keepGoing);
    for await (const [entry, bytes] of chunks) {
      const part = session.feed(entry, bytes);
      if (part) yield part;
    }
    for (const message of session.damage ?? []) this.onNotice?.(message);
  }

  /**
   * Decode all that a selection asks for, looks applied. Of arrays there is one set, in the order of the scene, and
   * `parts` are views into it; of records there is one set for each part.
   * @param {Selection} [selection]
   * @returns {Promise<Scene>}
   */
  async decode(selection = {}) {
    const units = this.choose(selection, selection.region ? await this.boxes() : null);
    const session = new Session(this, units, selection, true);
    const chunks = this.read(session.entries(false), isEverything(selection), selection.keepGoing);
    for await (const [entry, bytes] of chunks) session.feed(entry, bytes);
    const parts = /** @type {Part[]} */ (units.map((unit) => session.kept?.get(unit)).filter((part) => part));
    for (const part of parts) {
      Object.assign(part, session.lookOf(part.level, part.tile));
      if (part.arrays) applyLook(part.arrays, part.look);
    }
    const { shDegree, bands, damage } = session;
    let arrays = session.arrays && { ...session.arrays, shN: /** @type {Float32Array} */ (session.shN) };
    let count = parts.reduce((sum, part) => sum + part.count, 0);
    if (arrays && (selection.region || damage?.length)) {
      const starts = units.filter((unit) => session.kept?.has(unit)).map(({ entry }) => session.starts.get(entry) ?? 0);
      ({ arrays, count } = withRows(arrays, bands, parts, starts, selection.parts ? undefined : selection.region));
    }
    return { count, shDegree, arrays, parts, damage: damage ?? [] };
  }
}

/** @param {Selection} selection */
function isEverything({ level, tiles, parts, maxGaussians, region, shLayers = 3 }) {
  return shLayers === 3 && [level, tiles, parts, maxGaussians, region].every((x) => x === undefined);
}

/**
 * Close the gaps of what was left out, and leave out what is not in a region; `parts` get their views anew.
 * @param {Arrays & { shN: Float32Array }} all
 * @param {number} bands
 * @param {Part[]} parts
 * @param {number[]} starts where each part begins in `all`
 * @param {number[]} [region]
 */
function withRows(all, bands, parts, starts, region) {
  const { means } = all;
  const inside = (/** @type {number} */ i) =>
    !region || [0, 1, 2].every((k) => means[3 * i + k] >= region[k] && means[3 * i + k] <= region[k + 3]);
  let to = 0;
  parts.forEach((part, p) => {
    const begin = to;
    const end = starts[p] + part.count;
    for (let i = starts[p]; i < end; i++) {
      const first = i;
      while (i < end && inside(i)) i++;
      for (const array of Object.values(all)) {
        const width = array === all.shN ? 3 * bands : array.length / all.alphas.length;
        array.copyWithin(to * width, first * width, i * width);
      }
      to += i - first;
    }
    const sh = part.sh && all.shN.subarray(3 * bands * begin, 3 * bands * to);
    Object.assign(part, { count: to - begin, arrays: viewOf(all, begin, to - begin), sh });
  });
  return { count: to, arrays: { ...viewOf(all, 0, to), shN: all.shN.subarray(0, 3 * bands * to) } };
}

/**
 * The longest beginning with at most `most` Gaussians, thumbnails of tiles it does not hold whole included.
 * @param {TilePart[]} units
 * @param {number} most
 */
function fitting(units, most) {
  const thumbnails = new Map();
  for (const { entry } of units) if (entry.level === 0) thumbnails.set(entry.tile, entry.count);
  const start = thumbnails.size;
  let total = 0;
  for (const count of thumbnails.values()) total += count;
  let best = total <= most ? start : 0;
  for (let k = start; k < units.length; k++) {
    const { tile, count } = units[k].entry;
    total += count;
    if (isLast(units[k])) {
      total -= thumbnails.get(tile) ?? 0;
      thumbnails.delete(tile);
    }
    if (total <= most) best = k + 1;
    else if (!thumbnails.size) break;
  }
  if (!best && units.length) throw new SplcError("parameter", `${most} Gaussians are fewer than the first chunk has`);
  return units.slice(0, best);
}

/** Whether a part is the highest level of its tile, with which the tile is whole. @param {TilePart} part */
function isLast({ entry, last }) {
  return last && entry.level > 0;
}

/** What is being decoded, and what waits for more chunks. */
class Session {
  /**
   * @param {SplcFile} file
   * @param {TilePart[]} units
   * @param {Selection & { everyLayer?: boolean }} options
   * @param {boolean} together whether to keep all parts, arrays in one set
   */
  constructor(file, units, options, together) {
    const { shLayers = 3, as = "arrays", everyLayer = false, maxBytes = 2 ** 32, keepGoing = false } = options;
    /** Lines about chunks left out; null: they are errors. @type {string[] | null} */
    this.damage = keepGoing ? [] : null;
    this.file = file;
    this.units = units;
    this.as = as;
    this.everyLayer = everyLayer;
    const parameters = /** @type {import("./parameters.js").Parameters} */ (file.parameters);
    this.parameters = parameters;
    this.numLayers = Math.min(shLayers, parameters.shDegree);
    this.shDegree = this.numLayers ? parameters.shDegree : 0;
    this.bands = (this.shDegree + 1) ** 2 - 1;
    for (const { layers } of units) {
      const extra = layers.slice(parameters.shDegree).find((layer) => layer);
      if (extra) throw new SplcError("format", "a layer above the SH degree", extra.offset, labelOf(extra));
    }
    const counts = units.map(({ entry }) => entry.count);
    this.total = counts.reduce((sum, count) => sum + count, 0);
    const most = together ? this.total : counts.reduce((a, b) => Math.max(a, b), 0);
    const bytes = most * (as === "arrays" ? 80 + 12 * this.bands : 16.25 + 3 * this.bands);
    if (bytes > maxBytes) throw new SplcError("limit", `more than ${maxBytes} bytes`);
    this.engine = /** @type {PlainEngine} */ (file.engine);
    /** @type {Arrays | null} */
    this.arrays = null;
    /** @type {Map<ChunkEntry, TilePart>} */
    this.owners = new Map();
    /** Where the Gaussians of each TILE chunk begin in `arrays`. @type {Map<ChunkEntry, number>} */
    this.starts = new Map();
    let at = 0;
    for (const unit of units) {
      for (const chunk of this.chunksOf(unit)) this.owners.set(chunk, unit);
      if (together) this.starts.set(unit.entry, at);
      at += unit.entry.count;
    }
    /** @type {Float32Array | null} */
    this.shN = null;
    if (together && as === "arrays") {
      try {
        this.arrays = newArrays(this.total);
        this.shN = new Float32Array(3 * this.bands * this.total);
      } catch (error) {
        throw located(error, "the scene", 0);
      }
    }
    /** Parts decoded so far, if they are kept. @type {Map<TilePart, Part> | null} */
    this.kept = together ? new Map() : null;
    /**
     * Units that chunks are missing of: how many, the layers that have come, links of the Gaussians if they have come.
     * `lost`: what comes of them is for nothing.
     * @type {Map<TilePart, { missing: number, bytes: (Uint8Array | null)[], links: Int32Array | null, lost: boolean }>}
     */
    this.waiting = new Map();
    /**
     * Highest level of each tile so far, and the looks that it gives.
     * @type {Map<number, { level: number, own: Look, under: Look | null }>}
     */
    this.looks = new Map();
  }

  /**
   * Chunks of a unit that are wanted.
   * @param {TilePart} unit
   * @returns {ChunkEntry[]}
   */
  chunksOf(unit) {
    const layers = /** @type {ChunkEntry[]} */ (unit.layers.slice(0, this.numLayers).filter((layer) => layer));
    return [unit.entry, ...layers];
  }

  /**
   * Chunks in the order to read them: each unit's together where that costs nothing or is asked for, else as they lie.
   * @param {boolean} byUnit
   */
  entries(byUnit) {
    const entries = this.units.flatMap((unit) => this.chunksOf(unit));
    return byUnit || this.file.source.random ? entries : entries.sort((a, b) => a.offset - b.offset);
  }

  /**
   * How a level looks now, and level 0 below it.
   * @param {number} level
   * @param {number} tile
   * @returns {{ look: Look, under: Look | null }}
   */
  lookOf(level, tile) {
    const { own, under } = this.looks.get(tile) ?? AS_IT_IS;
    return { look: level ? own : (under ?? NEUTRAL), under };
  }

  /**
   * Decode a chunk, or keep it for later.
   * @param {ChunkEntry} entry
   * @param {Uint8Array | SplcError} bytes or what is wrong with them
   * @returns {Part | null} what it gives
   */
  feed(entry, bytes) {
    const unit = /** @type {TilePart} */ (this.owners.get(entry));
    let state = this.waiting.get(unit);
    if (!state) {
      state = { missing: this.chunksOf(unit).length, bytes: [null, null, null], links: null, lost: false };
      this.waiting.set(unit, state);
    }
    if (--state.missing === 0) this.waiting.delete(unit);
    if (state.lost) return null;
    try {
      if (!(bytes instanceof SplcError)) return this.use(unit, state, entry, bytes);
      if (!entry.layer) throw bytes;
      this.damage?.push(bytes.message);
      return this.use(unit, state, entry, null);
    } catch (error) {
      if (!this.damage || !(error instanceof SplcError)) throw error;
      this.damage.push(error.message);
      state.lost = true;
      this.kept?.delete(unit);
      // What it would have said of the look of its prefix may be lost, too.
      const { level, tile } = unit.entry;
      if (level > (this.looks.get(tile)?.level ?? 0)) this.looks.set(tile, { level, ...AS_IT_IS });
      return null;
    }
  }

  /**
   * @param {TilePart} unit
   * @param {{ missing: number, bytes: (Uint8Array | null)[], links: Int32Array | null }} state
   * @param {ChunkEntry} entry
   * @param {Uint8Array | null} bytes null: a layer that is not to be had
   * @returns {Part | null}
   */
  use(unit, state, entry, bytes) {
    /** @type {Part | null} */
    let part = null;
    if (entry.layer) {
      state.bytes[entry.layer - 1] = bytes;
    } else {
      if (this.chunksOf(unit).length > 1) state.links = new Int32Array(entry.count);
      part = this.decodeTile(unit, /** @type {Uint8Array} */ (bytes), state.links);
      this.kept?.set(unit, part);
    }
    const { links, missing } = state;
    if (links && (missing === 0 || (this.everyLayer && state.bytes.some((layer) => layer)))) {
      const sh = this.decodeLayers(unit, state.bytes, links);
      const shLayers = state.bytes.filter((layer) => layer).length;
      const before = part ?? this.kept?.get(unit);
      if (before) Object.assign(before, { sh, shLayers });
      const { level, tile, count } = unit.entry;
      part ??= { level, tile, count, ...this.lookOf(level, tile), arrays: null, records: null, sh, shLayers };
    }
    return part;
  }

  /**
   * @param {TilePart} unit
   * @param {Uint8Array} bytes
   * @param {Int32Array | null} links
   * @returns {Part}
   */
  decodeTile({ entry, last }, bytes, links) {
    const { engine } = this;
    const { level, tile, count } = entry;
    try {
      const { own, under } = engine.start(bytes, count);
      if (level && level >= (this.looks.get(tile)?.level ?? 0)) {
        this.looks.set(tile, last ? { level, own: NEUTRAL, under: null } : { level, own, under });
      }
      const start = this.starts.get(entry) ?? 0;
      const arrays = this.as === "records" ? null : this.arrays ? viewOf(this.arrays, start, count) : newArrays(count);
      const records = arrays ? null : newRecords(count);
      for (let at = 0, size = 0; (size = engine.next(links)) > 0; at += size) {
        if (arrays) engine.writeArrays(arrays, at, size);
        else if (records) engine.writeRecords(records, at, size);
      }
      return { level, tile, count, ...this.lookOf(level, tile), arrays, records, sh: null, shLayers: 0 };
    } catch (error) {
      throw located(error, labelOf(entry), entry.offset);
    }
  }

  /**
   * SH coefficients of a unit from the layers that there are.
   * @param {TilePart} unit
   * @param {(Uint8Array | null)[]} bytes
   * @param {Int32Array} links
   * @returns {Float32Array | Uint32Array}
   */
  decodeLayers(unit, bytes, links) {
    const { engine, bands } = this;
    const count = links.length;
    /** @type {(layer: number, work: () => void) => void} */
    const guard = (layer, work) => {
      try {
        work();
      } catch (error) {
        const entry = /** @type {ChunkEntry} */ (unit.layers[layer - 1]);
        throw located(error, labelOf(entry), entry.offset);
      }
    };
    const layers = [1, 2, 3].filter((layer) => bytes[layer - 1]);
    const mask = layers.reduce((sum, layer) => sum | (1 << (layer - 1)), 0);
    const first = 3 * bands * (this.starts.get(unit.entry) ?? 0);
    const packed = this.as === "records" ? new Uint32Array(SH_WORDS[this.shDegree] * count) : null;
    const size = 3 * bands * count;
    const exact = this.shN ? this.shN.subarray(first, first + size) : new Float32Array(packed ? 0 : size);
    engine.startLayers(bytes, guard);
    for (let at = 0; at < count; at += BLOCK) {
      const size = Math.min(BLOCK, count - at);
      for (const layer of layers) guard(layer, () => engine.nextLayer(layer, size, links, at));
      if (packed) engine.writeShRecords(mask, packed, at, size);
      else engine.writeShArrays(mask, exact, at, size);
    }
    for (const layer of layers) guard(layer, () => engine.nextLayer(layer, 0, links, count));
    return packed ?? exact;
  }
}

/**
 * Open a file: header, table of contents and parameters are read and checked.
 * @param {Input} input
 * @param {SourceOptions & { plain?: boolean, maxTocBytes?: number }} [options] `plain`: do without WebAssembly, as where
 *     it is not to be had; `maxTocBytes`: refuse a longer table of contents (64 MiB if not given)
 * @returns {Promise<SplcFile>}
 */
export const open = (input, options) => openAs(SplcFile, input, options);

export { BLOCK, SplcError };
