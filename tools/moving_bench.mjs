// How fast moving scenes decode in JavaScript: node tools/moving_bench.mjs FILE.splc... [--runs N] [--json PATH]
//
// Decodes all frames of files that are in memory into what the player hands over (records of what changes), on one thread,
// nothing drawing: in Node (without pictures of video groups, which Node has no decoder for), and in headless Chromium where
// tests/js has been installed. Prints medians as a table; --json writes all figures.

import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { basename, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** Runs in Node and in a page alike. Milliseconds, wall clock and in Node processor time. */
async function measure({ folder, url, bytes, runs }) {
  const { openMoving } = await import(`${folder}/moving.js`);
  const { openPictures } = await import(`${folder}/pictures.js`);
  const blank = ({ width, height }) => ({ next: async () => ({ luma: new Uint8Array(width * height).fill(128), stride: width }), close() {} });
  const pictures = "VideoDecoder" in globalThis ? openPictures : blank;
  const input = bytes ?? (await (await fetch(url)).arrayBuffer());
  const spent = () => (globalThis.process?.cpuUsage ? (process.cpuUsage().user + process.cpuUsage().system) / 1000 : NaN);
  const all = [];
  for (let run = 0; run < runs; run++) {
    const file = await openMoving(input, { openPictures: pictures });
    await file.findAll();
    const times = { groups: 0, frames: 0, frame_most: 0, bytes: 0, count: 0, gaussians: 0, coding: "" };
    const began = performance.now();
    const before = spent();
    for (const entry of file.groups) {
      let at = performance.now();
      const group = await file.group(entry);
      times.groups += performance.now() - at;
      times.gaussians = Math.max(times.gaussians, group.count);
      times.coding = group.coding;
      for (let k = 0; k < group.numFrames; k++) {
        at = performance.now();
        const update = await group.update(k, k ? k - 1 : null);
        const ms = performance.now() - at;
        times.frames += ms;
        if (k) times.frame_most = Math.max(times.frame_most, ms);
        times.bytes += update.records.byteLength + update.sh.reduce((sum, x) => sum + x.byteLength, 0);
        times.count++;
      }
    }
    const ms = performance.now() - began;
    file.close();
    const { count } = times;
    all.push({ ...times, fps: (1000 * count) / ms, cpu_fps: (1000 * count) / (spent() - before), ms_frame: times.frames / count, ms_group: times.groups / file.groups.length, groups_number: file.groups.length });
  }
  return all;
}

const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];

async function inChromium(files, runs) {
  const { launch } = await import("../tests/js/browser.mjs");
  const server = createServer((request, response) => {
    const path = new URL(request.url, "http://localhost").pathname;
    const file = /^\/file\/(\d+)$/.exec(path);
    try {
      const body = path === "/" ? "<!doctype html>" : readFileSync(file ? files[file[1]] : resolve(ROOT, `.${path}`));
      const type = path === "/" ? "text/html" : path.endsWith(".js") ? "text/javascript" : "application/octet-stream";
      response.writeHead(200, { "Content-Type": type }).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const base = `http://127.0.0.1:${server.address().port}`;
  const browser = await launch();
  const results = [];
  try {
    for (let k = 0; k < files.length; k++) {
      const page = await browser.newPage();
      await page.goto(`${base}/`);
      const argument = { folder: `${base}/splatcodec/player/decoder`, url: `${base}/file/${k}`, runs };
      results.push({ where: `Chromium ${browser.version()}`, file: basename(files[k]), runs: await page.evaluate(`(${measure})(${JSON.stringify(argument)})`) });
      await page.close();
    }
  } finally {
    await browser.close();
    server.close();
  }
  return results;
}

const files = [];
let runs = 3;
let json = null;
const words = process.argv.slice(2);
while (words.length) {
  const word = words.shift();
  if (word === "--runs") runs = Number(words.shift());
  else if (word === "--json") json = words.shift();
  else files.push(word);
}
if (!files.length || !(runs >= 1)) {
  console.error("usage: node tools/moving_bench.mjs FILE.splc... [--runs N] [--json PATH]");
  process.exit(2);
}
const folder = pathToFileURL(resolve(ROOT, "splatcodec/player/decoder")).href;
const results = [];
for (const path of files) {
  results.push({ where: `Node ${process.versions.node}`, file: basename(path), runs: await measure({ folder, bytes: readFileSync(path), runs }) });
}
try {
  results.push(...(await inChromium(files, runs)));
} catch (error) {
  console.error(`not in Chromium: ${error.message}`);
}
for (const { where, file, runs } of results) {
  const of = (key) => median(runs.map((run) => run[key]));
  const [{ coding, gaussians, count }] = runs;
  console.log(
    `| ${where} | ${file} | ${coding} | ${gaussians} | ${count} | ${of("fps").toFixed(1)} | ${of("cpu_fps").toFixed(1)} | ${of("ms_group").toFixed(0)} | ${of("ms_frame").toFixed(1)} | ${(of("bytes") / count / 1e3).toFixed(0)} |`,
  );
}
if (json) writeFileSync(json, `${JSON.stringify({ results }, null, 1)}\n`);
