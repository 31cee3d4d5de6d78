// E2B's client for Node, unchanged: what a script written for it sees. Run by test_e2b_node.py, which gives it the addresses and says where the package is.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const require = createRequire(`${process.env.CORRAL_TEST_E2B_NODE}/`)
const { Sandbox, CommandExitError, Volume } = await import(pathToFileURL(require.resolve('e2b')).href)

const box = await Sandbox.create('base', { timeoutMs: 120_000, metadata: { by: 'node & co' }, envs: { FLAVOR: 'sour' } })
try {
  assert.equal((await box.commands.run('echo $FLAVOR; pwd')).stdout, 'sour\n/home/user\n')
  await assert.rejects(box.commands.run('exit 4'), (error) => error instanceof CommandExitError && error.exitCode === 4)

  let said
  const first = new Promise((resolve) => (said = resolve))
  const echo = await box.commands.run('cat', { background: true, stdin: true, onStdout: said })
  await box.commands.sendStdin(echo.pid, 'hello\n')
  assert.equal(await first, 'hello\n')
  assert.equal(await box.commands.kill(echo.pid), true)

  await box.files.makeDir('work')
  const seen = []
  let all
  const three = new Promise((resolve) => (all = resolve))
  const watch = await box.files.watchDir('work', (event) => seen.push(event.type) === 3 && all())
  await box.files.write('work/a.txt', 'grüße')
  assert.equal(await box.files.read('work/a.txt'), 'grüße')
  assert.deepEqual((await box.files.list('work')).map((entry) => entry.name), ['a.txt'])
  await three
  assert.deepEqual(seen, ['create', 'chmod', 'write'])
  await watch.stop()
  assert.equal(await (await fetch(await box.downloadUrl('work/a.txt'))).text(), 'grüße')

  let shown = ''
  const terminal = await box.pty.create({ cols: 80, rows: 24, onData: (data) => (shown += Buffer.from(data).toString()) })
  await box.pty.resize(terminal.pid, { cols: 99, rows: 33 })
  await box.pty.sendInput(terminal.pid, Buffer.from('stty size; exit\n'))
  await terminal.wait()
  assert.match(shown, /33 99/)

  const volume = await Volume.create('node-volume')
  await volume.writeFile('/a.txt', 'kept')
  assert.deepEqual([await volume.readFile('/a.txt'), (await volume.list('/')).map((entry) => entry.path)], ['kept', ['/a.txt']])
  assert.equal(await Volume.destroy(volume.volumeId), true)

  const { snapshotId } = await box.createSnapshot()
  const again = await Sandbox.create(snapshotId)
  assert.equal(await again.files.read('work/a.txt'), 'grüße')
  await again.kill()
  assert.equal(await Sandbox.deleteSnapshot(snapshotId), true)

  const found = await Sandbox.list({ query: { metadata: { by: 'node & co' } } }).nextItems()
  assert.deepEqual(found.map((one) => one.sandboxId), [box.sandboxId])
  assert.equal(await box.isRunning(), true)
} finally {
  assert.equal(await box.kill(), true)
}
assert.equal(await box.isRunning(), false)
console.log('all of it')
