// An algorithm step by step. Python computes all steps (JSON in the trait `data`); this file shows one and moves between them.
const KEYWORDS = "and|as|assert|break|continue|def|elif|else|for|from|if|import|in|is|lambda|not|or|return|while|with|None|True|False";
const CODE = new RegExp(`(#.*$)|("""|"[^"]*"|'[^']*')|\\b(${KEYWORDS})\\b`, "g");
const KINDS = ["comment", "string", "keyword"];
const PAUSE = 1400;                      // milliseconds between two steps at speed 1


function codeLine(text, number) {
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(CODE)) {
    const kind = KINDS[[1, 2, 3].find(k => found[k] !== undefined) - 1];
    parts.push(text.slice(at, found.index), h("span", { class: kind }, found[0]));
    at = found.index + found[0].length;
  }
  parts.push(text.slice(at) || (parts.length ? "" : " "));
  return h("div", { class: "codeline", "data-line": number }, ...parts);
}

export default {
  render({ model, el }) {
    const get = name => model.get(name);
    const set = (name, value) => { model.set(name, value); model.save_changes(); };
    let d = JSON.parse(get("data")), timer = 0, typing = 0;

    const button = (label, glyph, act) => h("button", { type: "button", title: label, "aria-label": label, onclick: act }, glyph);
    const first = button("First step", "|◀\uFE0E", () => move(0));
    const back = button("Step back", "◀\uFE0E", () => move(now() - 1));
    const play = button("Play", "▶\uFE0E Play", toggle);
    const forward = button("Step forward", "▶\uFE0E", () => move(now() + 1));
    const last = button("Last step", "▶\uFE0E|", () => move(d.steps.length - 1));
    const slider = h("input", { type: "range", min: 1, step: 1, "aria-label": "Step", oninput: () => move(+slider.value - 1) });
    const place = h("output", { class: "place" });
    const speed = h("select", { "aria-label": "Speed", onchange: () => set("speed", +speed.value) },
      ...[0.5, 1, 2, 4].map(v => h("option", { value: v }, `${v}×`)));
    const box = h("textarea", { rows: 1, spellcheck: "false", "aria-label": "Text" });
    const typed = h("label", { class: "typed" }, h("span", {}, "text"), box);
    const error = h("div", { class: "error", role: "alert", hidden: true });
    const title = h("div", { class: "title" });
    const picture = h("div", { class: "picture", tabindex: 0, role: "group", "aria-label": "Picture of the step; arrow keys move between steps" });
    const code = h("div", { class: "code", tabindex: 0, role: "group", "aria-label": "Code" });
    const sentence = h("p", { class: "sentence", "aria-live": "polite" });
    const formula = h("div", { class: "formula", tabindex: 0, role: "group", "aria-label": "Formula" });
    const said = h("output", { class: "said" });
    const bar = h("div", { class: "bar", role: "toolbar", "aria-label": "Steps" }, first, back, play, forward, last, slider, place,
      h("label", { class: "speed" }, h("span", {}, "speed"), speed));
    const root = h("div", { class: "xt-st", "data-lm-suppress-shortcuts": "true" }, title, typed, error, bar, picture,
      h("div", { class: "below" }, code, h("div", { class: "words" }, sentence, formula)),
      h("div", { class: "keys" }, h("span", {}, "← → one step · Home End first and last · space plays and pauses"), said));
    el.append(root);

    const now = () => Math.max(0, Math.min(get("step"), d.steps.length - 1));
    function move(to) {
      to = Math.max(0, Math.min(to, d.steps.length - 1));
      if (to !== get("step")) set("step", to);
      show();
    }
    function toggle() { if (timer) stop(); else { if (now() === d.steps.length - 1) move(0); start(); } }
    function start() {
      clearInterval(timer);
      timer = setInterval(() => { if (now() < d.steps.length - 1) move(now() + 1); if (now() === d.steps.length - 1) stop(); }, PAUSE / get("speed"));
      label();
    }
    function stop() { clearInterval(timer); timer = 0; label(); }
    function label() {
      const name = timer ? "Pause" : "Play";
      play.textContent = timer ? "❚❚ Pause" : "▶\uFE0E Play";
      play.title = name; play.setAttribute("aria-label", name);
      sentence.setAttribute("aria-live", timer ? "off" : "polite");
    }
    function load() {                        // another list of steps
      title.textContent = d.title;
      code.replaceChildren(...d.code.map((line, k) => codeLine(line, k + 1)));
      slider.max = d.steps.length;
      picture.style.setProperty("--wide", d.width + "px");
      show();
    }
    function show() {
      const k = now(), step = d.steps[k];
      root.dataset.theme = get("theme");
      if (!step) return;
      picture.innerHTML = `<svg class="xt-p" role="img" viewBox="0 0 ${d.width} ${d.height}" width="${d.width}" height="${d.height}">${step.picture}</svg>`;
      picture.firstChild.setAttribute("aria-label", step.sentence);
      for (const line of code.children) {
        const lit = +line.dataset.line >= step.lines[0] && +line.dataset.line <= step.lines[1];
        line.classList.toggle("lit", lit);
        if (lit) line.setAttribute("aria-current", "step"); else line.removeAttribute("aria-current");
      }
      const lit = code.querySelector(".lit");
      if (lit && (lit.offsetTop < code.scrollTop || lit.offsetTop + 2 * lit.offsetHeight > code.scrollTop + code.clientHeight))
        code.scrollTop = lit.offsetTop - code.clientHeight / 3;
      sentence.textContent = step.sentence;
      formula.innerHTML = step.formula;
      formula.hidden = !step.formula;
      slider.value = k + 1;
      slider.setAttribute("aria-valuetext", `step ${k + 1} of ${d.steps.length}`);
      place.textContent = `${k + 1} / ${d.steps.length}`;
      first.disabled = back.disabled = k === 0;
      last.disabled = forward.disabled = k === d.steps.length - 1;
    }
    function words() {                       // the step that is shown, as text
      const step = d.steps[now()];
      return [`${d.title}, step ${now() + 1} of ${d.steps.length}`, ...d.code.slice(step.lines[0] - 1, step.lines[1]).map(line => "    " + line.trim()), step.sentence].join("\n");
    }
    said.before(saveButtons({
      model, name: () => `step-${now() + 1}`, words, say: what => { said.textContent = what; },
      picture: () => stackedSvg([picture.firstChild], `${d.title}: ${d.steps[now()].sentence}`, getComputedStyle(root).backgroundColor),
    }));
    function restate() {
      speed.value = String(get("speed"));
      typed.hidden = !get("editable");
      if (document.activeElement !== box && el.getRootNode().activeElement !== box) box.value = get("text");
      error.textContent = get("error") || ""; error.hidden = !get("error");
      root.dataset.theme = get("theme");
    }

    box.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => set("text", box.value), 250); });
    root.addEventListener("keydown", e => {
      if (e.ctrlKey || e.metaKey || e.altKey || e.shiftKey || e.target === box || e.target === speed) return;
      const onButton = e.target.tagName === "BUTTON";
      if (e.key === "ArrowRight") move(now() + 1);
      else if (e.key === "ArrowLeft") move(now() - 1);
      else if (e.key === "Home") move(0);
      else if (e.key === "End") move(d.steps.length - 1);
      else if (e.key === " " && !onButton) toggle();
      else return;
      e.preventDefault(); e.stopPropagation();
    });
    model.on("change:data", () => { stop(); d = JSON.parse(get("data")); load(); });
    model.on("change:step", show);
    model.on("change:speed", () => { restate(); if (timer) start(); });
    ["text", "error", "theme", "editable"].forEach(name => model.on("change:" + name, restate));
    restate(); load();
    return () => { clearInterval(timer); clearTimeout(typing); };
  },
};
