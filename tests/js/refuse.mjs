// Files that this decoder does not read: node refuse.mjs FILE. Prints the error.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { open, SplcError } from "../../splatcodec/player/decoder/index.js";
import { rejection, report } from "./common.mjs";

const error = await rejection(() => open(readFileSync(process.argv[2])));
assert.ok(error instanceof SplcError, String(error));
report({ error: error.code, message: error.message, chunk: error.chunk, offset: error.offset });
