// `.splc` scenes in PlayCanvas (npm: playcanvas).
//
//     app.root.addChild(await loadSplat("scene.splc", { pc, app }));
//
// docs/examples/playcanvas.html is a whole page.

import { decodeToPly } from "./ply.js";

/**
 * @param {import("./ply.js").Input} input a URL, bytes, a Blob
 * @param {{ pc: any, app: any, name?: string } & import("./ply.js").Selection} engine PlayCanvas, the application, and
 *     what of the file to decode
 * @returns {Promise<any>} an Entity with a gsplat component
 */
export async function loadSplat(input, { pc, app, name = "scene", ...selection }) {
  const bytes = await decodeToPly(input, selection);
  const url = URL.createObjectURL(new Blob([/** @type {BlobPart} */ (bytes)]));
  // The name's suffix is how PlayCanvas knows the format.
  const asset = new pc.Asset(name, "gsplat", { url, filename: `${name}.ply` });
  app.assets.add(asset);
  try {
    await new Promise((resolve, reject) => {
      asset.once("load", resolve);
      asset.once("error", (/** @type {unknown} */ error) => reject(new Error(String(error))));
      app.assets.load(asset);
    });
  } finally {
    URL.revokeObjectURL(url);
  }
  const entity = new pc.Entity(name);
  entity.addComponent("gsplat", { asset });
  return entity;
}
