/**
 * Addresses: /operator/<view>/<rest…>?<query>, kept by the browser's history.
 *
 * Links within the console are plain links; a click on one changes the view instead of the page.
 */

const ROOT = "/operator";

/** {view, rest: [words], query: URLSearchParams} of a location or URL. */
export function routeOf({ pathname, search }) {
  const [view = "", ...rest] = pathname.slice(ROOT.length).split("/").filter(Boolean).map(decoded);
  return { view, rest, query: new URLSearchParams(search) };
}

/** The address of a route; empty values are left out of the query. */
export function hrefOf(view, rest = [], query = {}) {
  const pairs = [...(query instanceof URLSearchParams ? query : Object.entries(query))];
  const kept = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const words = new URLSearchParams(kept.map(([key, value]) => [key, String(value)])).toString();
  return `${[ROOT, view, ...rest.map(encodeURIComponent)].join("/")}${words && `?${words}`}`;
}

function decoded(word) {
  try {
    return decodeURIComponent(word);
  } catch {
    return word;
  }
}

export class Router {
  #show;

  /** show(route): called at the start and whenever the address changes. */
  constructor(show) {
    this.#show = show;
    window.addEventListener("popstate", () => this.#show(this.route));
    document.addEventListener("click", (event) => this.#clicked(event));
  }

  get route() {
    return routeOf(window.location);
  }

  start() {
    this.#show(this.route);
  }

  go(href, { replace = false } = {}) {
    if (href === window.location.pathname + window.location.search) return;
    if (replace) window.history.replaceState(null, "", href);
    else window.history.pushState(null, "", href);
    this.#show(this.route);
  }

  #clicked(event) {
    if (event.defaultPrevented || event.button !== 0) return;
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    const link = event.target.closest?.("a[href]");
    if (!link || link.target || link.hasAttribute("download") || link.origin !== window.location.origin) return;
    if (link.pathname !== ROOT && !link.pathname.startsWith(`${ROOT}/`)) return;
    if (link.hash !== "" && link.pathname === window.location.pathname) return; // within the page
    event.preventDefault();
    this.go(link.pathname + link.search);
  }
}
