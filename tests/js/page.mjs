// Decoding in a page and in a worker of headless Chromium: node page.mjs PAGE_URL FILE_URL...

import { launch } from "./browser.mjs";
import { report } from "./common.mjs";

const [pageUrl, ...urls] = process.argv.slice(2);
const browser = await launch();
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.error(error));
  await page.goto(pageUrl);
  await page.waitForFunction(() => document.title === "ready");
  for (const url of urls) {
    for (const where of ["page", "worker"]) {
      report({ url, where, ...(await page.evaluate(([a, b]) => globalThis.decode(a, b), [url, where])) });
    }
  }
  report({ version: browser.version() });
} finally {
  await browser.close();
}
