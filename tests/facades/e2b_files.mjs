// Files as E2B's client for Node offers them: every way to write and read, what is said of them, addresses, watches, and what is refused.
import assert from 'node:assert/strict'
import { e2b, failing, withBox } from './e2b_kit.mjs'

const { AuthenticationError, FileNotFoundError, InvalidArgumentError, TimeoutError } = e2b

await withBox({}, async (box) => {
  const { files } = box
  const written = await files.write('d/e/f.txt', 'text')
  assert.deepEqual([written.name, written.path, written.type], ['f.txt', '/home/user/d/e/f.txt', 'file'])
  assert.equal(Buffer.from(await files.read('d/e/f.txt', { format: 'bytes' })).toString(), 'text')
  assert.equal(await (await files.read('d/e/f.txt', { format: 'blob' })).text(), 'text')
  assert.equal(await new Response(await files.read('d/e/f.txt', { format: 'stream' })).text(), 'text')
  assert.equal(await files.read('d/e/f.txt', { gzip: true }), 'text')

  await files.write('empty', '')
  assert.deepEqual([await files.read('empty'), (await files.read('empty', { format: 'bytes' })).length], ['', 0])
  const many = [{ path: 'm1', data: 'a' }, { path: '/tmp/m2', data: new TextEncoder().encode('b').buffer }, { path: 'x/m3', data: new Blob(['c']) }]
  assert.deepEqual((await files.writeFiles(many)).map((one) => one.path), ['/home/user/m1', '/tmp/m2', '/home/user/x/m3'])
  assert.deepEqual(await files.write([]), [])
  await files.write('bytes', new Blob(['q'.repeat(1_000_000)]), { useOctetStream: true })
  await files.write('packed', 'z'.repeat(100_000), { gzip: true })
  await files.write('streamed', new Blob(['in pieces']).stream())
  assert.deepEqual([(await files.read('bytes')).length, (await files.read('packed')).length, await files.read('streamed')], [1_000_000, 100_000, 'in pieces'])
  await files.write('sp ace/ü&?#%.txt', 'odd')
  assert.equal(await files.read('sp ace/ü&?#%.txt'), 'odd')
  assert.equal((await files.write('r', 'x', { user: 'root' })).path, '/root/r')
  assert.match(await files.read('/proc/version'), /Linux/)

  const said = await files.write('said', 'x', { metadata: { author: 'me', 'long-name': 'v w' } })
  assert.deepEqual([said.metadata, (await files.getInfo('said')).metadata], [{ author: 'me', 'long-name': 'v w' }, { author: 'me', 'long-name': 'v w' }])
  await files.write('said', 'y')
  assert.equal((await files.getInfo('said')).metadata, undefined)
  assert.ok((await failing(files.write('said', 'x', { metadata: { a: 'x'.repeat(5000) } }))) instanceof InvalidArgumentError)

  const info = await files.getInfo('d/e/f.txt')
  assert.deepEqual([info.type, info.size, info.mode, info.permissions, info.owner, info.group], ['file', 4, 0o644, '-rw-r--r--', 'user', 'user'])
  assert.ok(Math.abs(info.modifiedTime - Date.now()) < 60_000)
  await box.commands.run('ln -s d/e/f.txt link; ln -s d dlink; ln -s nowhere broken')
  const link = await files.getInfo('link')
  assert.deepEqual([link.type, link.symlinkTarget], ['file', '/home/user/d/e/f.txt'])
  assert.equal((await files.getInfo('broken')).symlinkTarget, '/home/user/broken')
  assert.deepEqual((await files.list('d', { depth: 3 })).map((entry) => entry.path), ['/home/user/d/e', '/home/user/d/e/f.txt'])
  assert.deepEqual((await files.list('dlink')).map((entry) => entry.path), ['/home/user/dlink/e'])

  assert.deepEqual([await files.makeDir('n/e/w'), await files.makeDir('n/e/w')], [true, false])
  assert.equal((await files.rename('m1', 'deep/er/m9')).path, '/home/user/deep/er/m9')
  assert.deepEqual([await files.exists('m1'), await files.exists('deep/er/m9')], [false, true])
  await files.remove('deep')
  await files.remove('deep')

  for (const [ask, kind, words] of [
    [() => files.read('nope'), FileNotFoundError, /path '\/home\/user\/nope' does not exist/],
    [() => files.read('d'), InvalidArgumentError, /is a directory/],
    [() => files.write('d', 'x'), InvalidArgumentError, /path is a directory/],
    [() => files.read('said', { user: 'nobody-x' }), AuthenticationError, /unknown user nobody-x/],
    [() => files.makeDir('said'), InvalidArgumentError, /not a directory/],
    [() => files.list('nope'), FileNotFoundError, /not found/],
    [() => files.list('said'), InvalidArgumentError, /not a directory/],
    [() => files.rename('nope', 'x1'), FileNotFoundError, /not found/],
    [() => files.getInfo('nope'), FileNotFoundError, /not found/],
    [() => files.watchDir('nope', () => {}), FileNotFoundError, /not found/],
    [() => files.watchDir('said', () => {}), InvalidArgumentError, /not a directory/],
  ]) {
    const error = await failing(ask())
    assert.ok(error instanceof kind, `${error.name}: ${error.message}`)
    assert.match(error.message, words)
  }

  // Addresses: signed for one path, one way and one time.
  const form = new FormData()
  form.append('file', new Blob(['by address']), 'another name')
  const sent = await fetch(await box.uploadUrl('up.txt', { useSignatureExpiration: 60 }), { method: 'POST', body: form })
  assert.deepEqual([sent.status, await files.read('up.txt')], [200, 'by address'])
  assert.equal(await (await fetch(await box.downloadUrl('up.txt', { useSignatureExpiration: 60 }))).text(), 'by address')
  const late = await fetch(await box.downloadUrl('up.txt', { useSignatureExpiration: -60 }))
  assert.deepEqual([late.status, (await late.json()).message], [401, 'signature is already expired'])
  assert.equal((await fetch((await box.downloadUrl('up.txt')).replace('up.txt', 'said'))).status, 401)
  assert.equal((await fetch(await box.downloadUrl('up.txt', { user: 'root' }))).status, 404)

  await files.makeDir('w/sub')
  const seen = []
  let last
  const over = new Promise((resolve) => (last = resolve))
  const note = (event) => (seen.push([event.type, event.name, event.entry?.path]), event.name === 'end' && event.type === 'write' && last())
  const watch = await files.watchDir('w', note, { recursive: true, includeEntry: true })
  await files.write('w/sub/a', '1')
  await files.rename('w/sub/a', 'w/b')
  await files.remove('w/b')
  await files.write('w/end', 'x')
  await over
  await watch.stop()
  const of = (name) => seen.filter((event) => event[1] === name).map((event) => event[0])
  assert.deepEqual([of('sub/a'), of('b')], [['create', 'chmod', 'write', 'rename'], ['create', 'remove']])
  assert.equal(seen[0][2], '/home/user/w/sub/a')
  const why = await new Promise((left) => files.watchDir('w', () => {}, { timeoutMs: 300, onExit: left }))
  assert.ok(why instanceof TimeoutError, `${why}`)
})
console.log('all of it')
