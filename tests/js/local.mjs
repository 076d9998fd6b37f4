// What network.mjs prints, of a file: node local.mjs FILE [SELECTION].

import { readFileSync } from "node:fs";
import { open } from "../../splatcodec/player/decoder/index.js";
import { arraysOf, digest, report } from "./common.mjs";

const [path, selection] = process.argv.slice(2);
const file = await open(readFileSync(path));
const scene = await file.decode(JSON.parse(selection ?? "{}"));
report({ digest: digest(arraysOf(scene.arrays)), count: scene.count, meta: await file.meta(), size: file.size });
