// Templates as E2B's client for Node builds and names them.
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { e2b, failing, odd } from './e2b_kit.mjs'

const { BuildError, Sandbox, Template, TemplateError, waitForPort } = e2b
const context = mkdtempSync(join(tmpdir(), 'corral-test-e2b-'))
try {
  writeFileSync(join(context, 'app.py'), 'print(1)\n')
  mkdirSync(join(context, 'sub'))
  writeFileSync(join(context, 'sub', 'x.txt'), 'x\n')
  const name = `Made_${odd}`
  const wanted = Template({ fileContextPath: context })
    .fromBaseImage()
    .copy('app.py', '/app/', { mode: 0o755, user: 'root' })
    .copy('sub', 'sub')
    .runCmd('echo built > ~/built')
    .setEnvs({ K: 'v' })
    .setWorkdir('/app')
    .makeDir('/made', { user: 'root', mode: 0o700 })
    .makeSymlink('/app/app.py', '/home/user/link')
    .rename('/home/user/built', '/home/user/renamed')
    .setUser('root')
    .runCmd('id -un > /who')
    .setUser('user')
    .setStartCmd('python3 -m http.server 8123', waitForPort(8123))
  const logs = []
  const built = await Template.build(wanted, name, { cpuCount: 1, memoryMB: 768, minFreeDiskMb: 5000, onBuildLogs: (line) => logs.push(line.message) })
  assert.ok(logs.some((line) => line.includes('/who')))
  const tagged = await Template.build(wanted, name, { tags: ['v1', 'v2'] })
  assert.deepEqual([tagged.templateId, tagged.tags.sort()], [built.templateId, ['v1', 'v2']])
  const there = [name, `${name}:v1`, `${name}:nope`, `nope-${odd}`]
  assert.deepEqual(await Promise.all(there.map((one) => Template.exists(one))), [true, true, false, false])

  const box = await Sandbox.create(`${name}:default`)
  const info = await box.getInfo()
  assert.deepEqual([info.cpuCount, info.memoryMB], [1, 768])
  const look = 'pwd; echo $K; cat ~/renamed /who; stat -c %a /made /app/app.py; cat /home/user/sub/x.txt; curl -s -o /dev/null -w "%{http_code}" localhost:8123'
  assert.equal((await box.commands.run(look)).stdout, '/app\nv\nbuilt\nroot\n700\n755\nx\n200')
  await box.kill()

  assert.deepEqual((await Template.assignTags(`${name}:v1`, ['prod', 'stable'])).tags.sort(), ['prod', 'stable'])
  await Template.removeTags(name, 'prod')
  assert.deepEqual((await Template.getTags(name)).map((one) => one.tag).sort(), ['default', 'stable', 'v1', 'v2'])
  assert.match((await failing(Template.removeTags(name, 'default'))).message, /Cannot delete the 'default' tag/)
  assert.ok((await failing(Template.assignTags(`nope-${odd}:x`, ['y']))) instanceof TemplateError)

  const broken = await failing(Template.build(Template().fromTemplate(name).runCmd('exit 5'), `${name}-b`))
  assert.ok(broken instanceof BuildError)
  assert.ok((await failing(Template.build(Template().fromTemplate(`nope-${odd}`).runCmd('true'), `${name}-c`))) instanceof BuildError)
  const behind = await Template.buildInBackground(Template().fromTemplate(name).runCmd('echo behind'), `${name}-d`)
  let status
  while (!['ready', 'error'].includes((status = await Template.getBuildStatus(behind)).status));
  assert.equal(status.status, 'ready')
} finally {
  rmSync(context, { recursive: true })
}
console.log('all of it')
