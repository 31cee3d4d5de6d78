// Lives of sandboxes as E2B's client for Node offers them: found, timed, paused, forked, kept as snapshots, reached and not; volumes and secrets; what is refused.
import assert from 'node:assert/strict'
import { e2b, failing, odd, withBox } from './e2b_kit.mjs'

const { ALL_TRAFFIC, AuthenticationError, E2B, Sandbox, SandboxNotFoundError, Secret, SecretNotFoundError, Volume, VolumeError, VolumeNotFoundError, VolumePathNotFoundError } = e2b
const near = (instant, seconds) => assert.ok(Math.abs(instant - Date.now() - seconds * 1000) < 20_000, `${instant}`)
const paused = async (box) => {
  while ((await box.getInfo()).state !== 'paused');
}

await withBox({ metadata: { odd, 'odd key&=': 'ä ö/?&=' } }, async (box) => {
  const info = await box.getInfo()
  assert.deepEqual([info.state, info.name, info.lifecycle], ['running', 'base', { onTimeout: 'kill', autoResume: false }])
  const found = (query) => Sandbox.list({ query: { metadata: { odd }, ...query } }).nextItems()
  assert.deepEqual((await found({ metadata: { odd, 'odd key&=': 'ä ö/?&=' }, state: ['running'] })).map((one) => one.sandboxId), [box.sandboxId])
  assert.deepEqual([await found({ state: ['paused'] }), await found({ metadata: { odd: 'other' } })], [[], []])

  const nobody = 'sb-aaaaaaaaaaaaaaaa'
  assert.equal(await Sandbox.kill(nobody), false)
  for (const ask of [
    () => Sandbox.getInfo(nobody),
    () => Sandbox.connect(nobody),
    () => Sandbox.setTimeout(nobody, 1000),
    () => Sandbox.pause(nobody),
    () => Sandbox.getMetrics(nobody),
    () => Sandbox.createSnapshot(nobody),
    () => Sandbox.fork(nobody),
    () => Sandbox.updateNetwork(nobody, {}),
  ])
    assert.ok((await failing(ask())) instanceof SandboxNotFoundError)
  assert.ok((await failing(Sandbox.create('base', { apiKey: `e2b_${'0'.repeat(40)}` }))) instanceof AuthenticationError)
  assert.equal((await failing(Sandbox.create(`nothing-${odd}`))).statusCode, 404)

  await box.setTimeout(400_000)
  near((await box.getInfo()).endAt, 400)
  await box.connect({ timeoutMs: 100_000 }) // never nearer
  near((await box.getInfo()).endAt, 400)
  assert.ok((await box.getMetrics()).length > 0)
  assert.deepEqual(await box.getMetrics({ start: new Date(0), end: new Date(1000) }), [])

  const sleeper = await box.commands.run('sleep 3000', { background: true })
  await box.files.write('/tmp/kept', 'v')
  const { snapshotId, names } = await box.createSnapshot()
  assert.deepEqual(names, [])
  const older = await box.createSnapshot({ name: `Named_${odd}` })
  const named = await box.createSnapshot({ name: `named_${odd}` })
  assert.deepEqual([older.snapshotId, named.snapshotId], [`named_${odd}:default`, `named_${odd}:default`])
  const pages = Sandbox.listSnapshots({ sandboxId: box.sandboxId, limit: 1 })
  assert.deepEqual((await pages.nextItems()).map((one) => one.snapshotId), [named.snapshotId])
  assert.deepEqual([(await pages.nextItems()).map((one) => one.snapshotId), pages.hasNext], [[snapshotId], false])
  await withBoxOf(named.snapshotId, async (again) => {
    assert.equal(await again.files.read('/tmp/kept'), 'v') // /tmp is in memory, and so are processes
    assert.ok((await again.commands.list()).some((one) => one.pid === sleeper.pid))
  })
  assert.deepEqual([await Sandbox.deleteSnapshot(snapshotId), await Sandbox.deleteSnapshot(named.snapshotId), await Sandbox.deleteSnapshot(snapshotId)], [true, true, false])

  for (const kid of await box.fork({ count: 2, timeoutMs: 60_000 })) {
    assert.equal(await kid.files.read('/tmp/kept'), 'v')
    near((await kid.getInfo()).endAt, 60)
    await kid.kill()
  }
  assert.equal((await failing(box.fork({ count: 101 }))).statusCode, 400)
})

await withBox({}, async (box) => {
  const sleeper = await box.commands.run('sleep 3000', { background: true })
  await box.files.write('kept', 'v')
  assert.deepEqual([await box.pause(), await box.pause(), await box.isRunning()], [true, false, false])
  assert.equal((await failing(box.fork())).statusCode, 409)
  assert.ok((await failing(box.setTimeout(1000))) instanceof SandboxNotFoundError)
  const back = await Sandbox.connect(box.sandboxId)
  assert.ok((await back.commands.list()).some((one) => one.pid === sleeper.pid))
  await back.pause({ keepMemory: false })
  await back.connect()
  assert.deepEqual([await back.files.read('kept'), await back.commands.list()], ['v', []])
})
await withBox({ lifecycle: { onTimeout: 'pause', autoResume: true } }, async (box) => {
  await box.files.write('kept', 'v')
  await box.setTimeout(0)
  await paused(box)
  assert.equal(await box.files.read('kept'), 'v')
  near((await box.getInfo()).endAt, 300)
})
await withBox({ allowInternetAccess: false, network: { allowPublicTraffic: false, maskRequestHost: 'x.example:${PORT}' } }, async (box) => {
  assert.ok(box.trafficAccessToken)
  assert.equal((await box.getInfo()).allowInternetAccess, false)
  const rules = { 'api.example.com': [{ transform: { headers: { 'X-A': 'b' } } }] }
  await box.updateNetwork({ allowOut: ['1.1.1.1', '*.example.com'], denyOut: [ALL_TRAFFIC], rules })
  const { network } = await box.getInfo()
  assert.deepEqual([network.allowOut, network.denyOut, network.rules, network.allowPublicTraffic], [['1.1.1.1', '*.example.com'], ['0.0.0.0/0'], rules, false])
  await box.updateNetwork({})
  assert.equal((await box.getInfo()).network.allowOut, undefined)
})
for (const [options, words] of [
  [{ network: { allowOut: ['example.com'] } }, /ALL_TRAFFIC/],
  [{ network: { denyOut: ['example.com'] } }, /invalid denied CIDR/],
  [{ network: { egressProxy: { address: 'p.example:1080' } } }, /egressProxy/],
  [{ network: { httpsPorts: [8443] } }, /httpsPorts/],
  [{ iam: { tokens: { a: { audience: 'x', tokenType: 'JWT-SVID' } } } }, /iam/],
  [{ mcp: { arxiv: {} } }, /mcp-gateway/],
  [{ volumeMounts: { '/mnt/v': 'nothing' } }, /volume 'nothing' not found/],
])
  assert.match((await failing(Sandbox.create(options))).message, words)

const volume = await Volume.create(`Vol_${odd}`)
assert.match((await failing(Volume.create(`Vol_${odd}`))).message, /already exists/)
assert.ok((await failing(Volume.create('bad name!'))) instanceof VolumeError)
assert.deepEqual([(await Volume.connect(volume.volumeId)).name, (await Volume.list()).some((one) => one.volumeId === volume.volumeId)], [volume.name, true])
assert.deepEqual([(await volume.writeFile('/a/b.txt', 'hi', { force: true })).size, await (await volume.readFile('/a/b.txt', { format: 'blob' })).text()], [2, 'hi'])
assert.deepEqual([(await volume.makeDir('/dd', { mode: 0o700, uid: 1000 })).mode, (await volume.list('/', { depth: 2 })).map((one) => one.path)], [0o700, ['/a', '/a/b.txt', '/dd']])
assert.deepEqual([(await volume.updateMetadata('/a/b.txt', { mode: 0o600 })).mode, await volume.exists('/dd'), await volume.exists('/nope')], [0o600, true, false])
assert.ok((await failing(volume.readFile('/nope'))) instanceof VolumePathNotFoundError)
await withBox({ volumeMounts: { '/mnt/v': volume } }, async (box) => {
  await box.commands.run('echo in > /mnt/v/f', { user: 'root' })
  assert.equal(await volume.readFile('/f'), 'in\n')
})
assert.deepEqual([await Volume.destroy(volume.volumeId), await Volume.destroy(volume.volumeId)], [true, false])
assert.ok((await failing(Volume.getInfo(volume.volumeId))) instanceof VolumeNotFoundError)

const secret = await Secret.create(`Tok_${odd}`, 'value')
await Secret.create(`tok_z${odd}`, 'value')
assert.deepEqual([secret.name, await Secret.exists(`tok_${odd}`)], [`tok_${odd}`, true])
const secrets = Secret.list({ limit: 1 })
await secrets.nextItems()
assert.equal(secrets.hasNext, true)
await Secret.update(secret.secretId, 'another')
assert.deepEqual([await Secret.destroy(secret.name), await Secret.destroy(secret.secretId), await Secret.destroy(`tok_z${odd}`)], [true, false, true])
assert.ok((await failing(Secret.getInfo(secret.name))) instanceof SecretNotFoundError)

const bound = await new E2B({ apiKey: process.env.E2B_API_KEY }).Sandbox.create()
assert.equal(await bound.kill(), true)
console.log('all of it')

async function withBoxOf(template, use) {
  const box = await Sandbox.create(template)
  try {
    await use(box)
  } finally {
    await box.kill()
  }
}
