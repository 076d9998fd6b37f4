// Records for a GPU beside the exact arrays: node records.mjs FILE... Unpacks them as their description says.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { BLOCK, open } from "../../splatcodec/player/decoder/index.js";
import { report } from "./common.mjs";
import { floatOf, SH_C0, unpack, unpackSh } from "./unpack.mjs";

const seen = { files: 0, gaussians: 0, record_bytes: 0, box_bytes: 0, sh_bytes: 0, shape_error: 0, sh_error: 0 };
for (const path of process.argv.slice(2)) {
  const file = await open(readFileSync(path));
  const exact = await file.decode({ parts: file.parts });
  const packed = await file.decode({ parts: file.parts, as: "records" });
  const words = [0, 3, 7, 11][file.shDegree];
  exact.parts.forEach((part, k) => {
    const { records, boxes } = packed.parts[k].records;
    const { sh } = packed.parts[k];
    assert.equal(records.length, 4 * part.count);
    assert.equal(boxes.length, 16 * Math.ceil(part.count / BLOCK));
    seen.record_bytes = Math.max(seen.record_bytes, records.byteLength / part.count);
    seen.box_bytes = Math.max(seen.box_bytes, boxes.byteLength / Math.ceil(part.count / BLOCK));
    assert.equal(sh === null, part.sh === null);
    if (sh) {
      assert.equal(sh.length, words * part.count);
      seen.sh_bytes = Math.max(seen.sh_bytes, sh.byteLength / part.count);
    }
    for (let i = 0; i < part.count; i++) {
      const one = unpack(records, boxes, i);
      const { means, covariances, alphas, sh0 } = part.arrays;
      for (let j = 0; j < 3; j++) {
        const slack = Math.abs(means[3 * i + j]) * 2e-7;
        assert.ok(Math.abs(one.position[j] - means[3 * i + j]) <= 0.501 * one.steps[j] + slack, "position");
        const color = 0.5 + SH_C0 * sh0[3 * i + j];
        assert.ok(Math.abs(one.color[j] - color) <= 0.501 * one.colorStep[j] + 1e-6 * Math.abs(color), "colour");
      }
      assert.ok(Math.abs(one.alpha - alphas[i]) <= 0.5 / 255 + 1e-9, "alpha");
      // Sizes within half a step; slants within half a step of their scale, which is at most (1 + |w|) * range / 254.
      const [xx, xy, xz, yy, yz, zz] = covariances.subarray(6 * i, 6 * i + 6);
      const r1 = Math.sqrt(xx + one.blur2);
      assert.ok(Math.abs(Math.log2(one.R[0] / r1)) <= 0.51 * one.sizeStep + 1e-4, "size");
      const b = xy / r1;
      const r2 = Math.sqrt(Math.max(0, yy + one.blur2 - b * b));
      const slack = (1 + Math.abs(b / r2)) * ((0.51 * one.shapeStep) / 2 ** 23) + 2e-2 * (1 + Math.abs(b / r2));
      if (r2 > 1e-3 * Math.abs(b)) assert.ok(Math.abs(one.w[0] - b / r2) <= slack, `slant ${one.w[0]} ${b / r2}`);
      void [xz, yz, zz];
      const trace = xx + yy + zz + 3 * one.blur2;
      const error = Math.max(...one.covariance.map((x, j) => Math.abs(x - covariances[6 * i + j]))) / trace;
      seen.shape_error = Math.max(seen.shape_error, error);
      if (sh) {
        const { values, scale } = unpackSh(sh, words, file.shDegree, i);
        const n = values.length;
        const most = Math.max(...part.sh.subarray(n * i, n * i + n).map(Math.abs));
        const near = scale <= most * 1.1251 || most < 2 ** -19;
        assert.ok(scale >= most * (1 - 1e-6) && near, `scale ${scale} of ${most}`);
        for (let j = 0; j < n; j++) {
          const off = Math.abs(values[j] - part.sh[n * i + j]) / scale;
          assert.ok(off <= (j < 24 ? 0.501 / 127 : 0.501 / 63), `SH coefficient ${j}: ${off}`);
          seen.sh_error = Math.max(seen.sh_error, off);
        }
      }
      seen.gaussians++;
    }
  });
  seen.files++;
}
report(seen);
