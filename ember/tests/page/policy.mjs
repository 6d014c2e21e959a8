// The policy in the page names its script and its style by hash. `node ember/tests/page/policy.mjs` checks it, `--write` renews it.

import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';

export const PAGE = new URL('../../src/server/page.html', import.meta.url);

/** The page with the hashes that its script and style have. */
export function withPolicy(page) {
  for (const tag of ['script', 'style']) {
    const parts = page.split(new RegExp(`<${tag}>|</${tag}>`));
    if (parts.length !== 3) throw new Error(`the page must have one <${tag}>`);
    const hash = createHash('sha256').update(parts[1]).digest('base64');
    page = page.replace(new RegExp(`${tag}-src 'sha256-[^']*'`), `${tag}-src 'sha256-${hash}'`);
  }
  return page;
}

/** The page with a script before its own, which the policy allows. */
export function withScript(page, script) {
  if (!script) return page;
  const hash = createHash('sha256').update(script).digest('base64');
  return page.replace("script-src '", () => `script-src 'sha256-${hash}' '`).replace('<title>', () => `<script>${script}</script><title>`);
}

if (process.argv[1]?.endsWith('policy.mjs')) {
  const page = readFileSync(PAGE, 'utf8'), right = withPolicy(page);
  if (process.argv[2] === '--write') writeFileSync(PAGE, right);
  else if (page !== right) {
    console.error('the hashes in the policy of ember/src/server/page.html are not those of its script and style: run `node ember/tests/page/policy.mjs --write`');
    process.exit(1);
  }
}
