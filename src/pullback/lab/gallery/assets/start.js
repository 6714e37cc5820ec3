// An empty option shows the value that its scale gives it.
"use strict";
(() => {
  const scale = document.querySelector("select[name=scale]");
  function show() {
    for (const input of document.querySelectorAll("input[data-default]")) {
      input.placeholder = input.dataset[scale.value];
    }
  }
  if (scale) {
    scale.addEventListener("change", show);
    show();
  }
  document.getElementById("choice").addEventListener("change", (event) => event.target.form.requestSubmit());
})();
