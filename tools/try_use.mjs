// Sets an entry and gets it through the installed package, from a server that keeps
// what it is sent.
import assert from 'node:assert';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { getContext } from 'superset-extension-storage';

const entries = new Map();
const version = '"00000000-0000-0000-0000-000000000001-1"';
const server = createServer(async (request, answer) => {
  answer.setHeader('Content-Type', 'application/json');
  if (request.url === '/api/v1/security/csrf_token/') {
    answer.end(JSON.stringify({ result: 'token' }));
  } else if (request.method === 'PUT') {
    assert.equal(request.headers['x-csrftoken'], 'token');
    const parts = await request.toArray();
    entries.set(request.url, JSON.parse(Buffer.concat(parts)));
    answer.setHeader('Entry-Version', version);
    answer.end(JSON.stringify({ result: { key: request.url.split('/').pop() } }));
  } else if (entries.has(request.url)) {
    const { value, value_type: type } = entries.get(request.url);
    answer.setHeader('Entry-Version', version);
    answer.setHeader('Content-Type', type).end(value);
  } else {
    answer.writeHead(404).end(JSON.stringify({ message: 'Not found' }));
  }
});
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const root = `http://127.0.0.1:${server.address().port}`;
const bootstrap = JSON.stringify({ common: { application_root: root } });
assert.throws(() => getContext('acme.app'), /applicationRoot/);
globalThis.document = { getElementById: () => ({ dataset: { bootstrap } }) };

const { persistent } = getContext('acme.app').storage;
assert.equal(await persistent.set('k', { a: [1] }), version);
assert.deepEqual(await persistent.get('k'), { a: [1] });
assert.equal(await persistent.get('other'), null);
server.close();
server.closeAllConnections();
