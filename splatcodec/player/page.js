// The page around the player: ?src= names the scene, buttons, status, errors that can be read.
//
//     index.html?src=scene.splc        on this page's own origin; others only if the page lists them:
//     <meta name="splatcodec-origins" content="https://cdn.example"> and the same in connect-src of its policy
//     <meta name="splatcodec-src" content="scene.splc">   the scene if the address names none
//
// A page that holds its scene itself (export-html) has it in <script type="text/plain" id="content">, as base64.

import { Player } from "./player.js";

/** @param {string} id @returns {any} */
const part = (id) => document.getElementById(id);

/** @param {number} bytes */
const size = (bytes) => (bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB`);

/** @param {number} count */
const digits = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, ",");

/** What can be done about an error. @type {Record<string, string>} */
const ADVICE = {
  format: "It may not be a .splc file, or be damaged.",
  truncated: "The file is not complete: copy or upload it again.",
  checksum: "The file is damaged: copy or upload it again.",
  unsupported: "The player shows scenes written with the default options of splatcodec compress.",
  limit: "The file asks for more memory than is allowed.",
  network: "Check the address and the connection, then reload the page.",
  graphics: "Try another browser, or switch hardware acceleration on.",
};

/** The controls of a moving scene, loaded with the first one. @type {Promise<import("./timeline.js").Timeline> | null} */
let timeline = null;

/** @param {import("./player.js").PlayerState} state */
function show({ phase, received, size: all, gaussians, total, notices, error, clip }) {
  document.documentElement.dataset.phase = phase;
  if (clip) timeline ??= import("./timeline.js").then(({ Timeline }) => new Timeline(/** @type {any} */ (globalThis).player));
  timeline?.then((controls) => controls.show(/** @type {any} */ (globalThis).player.state.clip));
  const text = {
    empty: "Open a .splc file, or drop one here.",
    opening: "Opening ...",
    loading: `${digits(gaussians)} of ${digits(total)} Gaussians, ${size(received)} of ${size(all)}`,
    complete: clip?.waiting ? "Waiting for the network ..." : `${digits(gaussians)} Gaussians`,
    failed: "",
  }[phase];
  const line = [text, notices[notices.length - 1]].filter((x) => x).join(". ");
  if (part("status").textContent !== line) part("status").textContent = line;
  part("progress").hidden = phase !== "loading" && phase !== "opening";
  part("progress").value = all ? Math.min(1, received / all) : 0;
  part("error").hidden = !error;
  if (error) {
    const reason = `${error.message.slice(0, 1).toUpperCase()}${error.message.slice(1)}`.replace(/\.?$/, ".");
    part("error").textContent = `The scene cannot be shown.\n${reason}\n${ADVICE[error.code] ?? ""}`;
  }
}

/** @param {unknown} error */
function refuse(error) {
  const { message, code = "graphics" } = /** @type {any} */ (error);
  show({ phase: "failed", received: 0, size: 0, gaussians: 0, total: 0, notices: [], error: { message, code }, clip: null });
}

async function start() {
  const setting = (/** @type {string} */ name) =>
    /** @type {HTMLMetaElement | null} */ (document.querySelector(`meta[name=splatcodec-${name}]`))?.content;
  const query = new URLSearchParams(location.search);
  const address = query.get("src") ?? setting("src");
  const budget = Number(query.get("budget")) || undefined;
  const origins = setting("origins")?.split(/\s+/) ?? [];
  const content = part("content");
  // An address that is none is refused by the player.
  const origin = address && URL.canParse?.(address, document.baseURI) ? new URL(address, document.baseURI).origin : "";
  // Nothing moves by itself for people who have asked for that.
  const autoplay = query.get("play") !== "0" && !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const ahead = Number(query.get("ahead")) || undefined;
  const options = { budget, autoplay, ahead, otherOrigins: origins.includes(origin), onState: show };
  const input = content ? { base64: content.textContent.trim() } : address;
  const player = input ? await Player.open(part("scene"), input, options) : new Player(part("scene"), options);
  Object.assign(globalThis, { player });

  const open = (/** @type {File} */ file) => player.load(file).catch(() => {});
  part("fit").onclick = () => player.fit();
  part("mode").onclick = () => {
    const controls = /** @type {import("./controls.js").Controls} */ (player.controls);
    controls.flying = !controls.flying;
    part("mode").setAttribute("aria-pressed", String(controls.flying));
  };
  part("full").onclick = () => {
    if (document.fullscreenElement) document.exitFullscreen();
    else part("stage").requestFullscreen?.().catch(() => {});
  };
  part("full").hidden = !document.fullscreenEnabled;
  part("file").onchange = () => part("file").files[0] && open(part("file").files[0]);
  part("scene").addEventListener("keyup", () => {
    part("mode").setAttribute("aria-pressed", String(player.controls?.flying ?? false));
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const file = event.dataTransfer?.files[0];
    if (file) open(file);
  });

  if (!input) show(player.state);
}

start().catch(refuse);
