// Firefox without a window, driven by WebDriver BiDi over its websocket. What BiDi has no command for is done as Firefox's own tools for developers do it.

import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { close, endWith, insertion, keyActions, Page, pointerActions, profile, wheelActions } from './browser.mjs';
import { openSocket } from './socket.mjs';

export const names = ['firefox', 'firefox-esr'];

/** Nothing is asked of the network, and nothing is animated that the page does not animate. */
const PREFERENCES = {
  'app.normandy.enabled': false, 'app.update.disabledForTesting': true, 'browser.aboutwelcome.enabled': false, 'browser.newtabpage.enabled': false, 'browser.region.update.enabled': false,
  'browser.safebrowsing.update.enabled': false, 'browser.search.update': false, 'browser.shell.checkDefaultBrowser': false, 'browser.startup.homepage_override.mstone': 'ignore', 'browser.startup.page': 0,
  'datareporting.policy.dataSubmissionEnabled': false, 'dom.ipc.processPrelaunch.enabled': false, 'extensions.getAddons.cache.enabled': false, 'extensions.update.enabled': false, 'general.smoothScroll': false,
  'network.captive-portal-service.enabled': false, 'network.connectivity-service.enabled': false, 'network.dns.disablePrefetch': true, 'security.remote_settings.crlite_filters.enabled': false,
  'services.settings.server': 'data:,', 'toolkit.telemetry.reportingpolicy.firstRun': false, 'toolkit.telemetry.server': '',
};

export class Browser {
  #next = 0;
  #waiting = new Map();
  #pages = new Map();

  static async launch(path) {
    const browser = new Browser();
    browser.profile = profile();
    writeFileSync(join(browser.profile, 'user.js'), Object.entries(PREFERENCES).map(([name, value]) => `user_pref(${JSON.stringify(name)}, ${JSON.stringify(value)});\n`).join(''));
    browser.child = spawn(path, ['--headless', '--no-remote', '--remote-debugging-port=0', '--remote-allow-system-access', '--profile', browser.profile, 'about:blank'],
      { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, MOZ_CRASHREPORTER_DISABLE: '1' } });
    endWith(browser.child);
    let said = '';
    const url = await new Promise((resolve, reject) => {
      browser.child.stderr.on('data', data => { const found = /WebDriver BiDi listening on (ws:\S+)/.exec((said = (said + data).slice(-4000))); if (found) resolve(found[1]); });
      browser.child.once('error', reject);
      browser.child.once('exit', () => reject(new Error(`${path} ended: ${said}`)));
    });
    browser.socket = await openSocket(`${url}/session`, text => browser.#receive(JSON.parse(text)));
    const { capabilities } = await browser.send('session.new', { capabilities: { alwaysMatch: { unhandledPromptBehavior: { default: 'accept' } } } });
    browser.version = `${capabilities.browserName} ${capabilities.browserVersion}`;
    await browser.send('session.subscribe', { events: ['log.entryAdded', 'network.beforeRequestSent', 'browsingContext.userPromptOpened'] });
    const { contexts } = await browser.send('browsingContext.getTree', { 'moz:scope': 'chrome' });
    browser.window = contexts[0].context;
    return browser;
  }

  #receive(message) {
    if (message.id !== undefined) {
      const { resolve, reject, method } = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (message.type === 'error') reject(new Error(`${method}: ${message.message}`));
      else resolve(message.result);
    } else {
      const { params } = message;
      this.#pages.get(params.context ?? params.source?.context)?.event(message);
    }
  }

  send(method, params = {}) {
    const id = this.#next++;
    this.socket.send(JSON.stringify({ id, method, params }));
    return new Promise((resolve, reject) => { this.#waiting.set(id, { resolve, reject, method }); });
  }

  async page({ width = 1280, height = 800, dark = false, beside = undefined } = {}) {
    const userContext = beside ? beside.user : (await this.send('browser.createUserContext')).userContext;
    const { context } = await this.send('browsingContext.create', { type: 'tab', userContext });
    const page = new FirefoxPage();
    Object.assign(page, { browser: this, context, user: userContext, beside });
    this.#pages.set(context, page);
    page.tab = await this.evaluate(this.window, 'gBrowser.selectedBrowser.browsingContext.id');
    // A tab behind another is slow otherwise.
    await page.tools(`tab.isActive = true`);
    await page.size(width, height);
    await page.scheme(dark);
    return page;
  }

  /** The value of an expression, in a page or in the browser's own window. */
  async evaluate(context, expression) {
    const answer = await this.send('script.evaluate', { expression, target: { context }, awaitPromise: true, userActivation: true });
    if (answer.type === 'exception') throw new Error(`${expression}: ${answer.exceptionDetails.text}`);
    return plain(answer.result);
  }

  close() {
    this.send('browser.close').catch(() => {});
    return close(this).then(() => this.socket.close());
  }
}

/** A value as the protocol writes it. */
function plain({ type, value }) {
  if (type === 'array') return (value ?? []).map(plain);
  if (type === 'object') return Object.fromEntries((value ?? []).map(([name, item]) => [name, plain(item)]));
  if (type === 'number' && typeof value === 'string') return Number(value);
  return type === 'null' ? null : value;
}

class FirefoxPage extends Page {
  send(method, params) { return this.browser.send(method, { context: this.context, ...params }); }

  event({ method, params }) {
    if (method === 'network.beforeRequestSent') this.requests.push(params.request.url);
    if (method === 'log.entryAdded' && params.level === 'error') this.problems.push(params.text);
    if (method === 'browsingContext.userPromptOpened') this.problems.push(`dialog: ${params.message}`);
  }

  /** Sets what the tools for developers set of a tab. */
  tools(statement) { return this.browser.evaluate(this.browser.window, `{ const tab = BrowsingContext.get(${this.tab}); ${statement}; }`); }

  async size(width, height, phone = false) {
    await this.send('browsingContext.setViewport', { viewport: { width, height }, devicePixelRatio: phone ? 2 : 1 });
    await this.tools(`tab.inRDMPane = ${phone}; tab.touchEventsOverride = '${phone ? 'enabled' : 'none'}'`);
  }

  scheme(dark) { return this.tools(`tab.prefersColorSchemeOverride = '${dark ? 'dark' : 'light'}'`); }

  print() { return this.tools(`tab.mediumOverride = 'print'`); }

  navigate(url) { return this.send('browsingContext.navigate', { url, wait: 'complete' }); }

  value(expression) { return this.browser.evaluate(this.context, expression); }

  async computed() {
    return (await this.browser.evaluate(this.browser.window, `(async () => {
      const { children } = await ChromeUtils.requestProcInfo(), { osPid } = BrowsingContext.get(${this.tab}).currentWindowGlobal;
      const { pid, threads } = children.find(child => child.pid === osPid);
      return threads.find(({ tid }) => tid === pid).cpuTime;
    })()`)) / 1e6;
  }

  act(actions) { return this.send('input.performActions', { actions }); }

  pointer(x, y, press) { return this.act(pointerActions(x, y, press)); }

  wheel(x, y, deltaY) { return this.act(wheelActions(x, y, deltaY)); }

  type(text) { return this.value(insertion(text)); }

  press(combination) { return this.act(keyActions(combination)); }

  async screenshot(path) {
    const { data } = await this.send('browsingContext.captureScreenshot', { format: { type: path.endsWith('.webp') ? 'image/webp' : 'image/png' } });
    writeFileSync(path, Buffer.from(data, 'base64'));
  }

  close() { return this.send('browsingContext.close'); }
}
