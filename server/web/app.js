/** Puts the page together: the chat, its views, the address, the keyboard. */

import { notice } from "./announce.js";
import { Attendance } from "./attendance.js";
import { Banner } from "./banner.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { browserEnvironment } from "./connection.js";
import { byId, coalesce, element, setAttribute } from "./dom.js";
import { Settings } from "./settings.js";
import { SettingsPanel } from "./settings_panel.js";
import { Sidebar, addressOf } from "./sidebar.js";
import { TranscriptView } from "./transcript_view.js";

/** Openings that show what the shipped model has learned to talk about. */
const EXAMPLES = [
  "I would like to book a table for two tonight.",
  "I need to see a doctor this week.",
  "Can you check my bank balance?",
  "What will the weather be like tomorrow?",
  "Have you seen any good movies lately?",
  "How do I install a package on Ubuntu?",
];

const settings = new Settings();
const chat = new Chat(browserEnvironment(), settings, {
  onChange: coalesce(() => render()),
  onStream: coalesce(() => transcript.renderStream(), requestAnimationFrame),
  onReply: () => sidebar.refresh(),
  onNotice: notice,
  onOpened: opened,
});
const transcript = new TranscriptView(chat, {
  rate: (message, rating, comment) => chat.rate(message, rating, comment),
  regenerate() {
    chat.regenerate();
    transcript.follow();
    composer.focusUnlessTouch();
  },
  askAgain() {
    chat.askAgain();
    composer.focusUnlessTouch();
  },
  retry(id) {
    chat.retry(id);
    composer.focusUnlessTouch();
  },
  edit: (id) => composer.putBack(chat.withdraw(id)),
  discard(id) {
    chat.withdraw(id);
    composer.focusUnlessTouch();
  },
  jumped: () => composer.focusUnlessTouch(),
});
const composer = new Composer(chat, () => transcript.follow());
const sidebar = new Sidebar(chat);
const banner = new Banner(chat, () => composer.focusUnlessTouch());
const attendance = new Attendance(chat, () => composer.focusUnlessTouch());
const panel = new SettingsPanel(settings);

function render() {
  banner.render();
  attendance.render();
  transcript.render();
  composer.render();
  sidebar.render();
}

/** The server named the conversation: the address follows, so that a reload comes back to it. */
function opened(conversation) {
  if (window.location.hash !== addressOf(conversation)) {
    window.history.replaceState(null, "", addressOf(conversation));
  }
  sidebar.refresh();
}

/** #c/<id> names a conversation, #new begins one, and no word at all goes on with the latest. */
function route() {
  const { hash } = window.location;
  const named = /^#c\/([\w-]{1,64})$/.exec(hash)?.[1];
  const wanted = named ?? (hash === "#new" ? null : chat.latest);
  if (hash === "#new" && chat.unused && chat.conversation.id !== null) return opened(chat.conversation.id);
  if (chat.phase !== "stopped" && wanted !== null && wanted === chat.conversation.id) return;
  chat.open(wanted);
  composer.focusUnlessTouch();
}

function wireTheme() {
  const button = byId("theme");
  const theme = window.turnwiseTheme;
  const show = () => {
    setAttribute(byId("theme-icon"), "href", `/static/icons.svg#theme-${theme.current}`);
    setAttribute(button, "aria-label", `Color theme: ${theme.current}. Switch to ${theme.next}`);
    setAttribute(button, "title", `Color theme: ${theme.current}`);
  };
  button.addEventListener("click", () => {
    theme.choose(theme.next);
    show();
  });
  show();
}

function openHelp() {
  if (!byId("help").open) byId("help").showModal();
}

function wireKeyboard() {
  const shortcuts = {
    "/": openHelp,
    ",": () => panel.open(),
  };
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && !event.isComposing) {
      if (sidebar.open) sidebar.toggle(false);
      else composer.stop();
    } else if (event.altKey && event.code === "KeyN") {
      event.preventDefault();
      window.location.hash = "#new";
    } else if ((event.ctrlKey || event.metaKey) && shortcuts[event.key]) {
      event.preventDefault();
      shortcuts[event.key]();
    }
  });
}

function wireExamples() {
  const ask = (text) => {
    chat.say(text);
    transcript.follow();
    composer.focusUnlessTouch();
  };
  const items = EXAMPLES.map((text) =>
    element("li", {}, element("button", { type: "button", class: "example", click: () => ask(text) }, text)),
  );
  byId("examples").replaceChildren(...items);
}

function wirePage() {
  byId("open-help").addEventListener("click", openHelp);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // The hash of the address names the conversation.
    composer.focus();
  });
  byId("new-chat").addEventListener("click", () => composer.focusUnlessTouch());
  byId("notices").addEventListener("click", (event) => {
    if (event.target.closest("button")) composer.focusUnlessTouch();
  });
  window.addEventListener("hashchange", route);
  window.addEventListener("online", () => chat.wake());
  window.addEventListener("offline", render);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) chat.wake();
  });
}

wireTheme();
wireKeyboard();
wireExamples();
wirePage();
route();
