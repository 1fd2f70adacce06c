import { StorageError, decodeBase64, getContext } from 'superset-extension-storage';

const { persistent } = getContext('acme.sample').storage;

/** Counts the pages that a user has loaded, in however many tabs. */
async function countVisit(): Promise<void> {
  const entry = await persistent.getEntry('visits');
  try {
    await persistent.set(
      'visits',
      Number(entry?.value ?? 0) + 1,
      entry ? { ifMatch: entry.etag } : { ifAbsent: true },
    );
  } catch (error) {
    if (!(error instanceof StorageError && error.status === 412)) throw error;
    await countVisit(); // another tab was first
  }
}

// For the browser's console, and for tests.
Object.assign(window, {
  acmeSample: { StorageError, decodeBase64, getContext, persistent },
});

countVisit().catch(error => console.error('acme.sample:', error));
