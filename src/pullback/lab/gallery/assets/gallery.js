// The theme is set before anything is drawn; the rest waits for the page.
"use strict";
(() => {
  const root = document.documentElement;
  const remembered = (() => {
    try { return localStorage.getItem("pullback-theme"); } catch { return null; } // storage may be switched off
  })();
  if (remembered === "light" || remembered === "dark") root.dataset.theme = remembered;

  function switchTheme() {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
    try { localStorage.setItem("pullback-theme", root.dataset.theme); } catch { /* then it lasts for this page */ }
  }

  function filter(index, query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    let hits = 0, all = 0;
    for (const family of document.querySelectorAll(".family")) {
      let shown = 0;
      for (const card of family.querySelectorAll(".system")) {
        card.hidden = !words.every((word) => index[card.dataset.slug].includes(word));
        shown += card.hidden ? 0 : 1;
        all += 1;
      }
      family.hidden = shown === 0;
      hits += shown;
    }
    const told = document.getElementById("hits");
    told.hidden = words.length === 0;
    told.textContent = `${hits} of ${all} systems`;
  }

  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", switchTheme);
    const index = document.getElementById("search-index");
    const input = document.querySelector(".search input");
    if (index) {
      const texts = JSON.parse(index.textContent);
      input.value = new URLSearchParams(location.search).get("q") || "";
      input.addEventListener("input", () => filter(texts, input.value));
      input.form.addEventListener("submit", (event) => event.preventDefault());
      filter(texts, input.value);
    }
    for (const button of document.querySelectorAll(".copy")) {
      if (!navigator.clipboard) continue;
      button.hidden = false;
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
    }
  });
})();
