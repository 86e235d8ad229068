// The live view of xtokd.viz.live.atlas. Python searches, selects and draws as data; this shows it and says what was pressed through traits. In a saved page, where
// no Python answers, it searches and filters what `held` has. Token text only ever becomes text nodes.
const XHTML = "http://www.w3.org/1999/xhtml", SVGNS = "http://www.w3.org/2000/svg", ROWS = 25, PITCH = 25, BOX = 20;
let atlases = 0;

function put(space, tag, attrs, ...kids) {
  const node = document.createElementNS(space, tag);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else if (v !== null && v !== undefined && v !== false) node.setAttribute(k, v === true ? "" : v);
  }
  node.append(...kids.filter(k => k !== null && k !== undefined));
  return node;
}
const h = (tag, attrs, ...kids) => put(XHTML, tag, attrs, ...kids), s = (tag, attrs, ...kids) => put(SVGNS, tag, attrs, ...kids);
const count = n => Number(n).toLocaleString("en"), wide = t => [...t].reduce((w, c) => w + (c.codePointAt(0) > 0x10ff ? 2 : 1), 0) * 7.6;
const mass = v => v === null || v === undefined ? "" : v >= 1000 ? count(Math.round(v)) : String(Number(v.toPrecision(3)));

export default {
  render({ model, el }) {
    const uid = `xta${++atlases}`, get = n => model.get(n), names = get("names");
    const held = get("held"), alone = !!(held && held.rows);             // a saved page: nobody answers
    const set = (n, v) => { model.set(n, v); model.save_changes(); };
    const filters = () => get("filters") || {};
    let active = 0, place = -1, timer = 0;

    // ---- what Python does, on the rows that a saved page holds --------------------------------------------------------------
    const total = r => r.student_tokens + r.teacher_tokens;
    function chosen() {
      const f = filters(), any = (a, b) => !a?.length || a.some(x => b.includes(x)), cells = new Set(get("tokens").sides.flat().map(t => t[2]));
      let rows = held.rows.filter(r => any(f.kinds, [names.kinds.indexOf(r.kind)]) && any(f.links, r.link_kinds) && (!f.script || r.scripts.includes(f.script)) && (!f.in_text || cells.has(r.cell)));
      if (f.sort === "mass") rows = [...rows].sort((a, b) => (b.mass || 0) - (a.mass || 0));
      if (f.sort === "size") rows = [...rows].sort((a, b) => total(b) - total(a));
      const bins = new Map();
      for (const r of rows) { const k = Math.ceil(Math.log2(total(r))), b = bins.get(k) || [k ? 2 ** (k - 1) + 1 : 1, 2 ** k, 0, 0]; b[2]++; b[3] += total(r); bins.set(k, b); }
      if (f.sizes?.length) rows = rows.filter(r => total(r) >= f.sizes[0] && total(r) <= f.sizes[1]);
      return { rows, histogram: [...bins.entries()].sort((a, b) => a[0] - b[0]).map(e => e[1]) };
    }
    function relist() {
      const { rows, histogram } = chosen(), at = get("start") || 0;
      model.set("listing", { total: rows.length, histogram, has_mass: rows.some(r => r.mass !== null), rows: rows.slice(at, at + ROWS) });
    }
    function redraw([side, id]) {
      const cell = held.cells[`${side}:${id}`] ?? get("tokens").sides[side].find(t => t[0] === id)?.[2];
      if (held.shown[cell]) { model.set("error", ""); model.set("shown", { ...held.shown[cell], token: [side, id] }); }
      else model.set("error", "This page does not hold the component of this token; open the atlas in JupyterLab.");
    }
    function research(typed, side) {
      if (!typed) return;
      const drawn = Object.values(held.shown).flatMap(d => d.sides[side]), text = typed.replaceAll(" ", "·").replaceAll("\\n", "⏎");
      const hit = drawn.find(t => typed[0] === "#" ? `#${t[0]}` === typed : t[1] === text);
      if (hit) choose([side, hit[0]]); else model.set("error", `“${typed}” is not among the tokens that this page holds; open the atlas in JupyterLab.`);
    }
    const choose = token => { set("token", token); if (alone) redraw(token); };
    const filter = change => {
      const f = { ...filters(), ...change };
      for (const k of Object.keys(f)) if (!f[k] || f[k].length === 0) delete f[k];
      if (alone) model.set("start", 0);
      set("filters", f);
      if (alone) relist();
    };
    const page = by => { const to = Math.max(0, (get("start") || 0) + by); if (to >= get("listing").total && by > 0) return; set("start", to); if (alone) relist(); };

    // ---- controls ------------------------------------------------------------------------------------------------------------
    const root = h("div", { class: "xt-atlas" }), said = h("div", { class: "live", role: "status", "aria-live": "polite" }), trouble = h("div", { class: "error", role: "alert" });
    const say = text => { said.textContent = text; };
    const search = h("input", { type: "search", id: uid + "q", spellcheck: "false", autocomplete: "off", placeholder: "text, \\xe6 or #id", value: get("query") || "" });
    const seek = () => { if (alone) research(search.value, get("side")); else set("query", search.value); };
    search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(seek, 120); });
    search.addEventListener("keydown", e => { if (e.key === "Enter") { clearTimeout(timer); seek(); } });
    const side = h("select", { id: uid + "side", onchange: () => { set("side", +side.value); writeText(); } }, ...names.sides.map((n, k) => h("option", { value: k }, `${["student", "teacher"][k]}: ${n}`)));
    const offered = h("span", { class: "offered", role: "group", "aria-label": "Tokens that begin so" });
    const toggle = (text, title, name, k) => h("button", { type: "button", title, "data-of": name, "data-k": k, onclick: () => { const now = filters()[name] || []; filter({ [name]: now.includes(k) ? now.filter(x => x !== k) : [...now, k].sort() }); } }, text);
    const kinds = names.kinds.map((n, k) => toggle(`${n} ${count(names.kind_counts[k])}`, `components of kind ${n}`, "kinds", k));
    const links = names.links.map(([g, t], k) => toggle(`${g} ${count(names.link_counts[k])}`, `components with a link: ${t}`, "links", k));
    links.forEach((b, k) => b.setAttribute("aria-label", `${names.links[k][1]}: ${count(names.link_counts[k])} components`));
    [...kinds, ...links].forEach(b => { const of = b.dataset.of === "kinds" ? names.kind_counts : names.link_counts; b.hidden = !of[+b.dataset.k]; });
    const script = h("select", { id: uid + "script", onchange: () => filter({ script: script.value }) }, h("option", { value: "" }, "all scripts"), ...names.scripts.map(([n, k]) => h("option", { value: n }, `${n} (${count(k)})`)));
    const sort = h("select", { id: uid + "sort", onchange: () => filter({ sort: sort.value }) }, ...[["size", "size"], ["mass", "probability at stake"], ["bytes", "bytes"]].map(([v, t]) => h("option", { value: v, disabled: alone && v === "bytes" }, t)));
    const inText = h("input", { type: "checkbox", onchange: () => filter({ in_text: inText.checked }) });
    const clear = h("button", { type: "button", onclick: () => { set("filters", {}); if (alone) { model.set("start", 0); relist(); } } }, "Clear filters");
    const bars = h("div", { class: "bars", role: "group", "aria-label": "Number of components by size" });
    const list = h("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": "Components" });
    const before = h("button", { type: "button", "aria-label": "previous rows", onclick: () => page(-ROWS) }, "◂"), after = h("button", { type: "button", "aria-label": "next rows", onclick: () => page(ROWS) }, "▸"), where = h("span", { class: "where" });
    const title = h("h4", { class: "title" }), facts = h("div", { class: "facts dim" }), ribbon = h("div", { class: "ribbon scroll", tabindex: 0, role: "group", "aria-label": "The component as a ribbon" });
    const area = h("textarea", { id: uid + "text", rows: 2, spellcheck: "false", dir: "auto", placeholder: "a text of your own", readonly: alone });
    area.value = get("text") || "";
    area.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => set("text", area.value), 200); });
    const written = h("div", { class: "written scroll", tabindex: 0, role: "group", "aria-label": "Tokens of the text" }), places = h("span", { class: "places" });
    const back = h("button", { type: "button", "aria-label": "previous place", onclick: () => go(-1) }, "◂"), forth = h("button", { type: "button", "aria-label": "next place", onclick: () => go(1) }, "▸");

    function csv() {                                 // of the rows that the page holds
      const quoted = v => /[",\n]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : v, fields = ["cell", "kind", "student_tokens", "teacher_tokens", "links", "scripts", "mass", "student", "teacher"];
      return [fields, ...chosen().rows.map(r => fields.map(f => Array.isArray(r[f]) ? r[f].join("; ") : r[f] ?? ""))].map(line => line.map(quoted).join(",")).join("\n") + "\n";
    }
    const saved = text => { download("cells.csv", new Blob([text], { type: "text/csv" })); say("saved as cells.csv"); };
    const picture = () => stackedSvg([ribbon.querySelector("svg")], title.textContent, getComputedStyle(root).backgroundColor);
    const saves = saveButtons({ model, name: () => `component-${get("shown").cell}`, picture, words: () => words(), say });
    saves.prepend(h("button", { type: "button", "data-save": "csv", title: "save the list, as it is filtered and ordered, as CSV", onclick: () => { if (alone) saved(csv()); else { say("writing the list …"); set("asked", (get("asked") || 0) + 1); } } }, "CSV"));
    function words() {
      const d = get("shown"), label = (k, i) => d.sides[k][i][1];
      return [d.title, ...d.links.map(([a, b, k]) => `${label(0, a)}\t${names.links[k][0]}\t${label(1, b)}`)].join("\n");
    }

    root.append(trouble,
      h("div", { class: "row find" }, h("label", { for: uid + "q" }, "token"), search, h("label", { for: uid + "side" }, "of"), side, offered),
      h("div", { class: "row" }, h("span", { role: "group", "aria-label": "Kinds" }, "kind", ...kinds), h("span", { role: "group", "aria-label": "Kinds of links" }, "link", ...links),
        h("label", { for: uid + "script" }, "script"), script, h("label", {}, inText, "in the text"), h("label", { for: uid + "sort" }, "order"), sort, clear),
      h("div", { class: "holder" }, h("div", { class: "panes" },
        h("div", {}, h("h4", {}, "Components by number of tokens"), bars, h("div", { class: "row" }, before, where, after), list),
        h("div", {}, title, facts, ribbon))),
      h("h4", {}, h("label", { for: uid + "text" }, "Text")), area, h("div", { class: "row" }, places, back, forth), written,
      h("div", { class: "row" }, saves), said);
    el.append(root);

    // ---- drawing -------------------------------------------------------------------------------------------------------------
    function writeList() {
      const { rows, total: all, histogram, has_mass } = get("listing"), f = filters(), at = get("start") || 0, most = Math.log1p(Math.max(1, ...histogram.map(b => b[2])));
      const keep = bars.contains(document.activeElement) ? [...bars.children].indexOf(document.activeElement) : -1;
      bars.replaceChildren(...histogram.map(([low, high, n, tokens]) => {
        const name = low === high ? count(low) : `${count(low)}–${count(high)}`, on = f.sizes?.[0] === low;
        return h("button", { type: "button", "aria-pressed": String(on), title: `${count(n)} components of ${name} tokens, ${count(tokens)} tokens in all`, "aria-label": `${count(n)} components of ${name} tokens`, "data-low": low,
          onclick: () => filter({ sizes: on ? [] : [low, high] }) }, h("b", {}, n >= 10000 ? `${Math.round(n / 1000)}k` : String(n)), h("i", { style: `height:${(52 * Math.log1p(n) / most).toFixed(1)}px` }), h("b", {}, high >= 10000 ? `${Math.round(high / 1000)}k` : String(high)));
      }));
      if (keep >= 0) bars.children[Math.min(keep, bars.children.length - 1)]?.focus();
      where.textContent = all ? `${count(at + 1)}–${count(at + rows.length)} of ${count(all)} components${alone ? " held here" : ""}` : "no component fits the filters";
      before.disabled = at <= 0; after.disabled = at + rows.length >= all;
      list.replaceChildren(...rows.map((r, k) => h("div", { class: "item", role: "option", id: `${uid}r${k}`, "data-k": k, "data-cell": r.cell, onclick: () => { active = k; choose(r.token); list.focus({ preventScroll: true }); } },
        h("code", {}, r.student || "–"), h("span", { class: "numbers" }, `${r.kind}  ${count(r.student_tokens)} : ${count(r.teacher_tokens)}`),
        h("code", { class: "dim" }, r.teacher || "–"), h("span", { class: "numbers" }, has_mass ? `in the text ${mass(r.mass)}` : r.scripts.slice(0, 2).join(", ")))));
      active = Math.min(active, Math.max(rows.length - 1, 0));
      for (const b of [...kinds, ...links]) b.setAttribute("aria-pressed", (f[b.dataset.of] || []).includes(+b.dataset.k));
      script.value = f.script || ""; sort.value = f.sort || "size"; inText.checked = !!f.in_text; clear.disabled = !Object.keys(f).length;
      markList();
      say(where.textContent);
    }
    function markList() {
      [...list.children].forEach((n, k) => { n.classList.toggle("active", k === active); n.setAttribute("aria-selected", +n.dataset.cell === get("shown").cell); });
      if (list.children[active]) list.setAttribute("aria-activedescendant", `${uid}r${active}`); else list.removeAttribute("aria-activedescendant");
    }
    list.addEventListener("keydown", e => {
      const last = list.children.length - 1, move = { ArrowDown: active + 1, ArrowUp: active - 1, Home: 0, End: last }[e.key];
      if (move !== undefined) { active = Math.max(0, Math.min(last, move)); markList(); list.children[active]?.scrollIntoView({ block: "nearest" }); }
      else if (e.key === "PageDown") page(ROWS);
      else if (e.key === "PageUp") page(-ROWS);
      else if (e.key === "Enter" || e.key === " ") choose(get("listing").rows[active]?.token || get("token"));
      else return;
      e.preventDefault(); e.stopPropagation();
    });

    function writeRibbon() {
      const d = get("shown");
      if (!d.sides) return;
      const w = d.sides.map(side => Math.max(96, ...side.map(t => wide(t[1]) + 8 * String(t[0]).length + 18))), n = Math.max(...d.sides.map(x => x.length), 1), gap = 150;
      const x = [6, 6 + w[0] + gap], top = 24, height = top + n * PITCH + 4, full = x[1] + w[1] + 6, y = (k, i) => top + (n - d.sides[k].length) * PITCH / 2 + i * PITCH;
      const svg = s("svg", { width: full, height, viewBox: `0 0 ${full} ${height}`, role: "group", "aria-label": d.title }, s("title", {}, d.title));
      svg.append(s("text", { class: "side", x: x[0], y: 14 }, `student: ${names.sides[0]}`), s("text", { class: "side", x: x[1] + w[1], y: 14, "text-anchor": "end" }, `teacher: ${names.sides[1]}`));
      const seen = [new Map(), new Map()], ends = [new Map(), new Map()];
      for (const [a, b] of d.links) { ends[0].set(a, (ends[0].get(a) || 0) + 1); ends[1].set(b, (ends[1].get(b) || 0) + 1); }
      const port = (k, i) => { const j = (seen[k].get(i) || 0) + 1; seen[k].set(i, j); return y(k, i) + BOX * j / (ends[k].get(i) + 1); };
      const paths = d.links.map(([a, b, k]) => { const p = port(0, a); return [a, b, k, p]; }).sort((p, q) => p[1] - q[1] || p[0] - q[0]).map(([a, b, k, p]) => {
        const q = port(1, b), m = x[0] + w[0] + gap / 2;
        return s("path", { class: `link k${k}`, d: `M${x[0] + w[0]} ${p.toFixed(1)}C${m} ${p.toFixed(1)} ${m} ${q.toFixed(1)} ${x[1]} ${q.toFixed(1)}` }, s("title", {}, names.links[k][1]));
      });
      svg.append(...paths);
      d.sides.forEach((tokens, k) => tokens.forEach(([id, label, hex], i) => {
        const here = d.token[0] === k && d.token[1] === id, act = () => choose([k, id]);
        svg.append(s("g", { class: here ? "tok here" : "tok", tabindex: 0, role: "button", "data-side": k, "data-id": id, "aria-label": `${["student", "teacher"][k]} token ${label}, id ${id}`, onclick: act,
          onkeydown: e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); e.stopPropagation(); act(); } } },
          s("title", {}, `id ${id}, bytes ${hex || "none"}`), s("rect", { class: "box", x: x[k], y: y(k, i), width: w[k], height: BOX, rx: 3 }), s("text", { x: x[k] + 6, y: y(k, i) + 14.5 }, label), s("text", { class: "id", x: x[k] + w[k] - 5, y: y(k, i) + 14, "text-anchor": "end" }, String(id))));
      }));
      const inside = ribbon.contains(document.activeElement) && document.activeElement !== ribbon;
      ribbon.replaceChildren(svg);
      const near = ribbon.querySelector(".here .box");
      if (near) ribbon.scrollTop = +near.getAttribute("y") - ribbon.clientHeight / 2;
      if (inside) svg.querySelector(".here")?.focus({ preventScroll: true });
      title.textContent = d.title;
      const tally = names.links.map(([g, t], k) => [g, t, d.links.filter(l => l[2] === k).length]).filter(e => e[2]).map(([g, t, k]) => `${g} ${t}: ${k}`);
      facts.textContent = [`${d.kind}, ${d.scripts.join(", ")}`, d.mass === null ? "" : `in the text ${mass(d.mass)}`, ...tally, d.left_out ? `not drawn: ${d.left_out}` : ""].filter(Boolean).join(" · ");
      markList(); markText(true);
    }

    function writeText() {
      const { sides, more } = get("tokens"), k = get("side");
      written.replaceChildren(...sides[k].map(([id, label, cell], i) => h("span", { "data-i": i, "data-cell": cell, title: `id ${id}`, onclick: () => choose([k, id]) }, label)), ...(more[k] ? [h("em", {}, ` … ${count(more[k])} more tokens`)] : []));
      written.hidden = !sides[k].length;
      markText(false);
    }
    const marks = () => [...written.querySelectorAll(".in")];
    function markText(scroll) {
      const cell = get("shown").cell;
      for (const n of written.querySelectorAll("span")) { n.classList.toggle("in", +n.dataset.cell === cell); n.classList.remove("at"); }
      place = -1;
      const n = marks().length;
      places.textContent = written.hidden ? "no text" : `${count(n)} ${n === 1 ? "place" : "places"} of this component in the text`;
      back.disabled = forth.disabled = !n;
      if (scroll && n) written.scrollTop += marks()[0].getBoundingClientRect().top - written.getBoundingClientRect().top - 24;
    }
    function go(by) {
      const found = marks();
      if (!found.length) return;
      place = place < 0 ? (by > 0 ? 0 : found.length - 1) : (place + by + found.length) % found.length;
      found.forEach((n, k) => n.classList.toggle("at", k === place));
      written.scrollTop += found[place].getBoundingClientRect().top - written.getBoundingClientRect().top - written.clientHeight / 2;
      places.textContent = `place ${place + 1} of ${count(found.length)}`;
      say(places.textContent);
    }
    written.addEventListener("keydown", e => { const by = { ArrowRight: 1, ArrowLeft: -1 }[e.key]; if (by) { go(by); e.preventDefault(); e.stopPropagation(); } });

    function state() {
      root.dataset.theme = get("theme"); side.value = get("side");
      trouble.textContent = get("error") || ""; trouble.hidden = !trouble.textContent;
      offered.replaceChildren(...(get("suggestions") || []).map(([id, label]) => h("button", { type: "button", title: `id ${id}`, onclick: () => choose([get("side"), id]) }, label)));
    }
    const on = (all, f) => all.forEach(n => model.on("change:" + n, f));
    on(["listing", "filters"], writeList); on(["shown"], writeRibbon); on(["tokens", "side"], writeText); on(["error", "suggestions", "theme", "side"], state);
    on(["text"], () => { if (document.activeElement !== area) area.value = get("text"); });
    on(["query"], () => { if (document.activeElement !== search) search.value = get("query"); });
    on(["file"], () => { if (get("file").text) saved(get("file").text); });
    if (alone) relist();
    state(); writeText(); writeRibbon(); writeList();
    return () => clearTimeout(timer);
  },
};
