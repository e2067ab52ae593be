/** The tone of the mark of each state of a retraining. */
export const STATES = { queued: "plain", running: "accent", done: "good", failed: "danger", cancelled: "warn" };
