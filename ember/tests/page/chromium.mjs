// Chromium without a window, driven by the DevTools protocol over its debugging pipe.

import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { close, endWith, Page, profile } from './browser.mjs';

export const names = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'];

export class Browser {
  #next = 0;
  #waiting = new Map();
  #pages = new Map();

  static async launch(path) {
    const browser = new Browser();
    browser.profile = profile();
    browser.child = spawn(path, ['--headless=new', '--remote-debugging-pipe', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--hide-scrollbars',
      '--disable-background-networking', '--disable-component-update', '--disable-features=Translate,OptimizationHints', `--user-data-dir=${browser.profile}`, 'about:blank'],
    { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
    endWith(browser.child);
    let rest = Buffer.alloc(0);
    browser.child.stdio[4].on('data', data => {
      rest = Buffer.concat([rest, data]);
      for (let end; (end = rest.indexOf(0)) >= 0; rest = rest.subarray(end + 1)) browser.#receive(JSON.parse(rest.subarray(0, end).toString()));
    });
    browser.version = (await browser.send('Browser.getVersion')).product;
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

  async page({ width = 1280, height = 800, dark = false, beside = undefined } = {}) {
    const { browserContextId } = beside ? { browserContextId: beside.context } : await this.send('Target.createBrowserContext');
    const { targetId } = await this.send('Target.createTarget', { url: 'about:blank', browserContextId });
    const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
    const page = new ChromiumPage();
    Object.assign(page, { browser: this, session: sessionId, target: targetId, context: browserContextId });
    this.#pages.set(sessionId, page);
    for (const domain of ['Page', 'Runtime', 'Network', 'Log']) await page.send(`${domain}.enable`);
    await page.send('Performance.enable', { timeDomain: 'threadTicks' });
    // A tab behind another is slow otherwise.
    await page.send('Emulation.setFocusEmulationEnabled', { enabled: true });
    await page.size(width, height);
    await page.scheme(dark);
    return page;
  }

  close() {
    this.send('Browser.close').catch(() => {});
    return close(this);
  }
}

class ChromiumPage extends Page {
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

  scheme(dark) { return this.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }] }); }

  print() { return this.send('Emulation.setEmulatedMedia', { media: 'print' }); }

  navigate(url) { return this.send('Page.navigate', { url }); }

  async value(expression) {
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }

  async computed() {
    const { metrics } = await this.send('Performance.getMetrics');
    return 1000 * metrics.find(({ name }) => name === 'TaskDuration').value;
  }

  async pointer(x, y, press) {
    for (const type of press ? ['mouseMoved', 'mousePressed', 'mouseReleased'] : ['mouseMoved']) await this.send('Input.dispatchMouseEvent', { type, x, y, button: type === 'mouseMoved' ? 'none' : 'left', clickCount: 1 });
  }

  wheel(x, y, deltaY) { return this.send('Input.dispatchMouseEvent', { type: 'mouseWheel', x, y, deltaX: 0, deltaY }); }

  type(text) { return this.send('Input.insertText', { text }); }

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
