// Takes the pictures of the README from running servers: `node ember/tests/page/pictures.mjs DEMO [CHAT]`, where DEMO is the address of
// `ember serve` and CHAT that of one with a model that answers questions.

import { launch, sleep } from './browser.mjs';

const [demo, chat] = process.argv.slice(2);
const browser = await launch('chromium');

/** Asks, waits for the answer and for the live figures behind it. */
async function ask(page, text) {
  await page.value(`$('prompt').focus()`);
  await page.type(text);
  await page.press('Enter');
  await page.until('run !== null');
  await page.until('run === null', 300000);
}

const light = await browser.page();
await light.open(demo);
await light.until(`server.state === 'ready'`);
// A seed, so that the same server draws the same stories.
await light.value(`settings.seed = 11; renderSettings(); setTint(true)`);
for (const text of ['Tell me a story about a small dog.', 'And one about a boat?']) await ask(light, text);
// The second again, with earlier halting.
await light.value(`(() => { const slider = $('threshold-slider'); slider.value = 0.6; slider.dispatchEvent(new Event('change')); })()`);
await light.until('messages.at(-1).variants.length === 2 && run === null', 60000);
await sleep(2500);
await light.hover('#turns li:last-child .token:nth-child(40) span');
await sleep(200);
await light.screenshot('examples/page.webp');

if (chat) {
  const dark = await browser.page({ dark: true });
  await dark.open(chat);
  await dark.until(`server.state === 'ready'`);
  await ask(dark, 'Write a Python function that merges two sorted lists.');
  await sleep(2500);
  await dark.value(`$('scroll').scrollTop = 0; $('jump').hidden = true`);
  await dark.screenshot('examples/page-dark.webp');
}
await browser.close();
