/**
 * The session has ended: the same address now answers with the sign-in page, which leads back here.
 *
 * Drafts are kept by drafts.js, so that nothing written is lost on the way.
 */

const KEPT = "turnwise.console.signed-out";
const TOO_SOON = 5_000;

let going = false;

/** asked: somebody wants to go there. */
export function goToSignIn({ asked = false } = {}) {
  if (going) return;
  // A server that shows the page but knows nobody would make it load again and again.
  if (!asked && Date.now() - lastTime() < TOO_SOON) return;
  going = true;
  try {
    window.sessionStorage.setItem(KEPT, String(Date.now()));
  } catch {
    // Blocked storage.
  }
  window.location.reload();
}

function lastTime() {
  try {
    return Number(window.sessionStorage.getItem(KEPT)) || 0;
  } catch {
    return 0;
  }
}
