// How soon the player shows a scene over a slow link: node tools/player_bench.mjs FILE.splc [options]
//
//     --rate MBIT --delay MS    the link (10 Mbit/s, 50 ms a round trip, one more for each new connection)
//     --runs N                  (5)
//     --other FILE.spz          the same scene for Spark in three.js, if --spark DIR has both installed by npm
//     --json PATH               all figures
//
// Headless Chromium draws in software here, so times include what a GPU would do in a millisecond. Both players have
// their libraries in the browser's cache; scenes are never cached. Times count from the start of the navigation until the
// GPU has drawn. Needs `npm install --prefix tests/js`.

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { cpus } from "node:os";
import { basename, extname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const PLAYER = resolve(ROOT, "splatcodec/player");
const TYPES = { ".js": "text/javascript", ".html": "text/html", ".css": "text/css" };
const SIZE = { width: 512, height: 512 };

/** A server behind a link that all answers share. */
function serve({ rate, delay, files }) {
  let free = 0;
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  async function send(response, body) {
    const step = Math.max(1024, Math.round((rate * 0.01) / 8));
    for (let at = 0; at < body.length; at += step) {
      const piece = body.subarray(at, at + step);
      free = Math.max(performance.now() - 10, free) + (8000 * piece.length) / rate;
      await sleep(Math.max(0, free - performance.now()));
      if (response.destroyed) return;
      response.write(piece);
    }
    response.end();
  }
  const server = createServer(async (request, response) => {
    const { socket } = request;
    const trips = socket.known ? 1 : 2;
    socket.known = true;
    const path = new URL(request.url, "http://localhost").pathname;
    const given = files.get(path);
    const cacheable = !path.startsWith("/scene/");
    const headers = { "Cache-Control": cacheable ? "max-age=3600" : "no-store", "Accept-Ranges": "bytes" };
    headers["Content-Type"] = TYPES[extname(path)] ?? "application/octet-stream";
    let body;
    try {
      body = given ?? readFileSync(resolve(PLAYER, `.${path}`));
    } catch {
      await sleep(trips * delay);
      return void response.writeHead(404).end();
    }
    let status = 200;
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    if (range) {
      const [first, last] = [Number(range[1]), Math.min(Number(range[2]), body.length - 1)];
      headers["Content-Range"] = `bytes ${first}-${last}/${body.length}`;
      body = body.subarray(first, last + 1);
      status = 206;
    } else if (cacheable) {
      body = gzipSync(body);
      headers["Content-Encoding"] = "gzip";
    }
    headers["Content-Length"] = body.length;
    await sleep(trips * delay);
    response.writeHead(status, headers);
    response.flushHeaders();
    await send(response, body);
  });
  return new Promise((done) => server.listen(0, "127.0.0.1", () => done({ server, base: `http://127.0.0.1:${server.address().port}` })));
}

/** Runs before anything else in a page: tasks of the main thread that take over 50 ms, as the browser reports them. */
const WATCH = `globalThis.longTasks = [];
new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((e) => e.duration)))
  .observe({ type: "longtask", buffered: true });`;

const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];
const summary = (list) => ({ median: Math.round(median(list)), all: list.map(Math.round) });

/** A page that shows a file with Spark, and says when. */
async function sparkPage(folder) {
  const { build } = await import("../tests/js/node_modules/esbuild/lib/main.js");
  const contents = `
    import * as THREE from "three";
    import { SplatMesh, SparkRenderer } from "@sparkjsdev/spark";
    const source = new URLSearchParams(location.search).get("src");
    globalThis.marks = {};
    const renderer = new THREE.WebGLRenderer({ antialias: false });
    renderer.setSize(${SIZE.width}, ${SIZE.height}, false);
    document.body.append(renderer.domElement);
    const scene = new THREE.Scene();
    const camera = new THREE.PerspectiveCamera(50, 1, 0.01, 1000);
    const spark = new SparkRenderer({ renderer });
    scene.add(spark);
    if (source) {
      const mesh = new SplatMesh({ url: source, onLoad: () => (marks.loaded = performance.now()) });
      scene.add(mesh);
      let placed = false;
      renderer.setAnimationLoop(() => {
        if (!mesh.isInitialized) return;
        if (!placed) {
          const box = mesh.getBoundingBox(true);
          const center = box.getCenter(new THREE.Vector3());
          camera.position.copy(center).add(new THREE.Vector3(0, 0, 0.6 * box.getSize(new THREE.Vector3()).length()));
          camera.lookAt(center);
          placed = true;
        }
        renderer.render(scene, camera);
        const gl = renderer.getContext();
        const pixels = new Uint8Array(4 * ${SIZE.width} * ${SIZE.height});
        gl.readPixels(0, 0, ${SIZE.width}, ${SIZE.height}, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
        let lit = 0;
        for (let k = 0; k < pixels.length; k += 4) if (pixels[k] + pixels[k + 1] + pixels[k + 2] > 30) lit++;
        if (lit > 0.02 * pixels.length / 4) {
          marks.picture = performance.now();
          renderer.setAnimationLoop(null);
        }
      });
    }
    document.title = "ready";`;
  const stdin = { contents, resolveDir: resolve(folder), loader: "js" };
  const { outputFiles } = await build({ stdin, bundle: true, minify: true, format: "esm", write: false, logLevel: "error" });
  return Buffer.from(outputFiles[0].contents);
}

/** Bytes of what a page and both Workers load, minified and gzipped: for still scenes, and with what moving ones need. */
function sizes() {
  const entries = ["page", "loader", "sorter"].map((name) => resolve(PLAYER, `${name}.js`));
  const gzipped = (...options) => {
    const lines = execFileSync("node", [resolve(ROOT, "tests/js/size.mjs"), ...options, ...entries], { encoding: "utf8" });
    const [page, loader, sorter] = lines.trim().split("\n").map((line) => JSON.parse(line).gzipped);
    return { page, loader, sorter, total: page + loader + sorter };
  };
  return { still: gzipped(), moving: gzipped("--later") };
}

async function main() {
  const words = process.argv.slice(2);
  const options = { rate: 10, delay: 50, runs: 5, other: null, spark: null, json: null };
  let file = null;
  while (words.length) {
    const word = words.shift();
    if (!word.startsWith("--")) file = word;
    else options[word.slice(2)] = words.shift();
  }
  if (!file) {
    console.error("usage: node tools/player_bench.mjs FILE.splc [--rate MBIT] [--delay MS] [--runs N] [--other FILE --spark DIR] [--json PATH]");
    process.exit(2);
  }
  const runs = Number(options.runs);
  const files = new Map([["/scene/a.splc", readFileSync(file)]]);
  if (options.other) {
    files.set(`/scene/b${extname(options.other)}`, readFileSync(options.other));
    files.set("/spark.js", await sparkPage(options.spark));
    files.set("/spark.html", Buffer.from('<!doctype html><title>wait</title><body style="margin:0"><script type="module" src="/spark.js"></script>'));
  }
  const { server, base } = await serve({ rate: 1e6 * Number(options.rate), delay: Number(options.delay), files });
  const { launch } = await import("../tests/js/browser.mjs");
  const browser = await launch({ graphics: true });
  const figures = {
    machine: { cpu: cpus()[0].model, cores: cpus().length, browser: browser.version(), graphics: "SwiftShader (software)" },
    link: { rate_mbit: Number(options.rate), delay_ms: Number(options.delay) },
    player: { file: basename(file), size_bytes: files.get("/scene/a.splc").length },
    sizes_gzipped: sizes(),
  };
  try {
    const context = await browser.newContext({ viewport: SIZE });
    await context.addInitScript(WATCH);
    // The libraries into the cache, compiled once.
    for (let k = 0; k < 2; k++) {
      const page = await context.newPage();
      await page.goto(`${base}/index.html?src=/scene/a.splc&warm=${k}`);
      await page.waitForFunction(() => document.documentElement.dataset.phase === "complete", null, { timeout: 60_000 });
      await page.evaluate(async () => (await caches.keys()).forEach((name) => caches.delete(name)));
      await page.close();
    }
    const own = [];
    for (let k = 0; k < runs; k++) {
      const page = await context.newPage();
      await page.goto(`${base}/index.html?src=/scene/a.splc`);
      await page.waitForFunction(() => globalThis.player?.marks.picture, null, { timeout: 60_000, polling: 10 });
      own.push(await page.evaluate(async () => {
        await player.settled();
        const { marks, memory } = player;
        const whole = performance.now();
        return { ...marks, whole, memory, longest: Math.max(0, ...longTasks), gaussians: player.state.gaussians };
      }));
      await page.evaluate(async () => (await caches.keys()).forEach((name) => caches.delete(name)));
      await page.close();
    }
    Object.assign(figures.player, {
      gaussians: own[0].gaussians,
      opened_ms: summary(own.map((x) => x.opened)),
      first_picture_ms: summary(own.map((x) => x.picture)),
      whole_scene_ms: summary(own.map((x) => x.whole)),
      longest_task_ms: summary(own.map((x) => x.longest)),
      memory_bytes: own[0].memory,
    });
    if (options.other) {
      const source = `/scene/b${extname(options.other)}`;
      const other = [];
      for (let k = -1; k < runs; k++) {
        const page = await context.newPage();
        page.on("pageerror", (error) => console.error(String(error)));
        await page.goto(`${base}/spark.html?src=${source}`);
        await page.waitForFunction(() => globalThis.marks?.picture, null, { timeout: 120_000, polling: 10 });
        if (k >= 0) other.push(await page.evaluate(() => ({ ...marks, longest: Math.max(0, ...longTasks) })));
        await page.close();
      }
      figures.spark = {
        file: basename(options.other),
        size_bytes: files.get(source).length,
        picture_ms: summary(other.map((x) => x.picture)),
        longest_task_ms: summary(other.map((x) => x.longest)),
      };
    }
  } finally {
    await browser.close();
    server.close();
    server.closeAllConnections();
  }
  console.log(JSON.stringify(figures, null, 1));
  if (options.json) writeFileSync(options.json, `${JSON.stringify(figures, null, 1)}\n`);
}

await main();
