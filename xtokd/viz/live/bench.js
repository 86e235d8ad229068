// The page of xtokd.viz.live.bench. Python computes, this draws. Settings, texts and presses go back as traits; which token's row
// is shown is decided here, so that a saved page without Python still answers.
const SLIDERS = [
  { name: "top_k", label: "top-k", low: 0, high: 64, step: 1, zero: "default" },
  { name: "tau", label: "tau", low: .5, high: 50, step: .5 },
  { name: "loss_temperature", label: "loss temperature", low: .25, high: 2, step: .05, all: "every row" },
  { name: "temperature", label: "writing temperature", low: 0, high: 2, step: .05, all: "what the student writes" },
  { name: "learning_rate", label: "learning rate", low: .0001, high: .003, step: .0001, all: "the step" },
];
const CHOICES = [["divergence", "divergence"], ["credit", "credit rule"]];
const PAUSE = 250;                                        // milliseconds without a key or a movement before Python is asked

function render({ model, el }) {
  const root = make("section", { class: "xb", "aria-label": "The bench" });
  const set = (name, value) => { model.set(name, value); model.save_changes(); };
  const settings = () => model.get("settings"), limits = model.get("limits");
  const fields = {}, timers = {};
  const later = (name, act) => { clearTimeout(timers[name]); timers[name] = setTimeout(act, PAUSE); };
  const change = (name, value) => set("settings", { ...settings(), [name]: value });
  const busy = () => { root.dataset.busy = "true"; };

  // ---- controls
  const typed = {}, texts = make("div", { class: "xb-texts" });
  for (const [name, label] of [["prompt", "prompt"], ["text", "sentence"]]) {
    typed[name] = make("input", { type: "text", class: "xb-input", spellcheck: "false", autocomplete: "off" });
    typed[name].addEventListener("input", () => later(name, () => { busy(); set(name, typed[name].value); }));
    texts.append(make("label", { class: "xb-field" }, make("span", { text: label }), typed[name]));
  }
  const buttons = make("div", { class: "xb-buttons", role: "group", "aria-label": "actions" });
  const press = what => { busy(); set("ask", [what, (model.get("ask")[1] || 0) + 1]); };
  const step_method = make("select", { class: "xb-select", "aria-label": "method of the step" }, ...limits.methods.map(name => make("option", { value: name, text: name })));
  step_method.addEventListener("change", () => change("step_method", step_method.value));
  for (const [what, label, tip] of [["write", "Let the student write", "Sample a sentence at the writing temperature"], ["step", "Take one step", "One optimizer step on this sentence, with a copy of the student"], ["reset", "Reset", "Back to the student as it was"]]) {
    const button = make("button", { type: "button", class: "xb-button", title: tip, "data-what": what, text: label });
    button.addEventListener("click", () => press(what));
    buttons.append(button);
    if (what === "step") buttons.append(make("span", { text: "with" }), step_method);
  }
  const quantity = make("select", { class: "xb-select" }, make("option", { value: "push", text: "push on the written token" }), make("option", { value: "loss", text: "loss per token" }));
  quantity.addEventListener("change", () => set("quantity", quantity.value));
  const methods = make("fieldset", { class: "xb-methods" }, make("legend", { text: "methods" }));
  const boxes = limits.methods.map(name => {
    const box = make("input", { type: "checkbox", value: name });
    box.addEventListener("change", () => {
      const now = settings().methods.filter(other => other !== name);
      change("methods", box.checked ? [...now, name] : now);
    });
    methods.append(make("label", {}, box, make("span", { text: name })));
    return box;
  });
  const knobs = make("div", { class: "xb-knobs" }, make("label", { class: "xb-field" }, make("span", { text: "number" }), quantity));
  const acting = name => limits.acts[name].filter(method => settings().methods.includes(method));
  for (const [name, label] of CHOICES) {
    fields[name] = make("select", { class: "xb-select" }, ...limits[name].map(value => make("option", { value, text: value.replace("_", " ") })));
    fields[name].addEventListener("change", () => change(name, fields[name].value));
    knobs.append(make("label", { class: "xb-field" }, make("span", { text: label }), fields[name], make("small", { "data-acts": name })));
  }
  for (const { name, label, low, high, step } of SLIDERS) {
    fields[name] = make("input", { type: "range", min: low, max: high, step, class: "xb-range" });
    fields[name].addEventListener("input", () => { say_number(name); later(name, () => { busy(); change(name, Number(fields[name].value)); }); });
    knobs.append(make("label", { class: "xb-field" }, make("span", {}, `${label} `, make("b", { "data-number": name })), fields[name], make("small", { "data-acts": name })));
  }
  function say_number(name) {
    const slider = SLIDERS.find(other => other.name === name), value = Number(fields[name].value);
    const text = slider.zero && value === 0 ? slider.zero : String(value);
    knobs.querySelector(`[data-number="${name}"]`).textContent = text;
    fields[name].setAttribute("aria-valuetext", text);
  }
  const note = make("p", { class: "xb-note", text: "A saved page: tokens can be explored; settings, texts and steps need Python (Bench in a notebook)." });
  const error = make("div", { class: "xb-error", role: "alert" }), refused = make("ul", { class: "xb-refused" });
  const picture = make("div", { class: "xb-picture", tabindex: 0, role: "group", "aria-label": "tokens: arrow keys move, Home and End go to the ends" });
  const table = make("div", { class: "xb-table", tabindex: 0, role: "group", "aria-label": "the row of one token" }), written = make("div", { class: "xb-written" });
  const doubt = make("p", { class: "xb-note" }), aloud = make("div", { class: "xb-aloud", role: "status", "aria-live": "polite" });
  const controls = make("fieldset", { class: "xb-controls", "aria-label": "settings" }, texts, buttons, knobs, methods);
  const said = make("output", { class: "xb-said" });
  const saves = make("div", { class: "xb-saves" }, saveButtons({
    model, name: () => "bench", words, say: what => { said.textContent = what; },
    picture: () => stackedSvg([picture.firstChild], model.get("data").summary, getComputedStyle(root).backgroundColor),
  }), said);
  root.append(note, controls, error, picture, saves, doubt, refused, make("div", { class: "xb-below" }, table, written), aloud);
  el.append(root);

  // ---- what Python says
  function sync() {
    const now = settings();
    for (const name of ["prompt", "text"]) if (document.activeElement !== typed[name]) typed[name].value = model.get(name);
    for (const name of Object.keys(fields)) if (!(document.activeElement === fields[name] && fields[name].type === "range")) fields[name].value = now[name];
    for (const { name } of SLIDERS) say_number(name);
    quantity.value = model.get("quantity");
    step_method.value = now.step_method;
    for (const box of boxes) box.checked = now.methods.includes(box.value);
    for (const small of knobs.querySelectorAll("[data-acts]")) {
      const name = small.dataset.acts, slider = SLIDERS.find(other => other.name === name);
      const words = slider && slider.all ? slider.all : [...(name === "divergence" ? ["truth"] : []), ...acting(name)].join(", ");
      small.textContent = words ? `acts on ${words}` : "acts on none of the shown methods";
    }
  }

  function paint() {
    const data = model.get("data");
    delete root.dataset.busy;
    const svg = drawing(data.svg, `${data.summary}. ${data.rows.map(row => row.name).join(", ")}`);
    picture.replaceChildren(svg);
    for (const cell of picture.querySelectorAll("[data-token]")) cell.addEventListener("click", () => choose(Number(cell.dataset.token)));
    doubt.textContent = `Blue, +: the method makes the written token more probable; orange, −: less. Truth: the gradient of the divergence to the teacher's exact rows, whose probabilities are known to ${spoken(data.doubt)}.`;
    refused.replaceChildren(...Object.entries(data.refused).map(([name, why]) => make("li", { text: `${name} has no row: ${why}` })));
    const before = data.written;
    const line = (name, answers) => make("tr", {}, make("th", { scope: "row", text: name }), ...["greedy", "sample"].map(key => make("td", {}, make("bdi", { text: answers[key] || "(nothing)" }))));
    written.replaceChildren(...(before ? [make("table", {}, make("caption", { text: `The student before and after step ${data.steps}` }),
      make("tr", {}, make("td"), make("th", { scope: "col", text: "most likely tokens" }), make("th", { scope: "col", text: "one sample" })),
      line("before", before.before), line("after", before.after))] : []));
    row();
  }

  function words() {                                      // the numbers of the picture, as a table with tabs
    const data = model.get("data"), line = (name, cells) => [name, ...cells].join("\t");
    return [data.summary, line(data.quantity, data.tokens.map(token => token.label)), ...data.rows.map(one => line(one.name, one.values.map(signed)))].join("\n");
  }

  function row() {                                        // the table of one token
    const data = model.get("data"), k = Math.max(0, Math.min(model.get("token"), data.tokens.length - 1)), token = data.tokens[k];
    for (const cell of picture.querySelectorAll("[data-token]")) cell.classList.toggle("xb-on", Number(cell.dataset.token) === k);
    const head = make("tr", {}, make("th", { scope: "col", text: "token" }), make("th", { scope: "col", text: "student p" }), make("th", { scope: "col", text: "teacher q" }), ...data.rows.map(one => make("th", { scope: "col", text: `${one.name}` })));
    const lines = token.tokens.map((label, i) => make("tr", { class: i ? "" : "xb-written-token" }, make("th", { scope: "row" }, make("bdi", { text: label })),
      make("td", { text: spoken(token.student[i]) }), make("td", { text: spoken(token.teacher[i]) }),
      ...token.push.map((push, j) => {
        const value = push ? push[i] : null;
        return make("td", { class: value > 0 ? "xb-up" : value < 0 ? "xb-down" : "", title: push ? "push" : token.silent[j], text: signed(value) });
      })));
    table.replaceChildren(make("table", {}, make("caption", { text: `Token ${k}, ${token.label}: probabilities, and the push of each method (first line: the written token)` }), head, ...lines));
    aloud.textContent = `token ${k} ${token.label}: ${data.rows.map(one => `${one.name} ${signed(one.values[k])}`).join(", ")}`;
  }

  function choose(k) {
    const count = model.get("data").tokens.length, now = Math.max(0, Math.min(k, count - 1));
    set("token", now);
    row();
  }
  picture.addEventListener("keydown", event => {
    const now = model.get("token"), to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: Infinity }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
  });
  root.addEventListener("keydown", event => event.stopPropagation());      // the notebook's own shortcuts stay out

  function complain() {
    delete root.dataset.busy;
    error.textContent = model.get("error");
    error.hidden = !error.textContent;
  }
  const standalone = model.get("ask") === undefined;          // a saved page: nobody answers
  note.hidden = !standalone;
  controls.disabled = standalone;
  const listen = [["change:data", paint], ["change:token", row], ["change:error", complain], ["change:settings", sync], ["change:prompt", sync], ["change:text", sync], ["change:quantity", sync]];
  for (const [name, act] of listen) model.on(name, act);
  sync(); paint(); complain();
  return () => { for (const [name, act] of listen) model.off(name, act); for (const timer of Object.values(timers)) clearTimeout(timer); };
}

export default { render };
