// A second reading of bitstreams/SPEC.md: slow, in the words and order of that page, sharing nothing with the player.
// When the player and this disagree, one of the three is wrong. Lossy scenes without context mixing.
//
// Numbers are plain; products that may leave 2^53 or 32 bits are BigInt or use * and Math.floor instead of shifts.

export const floorDiv = (a, b) => Math.floor(a / b);
export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const bitLength = (x) => (x === 0 ? 0 : x.toString(2).length);
export const unzigzag = (u) => (u % 2 === 0 ? u / 2 : -(u + 1) / 2);

export function must(condition, message) {
  if (!condition) throw new Error(message);
}

// --- 1. File layout -----------------------------------------------------------------------------------------------

export class Bytes {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.at = 0;
  }
  skip(n) {
    must(this.at + n <= this.bytes.length, "cut off");
    this.at += n;
    return this.at - n;
  }
  u8() { return this.view.getUint8(this.skip(1)); }
  u16() { return this.view.getUint16(this.skip(2), true); }
  i16() { return this.view.getInt16(this.skip(2), true); }
  u32() { return this.view.getUint32(this.skip(4), true); }
  i32() { return this.view.getInt32(this.skip(4), true); }
  f32() { return this.view.getFloat32(this.skip(4), true); }
  u64() { return this.view.getBigUint64(this.skip(8), true); }
  take(n) { const at = this.skip(n); return this.bytes.subarray(at, at + n); }
  rest() { return this.take(this.bytes.length - this.at); }
  ascii(n) { return String.fromCharCode(...this.take(n)); }
  varint() {
    let value = 0n;
    for (let k = 0n; k < 10n; k++) {
      const byte = BigInt(this.u8());
      value += (byte & 127n) << (7n * k);
      if (byte < 128n) {
        must(k === 0n || byte > 0n, "not the shortest form");
        must(value < 1n << 64n, "more than 64 bits");
        return value;
      }
    }
    throw new Error("varint of more than 10 bytes");
  }
}

export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}

/** Header, features and chunks with their payloads, all checksums checked. `known`: features that the caller reads. */
export function readContainer(file, known = ["lossy-1", "extras-1"]) {
  const r = new Bytes(file);
  must(r.ascii(4) === "SPLC", "magic");
  must(r.u8() === 0 && r.u8() === 3, "version");
  r.u16();
  must(r.u64() === BigInt(file.length), "file length");
  const tocLength = r.u64();
  must(tocLength <= 1n << 26n, "length of the table of contents");
  const numGaussians = Number(r.u64());
  const tocCrc = r.u32();
  const headCrc = crc32(file.subarray(0, 36));
  must(r.u32() === headCrc, "checksum of the header");
  const toc = r.take(Number(tocLength));
  must(crc32(toc) === tocCrc, "checksum of the table of contents");
  const t = new Bytes(toc);
  const features = [];
  for (let left = t.varint(); left > 0n; left--) {
    const required = t.u8() & 1;
    const name = t.ascii(Number(t.varint()));
    must(!required || known.includes(name), `feature ${name}`);
    features.push(name);
  }
  const chunks = [];
  for (let left = t.varint(); left > 0n; left--) {
    const type = t.ascii(4);
    t.u8();
    const [level, tile, count, length] = [t.varint(), t.varint(), t.varint(), t.varint()].map(Number);
    const crc = t.u32();
    const payload = r.take(length);
    must(crc32(payload) === crc, `checksum of ${type}`);
    chunks.push({ type, level, tile, count, payload });
  }
  must(t.at === toc.length && r.at === file.length, "left over");
  return { numGaussians, features, chunks };
}

// --- 2.1, 2.2 rANS and adaptive bits ------------------------------------------------------------------------------

export class Model {
  p = 32768;
  n = 0;
  q() { return clamp(Math.floor(this.p / 16), 1, 4095); }
  update(bit) {
    const target = bit ? 65535 : 0;
    this.p += floorDiv((target - this.p) * floorDiv(65536, 2 * this.n + 3), 32768);
    this.n = Math.min(this.n + 1, 96);
  }
}
export const models = (count) => Array.from({ length: count }, () => new Model());

/** Reads intervals: what the rest of this page asks of a rANS stream. `Dice` of generate.mjs is another such. */
export class Rans {
  constructor(bytes, numStates) {
    const r = new Bytes(bytes);
    this.states = Array.from({ length: numStates }, () => r.u32());
    must(this.states.every((x) => x >= 65536), "first state");
    must((bytes.length - 4 * numStates) % 2 === 0, "odd number of bytes");
    this.reader = r;
    this.k = 0;
  }
  /** The next symbol, with `find(slot)` giving {start, freq, symbol}. (Callers also pass the model of a bit.) */
  next(find) {
    const s = this.k++ % this.states.length;
    let x = this.states[s];
    const slot = x % 4096;
    const { start, freq, symbol } = find(slot);
    must(start <= slot && slot < start + freq, "interval");
    x = freq * Math.floor(x / 4096) + slot - start;
    if (x < 65536) x = x * 65536 + this.reader.u16();
    this.states[s] = x;
    return symbol;
  }
  end() {
    must(this.reader.at === this.reader.bytes.length, "words left");
    must(this.states.every((x) => x === 65536), "last states");
  }
}

const binary = (q) => (slot) =>
  slot < q ? { start: 0, freq: q, symbol: 1 } : { start: q, freq: 4096 - q, symbol: 0 };

export function bit(rans, model) {
  const b = rans.next(binary(model.q()), model);
  model.update(b);
  return b;
}
const plainBit = (rans) => rans.next(binary(2048));

export function expGolomb(rans, m, base) {
  let L = 0;
  while (bit(rans, m[base + Math.min(L, 31)])) must(++L <= 30, "L above 30");
  let w = 1;
  for (let k = 0; k < L; k++) w = 2 * w + (k === 0 ? bit(rans, m[base + 32 + Math.min(L, 31)]) : plainBit(rans));
  return w - 1;
}

// --- 2.3 Tokens ---------------------------------------------------------------------------------------------------

export class PlainBits {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }
  read(count) {
    let value = 0;
    for (let k = 0; k < count; k++, this.at++) {
      must(this.at < 8 * this.bytes.length, "plain bits run past the end");
      value = 2 * value + ((this.bytes[this.at >> 3] >> (7 - (this.at & 7))) & 1);
    }
    return value;
  }
}

export const rawBitsOf = (token) => (token < 16 ? 0 : ((token - 16) >> 2) + 2);
export function valueOf(token, raw) {
  if (token < 16) return unzigzag(token);
  return unzigzag((4 + ((token - 16) & 3)) * 2 ** rawBitsOf(token) + raw);
}

// --- 2.4 Tables ---------------------------------------------------------------------------------------------------

/** Weights of T tables. */
export function readWeights(rans, T) {
  const m = models(328);
  return Array.from({ length: T }, () => {
    const weight = Array(128).fill(0);
    const last = expGolomb(rans, m, 264);
    must(last <= 127, "last");
    let previous = 8;
    let z = 0;
    for (let a = 0; a <= last; a++) {
      if (a < last && bit(rans, m[z + 2 * Math.min(a >> 3, 3)]) === 0) {
        z = 1;
        continue;
      }
      z = 0;
      const e = previous + unzigzag(expGolomb(rans, m, 8 + 64 * Math.min(a >> 2, 3)));
      must(e >= 0 && e <= 12, "exponent");
      weight[a] = 2 ** e;
      for (let k = 1; k <= Math.min(e, 2); k++) weight[a] += 2 ** (e - k) * plainBit(rans);
      previous = e;
    }
    return weight;
  });
}

/** Intervals of the tokens of a table. */
export function makeTable(weight) {
  const W = weight.reduce((a, b) => a + b, 0);
  must(W > 0, "no weights");
  const freq = weight.map((w) => (w === 0 ? 0 : Math.max(1, floorDiv(w * 4096, W))));
  const largest = weight.indexOf(Math.max(...weight));
  freq[largest] += 4096 - freq.reduce((a, b) => a + b, 0);
  must(freq[largest] >= 1, "cannot be normalised");
  let start = 0;
  return freq.map((f, symbol) => ({ symbol, freq: f, start: (start += f) - f }));
}

export const tokenIn = (table) => (slot) => table.find(({ start, freq }) => start <= slot && slot < start + freq);

// --- 3.1 PARM -----------------------------------------------------------------------------------------------------

export const GROUPS = [0, 1, 2, 5, 8, 9, 12, 21, 36];
export const numStreams = (degree) => 12 + 3 * ((degree + 1) ** 2 - 1);
export const CELLS = [256, 256, 256, 1024];

/** The integer list, number by number from `next(kind)`. */
export function readIntegerList(next, degree) {
  const matrix = (size) =>
    Array.from({ length: size * size }, () => {
      const x = next(0);
      must(Math.abs(x) <= 8192, "basis");
      return x;
    });
  const p = { colorBasis: matrix(3), shColorBasis: null, shBandBasis: null, streams: [] };
  if (degree > 0) {
    p.shColorBasis = matrix(3);
    p.shBandBasis = matrix((degree + 1) ** 2 - 1);
  }
  p.numTables = next(1);
  must(p.numTables >= 1 && p.numTables <= 256, "T");
  for (let s = 0; s < numStreams(degree); s++) {
    const stream = { features: [] };
    const count = next(1);
    must(count >= 0 && count <= 16, "features");
    stream.bias = next(4);
    for (let k = 0; k < count; k++) {
      const code = next(2);
      const feature = { kind: ((code % 4) + 4) % 4, source: floorDiv(code, 4), coefficient: next(3) };
      must(code >= 0 && Math.abs(feature.coefficient) <= 2 ** 20, "feature");
      must(feature.kind === 2 ? feature.source < s : feature.source <= s, "source");
      must(s < 12 || (feature.kind < 2 && feature.source === s), "features of SH");
      stream.features.push(feature);
    }
    stream.mode = next(5);
    must(stream.mode >= 0 && stream.mode <= 3, "mode");
    stream.scale = stream.mode === 3 ? next(7) : 0;
    must(stream.scale >= 0 && stream.scale <= 2 ** 28, "scale");
    const same = next(5);
    must(same === 0 || same === 1, "flag");
    if (same) {
      must(s > 0 && p.streams[s - 1].map.length === CELLS[stream.mode], "map of another size");
      stream.map = p.streams[s - 1].map;
    } else {
      let table = 0;
      stream.map = Array.from({ length: CELLS[stream.mode] }, () => (table += next(6)));
      must(stream.map.every((t) => t >= 0 && t < p.numTables), "table");
    }
    p.streams.push(stream);
  }
  return p;
}

export function readParameters(payload) {
  const r = new Bytes(payload);
  const degree = r.u8();
  must(degree <= 3, "degree");
  const [feedback, taps] = [r.u8(), r.u8()];
  r.u8();
  const [sizeStep, opacityStep, precision] = [r.u16(), r.u16(), r.i32()];
  const [shapeStep, colorStep, shStep] = [r.f32(), r.f32(), r.f32()];
  must(sizeStep >= 1 && sizeStep <= 4096 && opacityStep >= 1 && opacityStep <= 4096, "step");
  must(Math.abs(precision) <= 2 ** 20 && shapeStep > 0 && colorStep > 0 && shStep > 0, "step");
  const list = new Rans(r.take(r.u32()), 1);
  const m = models(16 * 64);
  const p = readIntegerList((kind) => unzigzag(expGolomb(list, m, 64 * kind)), degree);
  list.end();
  const rans = new Rans(r.rest(), 1);
  const tables = readWeights(rans, p.numTables).map(makeTable);
  rans.end();
  return { ...p, degree, feedback, taps, sizeStep, opacityStep, precision, shapeStep, colorStep, shStep, tables };
}

// --- 3.3 Octree ---------------------------------------------------------------------------------------------------

const name = (x, y, z) => `${x} ${y} ${z}`;
const ones = (v) => bitLength(v) && v.toString(2).replaceAll("0", "").length;

/** Leaves in depth-first order: {x, y, z, depth, count}. */
export function readOctree(rans, m = models(352)) {
  const root = { x: 0, y: 0, z: 0, family: 1, children: [] };
  let cells = [root];
  for (let d = 0; cells.length; d++) {
    const here = new Map(cells.map((cell) => [name(cell.x, cell.y, cell.z), cell]));
    const neighbour = (cell, axis, side) => {
      const at = [cell.x, cell.y, cell.z];
      at[axis] += side;
      return here.get(name(...at));
    };
    const next = [];
    for (const cell of cells) {
      let leaf = 1;
      if (d < 21) {
        let a = 0;
        for (const axis of [0, 1, 2]) for (const side of [-1, 1]) if (neighbour(cell, axis, side)) a++;
        leaf = bit(rans, m[8 * Math.min(a, 3) + cell.family - 1]);
      }
      cell.depth = d;
      if (leaf) {
        cell.count = expGolomb(rans, m, 288) + 1;
        continue;
      }
      const occupied = [];
      for (let child = 0; child < 8; child++) {
        let [b, v] = [0, 0];
        for (const axis of [0, 1, 2]) {
          const flipped = child ^ (1 << axis);
          const upper = (child >> axis) & 1;
          const outside = neighbour(cell, axis, upper ? 1 : -1);
          if (outside) v++;
          if (upper ? occupied.includes(flipped) : outside?.children[flipped]) b++;
        }
        const s = Math.min(3, occupied.length);
        const certain = child === 7 && occupied.length === 0;
        if (!certain && !bit(rans, m[32 + 64 * b + 16 * v + 4 * s + ones(child)])) continue;
        occupied.push(child);
        cell.children[child] = {
          x: 2 * cell.x + (child & 1), y: 2 * cell.y + ((child >> 1) & 1), z: 2 * cell.z + (child >> 2), children: [],
        };
      }
      for (const child of cell.children) if (child) child.family = occupied.length;
      next.push(...cell.children.filter((child) => child));
    }
    cells = next;
  }
  const leaves = [];
  const visit = (cell) => (cell.count ? leaves.push(cell) : cell.children.forEach((child) => child && visit(child)));
  visit(root);
  return leaves;
}

// --- 3.4 Neighbours -----------------------------------------------------------------------------------------------

/** For each Gaussian: cell, depth, and its four neighbours' numbers ([] for the first). */
export function spread(leaves) {
  const list = [];
  for (const leaf of leaves) {
    const centre = [leaf.x, leaf.y, leaf.z].map((c) => BigInt(2 * c + 1) << BigInt(21 - leaf.depth));
    for (let k = 0; k < leaf.count; k++) {
      const i = list.length;
      const near = [];
      for (let j = i - 1; j >= Math.max(0, i - 16); j--) {
        const distance = centre.map((c, axis) => (c - list[j].centre[axis]) ** 2n).reduce((a, b) => a + b);
        near.push({ j, distance });
      }
      near.sort((a, b) => (a.distance < b.distance ? -1 : a.distance > b.distance ? 1 : b.j - a.j));
      const neighbours = near.slice(0, 4).map(({ j }) => j);
      while (neighbours.length && neighbours.length < 4) neighbours.push(neighbours[0]);
      list.push({ leaf, centre, neighbours });
    }
  }
  return list;
}

// --- 3.5 Streams --------------------------------------------------------------------------------------------------

export function level(x, n) {
  if (x < 4) return Math.min(x, n - 1);
  const b = bitLength(x);
  return Math.min(2 * b - 2 + (floorDiv(x, 2 ** (b - 2)) % 2), n - 1);
}

/** Decode stream s of Gaussian i into V[s][i] and M[s][i]; T[s] is the state of the stream's trellis. */
export function readStream(rans, plain, p, { V, M, T }, place, s, i) {
  const { neighbours, leaf } = place[i];
  const e = s < 2 ? 0 : s < 9 ? V[0][i] : V[1][i];
  const overFour = (row) => neighbours.reduce((sum, j) => sum + row[j], 0);
  const stream = p.streams[s];
  let total = BigInt(stream.bias) + 2048n;
  for (const { kind, source, coefficient } of stream.features) {
    let feature = 0;
    if (kind === 0) feature = floorDiv(overFour(V[source]), 4);
    if (kind === 1) feature = neighbours.length ? V[source][neighbours[0]] : 0;
    if (kind === 2) feature = V[source][i];
    if (kind === 3) feature = 256 * leaf.depth;
    total += BigInt(coefficient) * BigInt(feature);
  }
  const prediction = clamp(Number(total >> 12n), -(2 ** 28), 2 ** 28);
  const near = floorDiv(overFour(M[s]), 2 ** e);
  const group = Math.max(...GROUPS.filter((first) => first <= s));
  const before = [s - 1, s - 2].filter((t) => t >= group);
  const own = floorDiv(2 * before.reduce((sum, t) => sum + M[t][i], 0), 2 ** e);
  const q = T[s] % 2;
  const cell = [
    () => 128 * q + 16 * Math.min(e, 7) + level(near, 16),
    () => 128 * q + 8 * level(near, 16) + level(own, 8),
    () => 128 * q + 16 * Math.min(e, 7) + level(own, 16),
    () => 512 * q + 32 * level(floorDiv(stream.scale, 2 ** e), 16) + 4 * level(near, 8) + (level(own, 8) >> 1),
  ][stream.mode]();
  const table = p.tables[stream.map[cell]];
  const token = rans.next(tokenIn(table));
  const most = floorDiv(2 ** 27, 2 ** e);
  const r = clamp(valueOf(token, plain.read(rawBitsOf(token))), -most, most);
  const point = s < 2 ? r : 2 * r - q * Math.sign(r);
  V[s][i] = clamp(prediction + point * 2 ** e, -(2 ** 28), 2 ** 28);
  if (s >= 2) T[s] = floorDiv(T[s], 2) ^ (q ? p.feedback : 0) ^ (r % 2 ? p.taps : 0);
  M[s][i] = Math.abs(r) * 2 ** e;
  must(s > 1 || (V[s][i] >= 0 && V[s][i] <= 15), "class");
}

// --- 3.2, 3.6, 3.8 chunks -----------------------------------------------------------------------------------------

/** The header of a TILE chunk, and its two streams. */
export function readTileHead(payload) {
  const r = new Bytes(payload);
  const head = { logStates: r.u8(), tools: r.u8(), exponent: r.i16(), blur: r.f32() };
  head.origin = [r.f32(), r.f32(), r.f32()];
  head.own = { grow: r.i16(), gain: r.u16() };
  head.under = { grow: r.i16(), gain: r.u16() };
  must(head.logStates <= 5 && head.tools === 0 && Math.abs(head.exponent) <= 1000 && head.blur >= 0, "head");
  for (const { grow, gain } of [head.own, head.under]) must(Math.abs(grow) <= 8192 && gain >= 1, "grow or gain");
  const coded = r.take(r.u32());
  return { head, coded, plain: r.rest() };
}

/** Streams 0 to 11 and positions, from wherever `rans` and `plain` have them. */
export function readGaussians(rans, plain, p, head, place) {
  const V = Array.from({ length: numStreams(p.degree) }, () => Array(place.length).fill(0));
  const state = { V, M: V.map((row) => [...row]), T: V.map(() => 0) };
  const means = place.map(({ leaf }, i) => {
    for (let s = 0; s < 12; s++) readStream(rans, plain, p, state, place, s, i);
    return [leaf.x, leaf.y, leaf.z].map((cell, j) => {
      const want = 1024 * (head.exponent - leaf.depth - V[0][i]) - V[2 + j][i] * p.sizeStep - p.precision;
      const bits = clamp(Math.ceil(want / 1024), 0, 30);
      const q = plain.read(bits);
      return Math.fround(head.origin[j] + (cell + (q + 0.5) / 2 ** bits) * 2 ** (head.exponent - leaf.depth));
    });
  });
  return { ...state, means };
}

export const LAYERS = { SHC1: [12, 21], SHC2: [21, 36], SHC3: [36, 57] };

export function readLayer(rans, plain, p, state, place, [first, end]) {
  for (let i = 0; i < place.length; i++) {
    for (let s = first; s < end; s++) readStream(rans, plain, p, state, place, s, i);
  }
}

// --- 5. Reconstruction --------------------------------------------------------------------------------------------

const roots = [];
for (let k = 0, r = 2; k < 10; k++) roots.push((r = Math.sqrt(r)));

function exp2(t) {
  let value = 1;
  const i = t - 1024 * floorDiv(t, 1024);
  for (let k = 0; k < 10; k++) if (floorDiv(i, 512 >> k) % 2) value *= roots[k];
  const e = floorDiv(t, 1024);
  if (e > 500) return 2 ** 500;
  if (e < -500) return 2 ** -500;
  return value * 2 ** e;
}

/** Attributes of one Gaussian. `grow` and `gain` are what the highest level that is shown says (section 3.10). */
export function reconstruct(p, head, v, grow, gain) {
  const [R1, R2, R3] = [2, 3, 4].map((s) => exp2(v[s] * p.sizeStep));
  const b = v[5] * p.shapeStep * R2;
  const c = v[6] * p.shapeStep * R3;
  const f = v[7] * p.shapeStep * R3;
  const blur2 = head.blur * head.blur;
  let covariance = [
    R1 * R1 - blur2, R1 * b, R1 * c, b * b + R2 * R2 - blur2, b * c + R2 * f, c * c + f * f + R3 * R3 - blur2,
  ];
  if (grow !== 0) covariance = covariance.map((x) => x * exp2(2 * grow));
  let alpha = clamp(exp2(-Math.max(v[8], 0) * p.opacityStep), 1 / 4096, 4095 / 4096);
  if (gain !== 1024) alpha = Math.min(alpha * (gain / 1024), 4095 / 4096);
  const B = p.colorBasis.map((x) => x / 2048);
  const w = [9, 10, 11].map((s) => v[s] * p.colorStep);
  const sh0 = [0, 1, 2].map((ch) => Math.fround(B[3 * ch] * w[0] + B[3 * ch + 1] * w[1] + B[3 * ch + 2] * w[2]));
  const shN = [];
  if (p.degree) {
    const C = p.shColorBasis.map((x) => x / 2048);
    const K = (p.degree + 1) ** 2 - 1;
    for (let band = 0; band < K; band++) {
      const m = [0, 1, 2].map((j) => {
        let sum = 0;
        for (let k = 0; k < K; k++) {
          const value = v[12 + 3 * k + j];
          if (value !== 0) sum += (p.shBandBasis[band * K + k] / 2048) * (value * p.shStep);
        }
        return sum;
      });
      for (const ch of [0, 1, 2]) {
        shN.push(Math.fround(C[3 * ch] * m[0] + C[3 * ch + 1] * m[1] + C[3 * ch + 2] * m[2]));
      }
    }
  }
  return { covariance, alpha, sh0, shN };
}

// --- the whole file -----------------------------------------------------------------------------------------------

/** Parameters, and every TILE in order: {level, tile, head, V, means, place}. */
export function readParts(chunks, layers = 3) {
  const p = readParameters(chunks.find((chunk) => chunk.type === "PARM").payload);
  const parts = chunks
    .filter((chunk) => chunk.type === "TILE")
    .map(({ level, tile, count, payload }) => {
      must(count >= 1 && count <= 65536 && count <= 8 * payload.length, "count");
      const { head, coded, plain } = readTileHead(payload);
      const rans = new Rans(coded, 2 ** head.logStates);
      const place = spread(readOctree(rans));
      must(place.length === count, "octree");
      const { means, ...state } = readGaussians(rans, new PlainBits(plain), p, head, place);
      rans.end();
      for (const chunk of chunks) {
        const range = LAYERS[chunk.type];
        if (!range || chunk.level !== level || chunk.tile !== tile || chunk.type > `SHC${layers}`) continue;
        must(chunk.count === count && range[1] <= state.V.length, "layer");
        const r = new Bytes(chunk.payload);
        const [logStates, tools] = [r.u8(), r.u8()];
        must(logStates <= 5 && tools === 0, "head");
        r.u16();
        const sh = new Rans(r.take(r.u32()), 2 ** logStates);
        readLayer(sh, new PlainBits(r.rest()), p, state, place, range);
        sh.end();
      }
      return { level, tile, head, V: state.V, means, place };
    });
  return { parameters: p, parts };
}

/** The parts of a still scene, undecorated by levels. */
export function readScene(file, layers = 3) {
  const { numGaussians, features, chunks } = readContainer(file);
  must(features.includes("lossy-1"), "not lossy");
  const { parameters, parts } = readParts(chunks, layers);
  const scene = parts.filter((part) => part.level > 0);
  must(scene.reduce((sum, part) => sum + part.means.length, 0) === numGaussians, "number of Gaussians");
  for (const { level, tile, head } of parts) {
    const highest = Math.max(...parts.filter((part) => part.tile === tile).map((part) => part.level));
    for (const { grow, gain } of level === 0 || level === highest ? [head.own, head.under] : []) {
      must(grow === 0 && gain === 1024, "grow or gain of a full tile");
    }
  }
  return { parameters, parts };
}

/** Arrays of one part, drawn with the `grow` and `gain` that another says. */
export function arraysOf({ parameters }, part, grow = 0, gain = 1024) {
  const all = { means: part.means.flat(), covariances: [], alphas: [], sh0: [], shN: [] };
  for (let i = 0; i < part.means.length; i++) {
    const one = reconstruct(parameters, part.head, part.V.map((row) => row[i]), grow, gain);
    all.covariances.push(...one.covariance);
    all.alphas.push(one.alpha);
    all.sh0.push(...one.sh0);
    all.shN.push(...one.shN);
  }
  return all;
}
