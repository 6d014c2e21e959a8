// What the page knows of the server and its model, and what it sends of what is set.

import assert from 'node:assert/strict';
import { LeftOut, sleep } from '../browser.mjs';
import { CREST, DENSE } from '../mock.mjs';

export const tests = {};

tests['depth tints tokens and shows their layers'] = async ({ page, mock, ask }) => {
  await ask('story');
  assert.equal(mock.state.requests[0].trace, true);
  assert.equal(mock.state.requests[0].depth, undefined);
  assert.equal(await page.value(`$('threshold').value`), '0.9');
  assert.equal(await page.value(`document.querySelectorAll('.token').length`), 0);
  const text = await page.value(`variantOf(messages[1]).content`);
  await page.click('#tint');
  assert.equal(await page.value(`document.querySelector('.tokens').textContent`), text);
  const wrong = await page.value(`variantOf(messages[1]).trace.filter((t, i) => !document.querySelectorAll('.token')[i].querySelector('.l' + Math.round((t.mean_steps - 1) / 3 * 8))).length`);
  assert.equal(wrong, 0);
  assert.ok(await page.value(`new Set([...document.querySelectorAll('.token span')].map(t => getComputedStyle(t).backgroundColor)).size >= 4`));
  await page.hover('.token:nth-child(4) span');
  await page.until(`!$('strip').hidden && $('strip').querySelectorAll('rect').length === 24`);
  assert.deepEqual(await page.value(`[...$('strip').querySelectorAll('text')].map(t => Number(t.textContent))`), await page.value('variantOf(messages[1]).trace[3].steps'));
  // By keyboard: one stop of Tab, then arrows.
  assert.equal(await page.value(`document.querySelectorAll('.token[tabindex="0"]').length`), 1);
  await page.value(`document.querySelector('.token').focus()`);
  await page.press('ArrowRight');
  await page.press('ArrowRight');
  assert.equal(await page.value('document.activeElement.dataset.i'), '2');
  assert.ok(await page.value(`$('strip').textContent.includes(label(variantOf(messages[1]).trace[2].text))`));
  // Another threshold asks again, and both answers stay.
  await page.value(`(() => { const s = $('threshold-slider'); s.value = 0.4; s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change')); })()`);
  await page.until('run === null && messages[1].variants.length === 2');
  assert.ok(await page.value(`$('strip').hidden || document.querySelector('[aria-describedby="strip"]') !== null`), 'no strip without its token');
  assert.deepEqual(mock.state.requests[1].depth, { threshold: 0.4 });
  assert.equal(mock.state.requests[1].seed, await page.value('messages[1].variants[0].seed'));
  assert.deepEqual(mock.state.requests[1].messages, mock.state.requests[0].messages);
  assert.ok(await page.value('meanSteps(messages[1].variants[1].trace) < meanSteps(messages[1].variants[0].trace)'));
  assert.match(await page.value(`document.querySelector('.figures').textContent`), /of 4 steps at 0\.4/);
  await page.value(`$('threshold').value = '7'; $('threshold').dispatchEvent(new Event('change'))`);
  assert.equal(await page.value(`$('threshold').getAttribute('aria-invalid')`), 'true');
  // Tokens that arrive while the switch is on are tinted as they come.
  mock.state.pause = 5;
  await ask('slow', 0);
  await page.until(`$('turns').lastChild.querySelectorAll('.token').length > 10`);
  await page.press('Escape');
  await page.until('run === null');
};

tests['depth is set for one model, and unset'] = async ({ page, mock, ask }) => {
  const threshold = text => page.value(`$('threshold').value = '${text}'; $('threshold').dispatchEvent(new Event('change'))`);
  await threshold('0,4');
  await page.value(`$('steps').value = '2'; $('steps').dispatchEvent(new Event('change'))`);
  await ask('say a');
  assert.deepEqual(mock.state.requests.at(-1).depth, { threshold: 0.4, steps: 2 });
  mock.state.model = { ...CREST, id: 'another' };
  await page.value('probe()');
  await ask('say b');
  assert.equal(mock.state.requests.at(-1).depth, undefined);
  mock.state.model = CREST;
  await page.value('probe()');
  assert.equal(await page.value(`$('threshold').value + $('steps').value`), '0.42');
  await threshold('');
  assert.equal(await page.value(`$('threshold').value + $('threshold').getAttribute('aria-invalid')`), '0.9false');
  await page.click('#depth-reset');
  assert.deepEqual(await page.value(`[depthSet(), $('depth-reset').hidden, $('steps').value]`), [{}, true, '4']);
  await page.until('run === null && askAgainSoon.timer === undefined && messages.at(-1).variants.length > 1');
  // Keys of the slider ask once, with Enter.
  await page.value(`$('threshold-slider').focus()`);
  const sent = mock.state.requests.length, answers = await page.value('messages.at(-1).variants.length');
  for (let i = 0; i < 3; i += 1) { await page.press('ArrowLeft'); await sleep(600); }
  assert.equal(mock.state.requests.length, sent);
  await page.press('Enter');
  await page.until(`messages.at(-1).variants.length === ${answers + 1} && run === null`);
  assert.deepEqual([mock.state.requests.length, mock.state.requests.at(-1).depth], [sent + 1, { threshold: 0.87 }]);
};

tests['what holds where nothing is set is shown'] = async ({ page, mock, ask }) => {
  assert.ok(await page.value(`$('set-temperature').parentNode.querySelector('[type=range]').className.includes('unknown')`));
  mock.state.model = { ...CREST, meta: { sampling: { do_sample: true, temperature: 0.699999988079071, top_k: 20, top_p: 0.8, min_p: 0 } } };
  await page.value('probe()');
  assert.deepEqual(await page.value(`['temperature', 'top_k', 'top_p', 'min_p'].map(key => { const f = $('set-' + key), s = f.parentNode.querySelector('[type=range]'); return [f.value, f.placeholder, s.value, s.className]; })`),
    [['', '0.7', '0.7', 'unset'], ['', '20', '20', 'unset'], ['', '0.8', '0.8', 'unset'], ['', '0', '0', 'unset']]);
  mock.state.model = { ...CREST, meta: { sampling: { do_sample: false, temperature: 1, top_k: 0, top_p: 1, min_p: 0 } } };
  await page.value('probe()');
  assert.equal(await page.value(`$('set-temperature').placeholder`), '0');
  await ask('say a');
  assert.ok(!('temperature' in mock.state.requests[0]));
  await page.press('Alt+r');
  await page.until('run === null && messages[1].variants.length === 2');
  assert.match(await page.value(`$('toast').textContent`), /^The same answer again/);
};

tests['the demo and models without a chat template begin in their own way'] = async ({ page, mock, ask }) => {
  mock.state.model = { ...CREST, id: 'demo', meta: { family: 'crest', n_params: 224788, chat_template: true } };
  await page.value('probe()');
  assert.match(await page.value(`$('welcome').textContent`), /has 224,788 parameters, was trained on short stories.*a frog named Tom/);
  mock.state.model = { ...DENSE, meta: { chat_template: false } };
  await page.value('probe()');
  assert.match(await page.value(`$('welcome').textContent`), /no chat template: it goes on with your text/);
  await page.value(`set({ system: 'Be brief.', thinking: 'on' })`);
  await ask('say one');
  await ask('  say two ');
  assert.deepEqual([mock.state.requests[0].prompt, mock.state.requests[1].prompt, mock.state.requests[0].max_tokens], ['say one', 'say oneone\n  say two', 512]);
  assert.ok(!('enable_thinking' in mock.state.requests[0]));
  assert.equal(await page.value('variantOf(messages[1]).content'), 'one');
};

tests['a model without depth is not asked for it'] = async ({ page, mock, ask }) => {
  mock.state.model = DENSE;
  await page.value('probe()');
  await ask('story');
  assert.ok(!('trace' in mock.state.requests[0]) && !('depth' in mock.state.requests[0]));
  assert.ok(await page.value(`$('depth').hidden`));
  assert.ok(!/steps/.test(await page.value(`document.querySelector('.figures').textContent`)));
};

tests['what is set is sent, and nothing else'] = async ({ page, mock, ask }) => {
  await ask('say a');
  assert.deepEqual(Object.keys(mock.state.requests[0]).sort(), ['messages', 'model', 'stream', 'stream_options', 'trace']);
  assert.deepEqual(mock.state.requests[0].stream_options, { include_usage: true });
  const set = (id, value) => page.value(`$('${id}').value = ${JSON.stringify(value)}; $('${id}').dispatchEvent(new Event('change'))`);
  for (const [key, value] of [['temperature', '0.7'], ['top_p', '0.9'], ['top_k', '40'], ['min_p', '0.05'], ['max_tokens', '64'], ['seed', '7']]) await set(`set-${key}`, value);
  await set('thinking', 'off');
  await page.value(`$('system').value = 'Be brief.'; $('system').dispatchEvent(new Event('input'))`);
  await set('set-temperature', '9');
  assert.equal(await page.value(`$('set-temperature').getAttribute('aria-invalid')`), 'true');
  await ask('say b');
  const { temperature, top_p, top_k, min_p, max_tokens, seed, enable_thinking, messages } = mock.state.requests[1];
  assert.deepEqual([temperature, top_p, top_k, min_p, max_tokens, seed, enable_thinking], [0.7, 0.9, 40, 0.05, 64, 7, false]);
  assert.deepEqual(messages[0], { role: 'system', content: 'Be brief.' });
  await page.click('#reset');
  await ask('say c');
  assert.ok(!('temperature' in mock.state.requests[2]) && !('enable_thinking' in mock.state.requests[2]));
};

tests['figures of an answer and of the server'] = async ({ page, mock, ask }) => {
  mock.state.pause = 10;
  await ask('say a b c d e f g h');
  await ask('say a b c d e f g h');
  assert.match(await page.value(`$('turns').lastChild.querySelector('.figures').textContent`), /^8 tokens[\d,.]+ tokens\/s\d+ ms to the first76 prompt, 52 cached/);
  assert.equal(await page.value(`$('meter').textContent`), '84 of 4,096 tokens');
  assert.deepEqual(await page.value(`[...parseMetrics('# x\\na{b="} 1"} 2\\na 3 1700000\\nnan NaN\\nc +Inf\\nbad')]`), [['a', 5]]);
  mock.state.waiting = 3;
  mock.state.generated += 500;
  await page.until(`$('waiting').textContent === '3' && Number($('rate').firstChild.textContent) > 50`);
  assert.equal(await page.value(`$('running').textContent + '|' + $('cache').textContent`), '1 of 8|37 %');
};

tests['a queue is told from thinking'] = async ({ page, mock, ask }) => {
  mock.state.waiting = 2;
  await ask('never', 0);
  await page.until(`$('turns').lastChild.querySelector('.pending').textContent === 'In the queue of the server: 2'`);
  await page.press('Escape');
};

tests['loading, offline, draining and back'] = async ({ page, mock }) => {
  const title = () => page.value(`$('welcome').querySelector('h2')?.textContent`);
  for (const [mode, wanted] of [['loading', 'Loading the model'], ['draining', 'The server takes no requests']]) {
    mock.state.mode = mode;
    await page.value('probe()');
    assert.equal(await title(), wanted);
    await page.value(`$('prompt').focus()`);
    await page.type('x');
    assert.ok(await page.value(`$('send').disabled`));
    mock.state.mode = 'ready';
    await page.until(`server.state === 'ready'`);
    assert.ok(await page.value(`!$('send').disabled`));
  }
  // A server that ends says so while its figures go on.
  mock.state.mode = 'draining';
  await page.until(`server.state === 'unavailable'`);
  mock.state.mode = 'ready';
  await page.until(`server.state === 'ready'`);
  mock.state.foreign = true;
  await page.value('probe()');
  assert.match(await page.value(`$('welcome').textContent`), /takes no requests.*the name in Host is not one/);
  mock.state.foreign = false;
  await page.value('probe()');
  await mock.close();
  await page.until(`server.state === 'offline'`);
  assert.equal(await title(), 'The server is not there');
  await mock.reopen();
  await page.until(`server.state === 'ready'`);
};

tests['a key is asked for, kept in the tab and sent'] = async ({ page, mock, ask }) => {
  mock.state.key = 'secret';
  await page.value('probe()');
  for (const key of ['wrong', 'secret']) {
    await page.value(`document.querySelector('.entry input').focus()`);
    await page.type(key);
    await page.press('Enter');
    await page.until(key === 'wrong' ? `$('welcome').textContent.includes('refused')` : `server.state === 'ready'`);
  }
  assert.equal(await page.value('document.activeElement.id'), 'prompt');
  await ask('say a');
  assert.equal(await page.value('variantOf(messages[1]).content'), 'a');
  assert.deepEqual(await page.value('[JSON.stringify(localStorage).includes("secret"), JSON.stringify(sessionStorage).includes("secret")]'), [false, true]);
  mock.state.key = 'another';
  await ask('say b');
  await page.until(`!$('banner').hidden && document.activeElement === $('banner').querySelector('input')`);
  // With the key the question is asked again.
  await page.type('another');
  await page.press('Enter');
  await page.until(`run === null && variantOf(messages.at(-1)).content === 'b'`);
};

tests['a key of any characters reaches the server in UTF-8'] = async ({ page, mock }) => {
  if (!page.sendsBytes) throw new LeftOut('WebKitGTK takes the bytes of a header for characters and encodes them');
  mock.state.key = 'sécret 🗝';
  await page.value('probe()');
  await page.value(`document.querySelector('.entry input').focus()`);
  await page.type('sécret 🗝');
  await page.press('Enter');
  await page.until(`server.state === 'ready'`);
};
