// Asks for the state of a run until it is over. All markup that it puts into the page is the server's own template.
"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const address = get("live").dataset.state;
  let found = "";

  function show(state) {
    get("status").textContent = state.status;
    get("status").className = `status ${state.status.replaceAll(" ", "-")}`;
    get("seconds").textContent = `${state.seconds} s`;
    get("loop").textContent = state.steps ? `${state.loop}: ${state.step} of ${state.steps}` : "";
    if (state.over) get("progress").value = state.status === "complete" ? 1 : state.step / (state.steps || 1);
    else if (state.steps) get("progress").value = state.step / state.steps;
    const log = get("log");
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
    if (log.textContent !== state.log) log.textContent = state.log;
    if (atEnd) log.scrollTop = log.scrollHeight;
    if (state.found !== found) get("found").innerHTML = found = state.found;
    if (state.page) get("page").href = state.page;
    get("page").hidden = !state.page;
    get("page").textContent = state.over ? "Show the result" : "Show its page so far";
    get("stop").hidden = state.over;
    get("again").hidden = !state.over;
  }

  async function ask() {
    try {
      const answer = await fetch(address);
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const state = await answer.json();
      show(state);
      if (!state.over) setTimeout(ask, 700);
    } catch (error) { // the server has ended, or the machine was asleep
      get("status").textContent = `no answer (${error.message}); trying again`;
      setTimeout(ask, 3000);
    }
  }
  ask();
})();
