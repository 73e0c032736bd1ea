// Sets the last chosen theme before the page is drawn. A separate file, because the page has no inline scripts.
"use strict";
(() => {
  try {
    const chosen = localStorage.getItem("abstain-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Without storage the page uses the system's theme.
  }
})();
