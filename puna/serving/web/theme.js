/*
 * Sets light or dark before the first paint: the one script that is no module, so that it runs
 * before the body. The choice is "light", "dark" or (nothing stored) that of the system.
 */
"use strict";

(() => {
  const NAME = "puna.theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  const stored = () => {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // storage is forbidden: follow the system
    }
  };
  let choice = stored() ?? "system";

  const apply = () => {
    const dark = choice === "dark" || (choice === "system" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  };

  window.punaTheme = {
    get choice() {
      return choice;
    },
    set choice(value) {
      choice = value;
      try {
        if (value === "system") localStorage.removeItem(NAME);
        else localStorage.setItem(NAME, value);
      } catch {
        // Storage is full or forbidden: the choice holds for this visit.
      }
      apply();
    },
  };
  system.addEventListener("change", apply);
  window.addEventListener("storage", (event) => {
    if (event.key === NAME) {
      choice = event.newValue ?? "system";
      apply();
    }
  });
  apply();
})();
