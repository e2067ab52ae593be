/** The button that goes through the color themes; the theme itself is kept by /static/theme.js. */

import { byId, setAttribute } from "./elements.js";

export function wireTheme() {
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
