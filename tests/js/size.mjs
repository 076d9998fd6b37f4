// Size of the decoder, minified and gzipped: node size.mjs ENTRY...

import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { report } from "./common.mjs";

for (const entry of process.argv.slice(2)) {
  const options = { entryPoints: [entry], bundle: true, minify: true, format: "esm", write: false };
  const { outputFiles } = await build(options);
  const [{ contents }] = outputFiles;
  report({ entry, minified: contents.length, gzipped: gzipSync(contents, { level: 9 }).length });
}
