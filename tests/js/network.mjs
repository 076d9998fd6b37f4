// Decoding over HTTP: node network.mjs URL [SELECTION]. Prints what came; what was asked for the server knows.

import { open, SplcError } from "../../splatcodec/player/decoder/index.js";
import { arraysOf, digest, report } from "./common.mjs";

const [url, selection] = process.argv.slice(2);
const notices = [];
try {
  const file = await open(url, { onNotice: (notice) => notices.push(notice) });
  const scene = await file.decode(JSON.parse(selection ?? "{}"));
  const meta = await file.meta();
  report({ digest: digest(arraysOf(scene.arrays)), count: scene.count, notices, meta, size: file.size });
} catch (error) {
  if (!(error instanceof SplcError)) throw error;
  report({ error: error.code, message: error.message, notices });
}
