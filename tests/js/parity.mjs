// Whether the player gives the Python package's bits: node parity.mjs FOLDER, as test_player.py makes it.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { open } from "../../splatcodec/player/decoder/index.js";
import { report, sameBits } from "./common.mjs";

const folder = process.argv[2];
const kinds = { f4: Float32Array, f8: Float64Array };
const { cases } = JSON.parse(readFileSync(`${folder}/cases.json`, "utf8"));
let gaussians = 0;
for (const [{ name, stream, wanted }, plain] of cases.flatMap((one) => [[one, false], [one, true]])) {
  const file = await open(readFileSync(stream), { plain });
  for (const { selection, count, arrays, look } of wanted) {
    const scene = await file.decode(selection);
    const what = `${name} ${JSON.stringify(selection)}`;
    assert.equal(scene.count, count, what);
    gaussians += count;
    for (const [key, [path, dtype]] of Object.entries(arrays)) {
      const bytes = readFileSync(`${folder}/${path}`);
      const expected = new kinds[dtype](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
      sameBits(scene.arrays[key], expected, `${what} ${key}`);
    }
    if (look) assert.ok(scene.parts.some((part) => part.look.grow !== 0 || part.look.gain !== 1024), `${what}: looks`);
  }
}
report({ cases: cases.length, gaussians });
