// Commands and terminals as E2B's client for Node offers them: how they end, what they are given, talking to them, finding them again.
import assert from 'node:assert/strict'
import { e2b, failing, growing, withBox } from './e2b_kit.mjs'

const { AuthenticationError, CommandExitError, InvalidArgumentError, NotFoundError, TimeoutError } = e2b

await withBox({ envs: { A: '1' } }, async (box) => {
  const { commands, pty } = box
  const run = async (...given) => (await commands.run(...given)).stdout
  const both = await commands.run('echo out; echo err >&2')
  assert.deepEqual([both.stdout, both.stderr, both.exitCode, both.error], ['out\n', 'err\n', 0, undefined])
  const failed = await failing(commands.run('echo a; echo b >&2; exit 3'))
  assert.ok(failed instanceof CommandExitError)
  assert.deepEqual([failed.exitCode, failed.stdout, failed.stderr, failed.error], [3, 'a\n', 'b\n', 'exit status 3'])
  const killed = await failing(commands.run('kill -9 $$'))
  assert.deepEqual([killed.exitCode, killed.error], [-1, 'signal: killed'])
  assert.equal((await failing(commands.run('notacommand'))).exitCode, 127)
  assert.equal(await run(''), '')

  assert.equal(await run('id -un; pwd; echo $HOME $USER $LOGNAME'), 'user\n/home/user\n/home/user user user\n')
  assert.equal(await run('id -un; echo $HOME $USER $LOGNAME', { user: 'root' }), 'root\n/root root root\n')
  assert.equal(await run('pwd; echo $A $B', { cwd: '/tmp', envs: { B: '2' } }), '/tmp\n1 2\n')
  assert.equal(await run('echo $A', { envs: { A: '9' } }), '9\n')
  assert.equal((await run('head -c 3000000 /dev/zero | tr "\\0" x')).length, 3_000_000)
  assert.equal(await run('printf "héllo 🎉"'), 'héllo 🎉')
  for (const [ask, kind, words] of [
    [() => commands.run('pwd', { cwd: '/nope' }), InvalidArgumentError, /cwd '\/nope' does not exist/],
    [() => commands.run('pwd', { user: 'nobody-x' }), AuthenticationError, /invalid username: 'nobody-x'/],
    [() => commands.run('sleep 30', { timeoutMs: 300 }), TimeoutError, /deadline/],
    [() => commands.connect(999_999), NotFoundError, /not found/],
    [() => commands.sendStdin(999_999, 'x'), NotFoundError, /not found/],
    [() => pty.resize(999_999, { cols: 1, rows: 1 }), NotFoundError, /not found/],
  ]) {
    const error = await failing(ask())
    assert.ok(error instanceof kind, `${error.name}: ${error.message}`)
    assert.match(error.message, words)
  }

  const heard = []
  const behind = await commands.run('echo 1; echo 2 >&2; exit 2', { background: true, onStdout: (text) => heard.push(text), onStderr: (text) => heard.push(text) })
  assert.equal((await failing(behind.wait())).exitCode, 2)
  assert.deepEqual([heard.sort(), behind.exitCode, behind.stdout, behind.stderr], [['1\n', '2\n'], 2, '1\n', '2\n'])
  const long = await commands.run('sleep 300', { background: true, cwd: '/tmp', envs: { Q: 'q' } })
  const shown = (await commands.list()).find((one) => one.pid === long.pid)
  assert.deepEqual([shown.cmd, shown.args, shown.envs, shown.cwd], ['/bin/bash', ['-l', '-c', 'sleep 300'], { Q: 'q' }, '/tmp'])
  assert.equal(await long.kill(), true)
  assert.equal((await failing(long.wait())).exitCode, -1)
  assert.deepEqual([await long.kill(), await commands.kill(999_999)], [false, false])
  const left = await commands.run('read word; echo $word', { background: true, stdin: true })
  await left.disconnect()
  const again = await commands.connect(left.pid)
  await commands.sendStdin(left.pid, 'late\n')
  assert.equal((await again.wait()).stdout, 'late\n')

  const talk = await commands.run('cat; echo done', { background: true, stdin: true })
  await talk.sendStdin('one\n')
  await commands.sendStdin(talk.pid, new TextEncoder().encode('zwö\n'))
  await talk.closeStdin()
  assert.equal((await talk.wait()).stdout, 'one\nzwö\ndone\n')
  const count = await commands.run('wc -c', { background: true, stdin: true })
  await count.sendStdin('y'.repeat(3_000_000))
  await count.closeStdin()
  assert.equal((await count.wait()).stdout.trim(), '3000000')

  const screen = growing()
  const terminal = await pty.create({ cols: 100, rows: 30, onData: screen.take, envs: { X: 'y' }, cwd: '/tmp', user: 'root', timeoutMs: 0 })
  const type = (text) => pty.sendInput(terminal.pid, new TextEncoder().encode(text))
  await type('stty size; echo $X $TERM $LANG; pwd; id -un; echo fir""st\n')
  const first = await screen.has('first')
  for (const word of ['30 100', 'y xterm-256color C.UTF-8', '/tmp', 'root']) assert.ok(first.includes(word), word)
  await pty.resize(terminal.pid, { cols: 70, rows: 20 })
  await type('stty size; exit 7\n')
  assert.equal((await failing(terminal.wait())).exitCode, 7)
  await screen.has('20 70')
  const other = await pty.create({ cols: 80, rows: 24, onData: () => {} })
  await other.disconnect()
  const second = growing()
  const joined = await pty.connect(other.pid, { onData: second.take })
  await pty.sendInput(other.pid, new TextEncoder().encode('echo jo""ined\n'))
  await second.has('joined')
  assert.deepEqual([await pty.kill(other.pid), (await failing(joined.wait())).exitCode, await pty.kill(other.pid)], [true, -1, false])

  const lost = await failing(commands.run('echo begun; sleep 300', { timeoutMs: 100_000, onStdout: () => void box.kill() }))
  assert.ok(lost instanceof TimeoutError, `${lost}`)
  assert.match(lost.message, /killed or reached its end of life/)
})
console.log('all of it')
