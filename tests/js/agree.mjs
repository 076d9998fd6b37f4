// Whether the player and the slow reader agree: node agree.mjs SEEDS FILE..., on made-up files and on given ones. The
// player's loops in plain JavaScript are compared, and those in WebAssembly with them.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { open } from "../../splatcodec/player/decoder/index.js";
import { digest, report, sameBits } from "./common.mjs";
import { makeFile } from "./generate.mjs";
import { arraysOf, readScene } from "./slow_reader.mjs";

const [seeds, ...paths] = process.argv.slice(2);
const seen = { files: 0, gaussians: 0, largest: 0, layers: 0, levels: 0, looks: 0 };

const resultsOf = ({ arrays, records, sh }) => [...Object.values(arrays ?? records), ...(sh ? [sh] : [])];

async function compare(name, bytes) {
  const slow = readScene(bytes);
  const file = await open(bytes, { plain: true });
  const fast = await open(bytes);
  assert.deepEqual([file.engine.constructor.name, fast.engine.constructor.name], ["PlainEngine", "FastEngine"]);
  assert.equal(file.parts.length, slow.parts.length);
  const all = await file.decode({ parts: file.parts });
  all.parts.forEach((part, k) => {
    const { level, tile } = slow.parts[k];
    assert.deepEqual([part.level, part.tile], [level, tile]);
    const expected = arraysOf(slow, slow.parts[k]);
    const actual = { ...part.arrays, shN: part.sh };
    // Without any layer there are no coefficients, which says the same as zeros.
    if (!part.sh) {
      assert.ok(expected.shN.every((x) => x === 0));
      delete expected.shN;
    }
    for (const key of Object.keys(expected)) sameBits(actual[key], expected[key], `${name} ${level}/${tile} ${key}`);
    seen.gaussians += part.count;
    seen.largest = Math.max(seen.largest, part.count);
    seen.layers += part.shLayers;
  });
  for (const as of ["arrays", "records"]) {
    const [one, other] = [file, fast].map((reader) => reader.decode({ parts: reader.parts, as }));
    const digests = [await one, await other].map(({ parts }) => parts.map((part) => digest(resultsOf(part))));
    assert.deepEqual(digests[1], digests[0], `${name}: WebAssembly, ${as}`);
  }
  // A prefix of the levels looks as its last level says.
  const levels = [...new Set(slow.parts.map(({ level }) => level))].filter((level) => level > 0);
  for (const level of levels) {
    const { parts } = await file.decode({ level, shLayers: 0 });
    for (const part of parts) {
      const own = slow.parts.find((other) => other.level === part.level && other.tile === part.tile);
      const same = slow.parts.filter((other) => other.tile === part.tile);
      const shown = same.filter((other) => other.level <= level);
      const { head } = shown.reduce((a, b) => (b.level > a.level ? b : a));
      const look = part.level ? head.own : head.under;
      assert.deepEqual(part.look, look);
      // Level 0 is below the others until the tile is whole.
      assert.ok(part.level > 0 || same.some((other) => other.level > level) || same.length === 1);
      const { covariances, alphas } = arraysOf(slow, own, look.grow, look.gain);
      sameBits(part.arrays.covariances, covariances, `${name} to level ${level}: covariances`);
      sameBits(part.arrays.alphas, alphas, `${name} to level ${level}: alphas`);
      seen.looks += look.grow !== 0;
    }
    seen.levels++;
  }
  seen.files++;
}

for (let seed = 0; seed < Number(seeds); seed++) await compare(`seed ${seed}`, makeFile(seed));
for (const path of paths) await compare(path, new Uint8Array(readFileSync(path)));
report(seen);
