// @vitest-environment jsdom
import { describe, expect, it } from 'vitest';
import { renderBlocks, sanitise } from '../../src/lib/markdown';

const html = (text: string) => renderBlocks(text).join('');
function dom(text: string): HTMLElement {
  const element = document.createElement('div');
  element.innerHTML = html(text);
  return element;
}

const hostile = [
  '<script>alert(1)</script>',
  '<img src=x onerror=alert(1)>',
  '<svg onload=alert(1)><script>alert(1)</script></svg>',
  '<iframe src="javascript:alert(1)"></iframe>',
  '<a href="javascript:alert(1)">x</a>',
  '<style>*{display:none}</style>',
  '<form action="https://evil.example"><input></form>',
  '<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>',
  '[x](javascript:alert(1))',
  '[x](JaVaScRiPt:alert(1))',
  '[x](&#106;avascript:alert(1))',
  '[x](java\tscript:alert(1))',
  '[x](vbscript:x)',
  '[x](data:text/html,<script>alert(1)</script>)',
  '[x](data:image/png;base64,AAAA)',
  '[x](file:///etc/passwd)',
  '<javascript:alert(1)>',
  '![x](https://evil.example/?secret)',
  '![x](javascript:alert(1))',
  '![x"onerror="alert(1)](https://a.example)',
  '[x]: javascript:alert(1)\n\n[x]',
  '[x](https://a.example "t\\" onclick=\\"alert(1)")',
  '```"><img src=x onerror=alert(1)>\ncode\n```',
  '```html\n<script>alert(1)</script>\n```',
  '    <script>alert(1)</script>',
  '`<script>alert(1)</script>`',
  '| a |\n|:-:|\n| <img src=x onerror=alert(1)> |',
  '# <script>alert(1)</script>',
  '<!-- <script>alert(1)</script> -->',
];

/** Whatever could act: elements, attributes or addresses beyond the page's short list. */
function dangers(root: HTMLElement): string[] {
  const found: string[] = [];
  const tags = /^(A|BLOCKQUOTE|BR|CODE|DEL|EM|H[1-6]|HR|LI|OL|P|PRE|S|SPAN|STRONG|TABLE|TBODY|TD|TH|THEAD|TR|UL)$/;
  for (const element of root.querySelectorAll('*')) {
    if (!tags.test(element.tagName)) found.push(element.tagName);
    for (const { name, value } of element.attributes) {
      if (!/^(class|href|rel|start|target|title)$/.test(name)) found.push(`${element.tagName} ${name}`);
      if (name === 'href' && !/^(https?|mailto):/.test(value)) found.push(value);
    }
  }
  return found;
}

describe('hostile Markdown', () => {
  for (const text of hostile) {
    it(`becomes nothing that acts: ${JSON.stringify(text)}`, () => {
      expect(dangers(dom(text))).toEqual([]);
    });
  }
  it('makes no links of addresses that are none, not even dead ones', () => {
    for (const text of ['[x](javascript:alert(1))', '[x](data:image/png;base64,AAAA)', '<javascript:alert(1)>'])
      expect(dom(text).querySelector('a'), text).toBeNull();
  });
  it('is cleaned a second time, if the first should fail', () => {
    for (const text of hostile.filter((t) => t.startsWith('<'))) {
      const element = document.createElement('div');
      element.innerHTML = sanitise(text);
      expect(dangers(element), text).toEqual([]);
    }
    expect(sanitise('<a href="data:text/html,x">x</a>')).toBe('<a>x</a>');
    expect(sanitise('<p style="position:fixed" id="x" data-x="1">x</p>')).toBe('<p>x</p>');
  });
});

describe('Markdown', () => {
  it('shows tags of the model as text', () => {
    expect(dom('a <b>c</b>').textContent).toBe('a <b>c</b>\n');
  });
  it('becomes headings, lists, tables, links and code', () => {
    const root = dom('# T\n\n- a\n- **b**\n\n| x | y |\n|:-|-:|\n| 1 | 2 |\n\nhttps://a.example\n\n```python\ndef f(): pass\n```');
    expect(root.querySelector('h1')?.textContent).toBe('T');
    expect(root.querySelectorAll('li')).toHaveLength(2);
    expect(dom('4. a').querySelector('ol')?.getAttribute('start')).toBe('4');
    expect(root.querySelector('td:last-child')?.className).toBe('align-right');
    expect(root.querySelector('a')?.getAttribute('rel')).toBe('noopener noreferrer nofollow');
    expect(root.querySelector('code.language-python .hljs-keyword')?.textContent).toBe('def');
  });
  it('has pictures as links', () => {
    expect(html('![a cat](https://a.example/c.png)')).toContain('>a cat</a>');
  });
  it('is one block of HTML for each block of text, the same while more is added', () => {
    const text = 'One\n\n- a\n- b\n\n```js\nlet x = 1;\n```\n\nLast [r]\n\n> q';
    const whole = renderBlocks(text);
    expect(whole).toHaveLength(5);
    for (let end = 1; end <= text.length; ++end) {
      const part = renderBlocks(text.slice(0, end));
      expect(part.slice(0, -1), text.slice(0, end)).toEqual(whole.slice(0, part.length - 1));
    }
  });
  it('uses a link definition that comes later', () => {
    expect(html('see [r]')).not.toContain('<a');
    expect(html('see [r]\n\n[r]: https://a.example')).toContain('href="https://a.example"');
  });
  it('holds a long answer in bounds', () => {
    const start = process.cpuUsage(); // not the clock's time: others may want the machine, too
    let text = '';
    for (let i = 0; i < 100; ++i) {
      text += `Paragraph ${i} with **bold** text and \`code\`.\n\n`;
      renderBlocks(text);
    }
    expect(process.cpuUsage(start).user / 1000).toBeLessThan(5000);
  });
});
