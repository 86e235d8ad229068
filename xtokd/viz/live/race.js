// The page of xtokd.viz.live.race: all of it works without Python. `data` has the runs; axis, position, prompt and playing are traits,
// so that Python (and a saved page) knows what is shown.
const LEFT = 44, RIGHT = 10, TOP = 8, FOOT = 20, WIDE = 440, HIGH = 190;
const MARKS = ["✓ right", "✗ wrong"];

function render({ model, el }) {
  const data = model.get("data");
  const root = make("section", { class: "xr", "aria-label": "A race of recorded runs", tabindex: -1 });
  const play = make("button", { type: "button", class: "xr-button" });
  const range = make("input", { type: "range", min: 0, max: 1000, step: 5, class: "xr-range", "aria-label": "position in the race" });
  const where = make("output", { class: "xr-where" });
  const axes = make("select", { class: "xr-select" }, ...data.axes.map(axis => make("option", { value: axis.name, text: axis.title })));
  const prompts = make("select", { class: "xr-select" }, ...data.prompts.map((text, k) => make("option", { value: k, text })));
  const bar = make("div", { class: "xr-bar" }, play, range, where);
  const choices = make("div", { class: "xr-bar" }, make("label", {}, make("span", { text: "compare at the same " }), axes), ...(data.prompts.length ? [make("label", {}, make("span", { text: "asked " }), prompts)] : []));
  const charts = make("div", { class: "xr-charts" }), table = make("table", { class: "xr-table" });
  const scroll = make("div", { class: "xr-scroll", tabindex: 0, role: "group", "aria-label": "standings" }, table);
  const said = make("output", { class: "xr-said" });
  const saves = make("div", { class: "xr-bar xr-saves" }, saveButtons({ model, name: () => "race", picture: wholePicture, words: wholeWords, say: what => { said.textContent = what; } }), said);
  root.append(bar, choices, charts, scroll, saves);
  el.append(root);

  const axis = () => data.axes.find(one => one.name === model.get("axis")) || data.axes[0];
  const set = (name, value) => { if (model.get(name) !== value) { model.set(name, value); model.save_changes(); } };
  const at = (run, position) => {                           // number of the last evaluation at or before a position
    const places = run.at[axis().name];
    let k = 0;
    while (k + 1 < places.length && places[k + 1] <= position) k += 1;
    return k;
  };
  let position = model.get("position"), frame = 0, before = 0, cursors = [];

  function chart(panel) {
    const here = axis(), x = value => LEFT + (WIDE - LEFT - RIGHT) * value / here.end, y = value => TOP + (HIGH - TOP - FOOT) * (1 - value / panel.top);
    const svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" });
    for (const [value, text] of panel.ticks) svg.append(draw("path", { class: "xr-grid", d: `M${LEFT} ${y(value)}H${WIDE - RIGHT}` }), draw("text", { class: "xr-tick xr-end", x: LEFT - 5, y: y(value) + 4 }, text));
    for (const [value, text] of here.ticks) svg.append(draw("text", { class: value ? "xr-tick xr-end" : "xr-tick", x: x(value), y: HIGH - 4 }, text));
    for (const run of data.runs) {
      const pairs = run.at[here.name].map((place, k) => [place, run[panel.name][k]]).filter(pair => pair[1] !== null);
      const points = pairs.map(([place, value]) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      const line = draw("polyline", { class: "xr-line", points, "stroke-dasharray": run.dash });
      line.style.stroke = run.colour;
      svg.append(line);
    }
    const cursor = draw("path", { class: "xr-cursor", d: `M0 ${TOP}V${HIGH - FOOT}` }), dots = data.runs.map(run => {
      const dot = draw("circle", { class: "xr-dot", r: 4.5 });
      dot.style.fill = run.colour;
      return dot;
    });
    svg.append(cursor, ...dots);
    cursors.push(() => {
      const place = position * here.end;
      cursor.setAttribute("transform", `translate(${x(place).toFixed(1)},0)`);
      const says = data.runs.map((run, i) => {
        const k = at(run, place), value = run[panel.name][k];
        dots[i].setAttribute("cx", x(run.at[here.name][k]));
        dots[i].setAttribute("cy", value === null ? -20 : y(value));
        return `${run.label} ${spoken(value)}`;
      });
      svg.setAttribute("aria-label", `${panel.title}, ${panel.unit}: ${says.join(", ")}`);
    });
    svg.addEventListener("click", event => {
      const box = svg.getBoundingClientRect(), place = ((event.clientX - box.left) * WIDE / box.width - LEFT) / (WIDE - LEFT - RIGHT);
      pause();
      move(place);
    });
    return make("figure", { class: "xr-chart", "data-panel": panel.name }, make("figcaption", {}, make("b", { text: panel.title }), make("span", { text: ` ${panel.unit}` })), svg);
  }

  function build() {
    cursors = [];
    charts.replaceChildren(...data.panels.map(chart));
    axes.value = axis().name;
    prompts.value = model.get("prompt");
    show();
  }

  function show() {
    const here = axis(), place = position * here.end;
    for (const update of cursors) update();
    const words = `${here.name === "step" ? Math.round(place) : spoken(place)} of ${spoken(here.end)} ${here.title}`;
    where.textContent = words;
    if (document.activeElement !== range || model.get("playing")) range.value = Math.round(1000 * position);
    range.setAttribute("aria-valuetext", words);
    const prompt = data.prompts[model.get("prompt")], best = {};
    for (const [name, pick] of [["accuracy", Math.max], ["distance", Math.min]]) best[name] = pick(...data.runs.map(run => run[name][at(run, place)]).filter(value => value !== null));
    const head = make("tr", {}, ...["", "run", "at step", "accuracy", "distance", "wrote"].map(text => make("th", { scope: "col", text })));
    table.replaceChildren(head, ...data.runs.map(run => {
      const k = at(run, place), text = (run.texts[prompt] || [])[k], swatch = draw("svg", { width: 30, height: 10, "aria-hidden": "true" });
      const line = draw("path", { class: "xr-line", d: "M0 5h30", "stroke-dasharray": run.dash });
      line.style.stroke = run.colour;
      swatch.append(line);
      const cell = name => make("td", { class: run[name][k] !== null && run[name][k] === best[name] ? "xr-best" : "", "data-name": name, text: spoken(run[name][k]) });
      const mark = text && text[1] !== null ? (text[1] >= 1 ? MARKS[0] : text[1] <= 0 ? MARKS[1] : spoken(text[1])) : "";
      return make("tr", { "data-run": run.label }, make("td", {}, swatch), make("th", { scope: "row", text: run.label }), make("td", { text: String(run.at.step[k]) }), cell("accuracy"), cell("distance"),
        make("td", { class: "xr-text" }, make("bdi", { text: text ? text[0] || "(nothing)" : "·" }), make("span", { class: text && text[1] >= 1 ? "xr-right" : "xr-wrong", text: mark })));
    }));
  }

  const heading = () => `${where.textContent}${data.prompts.length ? `; asked: ${data.prompts[model.get("prompt")]}` : ""}`;
  const cells = () => [...table.rows].slice(1).map(line => [...line.cells].slice(1).map(cell => [...cell.childNodes].map(part => part.textContent).filter(Boolean).join("  ")));

  function wholePicture() {                                 // both charts with their titles, and the standings, as one picture
    const parts = [], note = (...lines) => {
      const svg = draw("svg", { viewBox: `0 0 ${2 * WIDE} ${20 * lines.length + 8}` });
      lines.forEach((texts, k) => texts.forEach(([x, text]) => svg.append(draw("text", { class: "xr-word", x, y: 20 * k + 18 }, text))));
      parts.push(svg);
      return svg;
    };
    note([[14, heading()]]);
    for (const figure of charts.children) {
      note([[14, [...figure.querySelectorAll("figcaption *")].map(part => part.textContent.trim()).join(", ")]]);
      parts.push(figure.querySelector("svg"));
    }
    const standings = note(...cells().map(([run, step, accuracy, distance, text]) => [[52, run], [260, `step ${step}`], [350, `accuracy ${accuracy}`], [480, `distance ${distance}`], [620, text]]));
    data.runs.forEach((run, k) => {
      const line = draw("path", { class: "xr-line", d: `M14 ${20 * k + 14}h30`, "stroke-dasharray": run.dash });
      line.style.stroke = run.colour;
      standings.append(line);
    });
    const hidden = make("div", { class: "xr-hidden", "aria-hidden": "true" }, ...parts.filter(part => !part.isConnected));
    root.append(hidden);                                    // a look is computed only inside the page
    try { return stackedSvg(parts, `A race of recorded runs, ${heading()}`, getComputedStyle(root).backgroundColor); }
    finally { hidden.remove(); }
  }

  function wholeWords() {
    return [heading(), ["run", "at step", "accuracy", "distance", "wrote"].join("\t"), ...cells().map(line => line.join("\t"))].join("\n");
  }

  function move(share) {
    position = Math.max(0, Math.min(1, share));
    set("position", position);
    show();
  }

  function tick(now) {
    const share = position + (now - before) / 1000 / model.get("seconds");
    before = now;
    position = Math.min(1, share);
    show();
    if (position >= 1) pause();
    else frame = requestAnimationFrame(tick);
  }
  function start() {
    if (position >= 1) position = 0;
    set("playing", true);
    label();
    before = performance.now();
    frame = requestAnimationFrame(tick);
  }
  function pause() {
    cancelAnimationFrame(frame);
    set("playing", false);
    set("position", position);
    label();
  }
  function label() {
    play.textContent = model.get("playing") ? "❚❚ Pause" : "▶ Play";
  }
  play.addEventListener("click", () => (model.get("playing") ? pause() : start()));
  range.addEventListener("input", () => { if (model.get("playing")) pause(); move(Number(range.value) / 1000); });
  axes.addEventListener("change", () => { set("axis", axes.value); build(); });
  prompts.addEventListener("change", () => { set("prompt", Number(prompts.value)); show(); });
  root.addEventListener("keydown", event => {
    event.stopPropagation();                                // the notebook's own shortcuts stay out
    if (event.key !== " " || ["BUTTON", "SELECT"].includes(event.target.tagName)) return;
    event.preventDefault();
    play.click();
  });
  const moved = () => { if (!model.get("playing")) { position = model.get("position"); show(); } };
  const listen = [["change:position", moved], ["change:axis", build], ["change:prompt", build]];
  for (const [name, act] of listen) model.on(name, act);
  set("playing", false);
  label();
  build();
  return () => { cancelAnimationFrame(frame); for (const [name, act] of listen) model.off(name, act); };
}

export default { render };
