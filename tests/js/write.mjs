// A made-up file on disk: node write.mjs SEED FILLER PATH.

import { writeFileSync } from "node:fs";
import { makeFile } from "./generate.mjs";

const [seed, filler, path] = process.argv.slice(2);
writeFileSync(path, makeFile(Number(seed), Number(filler)));
