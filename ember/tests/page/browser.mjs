// The browsers that run the tests, each driven by its own protocol (chromium.mjs, firefox.mjs, webkit.mjs), and what their pages have in common.
// No packages are needed.

import { accessSync, constants, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

export const BROWSERS = ['chromium', 'firefox', 'webkit'];

export const sleep = ms => new Promise(resolve => { setTimeout(resolve, ms); });

/** A test needs what a browser cannot do. */
export class LeftOut extends Error {}

/** Starts a browser: the program that the variable of its name (CHROMIUM, FIREFOX, WEBKIT) names, or the first of the usual names on the path; undefined where there is none. */
export async function launch(name) {
  const { Browser, names } = await import(`./${name}.mjs`), named = process.env[name.toUpperCase()];
  const candidates = named ? [named] : names.flatMap(file => (process.env.PATH ?? '').split(delimiter).map(dir => join(dir, file)));
  const path = candidates.find(file => { try { accessSync(file, constants.X_OK); return true; } catch { return false; } });
  return path && Browser.launch(path);
}

/** A folder for what a browser writes. */
export const profile = () => mkdtempSync(join(tmpdir(), 'ember-page-'));

/** A browser ends with the tests, however they end. */
export const endWith = child => { process.once('exit', () => child.kill('SIGKILL')); };

/** Waits until a browser that was told to close has ended, and removes what it wrote. */
export async function close({ child, profile: folder }) {
  const gone = child.exitCode !== null || child.signalCode !== null ? undefined : new Promise(resolve => { child.once('exit', resolve); });
  await Promise.race([gone, sleep(5000)]);
  child.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
}

/** A page with a storage of its own, or another tab beside one: `browser.page({ width, height, dark, beside })`. Each protocol has `navigate(url)`,
 * `value(expression)` (of a promise, what it resolves to), `pointer(x, y, press)`, `wheel(x, y, down)`, `type(text)`, `press(keys)` (as on a keyboard: `Enter`,
 * `Alt+n`), `size(width, height, phone)`, `scheme(dark)`, `print()` (shows the page as on paper), `screenshot(path)`, `close()`, and `computed()`: milliseconds
 * that the thread of the page has computed so far, so that other programs do not count. */
export class Page {
  /** Addresses of every request; what went wrong in the page: exceptions, messages of the console, violations of the policy. */
  requests = [];
  problems = [];
  /** A script that the server is to run before that of the page, where the browser does not tell what goes wrong. */
  first = '';

  /** Whether a character of a header is sent as its byte. */
  sendsBytes = true;
  /** Whether a phone can be emulated, with its touch screen. */
  touches = true;

  /** Brings the two lists up to date. */
  gather() {}

  async open(url) {
    await this.navigate(url);
    await this.until(`document.readyState === 'complete' && location.href !== 'about:blank'`);
  }

  async until(expression, ms = 20000) {
    const end = Date.now() + ms;
    for (;;) {
      let last = null;
      try { if (await this.value(expression)) return; } catch (error) { last = error; }
      if (Date.now() > end) throw new Error(`not reached in ${ms} ms: ${expression}${last ? ` (${last.message})` : ''}`);
      await sleep(20);
    }
  }

  /** The middle of what is visible of the first element that matches, and whether it is not covered. */
  place(selector) {
    return this.value(`(() => {
      const node = document.querySelector(${JSON.stringify(selector)});
      node.scrollIntoView({ block: 'nearest' });
      const box = node.getClientRects()[0], x = box.left + box.width / 2, y = box.top + box.height / 2;
      return [x, y, node.contains(document.elementFromPoint(x, y))];
    })()`);
  }

  /** A click of the mouse. */
  async click(selector) {
    const [x, y, hit] = await this.place(selector);
    if (!hit) throw new Error(`${selector} is covered`);
    await this.pointer(x, y, true);
  }

  async hover(selector) {
    const [x, y] = await this.place(selector);
    await this.pointer(x, y, false);
  }
}

/* ---- WebDriver, of whichever generation ---- */

const KEYS = { Enter: '\ue007', Escape: '\ue00c', Tab: '\ue004', PageUp: '\ue00e', PageDown: '\ue00f', End: '\ue010', ArrowLeft: '\ue012', ArrowUp: '\ue013', ArrowRight: '\ue014', Shift: '\ue008', Control: '\ue009', Alt: '\ue00a' };

/** The actions of WebDriver for a combination of keys. */
export function keyActions(combination) {
  const keys = combination.split('+').map(key => KEYS[key] ?? key);
  const down = keys.map(value => ({ type: 'keyDown', value })), up = [...keys].reverse().map(value => ({ type: 'keyUp', value }));
  return [{ type: 'key', id: 'keyboard', actions: [...down, ...up] }];
}

export function pointerActions(x, y, press) {
  const at = { type: 'pointerMove', x: Math.round(x), y: Math.round(y) };
  return [{ type: 'pointer', id: 'mouse', parameters: { pointerType: 'mouse' }, actions: press ? [at, { type: 'pointerDown', button: 0 }, { type: 'pointerUp', button: 0 }] : [at] }];
}

export const wheelActions = (x, y, deltaY) => [{ type: 'wheel', id: 'wheel', actions: [{ type: 'scroll', x: Math.round(x), y: Math.round(y), deltaX: 0, deltaY }] }];

/** Writes a text where the cursor is, as a paste does: no keys are pressed. */
export const insertion = text => `document.execCommand('insertText', false, ${JSON.stringify(text)})`;

/** Shows the page as on paper, where the browser cannot be asked to. */
export const AS_PRINTED = `for (const sheet of document.styleSheets) for (const rule of sheet.cssRules) if (rule instanceof CSSMediaRule && rule.media.mediaText === 'print') rule.media.mediaText = 'screen'`;
