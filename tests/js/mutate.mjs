// Damaged files give a scene or one SplcError, soon and in little memory: node mutate.mjs COUNT SEED FILE...

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { crc32, parseHeader, parseToc } from "../../splatcodec/player/decoder/container.js";
import { open, SplcError } from "../../splatcodec/player/decoder/index.js";
import { pieces, report } from "./common.mjs";
import { random } from "./generate.mjs";

const [count, seed, ...paths] = process.argv.slice(2);
const rng = random(Number(seed));
const files = paths.map((path) => new Uint8Array(readFileSync(path)));
const CODES = new Set(["format", "truncated", "checksum", "unsupported", "limit"]);

/** Make checksums (and the length) of a damaged file right again, as far as it can still be read. */
function repaired(bytes) {
  const view = new DataView(bytes.buffer);
  if (bytes.length < 40) return bytes;
  view.setBigUint64(8, BigInt(bytes.length), true);
  const tocLength = view.getUint32(16, true);
  if (tocLength > bytes.length - 40) return bytes;
  try {
    const seal = () => {
      view.setUint32(32, crc32(bytes.subarray(40, 40 + tocLength)), true);
      view.setUint32(36, crc32(bytes.subarray(0, 36)), true);
    };
    seal();
    const header = parseHeader(bytes);
    const { chunks } = parseToc(bytes.subarray(40, 40 + tocLength), header);
    // The checksum of an entry is its last four bytes: those before the next entry.
    let at = 40 + tocLength;
    for (const chunk of [...chunks].reverse()) {
      at -= 4;
      view.setUint32(at, crc32(bytes.subarray(chunk.offset, chunk.offset + chunk.length)), true);
      const size = (x) => {
        let n = 1;
        for (; x >= 128; x = Math.floor(x / 128)) n++;
        return n;
      };
      at -= 5 + size(chunk.level) + size(chunk.tile) + size(chunk.count) + size(chunk.length);
    }
    seal();
  } catch (error) {
    if (!(error instanceof SplcError)) throw error;
  }
  return bytes;
}

function damaged(bytes) {
  const copy = bytes.slice();
  const kind = rng.int(0, 5);
  if (kind === 0) return copy.slice(0, rng.int(0, copy.length));
  for (let k = rng.pick([1, 1, 1, 3, 10]); k > 0; k--) {
    const at = rng.chance(0.3) ? rng.int(0, Math.min(600, copy.length - 1)) : rng.int(0, copy.length - 1);
    if (kind === 1) copy[at] ^= 1 << rng.int(0, 7);
    else if (kind === 2) copy[at] = rng.pick([0, 255, 127, 128, rng.int(0, 255)]);
    else if (kind === 3) copy.fill(rng.pick([0, 255]), at, at + rng.int(1, 8));
    else if (kind === 4) copy.copyWithin(at, rng.int(0, copy.length - 1), copy.length - rng.int(0, 20));
    else {
      const from = rng.pick(files);
      copy.set(from.subarray(0, Math.min(rng.int(1, 40), from.length, copy.length - at)), at);
    }
  }
  return copy;
}

const outcomes = {};
let slowest = 0;
let largest = 0;
const before = process.memoryUsage();
for (let k = 0; k < Number(count); k++) {
  let bytes = damaged(rng.pick(files));
  if (rng.chance(0.7)) bytes = repaired(bytes);
  const as = rng.pick(["arrays", "records"]);
  const began = performance.now();
  let outcome = "scene";
  try {
    const cuts = [rng.int(0, bytes.length), rng.int(0, bytes.length)].sort((a, b) => a - b);
    const file = await open(rng.chance(0.3) ? pieces(bytes, cuts) : bytes, { plain: rng.chance(0.4) });
    if (rng.chance(0.3)) for await (const part of file.stream({ as })) assert.ok(part.count > 0);
    else assert.ok((await file.decode({ as })).count === file.numGaussians);
  } catch (error) {
    if (!(error instanceof SplcError) || !CODES.has(error.code)) {
      console.error(`mutation ${k} of seed ${seed}: ${Buffer.from(bytes).toString("base64")}`);
      throw error;
    }
    outcome = error.code;
    assert.ok(Number.isInteger(error.offset) && error.offset >= 0, `no offset: ${error.message}`);
  }
  outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  slowest = Math.max(slowest, performance.now() - began);
  if (k % 50 === 0) largest = Math.max(largest, process.memoryUsage().rss - before.rss);
}
report({ outcomes, slowest_ms: Math.round(slowest), growth_bytes: largest });
