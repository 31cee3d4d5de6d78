// E2B's code interpreter client for Node, unchanged. Run by test_e2b_node.py, as e2b.mjs.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const require = createRequire(`${process.env.CORRAL_TEST_E2B_NODE}/`)
const { Sandbox } = await import(pathToFileURL(require.resolve('@e2b/code-interpreter')).href)

const box = await Sandbox.create({ timeoutMs: 240_000, envs: { FLAVOR: 'sour' } })
try {
  await box.runCode('x = 20')
  assert.equal((await box.runCode('x + 1')).text, '21')
  const out = []
  const told = await box.runCode('import os\nprint(os.environ["FLAVOR"], os.environ["MINE"])\n!echo child\n2', { envs: { MINE: 'm' }, onStdout: (message) => out.push(message.line) })
  assert.deepEqual([out.join('').replaceAll('\r', ''), told.text], ['sour m\nchild\n', '2'])
  const failed = await box.runCode('1/0')
  assert.equal(failed.error.name, 'ZeroDivisionError')
  const shown = await box.runCode('import pandas as pd; pd.DataFrame({"a": [1, 2]})')
  assert.deepEqual([shown.results[0].data, shown.results[0].html.startsWith('<div>')], [{ a: [1, 2] }, true])
  const context = await box.createCodeContext({ cwd: '/tmp' })
  assert.equal((await box.runCode('import os; os.getcwd()', { context })).text, '/tmp')
  assert.ok((await box.listCodeContexts()).some((one) => one.id === context.id))
  await box.restartCodeContext(context)
  assert.equal((await box.runCode('os', { context })).error.name, 'NameError')
  await box.removeCodeContext(context)
  assert.equal((await box.runCode('interface P { n: number }; const p: P = { n: 4 }; p.n', { language: 'ts' })).text, '4')
} finally {
  await box.kill()
}
console.log('all of it')
