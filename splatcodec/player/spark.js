// `.splc` scenes in three.js with Spark (npm: three, @sparkjsdev/spark).
//
//     scene.add(await loadSplat("scene.splc", { SplatMesh }));
//
// docs/examples/spark.html is a whole page.

import { decodeToPly } from "./ply.js";

/**
 * @param {import("./ply.js").Input} input a URL, bytes, a Blob
 * @param {{ SplatMesh: any, options?: object } & import("./ply.js").Selection} engine Spark's class, what else it is to
 *     be told, and what of the file to decode
 * @returns {Promise<any>} a SplatMesh, ready
 */
export async function loadSplat(input, { SplatMesh, options = {}, ...selection }) {
  const fileBytes = await decodeToPly(input, selection);
  const mesh = new SplatMesh({ ...options, fileBytes, fileType: "ply" });
  await mesh.initialized;
  return mesh;
}
