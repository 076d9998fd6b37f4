// What CesiumJS makes of GLB files with SPZ inside: node tools/cesium_check.mjs CESIUM FOLDER (by tools/cesium_check.py).
//
// CESIUM: the folder of the npm package. FOLDER: scene.glb, tileset.json and views.json, an array of
// {position, direction, up, width, height, fovy, near, far} in Cesium's world axes. Written there: values.json (types and counts),
// a .bin of each decoded attribute, and view-K.png.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { launch } from "../tests/js/browser.mjs";

const [cesium, folder] = process.argv.slice(2);
const TYPES = { ".js": "text/javascript", ".html": "text/html", ".json": "application/json", ".wasm": "application/wasm" };
const PAGE = `<!doctype html><meta charset="utf-8"><script src="/Cesium/Cesium.js"></script>
<div id="view" style="width:512px;height:512px"></div>`;
const WAIT_MS = 240_000, SETTLE_MS = 10_000;

const server = createServer((request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
  if (path === "/") return void response.writeHead(200, { "Content-Type": "text/html" }).end(PAGE);
  const file = path.startsWith("/Cesium/") ? join(cesium, "Build", path) : join(folder, path);
  if (!existsSync(file)) return void response.writeHead(404).end();
  response.writeHead(200, { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream" });
  response.end(readFileSync(file));
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));

/** Runs in the page: opens the tileset and waits until its only tile is drawn. */
async function open(SETTLE_MS) {
  const { Cesium } = globalThis;
  const scene = new Cesium.CesiumWidget("view", {
    globe: false, skyBox: false, skyAtmosphere: false, baseLayer: false, creditContainer: document.createElement("div"),
    useDefaultRenderLoop: false, msaaSamples: 1,
    contextOptions: { webgl: { alpha: true, preserveDrawingBuffer: true } },
  }).scene;
  scene.backgroundColor = new Cesium.Color(0, 0, 0, 1);
  scene.highDynamicRange = false;
  scene.sun = scene.moon = undefined;
  scene.fog.enabled = false;
  const tileset = await Cesium.Cesium3DTileset.fromUrl("/tileset.json", { skipLevelOfDetail: false });
  tileset.maximumScreenSpaceError = 0.001;
  scene.primitives.add(tileset);
  const failed = [];
  tileset.tileFailed.addEventListener((event) => failed.push(event.message));
  globalThis.checked = { tileset, failed };
  globalThis.draw = async (view, frames) => {
    scene.canvas.width = view.width;
    scene.canvas.height = view.height;
    const C3 = Cesium.Cartesian3;
    const camera = scene.camera;
    camera.frustum = new Cesium.PerspectiveFrustum({
      fov: 2 * Math.atan(Math.tan(view.fovy / 2) * Math.max(1, view.width / view.height)),
      aspectRatio: view.width / view.height, near: view.near, far: view.far,
    });
    camera.position = C3.fromArray(view.position);
    camera.direction = C3.fromArray(view.direction);
    camera.up = C3.fromArray(view.up);
    camera.right = C3.cross(camera.direction, camera.up, new C3());
    // Textures and order are made by workers: drawn until several pictures in a row are the same, after some time.
    const begun = performance.now();
    let picture, same = 0;
    for (let k = 0; k < frames && (same < 4 || performance.now() < begun + SETTLE_MS); k++) {
      scene.render();
      const next = frames > 1 ? scene.canvas.toDataURL("image/png") : undefined;
      same = next && next === picture ? same + 1 : 0;
      picture = next;
      await new Promise((done) => setTimeout(done, 50));
    }
    return picture;
  };
}

/** Runs in the page: draws until the tile has content that is ready, and gives what was decoded. */
async function decoded({ view, wait }) {
  const { tileset, failed } = globalThis.checked;
  const until = performance.now() + wait;
  let content;
  while (!(content = tileset.root?.content)?.ready) {
    if (failed.length || performance.now() > until) throw new Error(`no content: ${failed.join("; ") || "in time"}`);
    await globalThis.draw(view, 1);
  }
  if (!content.gltfPrimitive) throw new Error(`not splats: ${content.constructor.name}`);
  return content.gltfPrimitive.attributes.map(({ name, semantic, setIndex, count, normalized, typedArray }) => ({
    name, semantic, setIndex, count, normalized, kind: typedArray.constructor.name,
    bytes: btoa(Array.from(new Uint8Array(typedArray.buffer, typedArray.byteOffset, typedArray.byteLength),
      (byte) => String.fromCharCode(byte)).join("")),
  }));
}

const browser = await launch({ graphics: true });
try {
  const page = await browser.newPage({ viewport: { width: 800, height: 800 } });
  page.on("pageerror", (error) => console.error("page:", error.message));
  page.on("console", (message) => message.type() === "error" && console.error("page:", message.text()));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  const version = await page.evaluate(() => globalThis.Cesium.VERSION);
  await page.evaluate(open, SETTLE_MS);
  const views = JSON.parse(readFileSync(join(folder, "views.json"), "utf8"));
  const attributes = await page.evaluate(decoded, { view: views[0], wait: WAIT_MS });
  for (const attribute of attributes) {
    const bytes = Buffer.from(attribute.bytes, "base64");
    attribute.file = `${attribute.name.replace(/[^A-Za-z0-9_]/g, "_")}.bin`;
    writeFileSync(join(folder, attribute.file), bytes);
    delete attribute.bytes;
  }
  writeFileSync(join(folder, "values.json"), JSON.stringify({ version, attributes }));
  for (const [k, view] of views.entries()) {
    const picture = await page.evaluate(({ view, frames }) => globalThis.draw(view, frames), { view, frames: 400 });
    writeFileSync(join(folder, `view-${k}.png`), Buffer.from(picture.split(",")[1], "base64"));
  }
} finally {
  await browser.close();
  server.close();
}
