// Integer columns over a grid, coded by tables: what a video group holds once (bitstreams/SPEC.md, 7.10).

import { SplcError, TocReader } from "./container.js";
import { Coder, readTables } from "./entropy.js";

const NUM_CONTEXTS = 64;
const MAX_REFERENCES = 4;
const MAX_EXPONENT = 15;
const LOG_STATES = 3;
const LIMIT = 2 ** 26;

/**
 * How a column is coded.
 * @typedef {object} Plan
 * @property {number[]} references numbers of columns
 * @property {number} shift
 * @property {number} steps number of the column with step exponents, -1 for none
 * @property {Float64Array} coefficients
 * @property {Uint8Array} map table of each context
 */

/** Level of a size, 0 to 15, for sizes up to 255; what is larger is 15. */
const LEVELS = Uint8Array.from({ length: 256 }, (_, x) => {
  if (x < 4) return x;
  const b = 32 - Math.clz32(x);
  return Math.min(2 * b - 2 + ((x >> (b - 2)) & 1), 15);
});

/** Numbers of a payload, one after the other. */
class Numbers extends TocReader {
  /** @param {number} most */
  signed(most) {
    const value = this.varint();
    const signed = value % 2 ? -(value + 1) / 2 : value / 2;
    if (Math.abs(signed) > most) throw new SplcError("format", "a coefficient is out of range");
    return signed;
  }

  byte() {
    return this.bytes(1)[0];
  }
}

/**
 * @param {Uint8Array} bytes of the columns
 * @param {number} numColumns
 * @param {number} count cells
 * @param {number} width cells of a row
 * @returns {Int32Array[]} a column each; the caller has seen to it that they may be allocated
 */
export function decodeColumns(bytes, numColumns, count, width) {
  const front = new Numbers(bytes);
  const numTables = front.varint();
  const lengths = [0, 1, 2, 3].map(() => front.varint());
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const end = front.at + total;
  if (end > bytes.length) throw new SplcError("truncated", "the columns are cut off", front.at);
  if (bytes.subarray(end).some((byte) => byte)) throw new SplcError("format", "bytes are left over behind the columns", end);
  if (numTables > 256 || (numColumns && !numTables)) throw new SplcError("format", `${numTables} tables`, 0);
  const [head, stored, coded, raw] = lengths.map((length) => front.bytes(length));
  const plans = readPlans(new Numbers(head), numColumns, numTables);
  const columns = Array.from({ length: numColumns }, () => new Int32Array(count));
  if (!numColumns) return columns;
  const { first, starts } = readTables(stored, numTables);
  const stream = new Uint8Array(coded.length + raw.length);
  stream.set(coded);
  stream.set(raw, coded.length);
  const coder = new Coder().start(stream, 0, coded.length, LOG_STATES);
  const sizes = [new Float64Array(count), new Float64Array(count)];
  plans.forEach((plan, p) => {
    decodeColumn(columns, p, plan, width, sizes[p & 1], sizes[~p & 1], coder, first, starts);
  });
  coder.finish();
  return columns;
}

/**
 * @param {Numbers} head
 * @param {number} numColumns
 * @param {number} numTables
 * @returns {Plan[]}
 */
function readPlans(head, numColumns, numTables) {
  /** @type {Plan[]} */
  const plans = [];
  for (let p = 0; p < numColumns; p++) {
    const [flags, back] = [head.byte(), head.byte()];
    if ((flags & 15) > MAX_REFERENCES) throw new SplcError("format", `column ${p}: impossible flags`);
    const references = Array.from({ length: flags & 15 }, () => p - 1 - head.byte());
    if (references.some((reference) => reference < 0) || back > p) {
      throw new SplcError("format", `column ${p} is predicted from one that does not exist`);
    }
    const size = 4 + 3 * references.length + 1;
    const coefficients = Float64Array.from({ length: size }, (_, k) => head.signed(k < size - 1 ? 2 ** 20 : 2 ** 27));
    plans.push({ references, shift: flags >> 4, steps: back ? p - back : -1, coefficients, map: new Uint8Array(NUM_CONTEXTS) });
  }
  plans.forEach(({ map }, p) => {
    for (let filled = 0; filled < NUM_CONTEXTS; ) {
      const [table, length] = [head.byte(), head.byte()];
      if (table >= numTables || length < 1 || length > NUM_CONTEXTS - filled) {
        throw new SplcError("format", `column ${p}: impossible context map`);
      }
      map.fill(table, filled, filled + length);
      filled += length;
    }
  });
  if (head.at !== head.toc.length) throw new SplcError("format", "bytes are left over in the head of the columns");
  return plans;
}

/**
 * @param {Int32Array[]} columns
 * @param {number} p
 * @param {Plan} plan
 * @param {number} width
 * @param {Float64Array} own sizes of this column, out
 * @param {Float64Array} other sizes of the one before
 * @param {Coder} coder
 * @param {Uint8Array} first
 * @param {Uint16Array} starts
 */
function decodeColumn(columns, p, { references, shift, steps, coefficients, map }, width, own, other, coder, first, starts) {
  const out = columns[p];
  const others = references.map((k) => columns[k]);
  const exponents = steps < 0 ? null : columns[steps];
  const [c0, c1, c2, c3] = coefficients;
  const constant = coefficients[coefficients.length - 1] + 2048;
  const count = out.length;
  let x = 0;
  let above = -width;
  for (let at = 0; at < count; at++, above++) {
    let e = shift;
    if (exponents) {
      const more = exponents[at];
      e += more < 0 ? 0 : more > MAX_EXPONENT ? MAX_EXPONENT : more;
      if (e > MAX_EXPONENT) e = MAX_EXPONENT;
    }
    let total = constant;
    let near = 0;
    if (above < 0) {
      // The first row.
      if (x) {
        total += (c0 + c1 + c2 + c3) * out[at - 1];
        near = 5 * own[at - 1];
      }
    } else {
      const n = out[above];
      const size = own[above];
      const right = x + 1 < width;
      total += c0 * (x ? out[at - 1] : n) + c1 * n + c2 * (x ? out[above - 1] : n) + c3 * (right ? out[above + 1] : n);
      near = 2 * size + (right ? own[above + 1] : size) + 2 * (x ? own[at - 1] : size);
    }
    for (let k = 0, c = 4; k < others.length; k++, c += 3) {
      const r = others[k];
      let left = 0;
      let up = 0;
      if (x) {
        left = r[at - 1];
        up = above < 0 ? left : r[above];
      } else if (above >= 0) {
        left = up = r[above];
      }
      total += coefficients[c] * r[at] + coefficients[c + 1] * left + coefficients[c + 2] * up;
    }
    total = Math.floor(total / 4096);
    if (total > LIMIT) total = LIMIT;
    else if (total < -LIMIT) total = -LIMIT;
    const step = 1 << e;
    const level = near / step;
    const size = other[at] / step;
    const context = 4 * (level < 256 ? LEVELS[level | 0] : 15) + (size < 1 ? 0 : size < 2 ? 1 : size < 6 ? 2 : 3);
    let r = coder.value(first, starts, map[context]);
    const most = LIMIT >> e;
    if (r > most) r = most;
    else if (r < -most) r = -most;
    r *= step;
    own[at] = r < 0 ? -r : r;
    r += total;
    out[at] = r > 2 * LIMIT ? 2 * LIMIT : r < -2 * LIMIT ? -2 * LIMIT : r;
    if (++x === width) x = 0;
    if ((at & 31) === 31) coder.check();
  }
  coder.check();
}
