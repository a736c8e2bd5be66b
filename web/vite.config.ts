import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

// The built page is committed (dist/) and must come out the same, byte for byte, wherever it is
// built: names are hashes of contents, and nothing of the machine or the time goes in.
export default defineConfig({
  base: './', // works behind a proxy that adds a path
  plugins: [
    svelte({ configFile: false }),
    {
      // The first picture has the chosen colours already, though no script may stand in the page.
      name: 'render-blocking-script',
      transformIndexHtml: {
        order: 'post',
        handler: (html) => html.replace('<script type="module"', '<script type="module" blocking="render"'),
      },
    },
  ],
  // `npm run dev` beside a server; its rule on origins wants the host name to stay.
  server: {
    proxy: { '/v1': { target: process.env['QIANWEN_URL'] ?? 'http://127.0.0.1:8000', changeOrigin: false } },
  },
  build: {
    outDir: 'dist',
    emptyOutDir: true,
    sourcemap: false,
    modulePreload: false,
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    license: { fileName: 'assets/third-party.md' },
  },
  test: {
    projects: [
      { extends: true, test: { name: 'unit', include: ['tests/unit/*.test.ts'], testTimeout: 30_000 } },
      {
        test: {
          name: 'page',
          include: ['tests/page/*.test.ts'],
          testTimeout: 90_000,
          hookTimeout: 60_000,
        },
      },
    ],
  },
});
