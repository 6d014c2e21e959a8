// Questions, answers, and what goes wrong between them.

import assert from 'node:assert/strict';
import { sleep } from '../browser.mjs';
import { CREST, DENSE } from '../mock.mjs';

export const tests = {};

tests['Escape stops the answer, on the server too'] = async ({ page, mock, ask }) => {
  await ask('slow', 0);
  await page.until(`variantOf(messages.at(-1)).content.length > 40`);
  assert.equal(await page.value(`$('send').getAttribute('aria-label')`), 'Stop');
  await page.press('Escape');
  await page.until('run === null');
  const said = await page.value('variantOf(messages.at(-1)).content');
  assert.match(said, /^word0 word1 /);
  assert.ok(!said.includes('word399'));
  assert.equal(await page.value(`$('turns').lastChild.dataset.state`), 'stopped');
  assert.ok(await page.value(`$('turns').lastChild.querySelector('.note').textContent.includes('stopped')`));
  for (let i = 0; i < 50 && mock.state.cancelled === 0; i += 1) await sleep(20);
  assert.equal(mock.state.cancelled, 1);
  await ask('story');
  assert.deepEqual(mock.state.requests.at(-1).messages, [{ role: 'user', content: 'slow' }, { role: 'assistant', content: said }, { role: 'user', content: 'story' }]);
  // A question is sent once, however often the key is pressed.
  await ask('slow', 0);
  await page.until(`variantOf(messages.at(-1)).content.length > 10`);
  const sent = mock.state.requests.length;
  // While it is written, Enter sends nothing and takes nothing away.
  await page.type('say next');
  await page.press('Enter');
  assert.match(await page.value(`$('toast').textContent`), /still being written/);
  assert.deepEqual([await page.value(`$('prompt').value`), mock.state.requests.length], ['say next', sent]);
  await page.press('Escape');
  await page.until('run === null');
  await Promise.all([page.press('Enter'), page.press('Enter'), page.press('Enter')]);
  await page.until(`run === null && variantOf(messages.at(-1)).content === 'next'`);
  assert.equal(mock.state.requests.length, sent + 1);
  assert.equal(await page.value('messages.length'), 8);
  assert.equal(await page.value('variantOf(messages[5]).state'), 'stopped');
  // The button stops as well.
  await ask('slow', 0);
  await page.until(`variantOf(messages.at(-1)).content.length > 10`);
  await page.click('#send');
  await page.until('run === null');
  assert.equal(await page.value('messages.length'), 10);
};

tests['a reader who goes up stays there'] = async ({ page, mock, ask }) => {
  for (const text of ['markdown', 'markdown']) await ask(text);
  await ask('slow', 0);
  await page.until(`variantOf(messages.at(-1)).content.length > 100`);
  const end = () => page.value(`$('scroll').scrollHeight - $('scroll').scrollTop - $('scroll').clientHeight`);
  await page.wheel(400, 300, -20);
  await page.until(`!$('jump').hidden`);
  await sleep(400);
  assert.ok(await end() > 15);
  await page.click('#jump');
  assert.equal(await page.value('document.activeElement.id'), 'prompt');
  await page.until('following');
  assert.ok(await end() <= 1);
  await page.press('PageUp');
  await page.until('!following');
  assert.ok(await end() > 300);
  await page.press('PageDown');
  await page.until('following');
  await page.press('Escape');
  await page.until('run === null');
};

tests['the focus is never lost'] = async ({ page, ask }) => {
  const focus = () => page.value('document.activeElement.id');
  await ask('say one');
  await page.value(`document.querySelector('[aria-label="Answer again"]').focus()`);
  await page.press('Enter');
  await page.until('run === null && messages[1].variants.length === 2');
  assert.equal(await focus(), 'prompt');
  await ask('slow', 0);
  await page.value(`$('send').focus()`);
  await page.press('Enter');
  await page.until('run === null');
  assert.equal(await focus(), 'prompt');
  await ask('busy');
  await page.value(`$('turns').lastChild.querySelector('.note button').focus()`);
  await page.press('Enter');
  await page.until('run === null');
  assert.equal(await focus(), 'prompt');
  await page.press('Alt+n');
  await page.press('Tab');
  assert.equal(await page.value('document.activeElement.textContent'), 'Undo');
  await page.press('Enter');
  await page.until('messages.length > 0');
  assert.equal(await focus(), 'prompt');
};

tests['another answer is kept beside the first'] = async ({ page, mock, ask }) => {
  await ask('say one');
  await page.press('Alt+r');
  await page.until('run === null && messages[1].variants.length === 2');
  assert.deepEqual(mock.state.requests[1].messages, mock.state.requests[0].messages);
  assert.equal(await page.value(`document.querySelector('.variants').textContent`), '2 of 2');
  await page.press('Alt+j');
  assert.equal(await page.value(`document.querySelector('.variants').textContent`), '1 of 2');
  await page.click('[aria-label="Answer again"]');
  await page.until('run === null && messages[1].variants.length === 3');
  // What came after it can be taken back.
  await ask('say two');
  await page.click('#turns li:nth-child(2) [aria-label="Answer again"]');
  await page.until('run === null && messages[1].variants.length === 4');
  assert.equal(await page.value('messages.length'), 2);
  await page.click('#toast button');
  assert.deepEqual(await page.value('[messages.length, messages[1].variants.length, messages[1].current]'), [4, 4, 2]);
};

tests['an edited message is asked again from there'] = async ({ page, mock, ask }) => {
  for (const text of ['say one', 'say two', 'say three']) await ask(text);
  await page.click('#turns li:nth-child(3) [aria-label="Edit and ask again"]');
  assert.equal(await page.value('document.activeElement.value'), 'say two');
  await page.value('document.activeElement.select()');
  await page.type('say 2');
  await page.press('Enter');
  await page.until('run === null && messages.length === 4');
  assert.deepEqual(mock.state.requests.at(-1).messages.map(m => m.content), ['say one', 'one', 'say 2']);
  assert.equal(await page.value(`$('turns').children.length`), 4);
  assert.equal(await page.value('messages[3].variants.length'), 1);
  await page.click('#toast button');
  assert.deepEqual(await page.value('messages.filter(m => m.role === "user").map(m => m.content)'), ['say one', 'say two', 'say three']);
  // The arrow key in an empty box edits the last; Escape leaves it as it was.
  await page.value(`$('prompt').focus()`);
  await page.press('ArrowUp');
  assert.equal(await page.value('document.activeElement.value'), 'say three');
  await page.press('Escape');
  assert.equal(await page.value(`document.querySelectorAll('.editing').length`), 0);
  // A new chat can be taken back.
  await page.press('Alt+n');
  assert.equal(await page.value('messages.length'), 0);
  assert.ok(await page.value(`!$('welcome').hidden`));
  await page.click('#toast button');
  assert.equal(await page.value('messages.length'), 6);
};

tests['errors are said and can be tried again'] = async ({ page, mock, ask }) => {
  const note = () => page.value(`$('turns').lastChild.querySelector('.note').textContent`);
  await ask('error');
  assert.match(await note(), /^the prompt has 5000 tokens, the context 4096: <b>shorten<\/b> it/);
  assert.equal(await page.value(`$('turns').querySelectorAll('.note b').length`), 0);
  await page.click('#turns li:last-child .note button');
  assert.equal(await page.value('document.activeElement.value'), 'error', 'what was refused can be edited');
  await page.press('Escape');
  await ask('busy');
  assert.match(await note(), /^the queue is full\. Try again in 2 s\./);
  await ask('fails midway');
  assert.match(await note(), /^the engine stopped/);
  assert.ok(await page.value('variantOf(messages.at(-1)).content.length > 50'), 'what came is kept');
  await ask('breaks off');
  // WebKitGTK takes a connection that breaks off for the end of the answer.
  assert.match(await note(), /^The (connection to the server was lost|answer broke off before its end)\./);
  await page.until(`server.state === 'ready'`);
  await ask('ends early');
  assert.match(await note(), /^The answer broke off before its end\./);
  const before = mock.state.requests.length;
  await page.click('#turns li:last-child .note button');
  await page.until('run === null');
  assert.equal(mock.state.requests.length, before + 1);
  await ask('full');
  assert.match(await note(), /^The context is full\. 4,096 of 4,096 tokens/);
  await ask('short');
  assert.match(await note(), /^The answer ends at its limit/);
  await ask('empty');
  assert.match(await note(), /^The model ended its answer at once/);
  await ask('queue');
  assert.match(await note(), /^none may wait\. Try again in 1 s\./);
  await ask('blank');
  assert.match(await note(), /^The answer has no words/);
};

tests['a question without an answer is shown and not sent again'] = async ({ page, mock, ask }) => {
  const told = () => mock.state.requests.at(-1).messages.map(m => m.content);
  await ask('say one');
  await ask('never', 0);
  await page.press('Escape');
  await page.until('run === null');
  await ask('say two');
  assert.deepEqual(told(), ['say one', 'one', 'say two']);
  await ask('error');
  await ask('too large');
  assert.equal(await page.value(`$('turns').lastChild.querySelector('.note button').textContent`), 'Edit message');
  await ask('empty');
  await ask('say three');
  assert.deepEqual(told(), ['say one', 'one', 'say two', 'two', 'say three']);
  assert.equal(await page.value(`$('turns').children.length`), 14, 'all of it is shown');
  assert.match(await page.value(`$('turns').children[7].querySelector('.note').textContent`), /What was asked after it went without this question/);
};

tests['a conversation that is too long goes on without its oldest turns'] = async ({ page, mock, ask }) => {
  for (const text of ['one', 'two', 'three', 'four']) await ask(`say ${text} ${'x'.repeat(100)}`);
  mock.state.most = 900;
  await ask('say five');
  assert.deepEqual(await page.value(`[...$('turns').lastChild.querySelectorAll('.note button')].map(b => b.textContent)`), ['Leave out the oldest', 'Edit message']);
  await page.click('#turns li:last-child .note button');
  await page.until(`run === null && variantOf(messages.at(-1)).content === 'five'`);
  assert.deepEqual(mock.state.requests.at(-1).messages.map(m => m.content.slice(0, 9)), ['say three', 'three xxx', 'say four ', 'four xxxx', 'say five']);
  assert.match(await page.value(`$('turns').firstChild.textContent`), /Left out of what is sent/);
  await page.open(mock.url);
  await page.until(`server.state === 'ready'`);
  assert.deepEqual(await page.value(`messages.map(m => m.out === true).slice(0, 5)`), [true, false, true, false, false]);
  await page.click('#turns .small button');
  await page.until(`told(messages).length === 9`);
};

tests['another model of the server is found and asked'] = async ({ page, mock, ask }) => {
  await ask('say one');
  mock.state.model = DENSE;
  await ask('say two');
  assert.equal(await page.value(`variantOf(messages.at(-1)).content + $('model').textContent`), 'twollama-1b');
  // Where nothing is asked, a counter that begins anew tells.
  await page.until('samples.at(-1)?.total > 5');
  mock.state.model = CREST;
  mock.state.generated = 0;
  await page.until(`$('model').textContent === 'sky-crest-2b'`);
  mock.state.key = 'secret';
  await page.until(`server.state === 'key'`);
};

tests['thinking is folded, timed and handed back'] = async ({ page, mock, ask }) => {
  mock.state.pause = 15;
  await ask('think');
  const state = () => page.value(`(() => { const d = document.querySelector('#turns .thinking'); return [d.hidden, d.open, d.querySelector('summary').textContent, d.querySelector('.prose').textContent.length]; })()`);
  const [hidden, open, summary, made] = await state();
  assert.deepEqual([hidden, open, made], [false, false, 0]);
  assert.match(summary, /^Thought for [\d.]+ m?s$/);
  assert.ok(await page.value('variantOf(messages[1]).thinkingMs > 100'));
  assert.ok(await page.value(`!document.querySelector('#turns .thinking + div').textContent.includes('Rayleigh')`));
  await page.click('#turns summary');
  await page.until(`document.querySelector('.thinking .prose').textContent.includes('Rayleigh')`);
  mock.state.pause = 0;
  await ask('say ok');
  assert.match(mock.state.requests.at(-1).messages[1].reasoning_content, /^The user asks why/);
};
