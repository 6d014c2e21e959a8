// Small and large windows, paper, colours, keys.

import assert from 'node:assert/strict';

export const tests = {};

tests['a phone shows it all without scrolling sideways'] = async ({ page, ask }) => {
  // Without a touch screen, a window as narrow.
  await page.size(390, 844, page.touches);
  const fits = async what => assert.deepEqual(await page.value(`[document.documentElement.scrollWidth, document.body.scrollWidth, $('scroll').scrollWidth - $('scroll').clientWidth, $('panel').scrollWidth - $('panel').clientWidth]`), [390, 390, 0, 0], what);
  await fits('empty');
  for (const text of ['markdown', 'hostile', 'long', 'error', 'full']) { await ask(text, 15000); await fits(text); }
  await page.value('newChat()');
  await ask('story');
  await page.value('setTint(true)');
  await fits('depth');
  await page.value(`document.querySelector('.token:nth-child(30)').focus()`);
  assert.ok(await page.value(`(() => { const b = $('strip').getBoundingClientRect(); return b.left >= 0 && b.right <= 390 && b.top >= 0; })()`));
  await page.value('editLast()');
  await fits('edit');
  await page.click('#list');
  assert.ok(await page.value(`$('chats').scrollWidth <= $('chats').clientWidth && $('chats').getBoundingClientRect().right <= 390`));
  await page.press('Escape');
  await page.click('#toggle');
  await fits('settings');
  assert.ok(await page.value(`document.querySelector('main').inert && document.activeElement === $('close')`));
  await page.press('Escape');
  assert.ok(await page.value(`!document.querySelector('main').inert && document.activeElement === $('toggle')`));
  assert.deepEqual(await page.value(`[...document.querySelectorAll('button')].filter(b => b.offsetParent && !(b.getAttribute('aria-label') ?? b.getAttribute('aria-labelledby') ?? b.textContent).trim()).length`), 0);
};

tests['short windows'] = async ({ page }) => {
  await page.size(320, 256);
  await page.value(`$('status').lastChild.textContent = 'Not available'`);
  assert.ok(await page.value(`$('status').getBoundingClientRect().right <= document.querySelector('.tools').getBoundingClientRect().left && document.documentElement.scrollWidth === 320`));
  await page.size(640, 360);
  await page.click('#toggle');
  const reach = () => page.value(`(() => { const p = $('panel'); p.scrollTop = p.scrollHeight; const r = $('set-seed').getBoundingClientRect(); $('set-seed').scrollIntoView(); return [p.scrollHeight > p.clientHeight, $('set-seed').getBoundingClientRect().top < 330]; })()`);
  assert.deepEqual(await reach(), [true, true]);
};

tests['a touch keyboard has an Enter of its own'] = async ({ page }) => {
  await page.size(390, 844, true);
  await page.until(`$('prompt').enterKeyHint === 'enter'`);
  await page.size(1280, 800);
  await page.until(`$('prompt').enterKeyHint === 'send'`);
};

tests['a keyboard that lies over the page leaves the message box in view'] = async ({ page, ask }) => {
  await page.size(390, 844, true);
  await ask('markdown');
  const bottom = () => page.value(`$('composer').getBoundingClientRect().bottom`);
  assert.ok(await bottom() > 700);
  await page.value(`Object.defineProperty(visualViewport, 'height', { value: 500, configurable: true }); visualViewport.dispatchEvent(new Event('resize'))`);
  assert.ok(await bottom() <= 500);
  assert.ok(await page.value(`$('scroll').scrollHeight - $('scroll').scrollTop - $('scroll').clientHeight <= 1`));
  await page.value(`delete visualViewport.height; visualViewport.dispatchEvent(new Event('resize'))`);
  assert.ok(await bottom() > 700);
};

tests['paper shows the conversation alone'] = async ({ page, ask }) => {
  await ask('say one');
  await page.value(`setTheme('dark')`);
  await page.print();
  assert.deepEqual(await page.value(`[getComputedStyle(document.querySelector('.skip')).display, getComputedStyle(document.body).color, getComputedStyle(document.querySelector('.dock')).display]`), ['none', 'rgb(20, 24, 28)', 'none']);
};

tests['text can be read on its ground'] = async ({ page, ask }) => {
  await ask('story');
  await page.value('setTint(true)');
  const ratios = `(() => {
    const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const y = c => { const [r, g, b] = rgb(c).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const ratio = (a, b) => { const [hi, lo] = [y(a), y(b)].sort((p, q) => q - p); return (hi + 0.05) / (lo + 0.05); };
    const out = {};
    for (let i = 0; i < 9; i += 1) { const n = document.body.appendChild(el('i', { className: 'l' + i })), s = getComputedStyle(n); out['l' + i] = ratio(s.color, s.backgroundColor); n.remove(); }
    const probe = document.body.appendChild(el('i'));
    const colour = name => { probe.style.color = 'var(--' + name + ')'; return getComputedStyle(probe).color; };
    for (const [a, b] of [['ink', 'paper'], ['faint', 'paper'], ['faint', 'surface'], ['faint', 'raised'], ['faint', 'hover'], ['accent', 'paper'], ['on-accent', 'accent'], ['error', 'error-ground'], ['ink', 'error-ground']]) out[a + ' on ' + b] = ratio(colour(a), colour(b));
    out['edge x1.5'] = 1.5 * ratio(colour('edge'), colour('raised'));
    return Object.entries(out).filter(([, r]) => r < 4.5);
  })()`;
  for (const theme of ['light', 'dark']) {
    await page.value(`setTheme('${theme}')`);
    assert.deepEqual(await page.value(ratios), [], theme);
  }
};

tests['keys and their list'] = async ({ page, ask }) => {
  await page.value('document.activeElement.blur()');
  await page.press('?');
  assert.ok(await page.value(`$('keys').open`));
  await page.press('Escape');
  assert.ok(await page.value(`!$('keys').open`));
  await page.press('/');
  assert.equal(await page.value('document.activeElement.id'), 'prompt');
  await page.type('a');
  await page.press('Shift+Enter');
  await page.type('b?');
  assert.equal(await page.value(`$('prompt').value`), 'a\nb?');
  assert.ok(await page.value(`!$('keys').open`));
  await page.press('Alt+p');
  assert.equal(await page.value('panelOpen()'), false);
  // A key that makes a character with Alt makes it; keys of other scripts count by their place.
  const alt = (key, code) => page.value(`!document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: '${key}', code: '${code}', altKey: true, bubbles: true, cancelable: true }))`);
  await ask('say b');
  for (const [key, code] of [['Dead', 'KeyN'], ['ń', 'KeyN'], ['ę', 'KeyE']]) assert.equal(await alt(key, code), false);
  assert.equal(await page.value('messages.length'), 2);
  assert.equal(await alt('т', 'KeyN'), true);
  await page.until('messages.length === 0');
  await ask('say c');
  assert.match(await page.value(`$('live').textContent`), /^Answer: c/);
  assert.ok(await page.value(`Object.keys(KEYS).every(k => [...$('keys').querySelectorAll('kbd')].some(n => n.textContent.toLowerCase() === k))`));
};

tests['a dialog closes where it is clicked beside'] = async ({ page }) => {
  await page.click('#help');
  const [left, top] = await page.value(`(() => { const { left, top } = $('keys').getBoundingClientRect(); return [left, top]; })()`);
  await page.pointer(left + 8, top + 8, true);
  assert.ok(await page.value(`$('keys').open`));
  await page.pointer(left - 20, top + 8, true);
  await page.until(`!$('keys').open`);
};

tests['the Option key writes characters'] = async ({ page, mock, ask }) => {
  mock.state.first += `Object.defineProperty(navigator, 'platform', { value: 'MacIntel' });`;
  await page.open(mock.url);
  await page.until(`server.state === 'ready'`);
  await ask('say a');
  const option = (key, code) => page.value(`!document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: '${key}', code: '${code}', altKey: true, bubbles: true, cancelable: true }))`);
  for (const [key, code] of [['Dead', 'KeyN'], ['ń', 'KeyN'], ['π', 'KeyP'], ['n', 'KeyN']]) assert.equal(await option(key, code), false);
  await page.value('document.activeElement.blur()');
  assert.equal(await option('Dead', 'KeyN'), false);
  assert.equal(await option('π', 'KeyP'), true);
  assert.deepEqual(await page.value(`[messages.length, panelOpen(), $('new').title, $('export').title]`), [2, false, 'New chat', 'Export as JSON (⌥X)']);
};

tests['a key that ends a word sends nothing'] = async ({ page, mock }) => {
  await page.value(`$('prompt').focus()`);
  await page.type('say a');
  // Safari says first that the word has ended.
  const enter = properties => page.value(`$('prompt').dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true, cancelable: true, ...${JSON.stringify(properties)} }))`);
  for (const properties of [{ isComposing: true, keyCode: 13 }, { keyCode: 229 }]) assert.equal(await enter(properties), true);
  assert.deepEqual([mock.state.requests.length, await page.value(`$('prompt').value`)], [0, 'say a']);
  assert.equal(await enter({ keyCode: 13 }), false);
  await page.until('run === null && messages.length === 2');
};

tests['text is copied without the clipboard of secure pages'] = async ({ page, mock, ask }) => {
  mock.state.first += `Object.defineProperty(navigator, 'clipboard', { value: undefined });`;
  await page.open(mock.url);
  await page.until(`server.state === 'ready'`);
  await ask('say a b');
  await page.value(`document.execCommand = name => { const { value, selectionStart, selectionEnd } = document.activeElement; window.copied = [name, value.slice(selectionStart, selectionEnd)]; return true; }`);
  await page.press('Alt+c');
  await page.until('window.copied');
  assert.deepEqual(await page.value('copied'), ['copy', 'a b']);
  assert.equal(await page.value('document.activeElement.id'), 'prompt');
};
