import { describe, expect, it } from 'vitest';
import { chooseLanguage, languages, say } from '../../src/lib/i18n';
import { numberFields } from '../../src/lib/settings';
import { shortcuts } from '../../src/lib/shortcuts';
import { en } from '../../src/words/en';

const holes = (text: string) => [...text.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort();

describe('words', () => {
  for (const [code, { words }] of Object.entries(languages)) {
    it(`of ${code} are all there, with the same holes as in English`, () => {
      expect(Object.keys(words)).toEqual(Object.keys(en));
      for (const key of Object.keys(en) as (keyof typeof en)[]) {
        expect(words[key], key).not.toBe('');
        expect(holes(words[key]), key).toEqual(holes(en[key]));
      }
    });
  }
  it('of Chinese are Chinese', () => {
    const same = Object.entries(languages['zh']!.words).filter(([key, text]) => text === en[key as keyof typeof en]);
    expect(same.map(([key]) => key)).toEqual(['top_p', 'top_k', 'min_p', 'typical_p']);
  });
  it('are there for every setting and shortcut', () => {
    for (const { key } of numberFields) expect(en).toHaveProperty(`${key}Hint`);
    for (const { words } of shortcuts) expect(en).toHaveProperty(words);
  });
  it('are in the chosen language, else the first that the browser wants', () => {
    expect(chooseLanguage('zh', ['en'])).toBe('zh');
    expect(chooseLanguage('', ['fr-FR', 'zh-TW', 'en'])).toBe('zh');
    expect(chooseLanguage('xx', ['fr'])).toBe('en');
    expect(chooseLanguage('', [])).toBe('en');
  });
  it('take values, which are never read as holes again', () => {
    expect(say('en', 'branchOf', { index: 1, count: 2 })).toBe('1 of 2');
    expect(say('en', 'rename', { title: '{title} $&' })).toBe('Rename “{title} $&”');
  });
});
