/**
 * Puts the console together: who is signed in, the live events, the navigation, the view of the address.
 *
 * A view is a module `views/<name>.js`, listed in views.js, that exports `mount(root, context) -> unmount`.
 * `root` is an empty element; `unmount` gives up timers, streams and shortcuts. The context:
 *
 *   api                 get, post, put, patch, delete of /api/operator (shell/api.js)
 *   me, admin           {id, name, role}, and whether the role is admin
 *   route               {view, rest, query} when mounted
 *   onRoute(listener)   the view takes changes of its own address itself; without it, it is mounted anew
 *   go(href, {replace}) to another address; hrefOf of shell/router.js makes one
 *   events.on(name, listener) -> off    "changed" ({conversation, what}), "opened" (fetch what was missed), "counts"
 *   counts()            what GET /counts said last, or null
 *   shortcuts(title, list) -> off       see shell/keyboard.js
 *   title(words)        of the browser's tab
 *   announce(text), notice(text)        said politely; the second is also shown for a while
 *   failed(error)       shows an error of the api, unless it only says that we were not interested any more
 */

import { announce, notice } from "/static/announce.js";
import { wireAccount } from "./shell/account.js";
import { Api, aborted, address, sentence } from "./shell/api.js";
import { button, byId, element, heading } from "./shell/elements.js";
import { EventStream, gather } from "./shell/events.js";
import { Keyboard } from "./shell/keyboard.js";
import { Rail } from "./shell/rail.js";
import { Router } from "./shell/router.js";
import { goToSignIn } from "./shell/signed_out.js";
import { wireTheme } from "./shell/theme_button.js";
import { VIEWS } from "./views.js";

/** Milliseconds without an event, of which there is one every 15 seconds, after which the stream is dead. */
const SILENCE = 45_000;

const PHASES = {
  connecting: "Connecting",
  live: "Live",
  waiting: "No connection",
  paused: "Paused",
};

const api = new Api({ onSignedOut: () => goToSignIn() });
const keyboard = new Keyboard();
const bus = new EventTarget();
let me = null;
let counts = null;
let shown = null;
let rail = null;

const router = new Router((route) => show(route));

function context(route, own) {
  return {
    api,
    me,
    admin: me.role === "admin",
    route,
    onRoute: (listener) => {
      own.listener = listener;
    },
    go: (href, options) => router.go(href, options),
    events: { on },
    counts: () => counts,
    shortcuts: (title, list) => keyboard.use(title, list),
    title: (words) => setTitle(words),
    announce,
    notice,
    failed(error) {
      if (!aborted(error) && error?.status !== 401) notice(sentence(error));
    },
  };
}

function on(name, listener) {
  const heard = (event) => listener(event.detail);
  bus.addEventListener(name, heard);
  return () => bus.removeEventListener(name, heard);
}

function tell(name, detail) {
  bus.dispatchEvent(new CustomEvent(name, { detail }));
}

async function show(route) {
  const views = VIEWS.filter(({ admin }) => !admin || me.role === "admin");
  const view = views.find(({ name }) => name === route.view);
  if (!view) return router.go(`/operator/${views[0].name}`, { replace: true });
  if (shown?.view === view && shown.own.listener) return shown.own.listener(route);
  const first = shown === null;
  shown?.unmount?.();
  const own = { listener: null };
  const mine = { view, own, unmount: null };
  shown = mine;
  rail.current(view.name);
  setTitle(view.title);
  byId("view").replaceChildren();
  byId("view").dataset.view = view.name;
  try {
    const { mount } = await view.load();
    if (shown !== mine) return;
    const root = element("div", { class: "view-root" });
    byId("view").replaceChildren(root);
    mine.unmount = mount(root, context(route, own)) ?? null;
  } catch (error) {
    if (shown === mine) showFailure(error, () => window.location.reload());
    throw error;
  }
  if (!first) byId("view").focus({ preventScroll: true });
}

function showFailure(error, again) {
  const words = element("p", {}, sentence(error));
  const box = element("div", { class: "failure-page" }, heading(1, "This could not be opened"), words);
  box.append(button("Try again", again, { kind: "solid" }));
  byId("view").replaceChildren(box);
  announce(sentence(error));
}

let titleWords = "";

function setTitle(words = titleWords) {
  titleWords = words;
  const waiting = counts?.waiting > 0 ? `(${counts.waiting}) ` : "";
  document.title = `${waiting}${words} · Turnwise`;
}

/** What waits changes with nearly every event: asked for at most every two seconds. */
const countAgain = gather(async () => {
  try {
    counts = await api.get("/counts");
  } catch {
    return; // The next event asks again.
  }
  rail.badges(counts);
  setTitle();
  tell("counts", counts);
}, 400, 2_000);

function listenToServer() {
  const live = byId("live");
  const handlers = {
    changed(data) {
      tell("changed", data);
      countAgain(0);
    },
    opened() {
      tell("opened");
      countAgain(0);
    },
  };
  const options = {
    silence: SILENCE,
    onRefused: () => api.me().catch(() => {}), // 401 leads to the sign-in page
    onPhase(phase) {
      live.dataset.phase = phase;
      byId("live-words").textContent = PHASES[phase];
    },
  };
  new EventStream(address("/events"), handlers, options).open();
}

async function start() {
  wireTheme();
  byId("open-help").addEventListener("click", () => keyboard.openHelp());
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("view").focus();
  });
  try {
    me = await api.me();
  } catch (error) {
    if (error.status !== 401) showFailure(error, () => window.location.reload());
    return;
  }
  wireAccount(me, api);
  rail = new Rail(VIEWS.filter(({ admin }) => !admin || me.role === "admin"));
  keyboard.use("Everywhere", [
    { keys: ["?"], label: "This help", run: () => keyboard.openHelp() },
    ...rail.shortcuts((href) => router.go(href)),
  ]);
  router.start();
  listenToServer();
}

start();
