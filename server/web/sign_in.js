/** Sends a name and a password, and says what came of it. The session's cookie is set by the answer. */

const form = document.querySelector("#form");
const name = document.querySelector("#name");
const password = document.querySelector("#password");
const submit = document.querySelector("#submit");
const problem = document.querySelector("#problem");

/** Whether an answer, or the end of a pause, is waited for. The button keeps the focus meanwhile. */
let held = false;

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (held) {
    return;
  }
  const missing = [name, password].find((field) => field.value === "");
  if (missing) {
    tell(missing === name ? "Your name is missing." : "Your password is missing.", missing);
    return;
  }
  tell("");
  hold("Signing in…");
  const answer = await ask();
  if (answer?.ok) {
    enter();
    return;
  }
  const pause = answer?.status === 429 ? Number(answer.headers.get("retry-after")) || 5 : 0;
  if (pause) {
    await countDown(pause);
    return;
  }
  release();
  tell(await wordsOf(answer), answer?.status === 401 ? password : null);
});

document.querySelector("#show").addEventListener("change", (event) => {
  password.type = event.target.checked ? "text" : "password";
});

async function ask() {
  try {
    return await fetch("/api/operator/login", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ name: name.value.trim(), password: password.value }),
      credentials: "same-origin",
    });
  } catch {
    return null;
  }
}

async function wordsOf(answer) {
  if (answer === null) {
    return "The server cannot be reached. Is there a network?";
  }
  if (answer.status === 401) {
    return "The name or the password is wrong.";
  }
  try {
    return `That did not work: ${(await answer.json()).error.message}.`;
  } catch {
    return `That did not work: the server answered ${answer.status}.`;
  }
}

/** To the page that was asked for: the address is still the one of it. */
function enter() {
  if (/^\/operator\/[^/]/.test(window.location.pathname)) {
    window.location.reload();
  } else {
    window.location.replace("/operator");
  }
}

async function countDown(seconds) {
  const end = Date.now() + seconds * 1000;
  tell(`Too many tries. You can try again in ${spoken(seconds)}.`);
  for (let left = seconds; left > 0; left = Math.ceil((end - Date.now()) / 1000)) {
    hold(`Wait ${spoken(left)}`);
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  tell("");
  release();
}

function spoken(seconds) {
  const [count, unit] = seconds > 90 ? [Math.ceil(seconds / 60), "minute"] : [seconds, "second"];
  return `${count} ${unit}${count === 1 ? "" : "s"}`;
}

function hold(words) {
  held = true;
  submit.setAttribute("aria-disabled", "true");
  submit.textContent = words;
}

function release() {
  held = false;
  submit.removeAttribute("aria-disabled");
  submit.textContent = "Sign in";
}

/** Show a problem, or none for "", and go to the field that has it. */
function tell(words, field = null) {
  problem.textContent = words;
  problem.hidden = words === "";
  for (const each of [name, password]) {
    each.removeAttribute("aria-invalid");
  }
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
    field.select();
  }
}
