// The examples of other engines in headless Chromium: node adapters.mjs ENGINE FILE.splc VIEWS.json OUT_DIR
// Draws through given cameras with that engine; raw RGBA files, top row first.

import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { launch } from "./browser.mjs";
import { report } from "./common.mjs";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const FOLDERS = { player: "splatcodec/player", node_modules: "tests/js/node_modules" };
const TYPES = { ".js": "text/javascript", ".mjs": "text/javascript", ".html": "text/html", ".wasm": "application/wasm" };

const [engine, file, viewsPath, folder] = process.argv.slice(2);

const server = createServer((request, response) => {
  const [first, ...rest] = new URL(request.url, "http://localhost").pathname.slice(1).split("/");
  try {
    const other = FOLDERS[first] ? resolve(ROOT, FOLDERS[first], ...rest) : resolve(ROOT, "docs/examples", first);
    const body = readFileSync(first === "scene.splc" ? file : other);
    response.writeHead(200, { "Content-Type": TYPES[extname(first + rest.join("/"))] ?? "application/octet-stream" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));

/** In the page of spark.html. */
async function spark({ position, rows, fx, fy, near, width, height }) {
  renderer.setAnimationLoop(null);
  renderer.setPixelRatio(1);
  renderer.setSize(width, height, false);
  camera.fov = (360 / Math.PI) * Math.atan(height / 2 / fy);
  camera.aspect = width / height;
  camera.near = near;
  camera.updateProjectionMatrix();
  // three.js looks along -z, y up.
  const [right, down, forward] = [0, 3, 6].map((k) => new THREE.Vector3(...rows.slice(k, k + 3)));
  const turn = new THREE.Matrix4().makeBasis(right, down.negate(), forward.negate());
  camera.position.set(...position);
  camera.quaternion.setFromRotationMatrix(turn);
  camera.updateMatrixWorld();
  // Its sorting answers later, and only to pages that are drawn.
  for (let k = 0; k < 30; k++) {
    renderer.render(scene, camera);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)));
  }
  renderer.render(scene, camera);
  return [renderer.getContext(), width, height, fx];
}

/** In the page of playcanvas.html. */
async function playcanvas({ position, rows, fx, fy, near, width, height }) {
  globalThis.still = true;
  app.setCanvasResolution(pc.RESOLUTION_FIXED, width, height);
  camera.camera.fov = (360 / Math.PI) * Math.atan(height / 2 / fy);
  camera.camera.nearClip = near;
  camera.camera.toneMapping = pc.TONEMAP_NONE;
  camera.setPosition(...position);
  const [right, down, forward] = [0, 3, 6].map((k) => rows.slice(k, k + 3));
  const minus = (v) => v.map((x) => -x);
  const turn = new pc.Mat4().set([...right, 0, ...minus(down), 0, ...minus(forward), 0, 0, 0, 0, 1]);
  camera.setRotation(new pc.Quat().setFromMat4(turn));
  for (let k = 0; k < 30; k++) {
    app.renderNextFrame = true;
    await new Promise((done) => setTimeout(done, 50));
  }
  app.render();
  return [app.graphicsDevice.gl, width, height, fx];
}

const draw = { spark, playcanvas }[engine];
const browser = await launch({ graphics: true });
try {
  const page = await browser.newPage({ viewport: { width: 320, height: 320 } });
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  await page.goto(`http://127.0.0.1:${server.address().port}/${engine}.html`);
  await page.waitForFunction(() => globalThis.mesh ?? globalThis.entity, null, { timeout: 60_000 }).catch((error) => {
    throw new Error(`${error.message}: ${problems.join("; ")}`);
  });
  const views = JSON.parse(readFileSync(viewsPath));
  for (let k = 0; k < views.length; k++) {
    const text = await page.evaluate(`(async () => {
      const [gl, width, height] = await (${draw})(${JSON.stringify(views[k])});
      const pixels = new Uint8Array(4 * width * height);
      gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
      let out = "";
      for (let y = height - 1; y >= 0; y--) out += String.fromCharCode(...pixels.subarray(4 * width * y, 4 * width * (y + 1)));
      return btoa(out);
    })()`);
    writeFileSync(`${folder}/${k}.rgba`, Buffer.from(text, "base64"));
  }
  report({ views: views.length, problems });
} finally {
  await browser.close();
  server.close();
  server.closeAllConnections();
}
