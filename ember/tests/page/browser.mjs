// Chromium without a window, driven over its debugging pipe: no packages are needed.

import { spawn } from 'node:child_process';
import { accessSync, constants, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

/** The browser that CHROMIUM names, or the first of the usual names on the path. */
export function findChromium() {
  const names = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'];
  const candidates = process.env.CHROMIUM ? [process.env.CHROMIUM] : names.flatMap(name => (process.env.PATH ?? '').split(delimiter).map(dir => join(dir, name)));
  return candidates.find(path => { try { accessSync(path, constants.X_OK); return true; } catch { return false; } });
}

export const sleep = ms => new Promise(resolve => { setTimeout(resolve, ms); });

export class Browser {
  #next = 0;
  #waiting = new Map();
  #pages = new Map();

  static async launch(path) {
    const browser = new Browser();
    browser.profile = mkdtempSync(join(tmpdir(), 'ember-page-'));
    browser.child = spawn(path, ['--headless=new', '--remote-debugging-pipe', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--hide-scrollbars',
      '--disable-background-networking', '--disable-component-update', '--disable-features=Translate,OptimizationHints', `--user-data-dir=${browser.profile}`, 'about:blank'],
    { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
    let rest = Buffer.alloc(0);
    browser.child.stdio[4].on('data', data => {
      rest = Buffer.concat([rest, data]);
      for (let end; (end = rest.indexOf(0)) >= 0; rest = rest.subarray(end + 1)) browser.#receive(JSON.parse(rest.subarray(0, end).toString()));
    });
    await browser.send('Browser.getVersion');
    return browser;
  }

  #receive(message) {
    if (message.id !== undefined) {
      const { resolve, reject, method } = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (message.error) reject(new Error(`${method}: ${message.error.message}`));
      else resolve(message.result);
    } else {
      this.#pages.get(message.sessionId)?.event(message);
    }
  }

  send(method, params = {}, sessionId = undefined) {
    const id = this.#next++;
    this.child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((resolve, reject) => { this.#waiting.set(id, { resolve, reject, method }); });
  }

  /** A page with a storage of its own, or another tab beside one. */
  async page({ width = 1280, height = 800, dark = false, phone = false, beside = undefined } = {}) {
    const { browserContextId } = beside ? { browserContextId: beside.context } : await this.send('Target.createBrowserContext');
    const { targetId } = await this.send('Target.createTarget', { url: 'about:blank', browserContextId });
    const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
    const page = new Page(this, sessionId, targetId, browserContextId);
    this.#pages.set(sessionId, page);
    for (const domain of ['Page', 'Runtime', 'Network', 'Log']) await page.send(`${domain}.enable`);
    await page.send('Performance.enable', { timeDomain: 'threadTicks' });
    // A tab behind another is slow otherwise.
    await page.send('Emulation.setFocusEmulationEnabled', { enabled: true });
    await page.size(width, height, phone);
    await page.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }] });
    return page;
  }

  async close() {
    const gone = new Promise(resolve => { this.child.once('exit', resolve); });
    this.send('Browser.close').catch(() => {});
    await Promise.race([gone, sleep(5000)]);
    this.child.kill('SIGKILL');
    rmSync(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

class Page {
  /** Addresses of every request; what went wrong in the page: exceptions, messages of the console, violations of the policy. */
  requests = [];
  problems = [];

  constructor(browser, session, target, context) { Object.assign(this, { browser, session, target, context }); }

  send(method, params) { return this.browser.send(method, params, this.session); }

  event({ method, params }) {
    if (method === 'Network.requestWillBeSent') this.requests.push(params.request.url);
    if (method === 'Runtime.exceptionThrown') this.problems.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === 'Runtime.consoleAPICalled' && params.type === 'error') this.problems.push(params.args.map(a => a.value ?? a.description).join(' '));
    // The browser reports answers like 503 here too, which are part of the tests.
    if (method === 'Log.entryAdded' && params.entry.level === 'error' && params.entry.source !== 'network') this.problems.push(params.entry.text);
    if (method === 'Page.javascriptDialogOpening') { this.problems.push(`dialog: ${params.message}`); this.send('Page.handleJavaScriptDialog', { accept: true }); }
  }

  async size(width, height, phone = false) {
    await this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: phone ? 2 : 1, mobile: phone });
    await this.send('Emulation.setTouchEmulationEnabled', { enabled: phone });
  }

  async open(url) {
    await this.send('Page.navigate', { url });
    await this.until(`document.readyState === 'complete' && location.href !== 'about:blank'`);
  }

  /** The value of an expression or of a promise. */
  async value(expression) {
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }

  /** What the thread of the page has computed so far, in milliseconds of the processor: other programs do not count. */
  async computed() {
    const { metrics } = await this.send('Performance.getMetrics');
    return 1000 * metrics.find(({ name }) => name === 'TaskDuration').value;
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

  /** A click of the mouse in the middle of what is visible of the first element that matches. */
  async click(selector) {
    const [x, y, hit] = await this.value(`(() => {
      const node = document.querySelector(${JSON.stringify(selector)});
      node.scrollIntoView({ block: 'nearest' });
      const box = node.getClientRects()[0], x = box.left + box.width / 2, y = box.top + box.height / 2;
      return [x, y, node.contains(document.elementFromPoint(x, y))];
    })()`);
    if (!hit) throw new Error(`${selector} is covered`);
    for (const type of ['mouseMoved', 'mousePressed', 'mouseReleased']) await this.send('Input.dispatchMouseEvent', { type, x, y, button: type === 'mouseMoved' ? 'none' : 'left', clickCount: 1 });
  }

  async hover(selector) {
    const [x, y] = await this.value(`(() => { const box = document.querySelector(${JSON.stringify(selector)}).getClientRects()[0]; return [box.left + box.width / 2, box.top + box.height / 2]; })()`);
    await this.send('Input.dispatchMouseEvent', { type: 'mouseMoved', x, y });
  }

  type(text) { return this.send('Input.insertText', { text }); }

  /** A key as on a keyboard: `Enter`, `Alt+n`, `Shift+Enter`. */
  async press(combination) {
    const parts = combination.split('+'), key = parts.pop();
    const modifiers = parts.reduce((sum, name) => sum + { Alt: 1, Control: 2, Meta: 4, Shift: 8 }[name], 0);
    const code = { '?': 'Slash', '/': 'Slash' }[key] ?? (/^[a-z]$/i.test(key) ? `Key${key.toUpperCase()}` : key);
    const number = { Enter: 13, Escape: 27, Tab: 9, ArrowUp: 38, ArrowLeft: 37, ArrowRight: 39, End: 35, '?': 191, '/': 191 }[key] ?? key.toUpperCase().charCodeAt(0);
    const text = key === 'Enter' ? '\r' : key.length === 1 && !(modifiers & 3) ? key : undefined;
    await this.send('Input.dispatchKeyEvent', { type: 'keyDown', key, code, modifiers, windowsVirtualKeyCode: number, text });
    await this.send('Input.dispatchKeyEvent', { type: 'keyUp', key, code, modifiers, windowsVirtualKeyCode: number });
  }

  async screenshot(path) {
    const { data } = await this.send('Page.captureScreenshot', { format: path.endsWith('.webp') ? 'webp' : 'png', ...(path.endsWith('.webp') && { quality: 90 }) });
    writeFileSync(path, Buffer.from(data, 'base64'));
  }

  close() { return this.browser.send('Target.closeTarget', { targetId: this.target }); }
}
