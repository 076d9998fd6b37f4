// Small files of the format with random content, made by running the slow reader on dice instead of on bytes: whatever
// a reader may meet occurs, also what no encoder writes.

import {
  CELLS, LAYERS, crc32, expGolomb, makeTable, models, numStreams, readGaussians, readIntegerList, readLayer,
  readOctree, readWeights, spread,
} from "./slow_reader.mjs";

/** Numbers that depend on the seed only (mulberry32). */
export function random(seed) {
  let a = seed >>> 0;
  const next = () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const int = (low, high) => low + Math.floor(next() * (high - low + 1));
  return { next, int, pick: (list) => list[int(0, list.length - 1)], chance: (p) => next() < p };
}

/** The inverse of `Rans`: bytes of intervals in decoding order. */
export function encodeRans(intervals, numStates) {
  const states = Array(numStates).fill(65536);
  const words = [];
  for (let k = intervals.length - 1; k >= 0; k--) {
    const { start, freq } = intervals[k];
    let x = states[k % numStates];
    if (x >= freq * 2 ** 20) {
      words.push(x % 65536);
      x = Math.floor(x / 65536);
    }
    states[k % numStates] = Math.floor(x / freq) * 4096 + (x % freq) + start;
  }
  return concat(...states.map((x) => u32(x)), ...words.reverse().map((x) => u16(x)));
}

/**
 * Stands for a `Rans` of random content; `tilt` gives the chance of a one under some models, `ends` says which of them
 * give ones after so many symbols.
 */
class Dice {
  constructor(rng, tilt = new Map(), ends = new Set(), after = Infinity) {
    Object.assign(this, { rng, tilt, ends, after, intervals: [] });
  }
  next(find, model) {
    let slot = this.rng.int(0, 4095);
    if (this.tilt.has(model)) slot = this.rng.chance(this.tilt.get(model)) ? 0 : 4095;
    if (this.intervals.length > this.after && this.ends.has(model)) slot = 0;
    const { start, freq, symbol } = find(slot);
    this.intervals.push({ start, freq });
    if (this.intervals.length > 60000) throw new RangeError("too long");
    return symbol;
  }
}

/** Stands for a `Rans` whose bits are known. */
class Teller {
  constructor() {
    Object.assign(this, { bits: [], intervals: [] });
  }
  next(find) {
    const { start, freq, symbol } = find(this.bits.shift() ? 0 : 4095);
    this.intervals.push({ start, freq });
    return symbol;
  }
  /** Put the bits of an Exp-Golomb number on. */
  gamma(value) {
    const w = (value + 1).toString(2);
    this.bits.push(...Array(w.length - 1).fill(1), 0, ...[...w.slice(1)].map(Number));
  }
}

/** Stands for `PlainBits` of random content. */
class PlainDice {
  constructor(rng) {
    Object.assign(this, { rng, bits: [] });
  }
  read(count) {
    let value = 0;
    for (let k = 0; k < count; k++) {
      this.bits.push(this.rng.int(0, 1));
      value = 2 * value + this.bits.at(-1);
    }
    return value;
  }
  bytes() {
    const bytes = new Uint8Array(Math.ceil(this.bits.length / 8));
    this.bits.forEach((bit, k) => (bytes[k >> 3] |= bit << (7 - (k & 7))));
    return bytes;
  }
}

const zigzag = (x) => (x >= 0 ? 2 * x : -2 * x - 1);

export function concat(...parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (all.set(part, at), at + part.length), 0);
  return all;
}

function packed(size, set) {
  const view = new DataView(new ArrayBuffer(size));
  set(view);
  return new Uint8Array(view.buffer);
}
const u16 = (x) => packed(2, (v) => v.setUint16(0, x, true));
export const u32 = (x) => packed(4, (v) => v.setUint32(0, x, true));
export const f32 = (x) => packed(4, (v) => v.setFloat32(0, x, true));

export function varint(x) {
  const bytes = [];
  for (; x >= 128; x = Math.floor(x / 128)) bytes.push((x % 128) + 128);
  return Uint8Array.from([...bytes, x]);
}

/** A whole file. Chunks are {type, critical, level, tile, count, payload}. */
export function container(chunks, { features = [["lossy-1", 1]], numGaussians, minor = 3, length } = {}) {
  const ascii = (text) => Uint8Array.from([...text].map((c) => c.charCodeAt(0)));
  const toc = concat(
    varint(features.length),
    ...features.map(([name, required]) => concat(Uint8Array.of(required), varint(name.length), ascii(name))),
    varint(chunks.length),
    ...chunks.map((c) =>
      concat(
        ascii(c.type), Uint8Array.of(c.critical ?? 1), varint(c.level ?? 0), varint(c.tile ?? 0), varint(c.count ?? 0),
        varint(c.payload.length), u32(c.crc ?? crc32(c.payload)),
      ),
    ),
  );
  const total = chunks.filter((c) => c.type === "TILE" && c.level > 0).reduce((sum, c) => sum + c.count, 0);
  const head = packed(36, (v) => {
    v.setUint32(0, 0x53504c43);
    v.setUint8(5, minor);
    v.setBigUint64(8, BigInt(length ?? 40 + toc.length + chunks.reduce((sum, c) => sum + c.payload.length, 0)), true);
    v.setBigUint64(16, BigInt(toc.length), true);
    v.setBigUint64(24, BigInt(numGaussians ?? total), true);
    v.setUint32(32, crc32(toc), true);
  });
  return concat(head, u32(crc32(head)), toc, ...chunks.map((c) => c.payload));
}

/** Weights of a table that `readWeights` can give. */
function weights(rng, tokens) {
  const list = Array(128).fill(0);
  const used = rng.int(1, tokens);
  for (let a = 0; a < used; a++) {
    if (rng.chance(0.2)) continue;
    const e = rng.int(0, rng.pick([3, 8, 12]));
    list[a] = 2 ** e + (e > 1 ? rng.int(0, 3) * 2 ** (e - 2) : 0);
    if (e === 1) list[a] = rng.int(2, 3);
  }
  if (rng.chance(0.05)) list.fill(0).fill(1, rng.int(0, tokens - 1)).fill(0, tokens);
  if (list.every((w) => w === 0)) list[0] = 16;
  try {
    makeTable(list);
  } catch {
    return weights(rng, tokens);
  }
  return list;
}

function writeTables(all) {
  const teller = new Teller();
  const bitsOf = [];
  for (const list of all) {
    const last = Math.max(...list.map((w, a) => (w ? a : 0)));
    teller.gamma(last);
    let previous = 8;
    for (let a = 0; a <= last; a++) {
      if (a < last) teller.bits.push(list[a] ? 1 : 0);
      if (!list[a]) continue;
      const e = Math.floor(Math.log2(list[a]));
      teller.gamma(zigzag(e - previous));
      for (let k = 1; k <= Math.min(e, 2); k++) teller.bits.push((list[a] >> (e - k)) & 1);
      previous = e;
    }
    bitsOf.push(teller.bits.length);
  }
  const back = readWeights(teller, all.length);
  if (JSON.stringify(back) !== JSON.stringify(all)) throw new Error("tables");
  return encodeRans(teller.intervals, 1);
}

/** Random parameters: {payload, p}, p as `readParameters` gives it. */
export function makeParameters(rng, degree, wild) {
  const numTables = rng.int(2, 12);
  // Tables 0 and 1 are for classes: what they give stays in range (see below). Others reach further.
  const tokensOf = (t) => (t < 2 ? 8 : rng.pick([12, 30, wild ? 128 : 50]));
  const all = Array.from({ length: numTables }, (_, t) => weights(rng, tokensOf(t)));
  const numbers = [];
  const matrix = (size) => {
    for (let k = 0; k < size * size; k++) numbers.push([0, rng.int(-2500, 2500)]);
  };
  matrix(3);
  if (degree) {
    matrix(3);
    matrix((degree + 1) ** 2 - 1);
  }
  numbers.push([1, numTables]);
  let cellsBefore = -1;
  for (let s = 0; s < numStreams(degree); s++) {
    const features = [];
    const large = wild ? 2 ** 20 : 2000;
    const coefficient = () => rng.pick([rng.int(-large, large), rng.int(-1500, 1500), 0]);
    let bias = rng.int(-20000, 20000);
    if (wild && rng.chance(0.2)) bias = rng.int(-(2 ** 28), 2 ** 28);
    if (s < 2) {
      // Half of a mean of classes and 4: with residuals from -4 to 3 that never leaves 0..15.
      bias = 4 * 4096;
      features.push([rng.pick([0, 1]) + 4 * rng.int(0, s), 2048]);
    } else if (s < 12) {
      for (let k = rng.int(0, rng.pick([3, 16])); k > 0; k--) {
        const kind = rng.int(0, 3);
        features.push([kind + 4 * rng.int(0, kind === 2 ? s - 1 : s), coefficient()]);
      }
    } else {
      for (let k = rng.int(0, 3); k > 0; k--) features.push([rng.int(0, 1) + 4 * s, coefficient()]);
    }
    numbers.push([1, features.length], [4, bias], ...features.flatMap(([code, x]) => [[2, code], [3, x]]));
    const mode = rng.int(0, 3);
    numbers.push([5, mode]);
    if (mode === 3) numbers.push([7, rng.pick([0, rng.int(0, 300), rng.int(0, 2 ** 28)])]);
    const same = CELLS[mode] === cellsBefore && s !== 2 && rng.chance(0.4) ? 1 : 0;
    numbers.push([5, same]);
    if (same) continue;
    cellsBefore = CELLS[mode];
    let table = 0;
    for (let k = 0; k < cellsBefore; k++) {
      const stay = rng.chance(0.8) && k > 0;
      const to = stay ? table : s < 2 ? rng.int(0, 1) : rng.int(0, numTables - 1);
      numbers.push([6, to - table]);
      table = to;
    }
  }
  const teller = new Teller();
  const m = models(16 * 64);
  let read = 0;
  const p = readIntegerList((kind) => {
    const [k, value] = numbers[read++];
    if (k !== kind) throw new Error("kinds");
    teller.gamma(zigzag(value));
    expGolomb(teller, m, 64 * kind);
    return value;
  }, degree);
  const steps = {
    feedback: rng.pick([5, 0, rng.int(0, 255)]), taps: rng.pick([2, 0, rng.int(0, 255)]),
    sizeStep: rng.int(1, rng.pick([20, 4096])), opacityStep: rng.int(1, 4096), precision: rng.int(-9000, 9000),
    shapeStep: Math.fround(rng.next() + 0.001), colorStep: Math.fround(rng.next()), shStep: Math.fround(rng.next()),
  };
  const list = encodeRans(teller.intervals, 1);
  const payload = concat(
    Uint8Array.of(degree, steps.feedback, steps.taps, rng.int(0, 255)), u16(steps.sizeStep), u16(steps.opacityStep), u32(steps.precision >>> 0),
    f32(steps.shapeStep), f32(steps.colorStep), f32(steps.shStep), u32(list.length), list, writeTables(all),
  );
  return { payload, p: { ...p, ...steps, degree, tables: all.map(makeTable) } };
}

/** A random TILE chunk and its layers: a list of {type, count, payload}. */
export function makeTile(rng, p, { looks = [0, 1024, 0, 1024], layers = 3, limit = 300 } = {}) {
  let rans, place;
  do {
    // Chances of a leaf and of a child: few cells, deep ones, single deep chains, many in all directions.
    const [leaf, child, after] = rng.pick([
      [0.7, 0.3], [0.5, 0.22], [0.04, 0.03], [0.02, 0.12], [0.6, 0.5],
      ...(limit > 1000 ? [[0.1, 0.7, 3000], [0.2, 0.5, 2000], [0.3, 0.9, 4000]] : []),
    ]);
    const m = models(352);
    const more = rng.pick([0.05, 0.3]);
    const tilt = new Map(m.map((model, k) => [model, k < 32 ? leaf : k < 288 ? child : more]));
    rans = new Dice(rng, tilt, new Set(m.slice(0, 32)), after);
    try {
      place = spread(readOctree(rans, m));
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      place = null;
    }
  } while (!place || place.length > limit || (place.length < 5 && rng.chance(0.8)));
  const head = {
    logStates: rng.int(0, 5), exponent: rng.int(-30, 30), blur: Math.fround(rng.pick([0, rng.next()])),
    origin: [0, 1, 2].map(() => Math.fround((rng.next() - 0.5) * 10 ** rng.int(-3, 6))),
  };
  const plain = new PlainDice(rng);
  const state = readGaussians(rans, plain, p, head, place);
  const pad = (payload) => concat(payload, new Uint8Array(Math.max(0, Math.ceil(place.length / 8) - payload.length)));
  const coded = encodeRans(rans.intervals, 2 ** head.logStates);
  const payload = pad(
    concat(
      Uint8Array.of(head.logStates, 0), u16(head.exponent & 0xffff), f32(head.blur), ...head.origin.map(f32),
      ...looks.map((x) => u16(x & 0xffff)), u32(coded.length), coded, plain.bytes(),
    ),
  );
  const chunks = [{ type: "TILE", count: place.length, payload }];
  for (const [type, range] of Object.entries(LAYERS)) {
    if (range[1] > state.V.length || Number(type[3]) > layers) continue;
    const dice = new Dice(rng);
    const raw = new PlainDice(rng);
    readLayer(dice, raw, p, state, place, range);
    const logStates = rng.int(0, 5);
    const stream = encodeRans(dice.intervals, 2 ** logStates);
    const bytes = concat(Uint8Array.of(logStates, 0, rng.int(0, 255), 0), u32(stream.length), stream, raw.bytes());
    chunks.push({ type, count: place.length, payload: bytes });
  }
  return chunks;
}

/**
 * A random file of some tiles and levels.
 * @param seed
 * @param filler bytes of a chunk that readers skip, after each of the others
 */
export function makeFile(seed, filler = 0) {
  const rng = random(seed);
  const large = seed % 5 === 4;
  const degree = large ? 0 : rng.int(0, 3);
  const { payload, p } = makeParameters(rng, degree, rng.chance(0.3));
  const chunks = [{ type: "PARM", payload }];
  const meta = new TextEncoder().encode('{"up":[0,1,0]}');
  if (rng.chance(0.3)) chunks.unshift({ type: "META", critical: 0, payload: meta });
  if (rng.chance(0.2)) chunks.push({ type: "zzzz", critical: 0, payload: new Uint8Array(rng.int(0, 9)) });
  const numTiles = large ? 1 : rng.int(1, 3);
  const levels = [];
  for (let tile = 0; tile < numTiles; tile++) {
    const first = rng.int(0, 1);
    const last = rng.int(1, 3);
    for (let level = first; level <= last; level++) {
      const full = level === 0 || level === last;
      const own = full ? [] : [rng.int(-2000, 2000), rng.int(1, 4000)];
      const options = full ? {} : { looks: [...own, -own[0] >> 1, 5000 - own[1]] };
      const layers = rng.pick([3, 3, rng.int(0, 3)]);
      const made = makeTile(rng, p, { ...options, layers, limit: large ? 3000 : rng.pick([40, 40, 40, 500]) });
      levels.push(...made.map((chunk) => ({ ...chunk, level, tile })));
    }
  }
  // TILE before SHC1 before SHC2 before SHC3.
  const rank = (type) => (type === "TILE" ? 0 : Number(type[3]));
  levels.sort((a, b) => a.level - b.level || rank(a.type) - rank(b.type) || a.tile - b.tile);
  const all = [...chunks, ...levels];
  if (!filler) return container(all);
  const skipped = { type: "fill", critical: 0, payload: new Uint8Array(filler) };
  return container(all.flatMap((chunk) => [chunk, skipped]));
}
