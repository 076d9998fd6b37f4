// Decoding as bytes arrive: node stream.mjs FILE... Every prefix gives what its chunks hold, then says that it ends.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { open, SplcError } from "../../splatcodec/player/decoder/index.js";
import { arraysOf, digest, pieces, rejection, report, sameBits } from "./common.mjs";
import { random } from "./generate.mjs";

const rng = random(7);
const seen = { files: 0, prefixes: 0, parts: 0 };

/** Parts by level and tile, each put together from what came. */
async function collect(generator, into = new Map()) {
  for await (const part of generator) {
    const key = `${part.level}/${part.tile}`;
    const { arrays, records, sh, ...facts } = part;
    const before = into.get(key) ?? {};
    assert.ok(!before.arrays || !arrays, "Gaussians are given once");
    into.set(key, { ...before, ...facts, ...(arrays && { arrays }), ...(records && { records }), ...(sh && { sh }) });
  }
  return into;
}

for (const path of process.argv.slice(2)) {
  const bytes = new Uint8Array(readFileSync(path));
  const file = await open(bytes);
  const whole = await file.decode();
  const total = whole.parts.length;

  // The same from memory, from a Blob, as a stream cut anywhere, one byte at a time.
  const sources = [
    () => new Blob([bytes]),
    () => pieces(bytes, [rng.int(0, 60), rng.int(60, 150), rng.int(150, bytes.length)]),
    () => pieces(bytes, Array.from({ length: bytes.length }, (_, k) => k)),
    () => new Blob([bytes]).stream(),
  ];
  for (const source of sources) {
    const scene = await (await open(source())).decode();
    assert.equal(digest(arraysOf(scene.arrays)), digest(arraysOf(whole.arrays)));
    const parts = await collect((await open(source())).stream({ thumbnails: false }));
    assert.equal(parts.size, total);
    for (const part of whole.parts) {
      const got = parts.get(`${part.level}/${part.tile}`);
      for (const key of Object.keys(part.arrays)) sameBits(got.arrays[key], part.arrays[key], key);
      assert.equal(got.sh === undefined, part.sh === null);
      if (part.sh) sameBits(got.sh, part.sh, "sh");
    }
  }

  // Layers one by one: the last says what all say.
  const layered = await collect((await open(sources[1]())).stream({ everyLayer: true, thumbnails: false }));
  for (const part of whole.parts) if (part.sh) sameBits(layered.get(`${part.level}/${part.tile}`).sh, part.sh, "sh");

  // Prefixes: every part whose chunks are there, and nothing else.
  for (let k = 0; k < 12; k++) {
    const cut = rng.int(0, bytes.length - 1);
    const got = new Map();
    const error = await rejection(async () => {
      await collect((await open(pieces(bytes.subarray(0, cut), [rng.int(0, cut)]))).stream({ as: "records" }), got);
    });
    assert.ok(error instanceof SplcError && error.code === "truncated", String(error));
    assert.ok(error.offset <= cut, error.message);
    const arrived = file.parts.filter(({ chunk }) => chunk.offset + chunk.length <= cut);
    assert.equal(got.size, arrived.length);
    for (const { level, tile, layers } of arrived) {
      const all = layers.every((layer) => !layer || layer.offset + layer.length <= cut);
      assert.equal(Boolean(got.get(`${level}/${tile}`).sh), all && layers.some((layer) => layer));
    }
    seen.prefixes++;
  }

  // What follows the end is refused, and so is a second pass over what is gone.
  const longer = new Uint8Array([...bytes, 0]);
  for (const source of [longer, pieces(longer, [bytes.length])]) {
    const error = await rejection(async () => (await open(source)).decode());
    assert.equal(error?.code, "format", String(error));
  }
  const once = await open(sources[2]());
  await once.decode();
  if (total) assert.equal((await rejection(() => once.decode()))?.code, "parameter");

  seen.files++;
  seen.parts += total;
}
report(seen);
