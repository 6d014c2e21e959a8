// WebKit (the MiniBrowser of WebKitGTK), driven by WebDriver over HTTP. It needs a display: `xvfb-run -a` gives it one.

import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { Script } from 'node:vm';
import { AS_PRINTED, close, endWith, insertion, keyActions, LeftOut, Page, pointerActions, profile, sleep, wheelActions } from './browser.mjs';

export const names = ['WebKitWebDriver'];

/** Puts what goes wrong in the page where it can be asked for: the protocol tells of none of it. */
const WATCH = `window.problems = [];
addEventListener('error', event => { problems.push(event.message); });
addEventListener('unhandledrejection', event => { problems.push(String(event.reason)); });
addEventListener('securitypolicyviolation', event => { problems.push('Content Security Policy: ' + event.violatedDirective + ' ' + event.blockedURI); });
console.error = (...words) => { problems.push(words.join(' ')); };
performance.setResourceTimingBufferSize(10000);`;

export class Browser {
  static async launch(path) {
    const browser = new Browser();
    browser.profile = profile();
    // Without what makes the window wider than a page is to be.
    mkdirSync(join(browser.profile, 'gtk-3.0'));
    writeFileSync(join(browser.profile, 'gtk-3.0', 'gtk.css'), '* { min-width: 0; min-height: 0; padding: 0; margin: 0; border: 0; font-size: 1px; -gtk-icon-transform: scale(0.1) } image { -gtk-icon-size: 1px }');
    const port = await freePort();
    browser.url = `http://127.0.0.1:${port}`;
    // Without what is drawn by a GPU, and with data that is gone with the folder.
    browser.child = spawn(path, [`--port=${port}`], { stdio: 'ignore', env: { ...process.env, WEBKIT_DISABLE_COMPOSITING_MODE: '1', XDG_DATA_HOME: browser.profile, XDG_CACHE_HOME: browser.profile, XDG_CONFIG_HOME: browser.profile } });
    endWith(browser.child);
    for (let tries = 0; ; tries += 1) {
      try { await browser.send('GET', '/status'); break; } catch (error) { if (tries > 200) throw error; await sleep(25); }
    }
    return browser;
  }

  async send(method, path, body) {
    const response = await fetch(this.url + path, { method, ...(method === 'POST' && { body: JSON.stringify(body ?? {}), headers: { 'content-type': 'application/json' } }) });
    const { value } = await response.json();
    if (value?.error) throw new Error(`${path.split('/').slice(3).join('/')}: ${value.message || value.error}`);
    return value;
  }

  /** Every page is a browser of its own, with a storage that is empty. */
  async page({ width = 1280, height = 800, dark = false, beside = undefined } = {}) {
    const page = new WebKitPage();
    Object.assign(page, { browser: this, beside });
    if (beside) {
      page.session = beside.session;
      page.tab = (await this.send('POST', `/session/${page.session.id}/window/new`, { type: 'window' })).handle;
    } else {
      const { sessionId, capabilities } = await this.send('POST', '/session', { capabilities: { alwaysMatch: { 'webkitgtk:browserOptions': { args: ['--automation'] }, unhandledPromptBehavior: 'accept' } } });
      page.session = { id: sessionId, turn: Promise.resolve() };
      this.version = `WebKitGTK ${capabilities.browserVersion}`;
      page.tab = await this.send('GET', `/session/${sessionId}/window`);
      page.session.tab = page.tab;
    }
    await page.size(width, height);
    await page.scheme(dark);
    return page;
  }

  close() {
    this.child.kill();
    return close(this);
  }
}

async function freePort() {
  const server = createServer();
  await new Promise(resolve => { server.listen(0, '127.0.0.1', resolve); });
  const { port } = server.address();
  await new Promise(resolve => { server.close(resolve); });
  return port;
}

const parses = text => { try { return new Script(text) !== null; } catch { return false; } };

/** The body of a function that returns what statements have as their value: that of the last, where it is an expression. */
function body(text) {
  const returned = part => `return await (${part}\n)`, whole = returned(text);
  const fits = part => parses(`async () => {${part}}`);
  if (fits(whole)) return whole;
  for (let at = text.lastIndexOf(';'); at > 0; at = text.lastIndexOf(';', at - 1)) {
    const parted = `${text.slice(0, at)};${returned(text.slice(at + 1))}`;
    if (fits(parted)) return parted;
  }
  return text;
}

class WebKitPage extends Page {
  /** What the server is to run before the page. */
  first = WATCH;
  sendsBytes = false;
  touches = false;

  /** One command after the other, each in this tab. */
  send(method, path, parameters) {
    const { session, browser } = this, turn = session.turn.then(async () => {
      if (session.tab !== this.tab) await browser.send('POST', `/session/${session.id}/window`, { handle: this.tab });
      session.tab = this.tab;
      return browser.send(method, `/session/${session.id}${path}`, parameters);
    });
    session.turn = turn.catch(() => {});
    return turn;
  }

  /** The window is as large as makes the page of this size. */
  async size(width, height, phone = false) {
    if (phone) throw new LeftOut('WebDriver has no touch screen for WebKitGTK');
    let outer = { width, height };
    for (let tries = 0; tries < 20; tries += 1) {
      await this.send('POST', '/window/rect', outer);
      await sleep(50);
      const [wide, tall] = await this.value('[innerWidth, innerHeight]');
      if (wide === width && tall === height) return;
      outer = { width: outer.width + width - wide, height: outer.height + height - tall };
    }
    throw new Error(`no window of ${width} x ${height}`);
  }

  scheme(dark) { if (dark) throw new LeftOut('the colours of WebKitGTK are those of the desktop: start it with GTK_THEME=Adwaita:dark'); }

  print() { return this.value(AS_PRINTED); }

  async navigate(url) {
    await this.gather();
    await this.send('POST', '/url', { url });
  }

  async value(expression) {
    const script = `const done = arguments[0]; (async () => {${body(expression)}})().then(value => done(JSON.stringify({ value })), error => done(JSON.stringify({ error: String(error) })));`;
    const { value, error } = JSON.parse(await this.send('POST', '/execute/async', { script, args: [] }));
    if (error !== undefined) throw new Error(`${expression}: ${error}`);
    return value;
  }

  /** Takes what the page has noted of itself before it is left. */
  async gather() {
    const [requests, problems] = await this.value(`[performance.getEntriesByType('resource').map(({ name }) => name), window.problems?.splice(0) ?? []]`);
    this.requests.push(...requests);
    this.problems.push(...problems);
  }

  /** What the processes of the pages have computed: WebKit has one for each. */
  computed() {
    let ticks = 0;
    for (const pid of readdirSync('/proc').filter(name => /^\d+$/.test(name))) {
      let stat;
      try { stat = readFileSync(`/proc/${pid}/stat`, 'latin1'); } catch { continue; }
      const [, name, rest] = /\((.*)\) (.*)/.exec(stat), fields = rest.split(' ');
      if (name.startsWith('WebKitWebProces') && isBelow(pid, this.browser.child.pid)) ticks += Number(fields[11]) + Number(fields[12]);
    }
    return ticks * 10;
  }

  act(actions) { return this.send('POST', '/actions', { actions }); }

  pointer(x, y, press) { return this.act(pointerActions(x, y, press)); }

  wheel(x, y, deltaY) { return this.act(wheelActions(x, y, deltaY)); }

  type(text) { return this.value(insertion(text)); }

  press(combination) { return this.act(keyActions(combination)); }

  async screenshot(path) { writeFileSync(path, Buffer.from(await this.send('GET', '/screenshot'), 'base64')); }

  close() { return this.send('DELETE', this.beside ? '/window' : ''); }
}

/** Whether a process descends from another. */
function isBelow(pid, ancestor) {
  try {
    for (let at = Number(pid); at > 1; at = Number(/\) \S (\d+)/.exec(readFileSync(`/proc/${at}/stat`, 'latin1'))[1])) if (at === ancestor) return true;
  } catch { /* It has ended. */ }
  return false;
}
