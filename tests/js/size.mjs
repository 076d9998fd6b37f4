// Size of modules and all they import, minified and gzipped: node size.mjs [--later] ENTRY...
// What is imported only when it is needed, as for moving scenes, counts with --later.

import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { report } from "./common.mjs";

const later = process.argv.includes("--later");
const apart = {
  name: "apart",
  setup({ onResolve }) {
    onResolve({ filter: /./ }, ({ kind, path }) => (kind === "dynamic-import" ? { path, external: true } : null));
  },
};
for (const entry of process.argv.slice(2).filter((word) => word !== "--later")) {
  const plugins = later ? [] : [apart];
  const options = { entryPoints: [entry], bundle: true, minify: true, format: "esm", write: false, plugins };
  const { outputFiles } = await build(options);
  const [{ contents }] = outputFiles;
  report({ entry, minified: contents.length, gzipped: gzipSync(contents, { level: 9 }).length });
}
