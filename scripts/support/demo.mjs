// The official SDK, unmodified, runs one shell command in a sandbox and prints what it wrote.
//
//   node demo.mjs SDK-FOLDER URL TOKEN SANDBOX COMMAND

import { pathToFileURL } from 'node:url';

const [folder, baseURL, token, name, command] = process.argv.slice(2);
const { SpritesClient } = await import(pathToFileURL(`${folder}/node_modules/@fly/sprites/dist/index.js`).href);
const client = new SpritesClient(token, { baseURL, timeout: 120000 });
const done = await client.sprite(name).execFile('sh', ['-c', command]);
process.stdout.write(done.stdout);
