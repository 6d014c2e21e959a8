// Conversations and settings in the storage of the browser.

import assert from 'node:assert/strict';

export const tests = {};

tests['the conversation outlives a reload, within bounds'] = async ({ page, mock, ask }) => {
  await ask('think');
  await ask('story');
  const before = await page.value('JSON.stringify(messages)');
  await page.open(mock.url);
  await page.until(`server.state === 'ready'`);
  assert.equal(await page.value('JSON.stringify(messages)'), before);
  assert.equal(await page.value(`$('turns').children.length`), 4);
  // A question is stored before its answer is there, and what is not sent yet as well.
  await ask('slow', 0);
  await page.until(`localStorage.getItem('ember.chat.' + chat.id).includes('"slow"')`);
  await page.until(`variantOf(messages.at(-1)).content.length > 40`);
  await page.type('not sent yet');
  await page.open(mock.url);
  await page.until(`server.state === 'ready'`);
  assert.equal(await page.value(`variantOf(messages.at(-1)).state + $('prompt').value`), 'cutnot sent yet');
  assert.match(await page.value(`$('turns').lastChild.querySelector('.note').textContent`), /^This is not the whole answer/);
  await page.value(`for (let i = 0; i < 40; i += 1) { messages.push({ role: 'user', content: 'y'.repeat(50000) }, { role: 'assistant', current: 0, variants: [{ ...variantOf(messages[1]), content: String(i) }] }); } save()`);
  const stored = await page.value(`localStorage.getItem('ember.chat.' + chat.id)`);
  assert.ok(stored.length > 500000 && stored.length < 1600000, String(stored.length));
  assert.ok(stored.includes('"39"') && !stored.includes('Once upon'));
  // What somebody else left there does not break the page.
  for (const junk of ['{', '[1,{"role":"assistant","variants":[{"content":1}]},{"role":"user"}]', '[{"role":"assistant","variants":[{"content":"a","trace":[[1,2,3,4]]}]}]', '"x"']) {
    for (const [name, text] of [['conversation', junk], ['chat.a', junk], ['chat.b', `{"messages":${junk}}`], ['settings', junk]]) {
      await page.value(`localStorage.clear(); sessionStorage.clear(); localStorage.setItem('ember.${name}', ${JSON.stringify(text)})`);
      await page.open(mock.url);
      await page.until(`server.state === 'ready'`);
    }
  }
  await page.value(`localStorage.setItem('ember.settings', '{"system":5,"theme":"x","temperature":"a","top_k":3,"thinking":"?"}'); 0`);
  await page.open(mock.url);
  assert.deepEqual(await page.value('settings'), { system: '', theme: 'x', tint: false, panel: true, top_k: 3, depths: {} });
  // The name under which a single conversation lay.
  await page.value(`localStorage.clear(); sessionStorage.clear(); localStorage.setItem('ember.conversation', '[{"role":"user","content":"from before"}]')`);
  await page.open(mock.url);
  assert.deepEqual(await page.value('messages'), [{ role: 'user', content: 'from before' }]);
};

tests['what is too long to be stored leaves the rest stored'] = async ({ page, mock, ask }) => {
  await ask('say one');
  await page.value(`messages.push({ role: 'user', content: 'y'.repeat(1600000) }, { ...messages[1], variants: [{ ...variantOf(messages[1]) }] }); save()`);
  assert.match(await page.value(`$('toast').textContent`), /too long to be stored whole/);
  await page.open(mock.url);
  assert.deepEqual(await page.value('messages.map(m => m.content ?? variantOf(m).content)'), ['say one', 'one']);
};

tests['conversations are kept beside each other, opened and deleted'] = async ({ page, mock, ask }) => {
  await page.press('Alt+l');
  assert.match(await page.value(`$('chats').textContent`), /There is none yet/);
  await page.press('Escape');
  await ask('say one');
  const first = await page.value('chat.id');
  await page.press('Alt+n');
  await ask('say two');
  // Undo of a new chat goes back, and what was asked there meanwhile stays.
  await page.click('#toast button');
  await page.until(`chat.id === '${first}' && $('turns').textContent.includes('say one')`);
  const rows = () => page.value(`[...$('chats-list').children].map(li => li.firstChild.firstChild.textContent)`);
  await page.click('#list');
  assert.deepEqual(await rows(), ['say two', 'say one']);
  assert.equal(await page.value('document.activeElement.textContent.slice(0, 7)'), 'say one', 'the focus is on what is shown');
  await page.click('#chats-list li:nth-child(1) button:first-child');
  await page.until(`messages[0]?.content === 'say two' && !$('chats').open`);
  // Deleting, the one that is shown as well, can be taken back.
  await page.click('#list');
  await page.click('#chats-list li:nth-child(1) .act');
  await page.until('messages.length === 0');
  await page.until(`document.activeElement.textContent === 'Undo'`);
  assert.equal(await page.value('readChats().length'), 1);
  await page.press('Enter');
  await page.until('readChats().length === 2');
  await page.click('#chats-list li:nth-child(2) .act');
  await page.until('readChats().length === 1');
  await page.press('Escape');
  await page.open(mock.url);
  await page.until(`server.state === 'ready'`);
  assert.deepEqual(await page.value('[messages.length, chat.id, readChats()[0].title]'), [0, '', 'say two'], 'a new chat stays one');
  // The oldest make room.
  await page.value(`for (let i = 0; i < 25; i += 1) { messages = [{ role: 'user', content: 'q' + i }]; setChat('id' + i); save(); }`);
  assert.deepEqual(await page.value(`[readChats().length, readChats().some(c => c.title === 'say two'), readChats().some(c => c.title === 'q24')]`), [20, false, true]);
  // Depth goes before words do.
  await page.value(`(() => { const trace = Array.from({ length: 25000 }, () => ({ token: 1, text: ' word', mean_steps: 2, steps: [1, 2, 3, 2] }));
    for (let i = 0; i < 5; i += 1) { messages = [{ role: 'user', content: 'deep' + i }, { role: 'assistant', current: 0, variants: [{ content: 'a', reasoning: '', state: 'done', trace, thinkingTrace: [] }] }]; setChat('deep' + i); save(); } })()`);
  assert.deepEqual(await page.value(`readChats().slice(0, 5).map(c => [c.title, c.messages[1].variants[0].trace.length > 0])`), [['deep4', true], ['deep3', true], ['deep2', true], ['deep1', false], ['deep0', false]]);
  assert.equal(await page.value('readChats().length'), 20);
  await page.value(`for (let i = 0; i < 5; i += 1) { messages = [{ role: 'user', content: 'y'.repeat(700000) }]; setChat('big' + i); save(); }`);
  assert.ok(await page.value(`readChats().length < 4 && readChats()[0].id === 'big4' && storage.names('chat.').reduce((n, name) => n + storage.size(name), 0) < 2000500`));
};

tests['tabs write what they changed alone, and keep in step'] = async ({ page, mock, ask, another }) => {
  const other = await another();
  await ask('say one');
  await other.close();
  await page.until(`localStorage.getItem('ember.chat.' + chat.id) !== null`);
  const tab = await another();
  assert.deepEqual(await tab.value('messages.map(m => m.content ?? variantOf(m).content)'), ['say one', 'one'], 'a new tab shows the latest');
  await ask('say two');
  await tab.until(`messages.length === 4 && $('turns').children.length === 4 && variantOf(messages[3]).content === 'two'`);
  // Settings are merged.
  await page.value(`$('system').value = 'Be brief.'; $('system').dispatchEvent(new Event('input'))`);
  await tab.click('#theme');
  await page.until(`document.documentElement.dataset.theme === 'light'`);
  assert.equal(await tab.value(`$('system').value`), 'Be brief.');
  assert.deepEqual(await page.value(`(({ system, theme }) => [system, theme])(JSON.parse(localStorage.getItem('ember.settings')))`), ['Be brief.', 'light']);
  // Where both write, both are kept.
  await ask('slow', 0);
  await tab.until('messages.length === 6');
  await tab.value(`send('say three')`);
  await tab.until(`run === null && variantOf(messages.at(-1)).content === 'three'`);
  // Browsers tell other tabs of what was written a moment later.
  await page.until(`chat.id !== ${JSON.stringify(await tab.value('chat.id'))}`);
  await page.value('stop()');
  assert.deepEqual((await page.value(`readChats().map(c => c.messages.filter(m => m.role === 'user').map(m => m.content).join())`)).sort(), ['say one,say two,slow', 'say one,say two,slow,say three']);
  await tab.close();
};

tests['without storage the page works and says so'] = async ({ page, mock, ask }) => {
  mock.state.first += `for (const n of ['localStorage', 'sessionStorage']) Object.defineProperty(window, n, { get() { throw new DOMException('no', 'SecurityError'); } });`;
  await page.open(mock.url);
  await page.until(`server.state === 'ready'`);
  await ask('say a');
  assert.equal(await page.value('variantOf(messages[1]).content'), 'a');
  assert.ok(await page.value(`!$('unstored').hidden`));
};

tests['the export is JSON with everything that was said'] = async ({ page, ask }) => {
  await ask('think');
  await page.value(`URL.createObjectURL = blob => { blob.text().then(t => { window.exported = t; }); return 'data:,'; }; el('a').constructor.prototype.click = () => {}`);
  await page.press('Alt+x');
  await page.until('window.exported');
  const out = JSON.parse(await page.value('exported'));
  assert.deepEqual(out.messages.map(m => m.role), ['user', 'assistant']);
  assert.match(out.messages[1].reasoning_content, /Rayleigh/);
  assert.equal(out.messages[1].trace.map(t => t.text).join(''), out.messages[1].reasoning_content + out.messages[1].content);
};
