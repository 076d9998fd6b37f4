// Writes splatcodec/player/decoder/kernel.js from kernel.src: node build.mjs, or node build.mjs --check to see whether
// it is up to date. Needs nothing but Node.

import { readFileSync, writeFileSync } from "node:fs";
import { deflateSync, inflateSync } from "node:zlib";
import { compile } from "./compile.mjs";

const here = (name) => new URL(name, import.meta.url);
const target = here("../../splatcodec/player/decoder/kernel.js");
const { bytes, constants } = compile(readFileSync(here("kernel.src"), "utf8"));

/** Constants that fast.js asks for by name. */
const used = new Set(readFileSync(here("../../splatcodec/player/decoder/fast.js"), "utf8").match(/\bAT\.\w+/g));
const places = Object.entries(constants).filter(([name]) => used.has(`AT.${name}`));

function lines(text) {
  return text.match(/.{1,110}/g).map((line) => `  "${line}"`);
}

const packed = deflateSync(bytes, { level: 9 }).toString("base64");
const source = `// Made by tools/player_kernel/build.mjs from kernel.src there. Not to be changed by hand.

/** A WebAssembly module of ${bytes.length} bytes, deflated, in base64. */
export const KERNEL =
${lines(packed).join(" +\n")};

// Where things lie in its memory.
${places.map(([name, value]) => `export const ${name} = ${value};`).join("\n")}
`;
if (process.argv.includes("--check")) {
  // What is inside counts: another zlib packs it otherwise.
  const made = await import(target);
  const same = inflateSync(Buffer.from(made.KERNEL, "base64")).equals(bytes);
  const names = new Map(Object.entries(made).filter(([name]) => name !== "KERNEL"));
  if (!same || names.size !== places.length || places.some(([name, value]) => names.get(name) !== value)) {
    console.error("kernel.js is not what kernel.src makes: run node tools/player_kernel/build.mjs");
    process.exit(1);
  }
} else {
  writeFileSync(target, source);
  console.log(`${bytes.length} bytes, ${packed.length} characters`);
}
