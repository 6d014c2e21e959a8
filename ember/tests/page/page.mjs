// The page of the server in a real browser, against a server that says what a test wants. `node ember/tests/page/page.mjs [NAME]`.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Browser, findChromium, sleep } from './browser.mjs';
import { CREST, random, startMock } from './mock.mjs';
import { PAGE, withPolicy } from './policy.mjs';

const DENSE = { id: 'llama-1b', context_length: 2048 };
const tests = {};

tests['the policy names the script and the style that are there'] = async () => {
  const page = readFileSync(PAGE, 'utf8');
  assert.ok(page === withPolicy(page), 'run `node ember/tests/page/policy.mjs --write`');
};

tests['events are whole wherever the stream is cut'] = async ({ page }) => {
  const cuts = await page.value(`(() => {
    const text = ': hello\\n\\ndata: {"a":"é👩‍👧"}\\r\\n\\r\\ndata: 1\\r\\ndata:2\\n\\nid: 3\\rdata: x\\r\\revent: e\\n\\ndata: [DONE]';
    const bytes = new TextEncoder().encode(text), wanted = JSON.stringify(['{"a":"é👩‍👧"}', '1\\n2', 'x', '[DONE]']);
    const read = parts => { const s = new EventStream(); return JSON.stringify([...parts.flatMap(p => s.push(p)), ...s.push()]); };
    const wrong = [];
    for (let i = 0; i <= bytes.length; i += 1) for (let j = i; j <= bytes.length; j += 1) {
      const got = read([bytes.slice(0, i), bytes.slice(i, j), bytes.slice(j)]);
      if (got !== wanted) wrong.push([i, j, got]);
    }
    const single = read(Array.from(bytes, b => Uint8Array.of(b)));
    if (single !== wanted) wrong.push(single);
    return wrong.slice(0, 3);
  })()`);
  assert.deepEqual(cuts, []);
};

tests['streams join to the text that was sent'] = async ({ page, mock, ask }) => {
  mock.state.apart = true;
  for (let seed = 1; seed <= 8; seed += 1) {
    mock.state.seed = seed * 977;
    const next = random(seed), words = ['plain', 'Zoë', '👩‍👩‍👧', '日本語', '🇩🇪', '—', 'a\u0301'];
    const text = Array.from({ length: 60 }, () => words[Math.floor(next() * words.length)]).join(' ');
    await ask(`say ${text}`);
    assert.equal(await page.value('variantOf(messages.at(-1)).content'), text);
    assert.equal(await page.value(`$('turns').lastChild.querySelector('.prose p').textContent`), text);
    assert.equal(await page.value(`variantOf(messages.at(-1)).trace.map(t => t.text).join('')`), text);
  }
};

tests['markdown becomes its elements'] = async ({ page, ask }) => {
  const html = async text => page.value(`(() => { const box = el('div'); renderMarkdown(box, ${JSON.stringify(text)}); return box.innerHTML.replace(/ (dir|target|rel|title|tabindex|role|aria-label)="[^"]*"| class=""/g, ''); })()`);
  const cases = [
    ['a *b* **c** ***d*** ~~e~~ `f*g*`', '<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <s>e</s> <code>f*g*</code></p>'],
    ['**bold *it***', '<p><strong>bold <em>it</em></strong></p>'],
    ['2 * 3 * 4 and snake_case_name', '<p>2 * 3 * 4 and snake_case_name</p>'],
    ['\\*a\\* \\\\ *open', '<p>*a* \\ *open</p>'],
    ['## T #\na\nb', '<h4>T</h4><p>a<br>b</p>'],
    ['- a\n  - b\n- c\n\n3. d', '<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul><ol start="3"><li>d</li></ol>'],
    ['1. a\n\n   b\n2. c', '<ol><li>a<p>b</p></li><li>c</li></ol>'],
    ['> a\n> - b', '<blockquote><p>a</p><ul><li>b</li></ul></blockquote>'],
    ['---\n***', '<hr><hr>'],
    ['|a|b|\n|-|:-:|\n|1|`x\\|y`|', '<div class="table"><table><thead><tr><th>a</th><th class="centre">b</th></tr></thead><tbody><tr><td>1</td><td class="centre"><code>x|y</code></td></tr></tbody></table></div>'],
    ['a https://x.org/a_b?c=d. b', '<p>a <a href="https://x.org/a_b?c=d">https://x.org/a_b?c=d</a>. b</p>'],
    ['[t](https://x.org/p)', '<p><a href="https://x.org/p">t<span class="target">(x.org/p)</span></a></p>'],
    ['a \\(x_1*y*\\) b \\[c\\] $$d_e_f$$ \\(g', '<p>a <span class="plain">\\(x_1*y*\\)</span> b <span class="plain">\\[c\\]</span> <span class="plain">$$d_e_f$$</span> (g</p>'],
    ['so:\n\\[\na \\\\\n- b\n\\]\nc', '<p>so:</p><p class="plain">\\[\na \\\\\n- b\n\\]</p><p>c</p>'],
    ['a<br>b &lt;&amp;lt;&nbsp;&x;', '<p>a<br>b &lt;&amp;lt;&nbsp;&amp;x;</p>'],
    ['- [ ] a\n- [x] b', '<ul><li class="task">☐ a</li><li class="task">☑ b</li></ul>'],
    ['- a\n\n\n- b\n\nc', '<ul><li>a</li><li>b</li></ul><p>c</p>'],
    ['[t](ftp://x.org) [u](/v)', '<p>[t](ftp://x.org) [u](/v)</p>'],
  ];
  for (const [text, wanted] of cases) assert.equal(await html(text), wanted, text);
  const code = '  if a < b:\n\n\treturn "x" # y';
  for (const text of [`~~~py\n${code}\n~~~`, `\`\`\`py\n${code}`]) {
    assert.equal(await page.value(`(() => { const box = el('div'); renderMarkdown(box, ${JSON.stringify(text)}); return box.querySelector('pre').textContent; })()`), code);
  }
  const pre = text => page.value(`(() => { const box = el('div'); renderMarkdown(box, ${JSON.stringify(text)}); return box.querySelector('pre').textContent; })()`);
  assert.equal(await pre('1. Do this:\n    ```python\n    def f():\n        return 1\n    ```'), 'def f():\n    return 1');
  assert.equal(await pre('  ```\n   a\n b\n  ```'), ' a\nb');
  // What is rendered bit by bit is what is rendered at once.
  await ask('markdown');
  assert.ok(await page.value(`(() => { const text = variantOf(messages[1]).content, whole = el('div'), grown = el('div'); renderMarkdown(whole, text);
    for (let i = 0; i <= text.length; i += 7) renderMarkdown(grown, text.slice(0, i)); renderMarkdown(grown, text); return whole.innerHTML === grown.innerHTML && whole.innerHTML.length > 1000; })()`));
};

tests['text from right to left has its marks at the right'] = async ({ page }) => {
  const places = await page.value(`(() => {
    const box = document.querySelector('.column').appendChild(el('div', { className: 'prose' }));
    renderMarkdown(box, '- مرحبا\\n- كيف الحال\\n\\n> مرحبا\\n\\n| اسم | b |\\n|-|-|\\n| 1 | 2 |\\n\\n- Hello\\n- مرحبا');
    const out = [...box.children].map(n => getComputedStyle(n)).map(s => [s.direction, s.paddingLeft, s.paddingRight, s.borderRightWidth].join(' '));
    out.push([...box.querySelectorAll('li')].map(n => getComputedStyle(n).direction).join(' '));
    box.remove();
    return out;
  })()`);
  assert.deepEqual(places, ['rtl 0px 24px 0px', 'rtl 0px 16px 3px', 'rtl 0px 0px 1px', 'ltr 24px 0px 0px', 'rtl rtl ltr ltr']);
  assert.equal(await page.value(`$('prompt').value = 'مرحبا'; getComputedStyle($('prompt')).direction`), 'rtl');
};

tests['hostile text stays text'] = async ({ page, mock, ask }) => {
  await ask('hostile');
  await page.click('#turns summary');
  await page.until(`document.querySelector('.thinking .prose a') !== null`);
  const check = async () => {
    assert.deepEqual(await page.value(`[...document.querySelectorAll('#turns script, #turns img, #turns iframe, #turns style, #turns object, #turns form, #turns svg:not(.icon), #turns b:not(.figures b)')].map(n => n.outerHTML)`), []);
    assert.deepEqual(await page.value(`[...document.querySelectorAll('#turns *')].flatMap(n => [...n.attributes]).filter(a => /^on|^style$/i.test(a.name) || /script:|data:/i.test(a.value)).map(a => a.name + '=' + a.value)`), []);
    assert.equal(await page.value('typeof hacked'), 'undefined');
  };
  await check();
  const links = await page.value(`[...document.querySelectorAll('#turns a')].map(a => [a.protocol, a.rel, a.target, a.textContent])`);
  assert.ok(links.length >= 6);
  for (const [protocol, rel, target] of links) {
    assert.match(protocol, /^https?:$/);
    assert.equal(rel, 'noopener noreferrer');
    assert.equal(target, '_blank');
  }
  assert.ok(links.some(([, , , text]) => text === 'google.com(evil.example/login)'), 'a link says where it leads');
  assert.ok(await page.value(`$('turns').textContent.includes('<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">')`));
  assert.ok(await page.value(`(() => { const box = el('div'); renderMarkdown(box, '\`a\\u202eb\`'); return box.textContent; })()`) === 'aU+202Eb');
  await page.press('Alt+d');
  assert.ok(await page.value(`document.querySelectorAll('.token').length > 100`));
  await page.hover('.token:nth-child(5)');
  await check();
  // As a message of the user, the name of a model, a setting and an error.
  mock.state.model = { ...CREST, id: '<img src=x onerror=hacked=20>' };
  await page.value('probe()');
  await page.value(`send('<img src=x onerror=hacked=21>')`);
  await check();
  assert.equal(await page.value(`$('model').textContent`), '<img src=x onerror=hacked=20>');
  // The browser itself refuses markup from text, scripts from text and frames.
  assert.match(await page.value(`(() => { try { document.createElement('div').innerHTML = '<b>x</b>'; return 'taken'; } catch (e) { return e.message; } })()`), /TrustedHTML/);
  await page.value(`(() => { const s = document.createElement('script'); try { s.textContent = 'window.hacked = 30'; document.body.append(s); } catch {} })()`);
  assert.equal(await page.value('typeof hacked'), 'undefined');
  page.problems = page.problems.filter(text => !/TrustedHTML|TrustedScript|Content Security Policy/.test(text));
};

tests['long and deep text does not hold the page up'] = async ({ page, ask }) => {
  let before = await page.computed();
  const took = async what => {
    const now = await page.computed(), ms = Math.round(now - before);
    before = now;
    assert.ok(ms < 3000, `${what}: ${ms} ms`);
  };
  await ask('long', 30000);
  assert.equal(await page.value(`$('turns').textContent.match(/x{100,}/)[0].length`), 1 << 20);
  await took('an answer of a million characters');
  await ask('stars');
  await took('stars');
  const deep = `['>'.repeat(50000), '- '.repeat(50000), '['.repeat(19000), '*a'.repeat(9000), '\`'.repeat(19000), '|'.repeat(19000) + '\\n|-|', '# ' + ' '.repeat(100000) + '#', '![]('.repeat(5000), '**_'.repeat(6000), '*a _b ~~c **d '.repeat(80000)]`;
  await page.value(`for (const text of ${deep}) renderMarkdown(el('div'), text)`);
  await took('deep text');
  await page.value(`(() => { const box = el('div'), lines = Array.from({ length: 3000 }, (_, i) => '- item **' + i + '** of a list'); for (let i = 10; i <= 3000; i += 10) renderMarkdown(box, lines.slice(0, i).join('\\n')); })()`);
  await took('a list that grows');
  assert.equal(await page.value(`(() => { const box = document.querySelector('.column').appendChild(el('div', { className: 'prose' })); renderMarkdown(box, 'word\\n'.repeat(6000)); const tall = box.offsetHeight; box.remove(); return tall > 100000; })()`), true);
};

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
  const wheel = deltaY => page.send('Input.dispatchMouseEvent', { type: 'mouseWheel', x: 400, y: 300, deltaX: 0, deltaY });
  const end = () => page.value(`$('scroll').scrollHeight - $('scroll').scrollTop - $('scroll').clientHeight`);
  await wheel(-20);
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
  assert.match(await note(), /^The connection to the server was lost\./);
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
  await page.send('Network.emulateNetworkConditions', { offline: true, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  await page.until(`server.state === 'offline'`);
  assert.equal(await title(), 'The server is not there');
  await page.send('Network.emulateNetworkConditions', { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  await page.until(`server.state === 'ready'`);
};

tests['a key is asked for, kept in the tab and sent'] = async ({ page, mock, ask }) => {
  mock.state.key = 'sécret 🗝';
  await page.value('probe()');
  for (const key of ['wrong', 'sécret 🗝']) {
    await page.value(`document.querySelector('.entry input').focus()`);
    await page.type(key);
    await page.press('Enter');
    await page.until(key === 'wrong' ? `$('welcome').textContent.includes('refused')` : `server.state === 'ready'`);
  }
  assert.equal(await page.value('document.activeElement.id'), 'prompt');
  await ask('say a');
  assert.equal(await page.value('variantOf(messages[1]).content'), 'a');
  assert.deepEqual(await page.value('[JSON.stringify(localStorage).includes("sécret"), JSON.stringify(sessionStorage).includes("sécret")]'), [false, true]);
  mock.state.key = 'another';
  await ask('say b');
  await page.until(`!$('banner').hidden && document.activeElement === $('banner').querySelector('input')`);
  // With the key the question is asked again.
  await page.type('another');
  await page.press('Enter');
  await page.until(`run === null && variantOf(messages.at(-1)).content === 'b'`);
};

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
  await page.send('Page.addScriptToEvaluateOnNewDocument', { source: `for (const n of ['localStorage', 'sessionStorage']) Object.defineProperty(window, n, { get() { throw new DOMException('no', 'SecurityError'); } })` });
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

tests['a phone shows it all without scrolling sideways'] = async ({ page, ask }) => {
  await page.size(390, 844, true);
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

tests['short windows, touch and paper'] = async ({ page, ask }) => {
  await page.size(320, 256);
  await page.value(`$('status').lastChild.textContent = 'Not available'`);
  assert.ok(await page.value(`$('status').getBoundingClientRect().right <= document.querySelector('.tools').getBoundingClientRect().left && document.documentElement.scrollWidth === 320`));
  await page.size(640, 360);
  await page.click('#toggle');
  const reach = () => page.value(`(() => { const p = $('panel'); p.scrollTop = p.scrollHeight; const r = $('set-seed').getBoundingClientRect(); $('set-seed').scrollIntoView(); return [p.scrollHeight > p.clientHeight, $('set-seed').getBoundingClientRect().top < 330]; })()`);
  assert.deepEqual(await reach(), [true, true]);
  await page.press('Escape');
  await page.size(390, 844, true);
  await page.until(`$('prompt').enterKeyHint === 'enter'`);
  await page.size(1280, 800);
  await page.until(`$('prompt').enterKeyHint === 'send'`);
  await ask('say one');
  await page.value(`setTheme('dark')`);
  await page.send('Emulation.setEmulatedMedia', { media: 'print' });
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

tests['the Option key writes characters'] = async ({ page, mock, ask }) => {
  await page.send('Page.addScriptToEvaluateOnNewDocument', { source: `Object.defineProperty(navigator, 'platform', { value: 'MacIntel' })` });
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

const chromium = findChromium();
if (!chromium) {
  console.error('no Chromium: set CHROMIUM to one');
  process.exit(1);
}
const browser = await Browser.launch(chromium);
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
    await page.open(mock.url);
    await page.until(`server.state === 'ready'`);
    await test({ page, mock, ask, another });
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

let failed = 0;
for (const [name, test] of Object.entries(tests)) {
  if (!name.includes(process.argv[2] ?? '')) continue;
  const start = Date.now();
  let error = await run(test);
  if (error) {
    // On a busy machine a browser may be late once; what is wrong fails again.
    console.log(`again   ${name}: ${error.message}`);
    error = await run(test);
  }
  failed += error ? 1 : 0;
  console.log(error ? `FAILED  ${name} (${Date.now() - start} ms)\n${error.stack}` : `ok      ${name} (${Date.now() - start} ms)`);
}
await browser.close();
console.log(`${failed} failed, ${Date.now() - began} ms`);
process.exit(failed ? 1 : 0);
