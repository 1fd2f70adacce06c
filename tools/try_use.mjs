// Sets an entry and gets it through the installed package, from a server that keeps
// what it is sent.
import assert from 'node:assert';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { getContext } from 'superset-extension-storage';

const entries = new Map();
const server = createServer(async (request, answer) => {
  if (request.url === '/api/v1/security/csrf_token/') {
    answer.end(JSON.stringify({ result: 'token' }));
  } else if (request.method === 'PUT') {
    assert.equal(request.headers['x-csrftoken'], 'token');
    const parts = await request.toArray();
    entries.set(request.url, JSON.parse(Buffer.concat(parts)));
    answer.setHeader('Entry-Version', '"1"').end();
  } else if (entries.has(request.url)) {
    const { value, value_type: type } = entries.get(request.url);
    answer.setHeader('Content-Type', type).end(value);
  } else {
    answer.writeHead(404).end();
  }
});
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const root = `http://127.0.0.1:${server.address().port}`;
const bootstrap = JSON.stringify({ common: { application_root: root } });
globalThis.document = { getElementById: () => ({ dataset: { bootstrap } }) };

const { persistent } = getContext('acme.app').storage;
assert.equal(await persistent.set('k', { a: [1] }), '"1"');
assert.deepEqual(await persistent.get('k'), { a: [1] });
assert.equal(await persistent.get('other'), null);
server.close();
server.closeAllConnections();
