// What tests/test_player_page.py asks of the player in headless Chromium: node player_page.mjs JOB [ARGUMENT...]
// Each job prints JSON objects, one a line.

import { readFileSync, writeFileSync } from "node:fs";
import { launch } from "./browser.mjs";
import { report } from "./common.mjs";

const VIEWPORT = { width: 320, height: 240 };
const ENDED = () => ["complete", "failed"].includes(document.documentElement.dataset.phase);

async function opened(browser, url, options = {}, before = () => {}) {
  const context = await browser.newContext({ viewport: VIEWPORT, ignoreHTTPSErrors: true, ...options });
  await context.addInitScript(before);
  const page = await context.newPage();
  page.problems = [];
  page.asked = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  page.on("request", (request) => page.asked.push(request.url()));
  await page.goto(url);
  return page;
}

const ended = (page, timeout = 60_000) => page.waitForFunction(ENDED, null, { timeout, polling: 20 });
const stateOf = (page) => page.evaluate(() => ({ ...player.state, marks: player.marks, memory: player.memory }));
const settled = (page) => page.evaluate(() => player.settled());

const jobs = {
  /** Pictures through given cameras, as raw RGBA files. */
  async views(browser, url, viewsPath, folder) {
    const page = await opened(browser, url);
    await ended(page);
    const views = JSON.parse(readFileSync(viewsPath));
    for (let k = 0; k < views.length; k++) {
      const text = await page.evaluate(async (view) => {
        player.setView(view);
        await player.settled();
        const { pixels } = player.snapshot();
        let out = "";
        for (let at = 0; at < pixels.length; at += 32768) out += String.fromCharCode(...pixels.subarray(at, at + 32768));
        return btoa(out);
      }, views[k]);
      writeFileSync(`${folder}/${k}.rgba`, Buffer.from(text, "base64"));
    }
    report({ ...(await stateOf(page)), problems: page.problems, asked: page.asked });
  },

  /** Pictures of frames of a moving scene through given cameras, as raw RGBA files; then it plays, with what is asked. */
  async clip(browser, url, viewsPath, folder, seconds, numbers = "[]", buffered = "") {
    const page = await opened(browser, url);
    await ended(page);
    const views = JSON.parse(readFileSync(viewsPath));
    const frames = [];
    for (const [k, number] of JSON.parse(numbers).entries()) {
      const text = await page.evaluate(async ([view, number]) => {
        player.pause();
        player.setView(view);
        player.clip.seekFrame(number);
        const end = performance.now() + 30_000;
        while (player.state.clip.frame !== number || player.clip.shown?.number !== number || player.clip.shown.epoch !== player.clip.epoch) {
          if (performance.now() > end) throw new Error(`frame ${number} does not come`);
          await new Promise((done) => setTimeout(done, 10));
        }
        await player.settled();
        const { pixels } = player.snapshot();
        let out = "";
        for (let at = 0; at < pixels.length; at += 32768) out += String.fromCharCode(...pixels.subarray(at, at + 32768));
        return btoa(out);
      }, [views[k % views.length], number]);
      writeFileSync(`${folder}/${number}.rgba`, Buffer.from(text, "base64"));
      frames.push(await page.evaluate(() => player.state.gaussians));
    }
    const log = { frames };
    if (Number(seconds)) {
      if (buffered) {
        await page.evaluate(() => player.pause());
        await page.waitForFunction(() => player.clip.buffered.some(([from, to]) => from === 0 && to === player.state.clip.numFrames), null, { timeout: 60_000 });
      }
      await page.evaluate(() => {
        globalThis.log = [];
        player.setView(null);
        player.clip.loop(false);
        player.clip.shows = player.clip.dropped = 0;
        player.clip.groupsShown.clear();
        player.seek(0);
        player.play();
        globalThis.began = performance.now();
        globalThis.watch = setInterval(() => {
          const { waiting, quality, frame, playing } = player.state.clip;
          const { rate } = player.clip;
          const { audioLeads, audio } = player.clip;
          const sound = audioLeads && audio && !audio.paused ? audio.currentTime : null;
          globalThis.log.push({ ms: Math.round(performance.now() - began), waiting, quality, frame, playing, rate, sound });
          if (!playing) globalThis.took ??= performance.now() - began;
        }, 50);
      });
      // The test may do something to the link from now on.
      writeFileSync(`${folder}/playing`, "");
      await page.waitForFunction(() => globalThis.took || ["failed"].includes(document.documentElement.dataset.phase), null, { timeout: 1000 * Number(seconds), polling: 50 }).catch(() => {});
      Object.assign(log, await page.evaluate(() => ({
        took: globalThis.took ?? null, log: globalThis.log, shows: player.clip?.shows, dropped: player.clip?.dropped,
        groups: [...(player.clip?.groupsShown ?? [])],
      })));
    }
    const controls = await page.evaluate(() => ({
      hidden: document.getElementById("clip").hidden, play: document.getElementById("play").textContent,
      value: document.getElementById("seek").value, text: document.getElementById("seek").getAttribute("aria-valuetext"),
      names: [...document.querySelectorAll("#clip :is(button, input, select)")].map((e) => e.ariaLabel || e.textContent),
    }));
    const shown = await page.evaluate(() => {
      const box = document.getElementById("error");
      return { text: box.hidden ? "" : box.textContent };
    });
    report({ ...(await stateOf(page)), ...log, ...shown, controls, problems: page.problems, asked: page.asked });
  },

  /** What is in the picture while the scene comes. */
  async progress(browser, url) {
    const page = await opened(browser, url, {}, () => {
      globalThis.seen = [];
      setInterval(() => {
        const { gaussians } = globalThis.player?.state ?? {};
        if (gaussians && gaussians !== seen[seen.length - 1]) seen.push(gaussians);
      }, 4);
    });
    await ended(page);
    await settled(page);
    const seen = await page.evaluate(() => globalThis.seen);
    const { levels, parts } = await page.evaluate(() => player.scene.facts);
    report({ seen, levels, parts: parts.length, ...(await stateOf(page)), problems: page.problems, asked: page.asked });
  },

  /** What a page says of each address. */
  async errors(browser, ...urls) {
    for (const url of urls) {
      const page = await opened(browser, url);
      const began = Date.now();
      await ended(page).catch(() => {});
      const shown = await page.evaluate(() => {
        const box = document.getElementById("error");
        return { phase: document.documentElement.dataset.phase, text: box.hidden ? "" : box.textContent, html: box.innerHTML };
      });
      const status = await page.textContent("#status");
      const state = await page.evaluate(() => globalThis.player?.state ?? null);
      report({ ...shown, status, state, ms: Date.now() - began, problems: page.problems, asked: page.asked });
      await page.context().close();
    }
  },

  /** Memory before and after scenes were loaded and let go. */
  async memory(browser, base, times, ...urls) {
    const page = await opened(browser, base);
    const session = await page.context().newCDPSession(page);
    const used = async () => {
      await session.send("HeapProfiler.collectGarbage");
      const { usedSize } = await session.send("Runtime.getHeapUsage");
      return usedSize;
    };
    const load = async (url) => {
      await page.evaluate(async (url) => {
        await player.load(url);
        player.pause();
        await player.settled();
      }, url);
      return page.evaluate(() => player.memory.gpu);
    };
    const gpu = [await load(urls[0])];
    await page.evaluate(() => player.unload());
    const before = await used();
    for (let k = 0; k < Number(times); k++) gpu.push(await load(urls[k % urls.length]));
    await page.evaluate(() => player.unload());
    await page.waitForTimeout(200);
    const workers = page.workers().length;
    report({ before, after: await used(), gpu, left: await page.evaluate(() => player.memory.gpu), workers, problems: page.problems });
  },

  /** Fingers, mouse and keys. */
  async gestures(browser, url) {
    const page = await opened(browser, url, { hasTouch: true });
    await ended(page);
    await settled(page);
    const rig = () => page.evaluate(() => ({ position: [...player.rig.position], distance: player.rig.distance, target: player.rig.target }));
    const session = await page.context().newCDPSession(page);
    const touch = async (type, ...points) => {
      const touchPoints = points.map(([x, y], id) => ({ x, y, id }));
      await session.send("Input.dispatchTouchEvent", { type, touchPoints });
    };
    const log = { start: await rig() };
    await touch("touchStart", [100, 100]);
    for (let k = 1; k <= 5; k++) await touch("touchMove", [100 + 8 * k, 100 + 4 * k]);
    await touch("touchEnd");
    log.dragged = await rig();
    await touch("touchStart", [100, 100], [200, 100]);
    for (let k = 1; k <= 5; k++) await touch("touchMove", [100 - 6 * k, 100], [200 + 6 * k, 100]);
    await touch("touchEnd");
    log.pinched = await rig();
    await touch("touchStart", [100, 100], [200, 100]);
    for (let k = 1; k <= 5; k++) await touch("touchMove", [100 + 6 * k, 100], [200 + 6 * k, 100]);
    await touch("touchEnd");
    log.moved = await rig();
    await page.mouse.move(160, 120);
    await page.mouse.wheel(0, -200);
    await page.waitForTimeout(50);
    log.wheeled = await rig();
    await page.focus("#scene");
    await page.keyboard.down("ArrowLeft");
    await page.waitForTimeout(150);
    await page.keyboard.up("ArrowLeft");
    log.turned = await rig();
    await page.keyboard.press("f");
    log.fitted = await rig();
    await page.keyboard.press("o");
    log.pressed = await page.getAttribute("#mode", "aria-pressed");
    log.names = await page.evaluate(() =>
      [...document.querySelectorAll("button, input, canvas, progress")].map((e) => e.ariaLabel || e.closest("label")?.textContent || e.textContent),
    );
    report({ ...log, problems: page.problems });
  },

  /** A page from disk. */
  async disk(browser, path, picture) {
    const page = await opened(browser, `file://${path}`);
    await ended(page);
    await settled(page);
    if (picture) await page.screenshot({ path: picture });
    const lit = await page.evaluate(() => {
      const { pixels } = player.snapshot();
      let lit = 0;
      for (let k = 0; k < pixels.length; k += 4) if (pixels[k] + pixels[k + 1] + pixels[k + 2] > 60) lit++;
      return lit / (pixels.length / 4);
    });
    report({ lit, title: await page.title(), ...(await stateOf(page)), problems: page.problems, asked: page.asked });
  },

  /** A graphics device that goes while a clip plays, and once more while it stands still. */
  async lostclip(browser, url, number) {
    const page = await opened(browser, url);
    await ended(page);
    const standAt = (number) => page.evaluate(async (number) => {
      player.pause();
      player.clip.seekFrame(number);
      const end = performance.now() + 30_000;
      while (player.clip.shown?.number !== number || player.clip.shown.epoch !== player.clip.epoch) {
        if (performance.now() > end) throw new Error(`frame ${number} does not come`);
        await new Promise((done) => setTimeout(done, 10));
      }
    }, number);
    const picture = async () => {
      await settled(page);
      return page.evaluate(() => Array.from(player.snapshot().pixels));
    };
    const lose = (ms) => page.evaluate(async (ms) => {
      const extension = player.renderer.gl.getExtension("WEBGL_lose_context");
      extension.loseContext();
      await new Promise((done) => setTimeout(done, ms));
      const said = player.state.notices.length;
      extension.restoreContext();
      const end = performance.now() + 10_000;
      while (player.renderer.gl.isContextLost() && performance.now() < end) await new Promise((done) => setTimeout(done, 10));
      return said;
    }, ms);
    await standAt(Number(number));
    const before = await picture();
    const said = [await lose(200)];
    const still = await picture();
    await page.evaluate(() => {
      player.clip.loop(true);
      player.seek(0);
      player.play();
    });
    await page.waitForFunction(() => player.clip.shows > 8);
    said.push(await lose(700));
    const shows = await page.evaluate(() => (player.clip.groupsShown.clear(), player.clip.shows));
    // It plays on: all groups once more, within some rounds of the clip.
    await page.waitForFunction((shows) => player.clip.shows > shows + 30, shows, { timeout: 30_000 });
    const playing = await page.evaluate(() => ({ playing: player.state.clip.playing, groups: [...player.clip.groupsShown].sort() }));
    await standAt(Number(number));
    const after = await picture();
    const away = (a) => a.reduce((most, x, k) => Math.max(most, Math.abs(x - before[k])), 0);
    const lit = before.reduce((sum, x, k) => sum + (k % 4 < 3 ? x : 0), 0);
    report({ lit, still: away(still), after: away(after), said, ...playing, ...(await stateOf(page)), problems: page.problems });
  },

  /** A graphics device that goes and comes back; a page that is hidden; chunks from the cache. */
  async lost(browser, url) {
    const page = await opened(browser, url);
    await ended(page);
    await settled(page);
    const lit = () =>
      page.evaluate(() => player.snapshot().pixels.reduce((sum, x, k) => sum + (k % 4 < 3 ? x : 0), 0));
    const before = await lit();
    await page.evaluate(async () => {
      const extension = player.renderer.gl.getExtension("WEBGL_lose_context");
      extension.loseContext();
      await new Promise((done) => setTimeout(done, 100));
      globalThis.said = player.state.notices.length;
      extension.restoreContext();
    });
    await page.waitForFunction(() => !player.renderer.gl.isContextLost() && player.ready);
    await page.waitForFunction(() => player.state.gaussians === player.state.total, null, { timeout: 30_000 });
    await settled(page);
    const after = await lit();
    const asked = page.asked.length;
    // The same address again: chunks come from the cache.
    await page.evaluate((url) => player.load(url).then(() => player.settled()), new URL(url).searchParams.get("src"));
    const cached = await page.evaluate(() => player.scene.received);
    report({ before, after, asked, cached, ...(await stateOf(page)), said: await page.evaluate(() => globalThis.said), problems: page.problems });
  },
};

const [job, ...rest] = process.argv.slice(2);
const browser = await launch({ graphics: true });
try {
  await jobs[job](browser, ...rest);
} finally {
  await browser.close();
}
