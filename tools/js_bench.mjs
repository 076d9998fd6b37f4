// How fast the JavaScript decoder is: node tools/js_bench.mjs FILE.splc... [--runs N] [--json PATH] [--no-browser]
// What it holds in memory:              node tools/js_bench.mjs FILE.splc... --memory
//
// Decodes files that are in memory into records and into exact arrays, without and with SH coefficients, with
// WebAssembly and without, on one thread, nothing drawing: in Node, and in headless Chromium where tests/js has been
// installed (npm install --prefix tests/js). Prints medians as a table; --json writes all figures.
//
// --memory decodes each file, read from disk by ranges, in processes of their own: tile by tile, all parts kept, and all
// at once. By how much the resident memory of the process grew at most (Linux: VmHWM), over the bytes of the result.

import { execFileSync } from "node:child_process";
import { openAsBlob, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { basename, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const MODES = [
  { as: "records", shLayers: 0, plain: false },
  { as: "records", shLayers: 3, plain: false },
  { as: "arrays", shLayers: 0, plain: false },
  { as: "arrays", shLayers: 3, plain: false },
  { as: "records", shLayers: 0, plain: true },
  { as: "records", shLayers: 3, plain: true },
];

/**
 * Runs in Node and in a page alike. Times are in milliseconds: of opening, of the first decoding, of others, each long
 * enough for a coarse clock; wall clock, and in Node processor time, which other programs disturb less.
 */
async function measure({ decoder, url, bytes, mode, runs }) {
  const { open } = await import(decoder);
  const { as, shLayers, plain } = mode;
  const input = bytes ?? (await (await fetch(url)).arrayBuffer());
  const began = performance.now();
  const file = await open(input, { plain });
  const open_ms = performance.now() - began;
  if (shLayers && !file.shDegree) return null;
  const spent = () => globalThis.process?.cpuUsage().user / 1000;
  const decode = async (times) => {
    let gaussians = 0;
    const start = performance.now();
    const before = spent();
    for (let k = 0; k < times; k++) {
      for await (const part of file.stream({ as, shLayers, thumbnails: false })) {
        if (part.arrays ?? part.records) gaussians += part.count;
      }
    }
    const ms = performance.now() - start;
    return { ms: ms / times, cpu_ms: (spent() - before) / times, gaussians: gaussians / times };
  };
  const first = await decode(1);
  const times = Math.ceil(40 / Math.max(first.ms, 0.5));
  const all = [];
  for (let k = 0; k < runs; k++) all.push(await decode(times));
  const decode_ms = all.map(({ ms }) => ms);
  const cpu_ms = Number.isNaN(first.cpu_ms) ? null : all.map(({ cpu_ms }) => cpu_ms);
  const { gaussians, ms: first_ms } = first;
  return { ...mode, gaussians, sh_degree: file.shDegree, open_ms, first_ms, decode_ms, cpu_ms };
}

function median(list) {
  const sorted = [...list].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

/** Runs in a process of its own: the bytes of the result, and the most that memory grew by while it was made. */
async function memoryOf(path, as, how) {
  const { open } = await import(pathToFileURL(resolve(ROOT, "splatcodec/player/decoder/index.js")).href);
  const file = await open(await openAsBlob(path));
  // What the engine takes once and for all, whatever the scene, is there before: a small part is decoded.
  const least = file.parts.reduce((a, b) => (b.count < a.count ? b : a));
  for await (const part of file.stream({ as, parts: [least] })) if (part.count < 0) throw new Error("no part");
  globalThis.gc();
  const resident = (/** @type {string} */ name) =>
    1024 * Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(readFileSync("/proc/self/status", "utf8"))[1]);
  writeFileSync("/proc/self/clear_refs", "5"); // the highest so far is forgotten
  const before = resident("VmRSS");
  const kept = [];
  if (how === "tile by tile") for await (const part of file.stream({ as, thumbnails: false })) kept.push(part);
  else kept.push(await file.decode({ as }));
  const grown = resident("VmHWM") - before;
  const buffers = new Set();
  const find = (/** @type {unknown} */ value) => {
    if (ArrayBuffer.isView(value)) buffers.add(value.buffer);
    else if (value && typeof value === "object") Object.values(value).forEach(find);
  };
  find(kept);
  return { result: [...buffers].reduce((sum, { byteLength }) => sum + byteLength, 0), grown };
}

function memory(files) {
  console.log("| file | into | how | MB of the result | MB grown by | times |\n|---|---|---|---|---|---|");
  for (const path of files) {
    for (const as of ["records", "arrays"]) {
      for (const how of ["tile by tile", "at once"]) {
        const command = ["--expose-gc", fileURLToPath(import.meta.url), "--memory-of", path, as, how];
        const { result, grown } = JSON.parse(execFileSync(process.execPath, command, { encoding: "utf8" }));
        const figures = [result / 1e6, grown / 1e6].map((x) => x.toFixed(1));
        console.log(`| ${[basename(path), as, how, ...figures, (grown / result).toFixed(2)].join(" | ")} |`);
      }
    }
  }
}

async function inNode(files, runs) {
  const decoder = pathToFileURL(resolve(ROOT, "splatcodec/player/decoder/index.js")).href;
  const results = [];
  for (const path of files) {
    for (const mode of MODES) {
      const result = await measure({ decoder, bytes: readFileSync(path), mode, runs });
      if (result) results.push({ where: `Node ${process.versions.node}`, file: basename(path), ...result });
    }
  }
  return results;
}

async function inChromium(files, runs) {
  const { launch } = await import("../tests/js/browser.mjs");
  const server = createServer((request, response) => {
    const path = new URL(request.url, "http://localhost").pathname;
    const file = /^\/file\/(\d+)$/.exec(path);
    try {
      const page = "<!doctype html><title>bench</title>";
      const body = path === "/" ? page : readFileSync(file ? files[file[1]] : resolve(ROOT, `.${path}`));
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
      for (const mode of MODES) {
        // A page of its own, so that nothing is warm.
        const page = await browser.newPage();
        await page.goto(`${base}/`);
        const decoder = `${base}/splatcodec/player/decoder/index.js`;
        const argument = { decoder, url: `${base}/file/${k}`, mode, runs };
        const result = await page.evaluate(`(${measure})(${JSON.stringify(argument)})`);
        await page.close();
        if (result) results.push({ where: `Chromium ${browser.version()}`, file: basename(files[k]), ...result });
      }
    }
  } finally {
    await browser.close();
    server.close();
  }
  return results;
}

function table(results) {
  const units = ["open ms", "first ms", "median ms", "million/s", "of processor time"];
  const rows = [["where", "file", "Gaussians", "into", "loops", ...units]];
  for (const r of results) {
    const ms = median(r.decode_ms);
    rows.push([
      r.where, r.file, String(r.gaussians), `${r.as}, SH ${r.shLayers ? r.sh_degree : 0}`,
      r.plain ? "JavaScript" : "WebAssembly", r.open_ms.toFixed(1), r.first_ms.toFixed(1), ms.toFixed(1),
      (r.gaussians / ms / 1000).toFixed(2), r.cpu_ms ? (r.gaussians / median(r.cpu_ms) / 1000).toFixed(2) : "-",
    ]);
  }
  const widths = rows[0].map((_, k) => Math.max(...rows.map((row) => row[k].length)));
  rows.splice(1, 0, widths.map((width) => "-".repeat(width)));
  return rows.map((row) => `| ${row.map((cell, k) => cell.padEnd(widths[k])).join(" | ")} |`).join("\n");
}

const files = [];
let runs = 9;
let json = null;
let browser = true;
let onlyMemory = false;
const words = process.argv.slice(2);
if (words[0] === "--memory-of") {
  console.log(JSON.stringify(await memoryOf(words[1], words[2], words[3])));
  process.exit(0);
}
while (words.length) {
  const word = words.shift();
  if (word === "--runs") runs = Number(words.shift());
  else if (word === "--json") json = words.shift();
  else if (word === "--no-browser") browser = false;
  else if (word === "--memory") onlyMemory = true;
  else files.push(word);
}
if (!files.length || !(runs >= 1)) {
  console.error("usage: node tools/js_bench.mjs FILE.splc... [--runs N] [--json PATH] [--no-browser] [--memory]");
  process.exit(2);
}
if (onlyMemory) {
  memory(files);
  process.exit(0);
}
const results = await inNode(files, runs);
if (browser) {
  try {
    results.push(...(await inChromium(files, runs)));
  } catch (error) {
    console.error(`not in Chromium: ${error.message}`);
  }
}
console.log(table(results));
if (json) {
  const figures = results.map((r) => ({ ...r, gaussians_per_s: (1000 * r.gaussians) / median(r.decode_ms) }));
  writeFileSync(json, `${JSON.stringify({ results: figures }, null, 1)}\n`);
}
