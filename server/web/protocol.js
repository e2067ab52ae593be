/**
 * The words of `chat.v1`: how frames are read and how text is measured.
 *
 * Nothing here touches the page, a socket or the clock.
 */

export const SUBPROTOCOL = "chat.v1";

/** Address of the chat socket on the host that served the page. */
export function socketAddress(location) {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  return `${scheme}//${location.host}/v1/chat`;
}

/**
 * One server frame, or null when it is not an object with a type.
 *
 * Seeds reach 2^63 - 1, beyond what a JavaScript number holds, and a rounded seed would not
 * reproduce the reply: engines that offer the source text keep such integers as BigInt.
 */
export function decode(data) {
  const exact = (_key, value, context) =>
    Number.isInteger(value) && !Number.isSafeInteger(value) && /^\d+$/.test(context?.source ?? "")
      ? BigInt(context.source)
      : value;
  try {
    const frame = JSON.parse(data, exact);
    return frame !== null && typeof frame === "object" && typeof frame.type === "string" ? frame : null;
  } catch {
    return null;
  }
}

/** 128 random bits as text; crypto.randomUUID is missing on plain http, getRandomValues is not. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Length in code points, the unit of the server's limits and of `delta.offset`. */
export function countCharacters(text) {
  let count = 0;
  for (const _character of text) count += 1;
  return count;
}

/** The first `count` code points of `text`. */
export function firstCharacters(text, count) {
  let end = 0;
  for (const character of text) {
    if (count <= 0) break;
    count -= 1;
    end += character.length;
  }
  return text.slice(0, end);
}

/** What the server would refuse anyway (lone surrogates, NUL) replaced; blank ends removed. */
export function cleanText(text) {
  const sound = typeof text.toWellFormed === "function" ? text.toWellFormed() : text;
  return sound.replaceAll("\0", "").trim();
}

/** Bytes of a frame on the wire. */
export function frameSize(frame) {
  return new TextEncoder().encode(JSON.stringify(frame)).length;
}
