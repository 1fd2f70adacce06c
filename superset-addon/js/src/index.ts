/**
 * The storage of an extension, for its front end on Superset 6.1.
 *
 * `getContext(id).storage.persistent` has the calls of Superset's own storage API
 * for extensions; what is beyond them is marked "not in Superset's own".
 */

export type JsonValue =
  | string
  | number
  | boolean
  | null
  | JsonValue[]
  | { [key: string]: JsonValue };

/** An answer of the server that is not what was asked for. */
export class StorageError extends Error {
  /** HTTP status: 401 and 403 rights, 412 another version, 413 too large, 507 quota. */
  readonly status: number;

  /** Of several entries, the one that it was, from 0. */
  readonly index?: number;

  constructor(status: number, message: string, index?: number) {
    super(message);
    this.name = 'StorageError';
    this.status = status;
    if (index !== undefined) this.index = index;
  }
}

/** Not in Superset's own: which state of an entry a write is meant for. */
export interface Condition {
  /** Only over the version with this ETag; else a StorageError with status 412. */
  ifMatch?: string;
  /** Only where there is no entry; else a StorageError with status 412. */
  ifAbsent?: boolean;
}

export interface SetOptions extends Condition {
  /** Encrypt at rest. Without it an entry stays as it is: never less secret. */
  encrypt?: boolean;
  /** The value is bytes, not JSON. */
  isBinary?: boolean;
  /** Not in Superset's own: what lists can be filtered by. */
  category?: string;
  /** Not in Superset's own: text for lists. */
  description?: string;
}

/** Not in Superset's own: one of several entries that are set at once. */
export interface NewEntry extends SetOptions {
  key: string;
  value: JsonValue | Uint8Array;
}

export interface ListOptions {
  /** From 0. */
  page: number;
  /** From 1 to 100. */
  pageSize: number;
  /** Not in Superset's own: only entries of this category. */
  category?: string;
}

export interface ListEntry {
  key: string;
  /** As `get` gives it; null where `error` says why there is none. */
  value: JsonValue;
  codec: 'json' | 'binary';
  /** The value is base64 of the bytes. */
  isBinary: boolean;
  /** Not in Superset's own: the value cannot be read, a key is missing, say. */
  error?: StorageError;
}

export interface ListResult {
  entries: ListEntry[];
  /** All entries that match, on all pages. */
  count: number;
}

/** Not in Superset's own: an entry with its version. */
export interface Entry {
  value: JsonValue;
  codec: 'json' | 'binary';
  isBinary: boolean;
  /** For `ifMatch`. */
  etag: string;
}

/** Not in Superset's own: one of several entries that are read at once. */
export interface FoundEntry extends ListEntry {
  /** For `ifMatch`. */
  etag: string;
}

export interface StorageAccessor {
  /** The value, or null where there is none; of bytes their base64. */
  get<T = JsonValue>(key: string): Promise<T | null>;
  /** Makes or replaces an entry; gives its ETag (not in Superset's own). */
  set(
    key: string,
    value: JsonValue | Uint8Array,
    options?: SetOptions,
  ): Promise<string>;
  /** One page of entries with their values, by key. */
  list(options: ListOptions): Promise<ListResult>;
  /** Removes an entry; it is no error where there is none, unless `ifMatch` is given. */
  remove(key: string, condition?: Condition): Promise<void>;
  /** Not in Superset's own: the value with its version. */
  getEntry(key: string): Promise<Entry | null>;
  /** Not in Superset's own: the value as bytes, whatever they are. */
  getBytes(key: string): Promise<Uint8Array | null>;
  /** Not in Superset's own: those of up to 100 keys that there are, by key. */
  getMany(keys: string[]): Promise<Map<string, FoundEntry>>;
  /** Not in Superset's own: sets up to 100 entries, all or none; gives their ETags. */
  setMany(entries: NewEntry[]): Promise<string[]>;
  /** Not in Superset's own: removes up to 100 entries, all or none. */
  removeMany(keys: string[]): Promise<void>;
}

export interface PersistentStorage extends StorageAccessor {
  /** Entries of all users of the extension; the others are the user's own. */
  shared: StorageAccessor;
  /** Not in Superset's own: entries of a dashboard, a chart, or a type of one's own. */
  resource(type: string, uuid: string): StorageAccessor;
}

export interface ExtensionContext {
  extension: { id: string; publisher: string; name: string };
  storage: { persistent: PersistentStorage };
}

export interface ContextOptions {
  /** The path that Superset is behind; what the page says unless it is given. */
  applicationRoot?: string;
}

const JSON_TYPE = 'application/json';
const BINARY_TYPE = 'application/octet-stream';

/**
 * Gives the context of an extension, `publisher.name`.
 *
 * On Superset 6.1 the front end does not know which extension's code runs, so the
 * extension says it.
 */
export function getContext(
  extensionId: string,
  options: ContextOptions = {},
): ExtensionContext {
  const [, publisher, name] =
    /^([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)$/.exec(extensionId) ?? [];
  if (!publisher || !name) {
    throw new TypeError('the id of an extension is publisher.name');
  }
  const server = new Server(options.applicationRoot ?? applicationRoot());
  const accessor = (scope: string) =>
    new ScopeAccessor(
      server,
      `/api/v1/extensions/${publisher}/${name}/storage/persistent/${scope}/`,
    );
  const persistent = Object.assign(accessor('user'), {
    shared: accessor('global'),
    resource: (type: string, uuid: string) =>
      accessor(`resources/${segment(type, 'type')}/${segment(uuid, 'uuid')}`),
  });
  return {
    extension: { id: extensionId, publisher, name },
    storage: { persistent },
  };
}

/** Gives the path that Superset is behind, as it tells its own front end. */
function applicationRoot(): string {
  const bootstrap = document.getElementById('app')?.dataset.bootstrap;
  const root: unknown =
    bootstrap && JSON.parse(bootstrap).common?.application_root;
  return typeof root === 'string' ? root : '';
}

/** Gives a part of a path; a part of dots, or none, would be another path. */
function segment(text: string, name: string): string {
  if (text === '' || text === '.' || text === '..' || text.includes('/')) {
    throw new StorageError(400, `${name} must not be empty, . or .., or contain /`);
  }
  return encodeURIComponent(text);
}

/** Requests with the CSRF token of the session. */
class Server {
  private readonly root: string;

  private csrfToken: Promise<string> | undefined;

  constructor(root: string) {
    this.root = root.replace(/\/+$/, '');
  }

  /** Gives the answer, an error too; a write tries once more with a new token. */
  async request(path: string, init: RequestInit = {}): Promise<Response> {
    if (init.method === undefined) return this.fetch(path, init);
    const answer = await this.write(path, init);
    if (!(await isCsrfRefusal(answer))) return answer;
    this.csrfToken = undefined;
    return this.write(path, init);
  }

  private async write(path: string, init: RequestInit): Promise<Response> {
    this.csrfToken ??= this.fetchCsrfToken();
    let token: string;
    try {
      token = await this.csrfToken;
    } catch (error) {
      this.csrfToken = undefined;
      throw error;
    }
    return this.fetch(path, {
      ...init,
      headers: { ...init.headers, 'X-CSRFToken': token },
    });
  }

  private async fetchCsrfToken(): Promise<string> {
    const answer = await this.fetch('/api/v1/security/csrf_token/');
    if (!answer.ok) throw await refusal(answer);
    return (await answer.json()).result;
  }

  private fetch(path: string, init: RequestInit = {}): Promise<Response> {
    return fetch(this.root + path, {
      credentials: 'same-origin',
      cache: 'no-store',
      // to the login page, say, which would look like success
      redirect: 'manual',
      ...init,
    });
  }
}

async function isCsrfRefusal(answer: Response): Promise<boolean> {
  if (answer.type === 'opaqueredirect') return true;
  return answer.status === 400 && (await answer.clone().text()).includes('CSRF');
}

/** Gives the error that an answer tells. */
async function refusal(answer: Response): Promise<StorageError> {
  if (answer.type === 'opaqueredirect') {
    return new StorageError(401, 'Not logged in');
  }
  let message: unknown;
  let index: number | undefined;
  try {
    const body = await answer.json();
    index = body.operation;
    message = body.message ?? body.msg ?? body.errors?.[0]?.message;
  } catch {
    // no JSON: a proxy's own words
  }
  return new StorageError(
    answer.status,
    typeof message === 'string' ? message : `HTTP status ${answer.status}`,
    index,
  );
}

class ScopeAccessor implements StorageAccessor {
  private readonly server: Server;

  private readonly path: string;

  constructor(server: Server, path: string) {
    this.server = server;
    this.path = path;
  }

  async get<T = JsonValue>(key: string): Promise<T | null> {
    return ((await this.getEntry(key))?.value ?? null) as T | null;
  }

  async getEntry(key: string): Promise<Entry | null> {
    const answer = await this.read(key);
    if (answer === null) return null;
    const type = answer.headers.get('Content-Type')?.split(';')[0];
    const isBinary = type !== JSON_TYPE;
    return {
      value: isBinary
        ? encodeBase64(new Uint8Array(await answer.arrayBuffer()))
        : parseJson(key, await answer.text()),
      codec: isBinary ? 'binary' : 'json',
      isBinary,
      etag: answer.headers.get('Entry-Version') ?? '',
    };
  }

  async getBytes(key: string): Promise<Uint8Array | null> {
    const answer = await this.read(key);
    return answer && new Uint8Array(await answer.arrayBuffer());
  }

  async set(
    key: string,
    value: JsonValue | Uint8Array,
    options: SetOptions = {},
  ): Promise<string> {
    const body = encodeEntry(value, options);
    const answer = await this.server.request(this.pathOf(key), {
      method: 'PUT',
      headers: { 'Content-Type': JSON_TYPE, ...conditionHeaders(options) },
      body: JSON.stringify(body),
    });
    if (!answer.ok) throw await refusal(answer);
    return answer.headers.get('Entry-Version') ?? '';
  }

  async list(options: ListOptions): Promise<ListResult> {
    const query = new URLSearchParams({
      page: String(options.page),
      page_size: String(options.pageSize),
    });
    if (options.category !== undefined) query.set('category', options.category);
    const answer = await this.server.request(`${this.path}?${query}`);
    if (!answer.ok) throw await refusal(answer);
    const { result, count } = await answer.json();
    const entries = await Promise.all(
      result.map(({ key }: { key: string }) => this.listEntry(key)),
    );
    return { entries: entries.filter(entry => entry !== null), count };
  }

  async remove(key: string, condition: Condition = {}): Promise<void> {
    const answer = await this.server.request(this.pathOf(key), {
      method: 'DELETE',
      headers: conditionHeaders(condition),
    });
    if (!answer.ok && answer.status !== 404) throw await refusal(answer);
  }

  async getMany(keys: string[]): Promise<Map<string, FoundEntry>> {
    const results: Readout[] = await this.several(
      keys.map(key => ({ op: 'get', key })),
    );
    return new Map(
      results
        .filter(({ status }) => status !== 404)
        .map(found => [found.key, decodeReadout(found)]),
    );
  }

  async setMany(entries: NewEntry[]): Promise<string[]> {
    const results: Readout[] = await this.several(
      entries.map(({ key, value, ...options }) => ({
        op: 'set',
        key,
        ...encodeEntry(value, options),
        ...(options.ifMatch !== undefined && { if_match: options.ifMatch }),
        ...(options.ifAbsent && { if_none_match: '*' }),
      })),
    );
    return results.map(({ version }) => `"${version}"`);
  }

  async removeMany(keys: string[]): Promise<void> {
    await this.several(keys.map(key => ({ op: 'delete', key })));
  }

  /** Does operations in one request, all or none; gives their answers. */
  private async several(operations: { op: string; key: string }[]): Promise<Readout[]> {
    if (operations.length === 0) return [];
    const answer = await this.server.request(this.path, {
      method: 'POST',
      headers: { 'Content-Type': JSON_TYPE },
      body: JSON.stringify({ operations }),
    });
    if (!answer.ok) throw await refusal(answer);
    return (await answer.json()).result;
  }

  /** Gives an entry of a list, or null where it has gone meanwhile. */
  private async listEntry(key: string): Promise<ListEntry | null> {
    try {
      const entry = await this.getEntry(key);
      if (entry === null) return null;
      const { value, codec, isBinary } = entry;
      return { key, value, codec, isBinary };
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      return { key, value: null, codec: 'binary', isBinary: true, error };
    }
  }

  /** Gives the answer with an entry's bytes, or null where there is no entry. */
  private async read(key: string): Promise<Response | null> {
    const answer = await this.server.request(this.pathOf(key));
    if (answer.status === 404) return null;
    if (!answer.ok) throw await refusal(answer);
    return answer;
  }

  private pathOf(key: string): string {
    return this.path + segment(key, 'key');
  }
}

function conditionHeaders(condition: Condition): Record<string, string> {
  const headers: Record<string, string> = {};
  if (condition.ifMatch !== undefined) headers['If-Match'] = condition.ifMatch;
  if (condition.ifAbsent) headers['If-None-Match'] = '*';
  return headers;
}

/** Gives the fields of a request's body that make an entry. */
function encodeEntry(
  value: JsonValue | Uint8Array,
  options: SetOptions,
): Record<string, unknown> {
  const body: Record<string, unknown> = encodeValue(value, options.isBinary);
  if (options.encrypt) body.is_encrypted = true;
  if (options.category !== undefined) body.category = options.category;
  if (options.description !== undefined) body.description = options.description;
  return body;
}

/** What the server says of an entry that it gives with its value. */
interface Readout {
  status: number;
  key: string;
  version: string;
  value_type: string;
  value: string | null;
  value_encoding: string | null;
}

function decodeReadout({ key, ...found }: Readout): FoundEntry {
  const isBinary = found.value_type.split(';')[0] !== JSON_TYPE;
  const entry: FoundEntry = {
    key,
    value: null,
    codec: isBinary ? 'binary' : 'json',
    isBinary,
    etag: `"${found.version}"`,
  };
  try {
    if (found.value === null) throw new StorageError(500, 'Value cannot be decrypted');
    if (found.value_encoding === null) {
      entry.value = isBinary
        ? encodeBase64(new TextEncoder().encode(found.value))
        : parseJson(key, found.value);
    } else {
      if (!isBinary) throw notJson(key);
      entry.value = found.value;
    }
  } catch (error) {
    if (!(error instanceof StorageError)) throw error;
    return { ...entry, codec: 'binary', isBinary: true, error };
  }
  return entry;
}

/** Gives the fields of a request's body that carry a value. */
function encodeValue(
  value: JsonValue | Uint8Array,
  isBinary: boolean | undefined,
): Record<string, string> {
  if (isBinary !== value instanceof Uint8Array && (isBinary || ArrayBuffer.isView(value))) {
    throw new TypeError('a value is a Uint8Array if, and only if, isBinary is true');
  }
  if (value instanceof Uint8Array) {
    return {
      value: encodeBase64(value),
      value_encoding: 'base64',
      value_type: BINARY_TYPE,
    };
  }
  const text = JSON.stringify(value);
  if (text === undefined) throw new TypeError('the value cannot be JSON');
  return { value: text, value_type: JSON_TYPE };
}

function parseJson(key: string, text: string): JsonValue {
  try {
    return JSON.parse(text);
  } catch {
    throw notJson(key);
  }
}

function notJson(key: string): StorageError {
  return new StorageError(200, `the value of ${key} is not the JSON that it says it is`);
}

function encodeBase64(bytes: Uint8Array): string {
  const step = 0x8000; // arguments of a call
  let text = '';
  for (let at = 0; at < bytes.length; at += step) {
    text += String.fromCharCode(...bytes.subarray(at, at + step));
  }
  return btoa(text);
}

/** Gives the bytes of a binary value as `get` and `list` give it. */
export function decodeBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), character => character.charCodeAt(0));
}
