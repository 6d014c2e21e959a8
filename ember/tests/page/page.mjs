// The page of the server in a real browser, against a server that says what a test wants. `node ember/tests/page/page.mjs [BROWSER] [NAME]`: in Chromium, Firefox or
// WebKit (chromium, firefox, webkit), the tests whose name has NAME in it.

import assert from 'node:assert/strict';
import { BROWSERS, launch, LeftOut } from './browser.mjs';
import { startMock } from './mock.mjs';

const files = ['text', 'asking', 'model', 'kept', 'look'];
const tests = Object.assign({}, ...(await Promise.all(files.map(file => import(`./tests/${file}.mjs`)))).map(part => part.tests));

const [kind, wanted = ''] = BROWSERS.includes(process.argv[2]) ? process.argv.slice(2) : ['chromium', process.argv[2]];
const browser = await launch(kind);
if (!browser) {
  console.error(`no ${kind}: set ${kind.toUpperCase()} to one`);
  process.exit(1);
}
const began = Date.now();

/** Runs a test in a page of its own; the error, or nothing. */
async function run(test) {
  const mock = await startMock(), page = await browser.page();
  /** Types a message, sends it and waits for the end of its answer; `ms` 0: does not wait. */
  const ask = async (text, ms = 20000) => {
    await page.value(`$('prompt').value = ''; $('prompt').focus(); window.asked = messages.length`);
    await page.type(text);
    await page.click('#send');
    if (ms) await page.until('run === null && messages.length > asked', ms);
    else await page.until('run !== null');
  };
  const another = async () => {
    const tab = await browser.page({ beside: page });
    await tab.open(mock.url);
    await tab.until(`server.state === 'ready'`);
    return tab;
  };
  try {
    mock.state.first = page.first;
    await page.open(mock.url);
    await page.until(`server.state === 'ready'`);
    await test({ page, mock, ask, another });
    await page.gather();
    assert.deepEqual(page.problems, [], 'nothing went wrong in the page');
    assert.deepEqual(page.requests.filter(url => !url.startsWith(mock.url) && !/^(data|blob|about):/.test(url)), [], 'no request leaves the server');
    return undefined;
  } catch (error) {
    return error;
  } finally {
    await page.close();
    await mock.close();
  }
}

let failed = 0, leftOut = 0;
for (const [name, test] of Object.entries(tests)) {
  if (!name.includes(wanted)) continue;
  const start = Date.now();
  let error = await run(test);
  if (error && !(error instanceof LeftOut)) {
    // On a busy machine a browser may be late once; what is wrong fails again.
    console.log(`again   ${name}: ${error.message}`);
    error = await run(test);
  }
  const ms = Date.now() - start;
  if (error instanceof LeftOut) {
    leftOut += 1;
    console.log(`left out  ${name}: ${error.message}`);
  } else {
    failed += error ? 1 : 0;
    console.log(error ? `FAILED  ${name} (${ms} ms)\n${error.stack}` : `ok      ${name} (${ms} ms)`);
  }
}
await browser.close();
console.log(`${browser.version}: ${failed} failed, ${leftOut} left out, ${Date.now() - began} ms`);
process.exit(failed ? 1 : 0);
