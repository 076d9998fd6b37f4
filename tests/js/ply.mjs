// A scene as a PLY file: node ply.mjs IN.splc OUT.ply [SELECTION].

import { readFileSync, writeFileSync } from "node:fs";
import { decodeToPly } from "../../splatcodec/player/ply.js";
import { report } from "./common.mjs";

const [source, target, selection] = process.argv.slice(2);
const bytes = await decodeToPly(readFileSync(source), JSON.parse(selection ?? "{}"));
writeFileSync(target, bytes);
report({ bytes: bytes.length });
