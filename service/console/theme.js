// Before the page is drawn: the theme that was chosen last, if one was. A script of its own, for none is inline.
"use strict";
(() => {
  try {
    const chosen = localStorage.getItem("abstain-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage is refused to this page: the system's theme will do.
  }
})();
