// Markdown of a model to HTML that can do nothing: raw HTML is off, and what comes out is cleaned
// once more by DOMPurify with a short list of tags. No pictures: fetching one would tell its server.
import DOMPurify from 'dompurify';
import MarkdownIt, { type Env } from 'markdown-it';
import { highlight } from './highlight';

const markdown = new MarkdownIt({ html: false, linkify: true, breaks: false });
const { escapeHtml } = markdown.utils;

// Only what leads elsewhere in the open; the default would let some kinds of data: through.
markdown.validateLink = (url) => /^(https?:|mailto:)/i.test(url.trim());

markdown.renderer.rules['image'] = (tokens, index) => {
  const token = tokens[index]!;
  const source = String(token.attrGet('src') ?? '');
  return `<a href="${escapeHtml(source)}" target="_blank" rel="noopener noreferrer nofollow">${escapeHtml(token.content || source)}</a>`;
};
markdown.renderer.rules['link_open'] = (tokens, index, options, _env, self) => {
  tokens[index]!.attrSet('target', '_blank');
  tokens[index]!.attrSet('rel', 'noopener noreferrer nofollow');
  return self.renderToken(tokens, index, options);
};
// Alignment as a class: the page's policy forbids style attributes.
for (const rule of ['th_open', 'td_open']) {
  markdown.renderer.rules[rule] = (tokens, index, options, _env, self) => {
    const token = tokens[index]!;
    const side = /text-align:(\w+)/.exec(String(token.attrGet('style') ?? ''))?.[1];
    token.attrs = side ? [['class', `align-${side}`]] : null;
    return self.renderToken(tokens, index, options);
  };
}
for (const rule of ['fence', 'code_block']) {
  markdown.renderer.rules[rule] = (tokens, index) => {
    const token = tokens[index]!;
    const language = token.info.trim().split(/\s+/, 1)[0] ?? '';
    const name = /^[\w+#.-]{1,30}$/.test(language) ? language : '';
    return `<pre><code class="hljs language-${escapeHtml(name)}">${highlight(token.content, name)}</code></pre>\n`;
  };
}

const allowed = {
  ALLOWED_TAGS: [
    'a', 'blockquote', 'br', 'code', 'del', 'em', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'hr', 'li', 'ol', 'p',
    'pre', 's', 'span', 'strong', 'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul',
  ],
  ALLOWED_ATTR: ['class', 'href', 'rel', 'start', 'target', 'title'],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  // Every other attribute must look like an address, or it is dropped.
  ADD_URI_SAFE_ATTR: ['rel', 'start', 'target'],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
};

export function sanitise(html: string): string {
  return DOMPurify.sanitize(html, allowed);
}

const cache = new Map<string, string>();
const kCacheEntries = 400;

/** The HTML of each top-level block. While an answer grows, only its last blocks are made anew. */
export function renderBlocks(text: string): string[] {
  const environment: Env = {};
  const tokens = markdown.parse(text, environment);
  const references = environment.references ? JSON.stringify(environment.references) : '';
  const lines = text.split('\n');
  const out: string[] = [];
  for (let begin = 0; begin < tokens.length; ) {
    let end = begin + 1;
    if (tokens[begin]!.nesting === 1) {
      while (!(tokens[end - 1]!.level === 0 && tokens[end - 1]!.nesting === -1)) ++end;
    }
    const [first, last] = tokens[begin]!.map ?? [0, lines.length];
    const key = `${tokens[begin]!.type}\n${references}\n${lines.slice(first, last).join('\n')}`;
    let html = cache.get(key);
    if (html === undefined) {
      html = sanitise(markdown.renderer.render(tokens.slice(begin, end), markdown.options, environment));
      if (cache.size >= kCacheEntries) cache.delete(cache.keys().next().value!);
      cache.set(key, html);
    }
    out.push(html);
    begin = end;
  }
  return out;
}
