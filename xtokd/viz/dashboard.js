// The live view of xtokd.viz.dashboard. Python computes, this draws: `data` comes in as one JSON value, presses go back as traits.
// All text of a run is set as text; the picture of a sample is copied node by node from a short list of elements.
const LEFT = 46, TOP = 6, FOOT = 18, WIDE = 440, HIGH = 138;

// ---- the picture of a sample -------------------------------------------------------------------------------------------
function pictured(text) {
  const doc = new DOMParser().parseFromString(text, "image/svg+xml");
  const from = doc.documentElement;
  if (from.localName !== "svg" || doc.querySelector("parsererror")) return null;
  const [w, h] = ["width", "height"].map(k => Number(from.getAttribute(k)) || 1);
  const title = [...from.children].find(c => c.localName === "title");
  const node = draw("svg", { class: "xt-a", role: "img", viewBox: `0 0 ${w} ${h}`, width: w, height: h });
  node.setAttribute("aria-label", title ? title.textContent : "alignment");
  copyDrawing(from, node);
  node.querySelector(":scope > title")?.remove();       // its words are the label; a tooltip over everything would be in the way
  return node;
}

// ---- curves ------------------------------------------------------------------------------------------------------------
const near = (xs, step) => {                              // index of the last value at or before `step`
  let a = 0, b = xs.length - 1;
  while (a < b) { const m = (a + b + 1) >> 1; if (xs[m] <= step) a = m; else b = m - 1; }
  return a;
};
const shown = v => v === undefined ? "–" : Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(Number(v.toPrecision(3)));

const ids = c => c.steps.length ? c.steps : c.x;          // the steps of a curve's points
const endOf = (panel, last) => panel.x_end || last;       // of the horizontal axis: most panels have steps there

function scale(panel, last) {
  last = endOf(panel, last);
  const w = WIDE - LEFT - 8, h = HIGH - TOP - FOOT;
  return { x: s => LEFT + w * s / last, y: v => TOP + h * (1 - (v - panel.low) / (panel.high - panel.low)), w, h };
}

function chart(panel, last) {
  const at = scale(panel, last), svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" });
  for (const [v, text] of panel.ticks) {
    svg.append(draw("path", { class: "xd-grid", d: `M${LEFT} ${at.y(v)}h${at.w}` }), draw("text", { class: "xd-tick xd-end", x: LEFT - 6, y: at.y(v) + 3.5 }, text));
  }
  svg.append(draw("text", { class: "xd-tick", x: LEFT, y: HIGH - 3 }, "0"), draw("text", { class: "xd-tick xd-end", x: WIDE - 8, y: HIGH - 3 }, String(Number(endOf(panel, last).toPrecision(6)))));
  for (const c of panel.curves) {
    c.low.forEach((low, i) => svg.append(draw("path", { class: `xd-bound xd-${c.look}`, d: `M${at.x(c.x[i])} ${at.y(low)}V${at.y(c.high[i])}` })));
    const points = c.x.map((s, i) => `${at.x(s).toFixed(1)},${at.y(c.y[i]).toFixed(1)}`).join(" ");
    svg.append(draw("polyline", { class: `xd-line xd-${c.look}`, points }));
    if (c.look === "n-m") svg.append(draw("polyline", { class: "xd-line xd-inner", points }));
    if (c.x.length === 1) svg.append(draw("circle", { class: `xd-dot xd-${c.look}`, cx: at.x(c.x[0]), cy: at.y(c.y[0]), r: 2.5 }));
  }
  svg.append(draw("path", { class: "xd-cursor", d: `M0 ${TOP}v${at.h}`, visibility: "hidden" }));
  return svg;
}

function sampleOf(look) {                                 // a piece of a line, for the legend
  const svg = draw("svg", { width: 20, height: 8, viewBox: "0 0 20 8", "aria-hidden": "true" });
  svg.append(draw("path", { class: `xd-line xd-${look}`, d: "M0 4h20" }));
  if (look === "n-m") svg.append(draw("path", { class: "xd-line xd-inner", d: "M0 4h20" }));
  return svg;
}

// ---- the view ----------------------------------------------------------------------------------------------------------
function render({ model, el }) {
  const root = make("section", { class: "xd" });
  const title = make("h2", { class: "xd-title" }), dot = make("span", { class: "xd-pulse", "aria-hidden": "true" }), status = make("span", { class: "xd-status" });
  const bar = make("div", { class: "xd-bar", role: "toolbar", "aria-label": "Steer the run" });
  const buttons = {
    pause: make("button", { type: "button", class: "xd-button" }),
    stop: make("button", { type: "button", class: "xd-button", title: "End this step, save, and end the run", text: "■ Stop" }),
    snap: make("button", { type: "button", class: "xd-button", title: "Write what is shown now as SVG and JSON", text: "▣ Snapshot" }),
  };
  bar.append(...Object.values(buttons));
  const hint = make("p", { class: "xd-hint" }), numbers = make("dl", { class: "xd-numbers" }), warnings = make("ul", { class: "xd-warnings" });
  const range = make("input", { type: "range", min: 0, max: 1, step: 1, class: "xd-range", "aria-label": "step to read; Escape: the newest" });
  const where = make("span", { class: "xd-where" }), reader = make("div", { class: "xd-reader" }, where, range);
  const grid = make("div", { class: "xd-grid-of-panels" }), written = make("div", { class: "xd-written" });
  const answer = make("div", { class: "xd-answer" }), aloud = make("div", { class: "xd-aloud", role: "status", "aria-live": "polite" });
  root.append(make("header", { class: "xd-head" }, make("div", { class: "xd-names" }, title, make("div", {}, dot, status)), bar), hint, numbers, warnings, reader, make("div", { class: "xd-body" }, grid, written), answer, aloud);
  el.append(root);

  const panels = new Map();                               // key -> {box, name, unit, legend, plot, panel}
  let cursor = null, hover = null, waiting = 0, spoken = "";
  const data = () => model.get("data");
  const set = (name, value) => { model.set(name, value); model.save_changes(); };

  function head(d) {
    root.setAttribute("aria-label", `Training of ${d.name || "a run"}`);
    title.textContent = [d.name, d.objective].filter(Boolean).join(" · ") || "xtokd";
    status.textContent = d.status;
    root.dataset.live = /^(training|replay|followed)/.test(d.status) && !/paused/.test(d.status);
    hint.textContent = d.hint;
    hint.hidden = !d.hint;
    warnings.replaceChildren(...d.warnings.map(a => make("li", { text: `⚠ ${a.rule}, step ${a.step}: ${a.text}` })));
    const news = [d.status, ...d.warnings.map(a => `warning: ${a.rule}`)].join("; ");
    if (news !== spoken) aloud.textContent = spoken = news;
  }

  function count(d, step) {                               // the four numbers, of now or of the step that is read
    const past = step === null || !d.at.length ? null : d.at[near(d.at.map(row => row[0]), step)];
    numbers.replaceChildren(...d.numbers.map(([name, value, small], i) => {
      if (past && i === 3) [name, small] = ["after", "since the start"];
      return make("div", {}, make("dt", { text: name }), " ", make("dd", { class: "xd-big", text: past ? past[1][i] : value }), " ", make("dd", { class: "xd-small", text: small }));
    }));
  }

  const steered = model.get("can") !== undefined;          // false in a saved page: nothing to steer, but a run to read step by step
  if (!steered) {
    const play = make("button", { type: "button", class: "xd-button", text: "▶ Play" });
    let timer = 0;
    const halt = () => { clearInterval(timer); timer = 0; play.textContent = "▶ Play"; };
    const walk = () => { cursor = Math.min((cursor ?? 0) + data().newest / 100, data().newest); read(); if (cursor >= data().newest) halt(); };
    play.addEventListener("click", () => { if (timer) return halt(); if (cursor === null || cursor >= data().newest) cursor = 0; timer = setInterval(walk, 80); play.textContent = "❚❚ Pause"; });
    range.addEventListener("input", halt);
    bar.replaceChildren(play);
  }

  function steer() {
    if (!steered) return;
    const can = model.get("can"), paused = model.get("wish") === "pause";
    buttons.pause.textContent = paused ? "▶ Resume" : "❚❚ Pause";
    buttons.pause.title = paused ? "Go on" : "Hold before the next step";
    buttons.stop.textContent = model.get("wish") === "stop" && can.length ? "■ Stopping …" : "■ Stop";
    for (const k of ["pause", "stop"]) {
      buttons[k].setAttribute("aria-disabled", String(!can.includes(k)));
    }
  }

  function curves(d) {
    for (const [key, p] of panels) if (!d.panels.some(q => q.key === key)) { p.box.remove(); panels.delete(key); }
    for (const panel of d.panels) {
      let p = panels.get(panel.key);
      if (!p) {
        p = { name: make("span", { class: "xd-name", text: panel.title }), unit: make("span", { class: "xd-unit", text: panel.unit }), legend: make("div", { class: "xd-legend" }), plot: make("div", { class: "xd-plot" }) };
        p.box = make("div", { class: "xd-panel", "data-key": panel.key }, make("div", { class: "xd-panel-head" }, p.name, p.unit), p.legend, p.plot);
        p.plot.addEventListener("pointermove", e => point(e, p));
        p.plot.addEventListener("pointerleave", () => { hover = null; read(); });
        p.plot.addEventListener("click", e => { point(e, p); cursor = hover; set("at", cursor); });
        panels.set(panel.key, p);
      }
      p.panel = panel;
      p.plot.replaceChildren(chart(panel, d.last));
      p.values = panel.curves.map(c => make("b"));
      p.legend.replaceChildren(...panel.curves.map((c, i) => make("span", { class: "xd-entry" }, sampleOf(c.look), make("span", { text: c.name }), p.values[i])));
      grid.append(p.box);
    }
    range.max = d.newest;
    read();
  }

  function point(e, p) {
    const box = p.plot.firstElementChild.getBoundingClientRect(), x = (e.clientX - box.left) * WIDE / box.width;
    const end = endOf(p.panel, data().last), value = Math.max(0, Math.min(end, (x - LEFT) / (WIDE - LEFT - 8) * end)), c = p.panel.curves[0];
    hover = c.steps.length ? c.steps[c.x.reduce((best, v, i) => Math.abs(v - value) < Math.abs(c.x[best] - value) ? i : best, 0)] : Math.round(value);
    read();
  }

  function read() {                                       // values at the step under the pointer, at the pinned step, or the newest
    const d = data(), at = hover ?? cursor, step = at === null ? null : Math.min(at, d.newest), words = [];
    count(d, step);
    for (const p of panels.values()) {
      const line = p.plot.querySelector(".xd-cursor"), says = [];
      line.setAttribute("visibility", step === null ? "hidden" : "visible");
      const first = p.panel.curves[0], here = first.steps.length && step !== null ? first.x[near(first.steps, step)] : step;
      if (step !== null) line.setAttribute("transform", `translate(${scale(p.panel, d.last).x(here)},0)`);
      p.panel.curves.forEach((c, i) => {
        const k = step === null ? c.x.length - 1 : near(ids(c), step), v = ids(c)[k] <= (step ?? Infinity) ? c.y[k] : undefined;
        p.values[i].textContent = shown(v);
        says.push(`${c.name} ${shown(v)}`);
      });
      p.plot.firstElementChild.setAttribute("aria-label", `${p.panel.title}, ${p.panel.unit}: ${says.join(", ")}`);
      words.push(says[0]);
    }
    where.textContent = step === null ? "newest" : `step ${Math.round(step)}`;
    if (document.activeElement !== range || cursor === null) range.value = step ?? d.newest;
    range.setAttribute("aria-valuetext", `${where.textContent}: ${words.join(", ")}`);
  }

  function wrote(d) {
    const parts = [];
    for (const s of [d.sample, ...d.heldout].filter(Boolean)) {
      const score = typeof s.score === "number" ? (s.score >= 1 ? " ✓ right" : s.score <= 0 ? " ✗ wrong" : ` score ${shown(s.score)}`) : "";
      const line = make("p", { class: "xd-said", tabindex: 0 }, make("span", { class: "xd-tag", text: `${s.source}, step ${s.step}${score}` }), make("bdi", { class: "xd-prompt", text: s.prompt }), make("span", { text: " ▸ ", "aria-hidden": "true" }), make("bdi", { class: "xd-text", text: s.text || "(nothing)" }));
      parts.push(line);
      const picture = s.svg && pictured(s.svg);
      if (picture) parts.push(make("div", { class: "xd-sample", tabindex: 0, role: "group", "aria-label": "alignment of the sample; bars are the signal of each student token" }, picture));
      else if (s.table) parts.push(make("pre", { class: "xd-table", text: s.table }));
    }
    written.replaceChildren(...parts);
  }

  let last = "";
  function update() {
    waiting = 0;
    const d = data();
    head(d); curves(d);
    const now = JSON.stringify([d.sample, d.heldout]);
    if (now !== last) { last = now; wrote(d); }           // a reader's place in the sample is kept while it is the same
  }
  const soon = () => { waiting = waiting || requestAnimationFrame(update); };

  const press = { pause: () => set("wish", model.get("wish") === "pause" ? "run" : "pause"), stop: () => set("wish", "stop"), snap: () => set("snaps", model.get("snaps") + 1) };
  const row = steered ? Object.keys(buttons) : [];
  row.forEach((k, i) => {
    buttons[k].tabIndex = i ? -1 : 0;
    buttons[k].addEventListener("click", () => { if (buttons[k].getAttribute("aria-disabled") !== "true") press[k](); });
  });
  bar.addEventListener("keydown", e => {
    const i = row.findIndex(k => buttons[k] === document.activeElement), step = { ArrowRight: 1, ArrowLeft: -1, Home: -i, End: row.length - 1 - i }[e.key];
    if (i < 0 || step === undefined) return;
    e.preventDefault();
    const to = (i + step + row.length) % row.length;
    row.forEach((k, j) => { buttons[k].tabIndex = j === to ? 0 : -1; });
    buttons[row[to]].focus();
  });
  range.addEventListener("input", () => { cursor = Number(range.value); hover = null; read(); set("at", cursor); });
  range.addEventListener("keydown", e => { if (e.key === "Escape") { cursor = null; range.value = data().newest; read(); set("at", null); e.preventDefault(); } });
  root.addEventListener("keydown", e => e.stopPropagation());   // the notebook's own shortcuts stay out

  const answered = () => { answer.textContent = aloud.textContent = model.get("said") || ""; };
  const pinned = () => { cursor = model.get("at"); read(); };
  const listen = [["change:data", soon], ["change:can", steer], ["change:wish", steer], ["change:said", answered], ["change:at", pinned]];
  for (const [name, f] of listen) model.on(name, f);
  update(); steer(); answered();
  return () => { cancelAnimationFrame(waiting); for (const [name, f] of listen) model.off(name, f); };
}

export default { render };
