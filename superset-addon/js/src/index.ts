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

/** An answer that is not what was asked for, from the server or something before it. */
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

/**
 * What is passed, without names that are not known, and with an `ifMatch` that is an
 * ETag where it is passed: undefined would be no condition.
 */
export type Checked<Passed, Known> = {
  [Name in keyof Passed]: Name extends 'ifMatch'
    ? string
    : Name extends keyof Known
      ? Passed[Name]
      : never;
};

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
  set<Options extends SetOptions & Checked<Options, SetOptions>>(
    key: string,
    value: JsonValue | Uint8Array,
    options?: Options,
  ): Promise<string>;
  /** One page of entries with their values, by key. */
  list(options: ListOptions): Promise<ListResult>;
  /** Removes an entry; it is no error where there is none, unless `ifMatch` is given. */
  remove<Options extends Condition & Checked<Options, Condition>>(
    key: string,
    condition?: Options,
  ): Promise<void>;
  /** Not in Superset's own: the value with its version. */
  getEntry(key: string): Promise<Entry | null>;
  /** Not in Superset's own: the value as bytes, whatever they are. */
  getBytes(key: string): Promise<Uint8Array | null>;
  /** Not in Superset's own: those of up to 100 keys that there are, by key. */
  getMany(keys: string[]): Promise<Map<string, FoundEntry>>;
  /** Not in Superset's own: sets up to 100 entries, all or none; gives their ETags. */
  setMany<Entry extends NewEntry & Checked<Entry, NewEntry>>(
    entries: Entry[],
  ): Promise<string[]>;
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
  const accessor = (scope: string, isOfResource = false) =>
    new ScopeAccessor(
      server,
      `/api/v1/extensions/${publisher}/${name}/storage/persistent/${scope}/`,
      isOfResource,
    );
  const persistent = Object.assign(accessor('user'), {
    shared: accessor('global'),
    resource: (type: string, uuid: string) =>
      accessor(`resources/${segment(type, 'type')}/${segment(uuid, 'uuid')}`, true),
  });
  return {
    extension: { id: extensionId, publisher, name },
    storage: { persistent },
  };
}

/** Gives the path that Superset is behind, as it tells its own front end. */
function applicationRoot(): string {
  if (typeof document === 'undefined') {
    throw new TypeError('where there is no document, give options.applicationRoot');
  }
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
  return encoded(text, name);
}

/** Encodes text for a URL; half a surrogate pair would become another text there. */
function encoded(text: string, name: string): string {
  try {
    return encodeURIComponent(text);
  } catch {
    throw new StorageError(400, `${name} must not have half a surrogate pair`);
  }
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
    const { result } = await jsonOf<{ result?: unknown }>(answer);
    if (typeof result !== 'string' || result === '') throw foreign(answer);
    return result;
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
    if (typeof body.operation === 'number') index = body.operation;
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

/** Gives the error that an answer is, which says success and is not the store's. */
function foreign(answer: Response): StorageError {
  const type = answer.headers.get('Content-Type') ?? 'without a type';
  return new StorageError(
    answer.status,
    `HTTP status ${answer.status} (${type}), but not from the storage: ` +
      'a login page, or a proxy on the way',
  );
}

/** Throws unless an answer is the server's own, with status 200. */
async function expectSuccess(answer: Response): Promise<void> {
  if (!answer.ok) throw await refusal(answer);
  // where a redirect led is another request's answer
  if (answer.status !== 200 || answer.redirected) throw foreign(answer);
}

/** Gives the object that an answer of success has as JSON. */
async function jsonOf<T extends object>(answer: Response): Promise<T> {
  await expectSuccess(answer);
  if (!isJson(answer)) throw foreign(answer);
  const text = await answer.text();
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    throw foreign(answer);
  }
  if (!isObject(body)) throw foreign(answer);
  return body as T;
}

/** Gives the version that each answer about one entry has. */
function versionOf(answer: Response): string {
  const version = answer.headers.get('Entry-Version');
  if (version === null || !/^"[0-9a-f-]{36}-\d+"$/.test(version)) throw foreign(answer);
  return version;
}

function isJson(answer: Response): boolean {
  return isJsonType(answer.headers.get('Content-Type') ?? '');
}

function isJsonType(contentType: string): boolean {
  return contentType.split(';')[0]?.trim().toLowerCase() === JSON_TYPE;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

class ScopeAccessor implements StorageAccessor {
  private readonly server: Server;

  private readonly path: string;

  private readonly isOfResource: boolean;

  constructor(server: Server, path: string, isOfResource: boolean) {
    this.server = server;
    this.path = path;
    this.isOfResource = isOfResource;
  }

  async get<T = JsonValue>(key: string): Promise<T | null> {
    return ((await this.getEntry(key))?.value ?? null) as T | null;
  }

  async getEntry(key: string): Promise<Entry | null> {
    const answer = await this.read(key);
    if (answer === null) return null;
    const isBinary = !isJson(answer);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    return {
      value: isBinary ? encodeBase64(bytes) : parseJson(key, bytes),
      codec: isBinary ? 'binary' : 'json',
      isBinary,
      etag: versionOf(answer),
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
    const { result } = await jsonOf<{ result?: unknown }>(answer);
    if (!isObject(result) || result.key !== key) throw foreign(answer);
    return versionOf(answer);
  }

  async list(options: ListOptions): Promise<ListResult> {
    const { page, pageSize } = options;
    const isWhole = Number.isSafeInteger(page) && Number.isSafeInteger(pageSize);
    if (!isWhole || page < 0 || pageSize < 1 || pageSize > 100) {
      throw new StorageError(400, 'page must be from 0, pageSize from 1 to 100');
    }
    let query = `page=${page}&page_size=${pageSize}`;
    if (options.category !== undefined) {
      query += `&category=${encoded(options.category, 'category')}`;
    }
    const answer = await this.server.request(`${this.path}?${query}`);
    const { result, count } = await jsonOf<{ result?: unknown; count?: unknown }>(answer);
    if (typeof count !== 'number' || !isListOfKeys(result)) throw foreign(answer);
    const entries = await Promise.all(result.map(({ key }) => this.listEntry(key)));
    return { entries: entries.filter(entry => entry !== null), count };
  }

  async remove(key: string, condition: Condition = {}): Promise<void> {
    const answer = await this.server.request(this.pathOf(key), {
      method: 'DELETE',
      headers: conditionHeaders(condition),
    });
    if (await this.isMissing(answer)) return;
    const { message } = await jsonOf<{ message?: unknown }>(answer);
    if (message !== 'Deleted') throw foreign(answer);
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
        ...conditionFields(options),
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
    const { result } = await jsonOf<{ result?: unknown }>(answer);
    if (
      !isListOfKeys(result) ||
      result.length !== operations.length ||
      !operations.every(({ key }, at) => result[at]?.key === key)
    ) {
      throw foreign(answer);
    }
    return result as Readout[];
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
    if (await this.isMissing(answer)) return null;
    await expectSuccess(answer);
    versionOf(answer);
    return answer;
  }

  /** Does an answer say that there is no such entry, and not that all else is missing? */
  private async isMissing(answer: Response): Promise<boolean> {
    if (answer.status !== 404 || answer.redirected || !isJson(answer)) return false;
    const body: unknown = await answer.clone().json().catch(() => null);
    if (!isObject(body) || body.message !== 'Not found') return false;
    if (!this.isOfResource) return true;
    // That is also what is said of a dashboard or chart; its list tells them apart.
    await jsonOf(await this.server.request(`${this.path}?page_size=1`));
    return true;
  }

  private pathOf(key: string): string {
    return this.path + segment(key, 'key');
  }
}

function conditionHeaders(condition: Condition): Record<string, string> {
  const { if_match: match, if_none_match: noneMatch } = conditionFields(condition);
  return {
    ...(match !== undefined && { 'If-Match': match }),
    ...(noneMatch !== undefined && { 'If-None-Match': noneMatch }),
  };
}

/** Gives a condition as the fields of an operation. */
function conditionFields(condition: Condition): Record<string, string> {
  const fields: Record<string, string> = {};
  if ('ifMatch' in condition) {
    if (typeof condition.ifMatch !== 'string') {
      throw new TypeError('ifMatch must be an ETag; ifAbsent is for a new entry');
    }
    fields.if_match = condition.ifMatch;
  }
  if (condition.ifAbsent) fields.if_none_match = '*';
  return fields;
}

function isListOfKeys(result: unknown): result is { key: string }[] {
  return (
    Array.isArray(result) &&
    result.every(one => isObject(one) && typeof one.key === 'string')
  );
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
  const isBinary = !isJsonType(found.value_type);
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
  const text = JSON.stringify(value, refuseWhatJsonLacks);
  if (text === undefined) throw new TypeError('the value cannot be JSON');
  return { value: text, value_type: JSON_TYPE };
}

/** Has JSON.stringify refuse what it would write as null, or leave out. */
function refuseWhatJsonLacks(this: unknown, key: string, part: unknown): unknown {
  const tag = Object.prototype.toString.call(part);
  const isLost =
    (typeof part === 'number' && !Number.isFinite(part)) ||
    typeof part === 'function' ||
    typeof part === 'symbol' ||
    // a property that is undefined is one that is not there
    (part === undefined && Array.isArray(this)) ||
    // of a Map, a RegExp, a buffer or a promise nothing would be written
    (typeof part === 'object' &&
      !['[object Object]', '[object Array]', '[object Null]'].includes(tag)) ||
    // an invalid date
    (part === null && (this as Record<string, unknown>)[key] !== null);
  if (isLost) throw new TypeError('the value cannot be JSON');
  return part;
}

function parseJson(key: string, stored: string | Uint8Array): JsonValue {
  try {
    // Neither replaces bytes that are no UTF-8, nor leaves out a byte order mark.
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
    return JSON.parse(typeof stored === 'string' ? stored : decoder.decode(stored));
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
