/**
 * Light, dark, or as the system says; runs before the first paint, so that nothing flashes.
 *
 * A classic script, because modules run only after the page was parsed and painted.
 */
(function () {
  const KEY = "turnwise.theme";
  const THEMES = ["auto", "light", "dark"];
  let chosen = "auto";
  try {
    chosen = window.localStorage.getItem(KEY);
  } catch {
    // Blocked storage: follow the system.
  }
  const root = document.documentElement;
  root.dataset.theme = THEMES.includes(chosen) ? chosen : "auto";

  window.turnwiseTheme = {
    get current() {
      return root.dataset.theme;
    },
    get next() {
      return THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
    },
    choose(theme) {
      root.dataset.theme = theme;
      try {
        window.localStorage.setItem(KEY, theme);
      } catch {
        // It then lasts until the page is closed.
      }
    },
  };
})();
