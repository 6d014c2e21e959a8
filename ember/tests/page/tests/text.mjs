// What becomes of text: of the stream, of Markdown, of what is hostile, long or deep.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { CREST, random } from '../mock.mjs';
import { PAGE, withPolicy } from '../policy.mjs';

export const tests = {};

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
  // The browser itself refuses markup from text (where it knows trusted types), scripts from text and frames.
  const [types, markup] = await page.value(`(() => { try { document.createElement('div').innerHTML = '<b>x</b>'; return ['trustedTypes' in window, 'taken']; } catch (e) { return [true, e.name]; } })()`);
  assert.equal(markup, types ? 'TypeError' : 'taken');
  await page.value(`(() => { const s = document.createElement('script'); try { s.textContent = 'window.hacked = 30'; document.body.append(s); } catch {} })()`);
  assert.equal(await page.value('typeof hacked'), 'undefined');
  await page.gather();
  page.problems = page.problems.filter(text => !/TrustedHTML|TrustedScript|Content.Security.Policy/.test(text));
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
