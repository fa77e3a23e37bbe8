// The official SDK, unmodified, against a server: each line of output is one check that held.
//
//   node sdk.mjs SDK-FOLDER URL TOKEN

import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { connect } from 'node:net';
import { once } from 'node:events';
import { pathToFileURL } from 'node:url';

const [folder, baseURL, token] = process.argv.slice(2);
const { SpritesClient } = await import(pathToFileURL(`${folder}/node_modules/@fly/sprites/dist/index.js`).href);
const client = new SpritesClient(token, { baseURL, timeout: 120000 });
const done = (what) => console.log(`ok ${what}`);

async function lines(stream) {
  const all = [];
  for await (const line of stream) all.push(line);
  return all;
}

async function status(promise) {
  try {
    await promise;
    return 0;
  } catch (e) {
    return e.statusCode ?? e.status ?? e.exitCode ?? e.code ?? e.message;
  }
}

const box = await client.createSprite('box', { labels: ['a'], environment: { COLOUR: 'blue' } });
assert.equal(box.name, 'box');
assert.equal(box.status, 'cold');
done('createSprite');

await assert.rejects(client.createSprite('box'), /already exists/);
await assert.rejects(client.createSprite('Not A Name'), { statusCode: 400 });
await assert.rejects(client.getSprite('nobody'), /404|not found/i);
const stranger = new SpritesClient('local/x/y/z', { baseURL });
await assert.rejects(stranger.getSprite('box'), /401|authentication/i);
done('refusals: taken, no name, nobody, no token');

const first = await box.exec('echo hello');
assert.equal(first.stdout, 'hello\n');
assert.equal(first.exitCode, 0);
done('exec wakes the sandbox');

const failed = await box.execFile('sh', ['-c', 'echo out; echo err >&2; exit 7']).catch((e) => e.result ?? e);
assert.equal(failed.exitCode, 7);
assert.equal(failed.stdout, 'out\n');
assert.equal(failed.stderr, 'err\n');
assert.equal((await box.execFile('sh', ['-c', 'echo $COLOUR $SIZE; pwd'], { env: { SIZE: 'big' }, cwd: '/tmp' })).stdout,
  'blue big\n/tmp\n');
done('streams, status, variables, folder');

for (let i = 0; i < 100; i += 1) {
  const wanted = i % 3;
  const got = await box.execFile('sh', ['-c', `echo ${i}; exit ${wanted}`]).catch((e) => e.result ?? e);
  assert.deepEqual([got.stdout, got.exitCode], [`${i}\n`, wanted]);
}
done('a hundred fast commands lose nothing');

const large = await box.execFile('sh', ['-c', 'yes 0123456789abcde | head -c 1048576'], { maxBuffer: 4 << 20 });
assert.equal(large.stdout.length, 1048576);
const cat = box.spawn('sh', ['-c', 'wc -c']);
let counted = '';
cat.stdout.on('data', (piece) => { counted += piece; });
await once(cat, 'spawn');
cat.stdin.write(Buffer.alloc(300000, 'x'));
cat.stdin.end();
const [code] = await once(cat, 'exit');
assert.equal(code, 0);
assert.equal(counted.trim(), '300000');
done('a megabyte comes out, three hundred thousand bytes go in');

const terminal = box.spawn('sh', ['-c', 'stty size; read x; echo "got $x"'], { tty: true, rows: 33, cols: 101 });
let shown = '';
terminal.stdout.on('data', (piece) => { shown += piece; });
while (!shown.includes('33 101')) await once(terminal.stdout, 'data');
terminal.stdin.write('word\n');
await once(terminal, 'exit');
assert.match(shown, /got word/);
done('a terminal has its size and takes keys');

const session = box.createSession('sh', ['-c', 'i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.2; done']);
let ticks = '';
session.stdout.on('data', (piece) => { ticks += piece; });
while (!ticks.includes('tick 3')) await once(session.stdout, 'data');
const listed = await box.listSessions();
assert.equal(listed.length, 1);
const again = box.attachSession(listed[0].id);
let seen = '';
again.stdout.on('data', (piece) => { seen += piece; });
while (!seen.includes('tick 5')) await once(again.stdout, 'data');
assert.match(seen, /tick 1/);
const killed = await lines(await box.killSession(listed[0].id, 'SIGTERM', '5s'));
assert.equal(killed.at(-1).type, 'complete');
assert.equal(killed.at(-1).exitCode ?? killed.at(-1).exit_code, 143);
assert.equal((await box.listSessions()).length, 0);
done('a session is listed, attached to with what came before, and killed');

// Its frames have no length: those that arrive together are one to the SDK, which is then tried again.
let http;
for (let tries = 0; tries < 6 && http?.stdout !== 'in done\n'; tries += 1) {
  http = await box.execFileHTTP('sh', ['-c', 'cat; echo done'], { input: 'in ' }).catch((e) => e);
}
assert.equal(http.stdout, 'in done\n');
done('a command over plain HTTP');

const fs = box.filesystem('/root');
await fs.writeFile('dir/a file', 'text\n');
assert.equal(await fs.readFile('dir/a file', 'utf8'), 'text\n');
await fs.mkdir('empty');
assert.deepEqual((await fs.readdir('.')).sort(), ['dir', 'empty']);
const stat = await fs.stat('dir/a file');
assert.equal(stat.size, 5);
await fs.chmod('dir/a file', 0o600);
await fs.rename('dir/a file', 'dir/b');
await fs.copyFile('dir', 'copy', { recursive: true });
assert.equal(await fs.readFile('copy/b', 'utf8'), 'text\n');
await fs.rm('copy', { recursive: true });
assert.equal(await fs.exists('copy'), false);
assert.equal(await status(fs.readFile('nothing')), 'ENOENT');
const data = Buffer.alloc(3 << 20, 'bytes of a larger file\n');
await fs.writeFile('large', data);
assert.ok((await fs.readFile('large')).equals(data));
done('files: write, read, list, mkdir, stat, chmod, rename, copy, remove');

const changes = await fs.watch('dir', { recursive: true });
const seenChange = (async () => {
  for await (const change of changes) {
    if (change.type === 'subscribed') await box.exec('touch /root/dir/new');
    if (change.path === '/root/dir/new') return change.event;
  }
  return 'nothing';
})();
assert.equal(await seenChange, 'create');
changes.close();
await fs.rm('dir/new');
done('a change of a file is told');

const made = await lines(await box.createCheckpoint('before'));
assert.equal(made.at(-1).type, 'complete');
assert.equal(made.at(-1).data, 'Checkpoint v1 created successfully');
const checkpoints = await box.listCheckpoints();
assert.deepEqual(checkpoints.map((checkpoint) => checkpoint.id), ['Current', 'v1']);
assert.equal((await box.getCheckpoint('v1')).comment, 'before');
await box.exec('rm -rf /root/dir /root/large');
const sleeper = box.spawn('sleep', ['1000']);
const ended = once(sleeper, 'exit');
await once(sleeper, 'spawn');
const restored = await lines(await box.restoreCheckpoint('v1'));
assert.equal(restored.at(-1).data, 'Restore from v1 complete');
assert.notEqual((await ended)[0], 0);
assert.equal(await fs.readFile('dir/b', 'utf8'), 'text\n');
const missing = await lines(await box.restoreCheckpoint('v99'));
assert.equal(missing.at(-1).type, 'error');
done('checkpoint, loss, restore; a command that ran ends');

const echo = box.spawn('sh', ['-c', 'while true; do echo answer | nc -l -p 8080 >/dev/null; done']);
await new Promise((resolve) => setTimeout(resolve, 1500));
const free = createServer();
await once(free.listen(0, '127.0.0.1'), 'listening');
const { port } = free.address();
await new Promise((resolve) => free.close(resolve));
const proxy = await box.proxyPort(port, 8080);
// Until somebody listens in the guest connections are closed again.
let answer = '';
for (let tries = 0; tries < 60 && !answer; tries += 1) {
  const tcp = connect(port, '127.0.0.1');
  tcp.on('error', () => {});
  tcp.on('data', (piece) => { answer += piece; });
  await Promise.race([once(tcp, 'close'), new Promise((resolve) => setTimeout(resolve, 3000))]);
  tcp.destroy();
  if (!answer) await new Promise((resolve) => setTimeout(resolve, 500));
}
assert.equal(answer, 'answer\n');
proxy.close();
echo.kill('SIGKILL');
done('a port of the guest is reached through a proxy');

const watcher = await box.watchPorts();
done('ports are watched');
watcher.close();

await client.upgradeSprite('box');
const live = await client.watchSprites();
for await (const state of live) if (state.name === 'box') break;
const updated = await client.updateSprite('box', { labels: ['b', 'c'] });
assert.deepEqual(updated.labels, ['b', 'c']);
assert.equal((await client.checkSprite('box')).status, 'healthy');
const list = await client.listSprites({ prefix: 'bo' });
assert.deepEqual(list.sprites.map((sprite) => sprite.name), ['box']);
assert.equal((await client.listAllSprites('x')).length, 0);
await client.restartSprite('box');
assert.equal((await box.exec('cat /root/dir/b')).stdout, 'text\n');
done('update, check, list, restart');

const response = await fetch(`${baseURL}/v1/sprites`, {
  method: 'POST',
  headers: { Authorization: `Bearer ${token}` },
  body: JSON.stringify({ name: 'twin', from: { sprite: 'box', checkpoint: 'v1' } }),
});
assert.equal(response.status, 201);
assert.equal((await client.sprite('twin').exec('cat /root/dir/b')).stdout, 'text\n');
done('a fork of a checkpoint is another sandbox');

const short = await fetch(`${baseURL}/v1/sprites/third`, { method: 'PUT', headers: { Authorization: `Bearer ${token}` } });
assert.equal(short.status, 201);
const said = await fetch(`${baseURL}/v1/sprites/third/exec`, {
  method: 'POST',
  headers: { Authorization: `Bearer ${token}` },
  body: JSON.stringify({ command: 'echo short; exit 3' }),
});
assert.deepEqual(await said.json(), { stdout: 'short\n', stderr: '', exit_code: 3 });
done('the short forms');

for (const name of ['box', 'twin', 'third']) await client.deleteSprite(name);
assert.equal((await client.listSprites()).sprites.length, 0);
assert.equal(await status(client.getSprite('box')) !== 0, true);
done('deleted');
process.exit(0);
