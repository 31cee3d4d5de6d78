// What the scripts for Node share: E2B's package, a sandbox that ends with the script, and waiting for what comes.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const require = createRequire(`${process.env.CORRAL_TEST_E2B_NODE}/`)
export const e2b = await import(pathToFileURL(require.resolve('e2b')).href)
export const odd = Math.random().toString(36).slice(2, 10)

export async function withBox(options, use) {
  const box = await e2b.Sandbox.create('base', { timeoutMs: 300_000, ...options })
  try {
    await use(box)
  } finally {
    await box.kill()
  }
}

// A text that grows, and a promise for when something is in it.
export function growing() {
  const waiting = []
  let text = ''
  return {
    take: (data) => {
      text += typeof data === 'string' ? data : Buffer.from(data).toString()
      for (const [word, done] of waiting) if (text.includes(word)) done(text)
    },
    has: (word) => (text.includes(word) ? Promise.resolve(text) : new Promise((done) => waiting.push([word, done]))),
  }
}

// What a promise fails with.
export async function failing(promise) {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('it did not fail')
}
