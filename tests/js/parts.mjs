// Whether regions and what is left of damaged files are those of the Python package: node parts.mjs CASES.json

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { open } from "../../splatcodec/player/decoder/index.js";
import { rejection, report, sameBits } from "./common.mjs";

const cases = JSON.parse(readFileSync(process.argv[2], "utf8"));
const totals = { cases: 0, gaussians: 0, damage: 0, parts: 0 };
for (const { stream, selection, count, damage, files, shown } of cases) {
  for (const plain of [false, true]) {
    const bytes = readFileSync(stream);
    const notices = [];
    const file = await open(bytes, { plain, onNotice: (notice) => notices.push(notice) });
    const what = `${stream} ${JSON.stringify(selection)}`;
    const scene = await file.decode(selection);
    assert.equal(scene.count, count, what);
    const wanted = (name) => new Float32Array(new Uint8Array(readFileSync(files[name])).buffer);
    for (const name of ["means", "sh0", "shN"]) sameBits(scene.arrays[name], wanted(name), `${what} ${name}`);
    wanted("alphas").forEach((alpha, k) => assert.ok(Math.abs(alpha - scene.arrays.alphas[k]) < 1e-5, `${what} alpha`));
    assert.deepEqual(scene.damage.map((line) => line.match(/[A-Z]{3}[A-Z0-9]\[\d+\/\d+\]/)[0]).sort(), damage, what);
    // Parts are views that follow each other.
    let at = 0;
    for (const part of scene.parts) {
      sameBits(part.arrays.means, scene.arrays.means.subarray(3 * at, 3 * (at + part.count)), `${what} parts`);
      const width = scene.count ? scene.arrays.shN.length / scene.count : 0;
      if (part.sh) sameBits(part.sh, scene.arrays.shN.subarray(width * at, width * (at + part.count)), `${what} sh`);
      at += part.count;
      totals.parts++;
    }
    assert.equal(at, scene.count, what);
    for (const as of ["arrays", "records"]) {
      const found = new Set();
      for await (const part of file.stream({ ...selection, as, thumbnails: false })) {
        found.add(`${part.level}/${part.tile}`);
      }
      for (const unit of shown) assert.ok(found.has(unit), `${what}: ${unit} of ${[...found]}`);
    }
    assert.equal(notices.length, 2 * damage.length, what);
    if (damage.length) {
      const error = await rejection(() => file.decode({ ...selection, keepGoing: false }));
      assert.ok(["checksum", "format", "truncated"].includes(error.code), `${what}: ${error}`);
    }
    totals.cases++;
    totals.gaussians += count;
    totals.damage += damage.length;
  }
}
const file = await open(readFileSync(cases[0].stream));
for (const region of [[0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, NaN], []]) {
  assert.equal((await rejection(() => file.decode({ region }))).code, "parameter");
}
report(totals);
