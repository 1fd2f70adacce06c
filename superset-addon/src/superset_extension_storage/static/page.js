/*
 * The menu above belongs to Superset's single-page application, which would
 * draw another page in the place of none: it does not know of this one.  So
 * where it only changes the address, load what is there.
 */
const pushState = history.pushState.bind(history);
history.pushState = (state, title, url) => {
  const target = new URL(url ?? location.href, location.href);
  if (target.pathname === location.pathname) pushState(state, title, url);
  else location.assign(target);
};
