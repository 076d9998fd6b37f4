// What tests/test_player_moving.py asks of the decoder of moving scenes: node moving.mjs JOB [ARGUMENT...]

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { crc32 } from "../../splatcodec/player/decoder/container.js";
import { openMoving, SplcError } from "../../splatcodec/player/decoder/moving.js";
import { Container } from "../../splatcodec/player/decoder/sequence.js";
import { PackageGroups } from "../../splatcodec/player/segments.js";
import { digest, pieces, rejection, report, sameBits } from "./common.mjs";
import { random } from "./generate.mjs";
import { openGroup, readSequence } from "./slow_moving.mjs";
import { unpackFrame } from "./unpack.mjs";

const CODES = new Set(["format", "truncated", "checksum", "unsupported", "limit"]);
const arraysOf = ({ means, covariances, alphas, sh0, shN }) => [means, covariances, alphas, sh0, shN];

/** Pictures that Python has decoded, in place of a browser's video decoder. */
const picturesFrom = (path) => (path ? (stream) => {
  const name = `${path}-${digest(stream.packets).slice(0, 16)}.luma`;
  const bytes = readFileSync(name);
  const { width, height } = stream;
  let number = 0;
  return {
    next: async () => ({ luma: bytes.subarray(number * width * height, ++number * width * height), stride: width }),
    close() {},
  };
} : undefined);

const floatsOf = (path, Kind) => {
  const bytes = readFileSync(path);
  return new Kind(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
};

const jobs = {
  /** The frames of Python, to the bit where SPEC.md promises that. */
  async parity(folder) {
    const { cases } = JSON.parse(readFileSync(`${folder}/cases.json`, "utf8"));
    const totals = { cases: 0, frames: 0, gaussians: 0, turned: 0, events: 0, shape_error: 0, sh_error: 0 };
    for (const { name, stream, pictures, frames } of cases) {
      for (const plain of [false, true]) {
        const file = await openMoving(readFileSync(stream), { plain, openPictures: picturesFrom(pictures) });
        for (const { number, count, files } of frames) {
          const what = `${name} frame ${number}`;
          const got = await file.frame(number);
          assert.equal(got.count, count, what);
          const { group } = file.current;
          for (const [key, Kind] of [["means", Float32Array], ["alphas", Float64Array], ["sh0", Float32Array]]) {
            sameBits(got[key], floatsOf(`${folder}/${files[key]}`, Kind), `${what} ${key}`);
          }
          const nodes = floatsOf(`${folder}/${files.nodes}`, Uint8Array);
          const wanted = floatsOf(`${folder}/${files.shN}`, Float32Array);
          const width = count ? wanted.length / count : 0;
          assert.equal(got.shN.length, wanted.length, what);
          for (let i = 0; i < count; i++) {
            let most = 1e-12;
            for (let k = width * i; k < width * (i + 1); k++) most = Math.max(most, Math.abs(wanted[k]));
            for (let k = width * i; k < width * (i + 1); k++) {
              if (!nodes[i]) assert.ok(Object.is(got.shN[k], wanted[k]), `${what} shN of ${i}`);
              else totals.sh_error = Math.max(totals.sh_error, Math.abs(got.shN[k] - wanted[k]) / most);
            }
            totals.turned += nodes[i] ? 1 : 0;
          }
          const covariances = floatsOf(`${folder}/${files.covariances}`, Float64Array);
          for (let i = 0; i < count; i++) {
            const [size, floor] = covariances.subarray(8 * i + 6);
            for (let k = 0; k < 6; k++) {
              const away = Math.abs(got.covariances[6 * i + k] - covariances[8 * i + k]) - floor;
              totals.shape_error = Math.max(totals.shape_error, away / size);
            }
          }
          totals.events += group.paths?.numEvents ?? 0;
          totals.gaussians += count;
          totals.frames++;
        }
        file.close();
      }
      totals.cases++;
    }
    report(totals);
  },

  /** The player's frames and those of the slow reader. */
  async agree(folder) {
    const { cases } = JSON.parse(readFileSync(`${folder}/cases.json`, "utf8"));
    const totals = { cases: 0, frames: 0, gaussians: 0, turned: 0, videos: 0, shape_error: 0, sh_error: 0 };
    for (const { name, stream, pictures, frames } of cases) {
      const bytes = new Uint8Array(readFileSync(stream));
      const slow = readSequence(bytes);
      const file = await openMoving(bytes, { openPictures: picturesFrom(pictures) });
      assert.equal(file.fps, slow.fps, name);
      assert.equal(file.numFrames, slow.groups.reduce((sum, group) => sum + group.frames, 0), name);
      for (const group of slow.groups) {
        const wanted = frames.filter(({ number }) => number >= group.first && number < group.first + group.frames);
        if (!wanted.length) continue;
        const opened = openGroup(slow, group);
        const lumas = [];
        if (opened.video) {
          const source = picturesFrom(pictures)(opened.video);
          for (let f = 0; f < group.frames; f++) lumas.push((await source.next()).luma);
          totals.videos++;
        }
        for (const { number, count } of wanted) {
          const what = `${name} frame ${number}`;
          const expected = opened.frame(number - group.first, lumas[number - group.first]);
          const got = await file.frame(number);
          assert.deepEqual([got.count, expected.alphas.length], [count, count], what);
          for (const key of ["means", "alphas", "sh0"]) sameBits(got[key], expected[key], `${what} ${key}`);
          const width = expected.shN.length / Math.max(count, 1);
          assert.equal(got.shN.length, expected.shN.length, what);
          expected.nodes.forEach((node, i) => {
            const mine = got.shN.subarray(width * i, width * (i + 1));
            const other = expected.shN.slice(width * i, width * (i + 1));
            if (!node) sameBits(mine, other, `${what} shN of ${i}`);
            const most = Math.max(1e-12, ...other.map(Math.abs));
            for (let k = 0; k < width; k++) totals.sh_error = Math.max(totals.sh_error, Math.abs(mine[k] - other[k]) / most);
            const [a, b] = [got, expected].map(({ covariances }) => covariances.slice(6 * i, 6 * i + 6));
            const size = b[0] + b[3] + b[5];
            for (let k = 0; k < 6; k++) {
              totals.shape_error = Math.max(totals.shape_error, (Math.abs(a[k] - b[k]) - expected.floors[i]) / size);
            }
            totals.turned += node ? 1 : 0;
          });
          totals.gaussians += count;
          totals.frames++;
        }
      }
      file.close();
      totals.cases++;
    }
    report(totals);
  },

  /** The same frames however the bytes come, and in whatever order they are asked for. */
  async ways(stream, url) {
    const bytes = new Uint8Array(readFileSync(stream));
    const digests = async (input) => {
      const notices = [];
      const file = await openMoving(input, { onNotice: (notice) => notices.push(notice) });
      const found = [];
      for await (const frame of file.frames()) found[frame.number] = digest(arraysOf(frame));
      const { complete, numFrames, fps } = file;
      file.close();
      return { found, notices, complete, numFrames, fps, groups: file.groups.length };
    };
    const whole = await digests(bytes);
    const ways = {
      blob: new Blob([bytes]), range: `${url}/range/${stream.split("/").pop()}`, ignore: `${url}/ignore/${stream.split("/").pop()}`,
      stream: pieces(bytes, [10, 700, 5000, bytes.length - 3]), bytewise: pieces(bytes, Array.from({ length: 300 }, (_, k) => 31 * k)),
    };
    for (const [way, input] of Object.entries(ways)) {
      const { found, numFrames, complete } = await digests(input);
      assert.deepEqual(found, whole.found, way);
      assert.deepEqual([numFrames, complete], [whole.numFrames, true], way);
    }
    const file = await openMoving(bytes);
    for (const number of [whole.numFrames - 1, 0, 7, 3, 4]) {
      assert.equal(digest(arraysOf(await file.frame(number))), whole.found[number], `frame ${number}`);
    }
    for (const number of [-1, whole.numFrames, 0.5]) {
      assert.equal((await rejection(() => file.frame(number))).code, "parameter");
    }
    report({ ...whole, found: whole.found.length, meta: file.meta });
  },

  /** What is left of damaged and cut files. */
  async left(...paths) {
    for (const path of paths) {
      const notices = [];
      const file = await openMoving(readFileSync(path), { onNotice: (notice) => notices.push(notice) });
      await file.findAll();
      const numbers = [];
      for await (const { number } of file.frames({ keepGoing: true })) numbers.push(number);
      let error = null;
      try {
        for await (const _ of file.frames());
      } catch (failure) {
        const { code, message, chunk, offset } = failure;
        error = { code, message, chunk, offset };
      }
      report({ numbers, notices, error, gaps: file.gaps, complete: file.complete, numFrames: file.numFrames });
    }
  },

  /** Records say the same as arrays, and updates from any frame give the same as all of a frame. */
  async records(folder) {
    const { cases } = JSON.parse(readFileSync(`${folder}/cases.json`, "utf8"));
    const worst = { position: 0, covariance: 0, color: 0, alpha: 0, sh: 0 };
    const totals = { frames: 0, blocks: 0, updated: 0, nodes: 0 };
    for (const { name, stream, pictures } of cases) {
      const file = await openMoving(readFileSync(stream), { openPictures: picturesFrom(pictures) });
      await file.findAll();
      for (const entry of file.groups) {
        const group = await file.group(entry);
        const { blocks } = group.layout;
        const state = { records: new Uint32Array(1024 * blocks), boxes: new Float32Array(16 * blocks), sh: [] };
        for (let k = 0; k < group.shDegree; k++) state.sh.push(new Uint32Array(1024 * blocks));
        const put = (update, into) => {
          update.blocks.forEach((block, k) => {
            into.records.set(update.records.subarray(1024 * k, 1024 * (k + 1)), 1024 * block);
            into.boxes.set(update.boxes.subarray(16 * k, 16 * (k + 1)), 16 * block);
          });
          update.shBlocks.forEach((block, k) => {
            update.sh.forEach((texels, t) => into.sh[t].set(texels.subarray(1024 * k, 1024 * (k + 1)), 1024 * block));
          });
        };
        let since = null;
        const last = group.numFrames - 1;
        for (const frame of [0, Math.min(1, last), last, last >> 1, last >> 1]) {
          const update = await group.update(frame, since);
          put(update, state);
          since = frame;
          const whole = { records: state.records.slice().fill(0), boxes: state.boxes.slice().fill(0), sh: state.sh.map((t) => t.slice().fill(0)) };
          put(await group.update(frame, null), whole);
          assert.equal(digest([state.records, state.boxes, ...state.sh]), digest([whole.records, whole.boxes, ...whole.sh]), `${name} frame ${frame}`);
          totals.blocks += blocks;
          totals.updated += update.blocks.length;
          totals.nodes = Math.max(totals.nodes, group.numNodes);
          unpackFrame(group, frame, state, await group.arrays(frame), worst);
          totals.frames++;
        }
      }
      file.close();
    }
    report({ ...totals, ...worst });
  },

  /** Manifests that are not what they should be are refused, and nothing but files beside them is asked for. */
  async manifests(path) {
    const address = "https://here.example/a/manifest.json";
    for (const { name, text } of JSON.parse(readFileSync(path, "utf8"))) {
      const asked = [];
      const fetcher = async (url) => {
        asked.push(url);
        return new TextEncoder().encode(url === address ? text : "nothing");
      };
      const error = await rejection(() => PackageGroups.open(address, fetcher));
      const { code, message } = error ?? {};
      report({ name, code, message, asked, typed: error instanceof SplcError });
    }
  },

  /** Damage gives frames or one typed error, soon. */
  async mutate(count, seed, pictures, ...paths) {
    const rng = random(Number(seed));
    const files = paths.map((path) => new Uint8Array(readFileSync(path)));
    const outcomes = {};
    let slowest = 0;
    for (let k = 0; k < Number(count); k++) {
      const bytes = damaged(rng, rng.pick(files));
      const began = performance.now();
      let outcome = "frames";
      try {
        const input = rng.chance(0.3) ? pieces(bytes, [rng.int(0, bytes.length)]) : bytes;
        const lumas = () => ({ next: async () => ({ luma: new Uint8Array(4096), stride: 16 }), close() {} });
        const file = await openMoving(input, { plain: rng.chance(0.3), openPictures: lumas, maxBytes: 2 ** 26 });
        const keepGoing = rng.chance(0.5);
        let seen = 0;
        for await (const frame of file.frames({ keepGoing })) {
          assert.equal(frame.means.length, 3 * frame.count);
          if (++seen > 12) break;
        }
        if (input === bytes && file.groups.length) await (await file.group(file.groups[0])).update(0, null);
      } catch (error) {
        if (!(error instanceof SplcError) || !CODES.has(error.code)) {
          console.error(`mutation ${k} of seed ${seed}: ${Buffer.from(bytes).toString("base64").slice(0, 2000)}`);
          throw error;
        }
        assert.ok(Number.isInteger(error.offset) && error.offset >= 0, `no offset: ${error.message}`);
        outcome = error.code;
      }
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
      slowest = Math.max(slowest, performance.now() - began);
    }
    report({ outcomes, slowest_ms: Math.round(slowest) });
  },
};

/** A damaged copy, most of them with checksums made right again, so that what stands behind them is reached. */
function damaged(rng, bytes) {
  const copy = bytes.slice();
  if (rng.chance(0.1)) return copy.slice(0, rng.int(0, copy.length));
  const view = new DataView(copy.buffer);
  for (let k = rng.pick([1, 1, 3]); k > 0; k--) {
    const at = rng.int(0, copy.length - 1);
    if (rng.chance(0.5)) copy[at] ^= 1 << rng.int(0, 7);
    else copy[at] = rng.pick([0, 255, 127, rng.int(0, 255)]);
  }
  if (rng.chance(0.2)) return copy;
  for (let base = 0; base + 40 <= copy.length; ) {
    const tocLength = view.getUint32(base + 16, true);
    const length = view.getUint32(base + 8, true);
    if (tocLength > copy.length - base - 40 || length < 40 || length > copy.length - base) break;
    const seal = () => {
      view.setUint32(base + 32, crc32(copy.subarray(base + 40, base + 40 + tocLength)), true);
      view.setUint32(base + 36, crc32(copy.subarray(base, base + 36)), true);
    };
    seal();
    try {
      const { chunks } = new Container(copy.subarray(base, base + length), base);
      let at = base + 40 + tocLength;
      for (const chunk of [...chunks].reverse()) {
        // Planes have a checksum of their own.
        const payload = copy.subarray(base + chunk.offset, base + chunk.offset + chunk.length);
        if (chunk.type === "VGRP" && payload.length > 60) {
          view.setUint32(base + chunk.offset + chunk.length - 4, crc32(payload.subarray(52, -4)), true);
        }
        at -= 4;
        view.setUint32(at, crc32(payload), true);
        const size = (x) => (x < 128 ? 1 : 1 + size(Math.floor(x / 128)));
        at -= 5 + size(chunk.level) + size(chunk.tile) + size(chunk.count) + size(chunk.length);
      }
      seal();
    } catch (error) {
      if (!(error instanceof SplcError)) throw error;
    }
    base += length;
  }
  return copy;
}

const [job, ...rest] = process.argv.slice(2);
await jobs[job](...rest);
