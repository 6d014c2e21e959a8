// A server that speaks as `ember serve` does and says what a test wants: the last message names what is answered (`answers`).
// Its streams are cut at random bytes. `node ember/tests/page/mock.mjs 8099` serves the page for a look by hand.

import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { PAGE, withScript } from './policy.mjs';

const sleep = ms => new Promise(resolve => { setTimeout(resolve, ms); });

/** Numbers from 0 to 1, the same for the same seed. */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const STORY = 'Once upon a time there was a small boat that was afraid of the sea. Every morning it watched the others leave the harbour, '
  + 'and every evening they came back with **stories of storms**, of whales and of islands that nobody had named.\n\n'
  + 'One day the old lighthouse went dark. “Somebody must tell the ships,” said the boat, and before it could think about it, it was past the wall. '
  + 'The waves were high, but they carried it. When it came back, it had a story of its own.';

const MARKDOWN = `Two sorted lists can be merged in **one pass**: the smaller head goes first, and the rest follows.

\`\`\`python
def merge(a: list[int], b: list[int]) -> list[int]:
    """Merge two sorted lists in O(n + m)."""
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            out.append(a[i]); i += 1
        else:
            out.append(b[j]); j += 1
    return out + a[i:] + b[j:]  # one of the two is empty
\`\`\`

### What it costs

| case | comparisons | memory |
|:-----|------------:|:------:|
| interleaved | n + m − 1 | *O*(n + m) |
| one list first | min(n, m) | *O*(n + m) |

1. Both lists are read once.
2. Equal elements keep their order, so the merge is **stable**:
   - elements of \`a\` come first,
   - those of \`b\` after them.

> A sort that merges runs like this is called *merge sort*.

See [the library](https://docs.python.org/3/library/heapq.html#heapq.merge) for \`heapq.merge\`, which does it lazily.`;

const HOSTILE = `<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">
<iframe src="javascript:parent.hacked = 3"></iframe> &lt;b&gt; <svg onload=hacked=4>

[click](javascript:window.hacked=5) [data](data:text/html,<script>hacked=6</script>) [vb](vbscript:x) ![i](https://evil.example/pixel.png) [a](  JaVaScRiPt:hacked=7)
[google.com](https://google.com@evil.example/login) <https://example.com/"onmouseover="hacked=8> [x](https://example.com "t" onclick="hacked=9")

| <img src=x onerror=hacked=10> | b |
|---|---|
| <script>hacked=11</script> | \`<b>\` | extra |

\u202eright to left override\u202c and \u2066isolate
العربية: نص من اليمين إلى اليسار

- <style>*{display:none}</style>
  > # <object data=x>

\`\`\`<img/src=x/onerror=hacked=12>
</code></pre><script>hacked=13</script>
unclosed`;

/** What is answered to a message: parts of the text, and how they are sent. */
const answers = {
  story: () => ({ content: STORY }),
  markdown: () => ({ content: MARKDOWN }),
  hostile: () => ({ content: HOSTILE, reasoning: HOSTILE }),
  unicode: () => ({ content: 'Zoë 👩‍👩‍👧 naïve 日本語 🇩🇪 é — “quotes”\r\nand a line' }),
  long: () => ({ content: 'x'.repeat(1 << 20), pieces: 400 }),
  stars: () => ({ content: '*a **b _c `d [e ~~f '.repeat(900) }),
  think: () => ({ reasoning: 'The user asks why the sky is blue.\n\nShort waves are scattered more: Rayleigh, fourth power of the frequency. Violet is absorbed higher up, and eyes see it less.', content: 'Air scatters short waves far more than long ones, so blue light reaches you **from everywhere**, while the rest comes straight from the sun.' }),
  slow: () => ({ content: Array.from({ length: 400 }, (_, i) => `word${i}`).join(' '), pause: 30 }),
  'too large': () => ({ status: 413, message: 'the body is too large' }),
  never: () => ({ content: 'x', before: 60000 }),
  error: () => ({ status: 400, message: 'the prompt has 5000 tokens, the context 4096: <b>shorten</b> it' }),
  busy: () => ({ status: 503, message: 'the queue is full', headers: { 'retry-after': '2' } }),
  queue: () => ({ status: 503, message: 'none may wait; try again later', headers: { 'retry-after': '1' } }),
  blank: () => ({ content: ' \n ' }),
  'breaks off': () => ({ content: STORY, breaks: 'connection' }),
  'fails midway': () => ({ content: STORY, breaks: 'event' }),
  'ends early': () => ({ content: STORY, breaks: 'end' }),
  full: () => ({ content: STORY, finish: 'length', full: true }),
  short: () => ({ content: 'This is cut', finish: 'length' }),
  empty: () => ({ content: '' }),
};

// The examples of an empty page.
answers['Tell me a story about a small boat and the sea.'] = answers.story;
answers['Why is the sky blue?'] = answers.think;
answers['Write a Python function that merges two sorted lists.'] = answers.markdown;

export const CREST = { id: 'sky-crest-2b', context_length: 4096, depth: { layers: 24, steps: 4, threshold: 0.8999999761581421 } };
export const DENSE = { id: 'llama-1b', context_length: 2048 };

/** Tokens as a model has them: words with their space, in pieces. */
const tokenize = text => text.match(/\s?[^\s]{1,6}|\s/gu) ?? [];

export async function startMock(options = {}) {
  const state = { mode: 'ready', key: null, model: CREST, seed: 1, requests: [], cancelled: 0, generated: 0, waiting: 0, most: Infinity, pause: 0, apart: false, headers: {}, first: '', ...options };
  const server = createServer(async (request, response) => {
    const url = new URL(request.url, 'http://mock');
    const send = (status, body, headers = {}) => {
      response.writeHead(status, { 'content-type': typeof body === 'string' ? 'text/plain; charset=utf-8' : 'application/json', ...headers });
      response.end(typeof body === 'string' ? body : JSON.stringify(body));
    };
    if (url.pathname === '/') { response.writeHead(200, { 'content-type': 'text/html; charset=utf-8', ...state.headers }); response.end(withScript(readFileSync(PAGE, 'utf8'), state.first)); return; }
    if (url.pathname !== '/' && state.foreign) return send(403, { error: { message: 'the name in Host is not one of this server\'s', code: 'foreign_host' } });
    if (url.pathname === '/health') return state.mode === 'ready' ? send(200, { status: 'ok' }) : send(503, { status: state.mode });
    if (state.key && Buffer.from(request.headers.authorization ?? '', 'latin1').toString() !== `Bearer ${state.key}`) return send(401, { error: { message: 'a key is needed', type: 'authentication_error' } });
    if (url.pathname === '/v1/models') return send(200, { object: 'list', data: [{ object: 'model', owned_by: 'ember', created: 0, ...state.model }] });
    if (url.pathname === '/metrics') return send(200, metrics(state));
    if (!['/v1/chat/completions', '/v1/completions'].includes(url.pathname)) return send(404, { error: { message: `no ${url.pathname}` } });
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = JSON.parse(Buffer.concat(chunks).toString());
    state.requests.push(body);
    await complete(state, { ...body, text: url.pathname === '/v1/completions' }, response, send);
  });
  const listen = port => new Promise(resolve => { server.listen(port, '127.0.0.1', resolve); });
  await listen(options.port ?? 0);
  const { port } = server.address();
  const close = () => new Promise(resolve => { server.close(resolve); server.closeAllConnections(); });
  return { state, url: `http://127.0.0.1:${port}/`, close, reopen: () => listen(port) };
}

function metrics(state) {
  return '# HELP ember_requests_waiting Requests in the queue.\n# TYPE ember_requests_waiting gauge\n'
    + `ember_requests_waiting ${state.waiting}\nember_requests_running 1\nember_requests_capacity 8\nember_kv_cache_usage_ratio 0.37\n`
    + `ember_generated_tokens_total{model="a"} ${state.generated}\nember_generated_tokens_total{model="b} c"} 5\n# EOF\n`;
}

async function complete(state, body, response, send) {
  body.messages ??= [{ role: 'user', content: body.prompt }];
  const said = body.messages.at(-1).content, asked = body.text ? said.split('\n').at(-1) : said, next = random(state.seed++);
  const { content = '', reasoning = '', status, message, headers, pause = state.pause, finish = 'stop', breaks, full, pieces, before } = (answers[asked] ?? (() => ({ content: asked.startsWith('say ') ? asked.slice(4) : STORY })))();
  if (status) return send(status, { error: { message, type: 'invalid_request_error', code: status } }, headers);
  if (body.model !== state.model.id) return send(404, { error: { message: `${body.model} is not served here`, code: 'model_not_found' } });
  // As strict templates want it.
  if (body.messages.some((m, i) => i > 0 && m.role === body.messages[i - 1].role)) return send(400, { error: { message: 'roles must alternate' } });
  if (JSON.stringify(body.messages).length > state.most) return send(400, { error: { message: 'the prompt is too long; shorten the prompt', code: 'context_length_exceeded' } });
  let open = true;
  if (before) { await Promise.race([sleep(before), new Promise(resolve => { response.on('close', resolve); })]); return; }
  response.on('close', () => { if (!response.writableFinished) { state.cancelled += 1; open = false; } });
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' });
  const ends = ['\n\n', '\r\n\r\n', '\n\n'];
  const event = object => `${next() < 0.2 ? ': still here\n\n' : ''}data: ${JSON.stringify({ id: 'c', object: 'chat.completion.chunk', model: body.model, ...object })}${ends[Math.floor(next() * 3)]}`;
  const choice = rest => event({ choices: [{ index: 0, delta: {}, finish_reason: null, ...rest }] });
  const depth = text => {
    const most = body.depth?.steps ?? 4, limit = body.depth?.threshold ?? 0.9;
    // Rarer words go deeper: what is long or capital takes more steps.
    const hard = Math.min(1, (text.trim().length / 7 + (/[A-Z]/.test(text) ? 0.35 : 0)) * (0.4 + limit));
    const steps = Array.from({ length: 24 }, (_, layer) => 1 + Math.round(Math.min(1, Math.max(0, hard * (0.55 + 0.45 * Math.sin(layer / 3)) + (next() - 0.5) * 0.3)) * (most - 1)));
    return { token: Math.floor(next() * 600), text, mean_steps: steps.reduce((a, b) => a + b) / steps.length, steps };
  };
  const split = text => (pieces ? Array.from({ length: pieces }, (_, i) => text.slice(Math.floor((i * text.length) / pieces), Math.floor(((i + 1) * text.length) / pieces))) : tokenize(text));
  const events = body.text ? [] : [choice({ delta: { role: 'assistant', content: '' } })];
  for (const [name, text] of [['reasoning_content', reasoning], ['content', content]]) {
    for (const token of split(text)) events.push(choice({ ...(body.text ? { delta: undefined, text: token } : { delta: { [name]: token } }), ...(body.trace && !pieces && { trace: [depth(token)] }) }));
  }
  const completion = split(reasoning).length + split(content).length, prompt = full ? state.model.context_length - completion : 40 + body.messages.length * 12;
  if (breaks) events.length = Math.floor(events.length / 2);
  if (breaks === 'event') events.push(`data: ${JSON.stringify({ error: { message: 'the engine stopped', type: 'server_error' } })}\n\n`);
  if (!breaks) {
    events.push(choice({ finish_reason: finish, seed: body.seed ?? Math.floor(next() * 1e9) }));
    if (body.stream_options?.include_usage) events.push(event({ choices: [], usage: { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion, prompt_tokens_details: { cached_tokens: body.messages.length > 2 ? 52 : 0 } } }));
    events.push('data: [DONE]\n\n');
  }
  for (let rest = events, i = 0; i < rest.length && open;) {
    // Some events together, cut at random bytes.
    const count = pause ? 1 : 1 + Math.floor(next() * 12), bytes = Buffer.from(rest.slice(i, i + count).join(''));
    i += count;
    for (let at = 0; at < bytes.length && open;) {
      const size = pieces ? bytes.length : 1 + Math.floor(next() * next() * 400);
      response.write(bytes.subarray(at, at + size));
      at += size;
      // Without a pause the network joins what was cut.
      await (state.apart ? sleep(1) : new Promise(resolve => { setImmediate(resolve); }));
    }
    state.generated += count;
    if (pause) await sleep(pause);
  }
  if (!open) return;
  if (breaks === 'connection') response.destroy();
  else response.end();
}

if (process.argv[1]?.endsWith('mock.mjs')) {
  const mock = await startMock({ port: Number(process.argv[2] ?? 8099), pause: 20 });
  console.log(`${mock.url}: messages that are answered in their own way: ${Object.keys(answers).join(', ')}, say TEXT`);
}
