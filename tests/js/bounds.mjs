// Lies about sizes are found before memory is taken for them: node bounds.mjs.

import assert from "node:assert/strict";
import { open, SplcError } from "../../splatcodec/player/decoder/index.js";
import { pieces, rejection, report } from "./common.mjs";
import { concat, container, f32, makeParameters, makeTile, random, u32 } from "./generate.mjs";

const rng = random(11);
const { payload, p } = makeParameters(rng, 1, false);
const parm = { type: "PARM", payload };
const [tile, layer] = makeTile(rng, p, { limit: 30 });
const first = { ...tile, level: 1, tile: 0 };
const sh = { ...layer, level: 1, tile: 0 };
let checked = 0;

async function refused(bytes, code, what) {
  const before = process.memoryUsage().arrayBuffers;
  for (const input of [bytes, pieces(bytes, [20, Math.min(200, bytes.length)])]) {
    const error = await rejection(async () => (await open(input)).decode());
    assert.ok(error instanceof SplcError, `${what}: ${error}`);
    assert.ok(code.split(" ").includes(error.code), `${what}: ${error.code} ${error.message}`);
    assert.ok(process.memoryUsage().arrayBuffers - before < 50e6, `${what}: memory`);
    checked++;
  }
}
const changed = (payload, at, bytes) => {
  const copy = payload.slice();
  copy.set(bytes, at);
  return copy;
};

assert.equal((await (await open(container([parm, first, sh]))).decode()).count, tile.count);
await refused(container([parm, first], { length: 2 ** 45 }), "truncated format", "file length");
await refused(container([parm, { ...first, count: 65536 }]), "format", "count of a small tile");
await refused(container([parm, { ...first, count: 0 }], { numGaussians: 0 }), "format", "an empty tile");
await refused(container([parm, { ...first, count: 2 ** 40 }]), "format", "a giant count");
await refused(container([parm, { ...first, count: tile.count + 1 }]), "format", "one Gaussian too many");
await refused(container([parm, first], { numGaussians: 2 ** 40 }), "format", "number of Gaussians");
await refused(container([parm, first, first]), "format", "the same tile twice");
await refused(container([parm, sh]), "format", "a layer without its tile");
await refused(container([parm, first, { ...sh, count: 1 }]), "format", "a layer of another count");
await refused(container([parm, first, { ...sh, type: "SHC3" }]), "format", "a layer above the SH degree");
await refused(container([first]), "format", "no parameters");
await refused(container([parm, parm]), "format", "parameters twice");
await refused(container([parm, first], { features: [["lossy-1", 1], ["future-9", 1]] }), "unsupported", "a feature");
await refused(container([parm, { ...first, type: "WHAT" }]), "unsupported", "a critical chunk");
await refused(container([parm, first], { minor: 2 }), "unsupported", "a minor version");
await refused(container([parm, { ...first, crc: 1 }]), "checksum", "a chunk's checksum");
for (const [at, bytes, code, what] of [
  [0, [6], "format", "64 states"],
  [1, [1], "unsupported", "context mixing"],
  [1, [2], "format", "coding tools"],
  [2, [0xe9, 3], "format", "exponent"],
  [4, f32(NaN), "format", "blur"],
  [8, f32(Infinity), "format", "origin"],
  [20, [1, 0x20], "format", "grow"],
  [22, [0, 0], "format", "gain"],
  [24, [1, 0x20], "format", "grow below"],
  [26, [0, 0], "format", "gain below"],
  [28, u32(2 ** 32 - 1), "truncated", "length of the rANS stream"],
  [28, u32(3), "truncated", "no states"],
  [32, [0, 0, 0, 0], "format", "a state of 0"],
]) {
  await refused(container([parm, { ...first, payload: changed(tile.payload, at, bytes) }]), code, what);
}
await refused(container([parm, { ...first, payload: tile.payload.subarray(0, 20) }]), "truncated", "half a header");
await refused(container([{ ...parm, payload: payload.subarray(0, 27) }]), "truncated", "half of PARM");
await refused(container([{ ...parm, payload: changed(payload, 24, u32(2 ** 31)) }]), "truncated", "the integer list");
await refused(container([{ ...parm, payload: concat(payload, [0, 0]) }]), "format", "bytes after the tables");

// A limit of the caller's own.
const limited = await rejection(async () => (await open(container([parm, first, sh]))).decode({ maxBytes: 100 }));
assert.equal(limited?.code, "limit");
report({ checked });
