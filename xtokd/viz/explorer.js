// The live view of an alignment. Python computes (columns in the trait `data`), this file draws; all state is in traits, and token text only ever becomes text nodes.
const SVG = "http://www.w3.org/2000/svg";
const ROW = 24, MID = 16, RULER = 14, TRACK = 24, MARK = 14, GROUP = 18, GUTTER = 96, GAP = 12, EDGE = 54;
const GLYPH = ["1→1", "1→n", "n→1", "n→m", "–"];
const NAME = ["one token each", "one student token, many teacher tokens", "many student tokens, one teacher token", "many on both sides", "no partner"];
const DIFF = ["", "only the first has a signal", "only the second has a signal", "both have one, far apart"], DIFF_GLYPH = ["", "◂", "▸", "≠"];
let count = 0;

const s = (tag, attrs, ...kids) => fill(document.createElementNS(SVG, tag), attrs, kids);
const num = v => v === null || v === undefined ? "–" : String(Number(v.toPrecision(3))).replace("-", "−");
const same = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);

// ---- places: every token gets x0, x1 on its line ---------------------------------------------------------------------------
function bands(d, room) {
  const { segs, toks } = d, lines = [], at = { lines, lineOf: [], x0: [], x1: [] };
  segs.w.forEach((w, k) => {
    let line = lines.at(-1);
    if (!line || line.w + w > room) lines.push(line = { k0: k, w: 0 });
    for (let r = segs.first[k]; r < segs.first[k + 1]; r++) { at.x0[r] = line.w + toks.x0[r]; at.x1[r] = line.w + toks.x1[r]; }
    line.w += w; line.k1 = k + 1; at.lineOf[k] = lines.length - 1;
  });
  return at;
}

function spread(d, room) {                       // the edge view: each row on its own, evenly spaced
  const { segs, toks } = d, lines = [], at = { lines, lineOf: [], x0: [], x1: [] };
  let x = [0, 0];
  for (let k = 0; k < segs.w.length; k++) {
    const w = [0, 0];
    for (let r = segs.first[k]; r < segs.first[k + 1]; r++) w[toks.side[r]] += toks.w[r] + 10;
    let line = lines.at(-1);
    if (!line || Math.max(x[0] + w[0], x[1] + w[1]) > room) { lines.push(line = { k0: k, w: 0 }); x = [0, 0]; }
    for (let r = segs.first[k]; r < segs.first[k + 1]; r++) {
      const side = toks.side[r];
      at.x0[r] = x[side] + 5; at.x1[r] = x[side] + 5 + toks.w[r]; x[side] += toks.w[r] + 10;
    }
    line.w = Math.max(x[0], x[1]); line.k1 = k + 1; line.full = [...x]; at.lineOf[k] = lines.length - 1;
  }
  for (const line of lines) for (let r = segs.first[line.k0]; r < segs.first[line.k1]; r++) {   // both rows end together
    const by = (at.x0[r] + at.x1[r]) / 2 * (line.w / Math.max(line.full[toks.side[r]], 1) - 1);
    at.x0[r] += by; at.x1[r] += by;
  }
  return at;
}

function overlaps(d, k) {                        // edges of a component: pairs of tokens that share a byte
  const { segs, toks } = d, a = [], b = [], out = [];
  for (let r = segs.first[k]; r < segs.first[k + 1]; r++) (toks.side[r] ? b : a).push(r);
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    out.push([a[i], b[j]]);
    const x = toks.b1[a[i]], y = toks.b1[b[j]];
    if (x <= y) i++;
    if (y <= x) j++;
  }
  return out;
}

export default {
  render({ model, el }) {
    const uid = `xt${++count}`, get = name => model.get(name);
    let d = JSON.parse(get("data")), at = null, drawn = new Map(), hover = -1, width = 0, brush = null, anchor = -1, wasDrag = false, soon = 0, sayLater = 0;
    const set = (name, value) => { model.set(name, value); model.save_changes(); };
    const later = f => { clearTimeout(soon); soon = setTimeout(f, 60); };

    // ---- controls ----------------------------------------------------------------------------------------------------------
    const root = h("div", { class: "xt-x" });
    const bar = h("div", { class: "bar", role: "group", "aria-label": "Explorer controls" });
    const button = (text, title, click) => h("button", { type: "button", title, onclick: click }, text);
    const views = ["bands", "edges"].map(v => button(v, { bands: "both rows over the same bytes", edges: "a graph: an edge for every pair of tokens that share a byte" }[v], () => set("view", v)));
    const kinds = GLYPH.map((g, k) => button("", NAME[k], () => set("kinds", get("kinds").includes(k) ? get("kinds").filter(x => x !== k) : [...get("kinds"), k].sort())));
    const check = (name, text) => { const box = h("input", { type: "checkbox", onchange: () => set(name, box.checked) }); return [box, h("label", { class: "check" }, box, text)]; };
    const [blank, blankLabel] = check("whitespace", "white space"), [group, groupLabel] = check("graphemes", "graphemes");
    const worst = h("input", { type: "range", min: 0, value: 0, "aria-label": "worst first", oninput: () => { jump(d.order[+worst.value]); } });
    const worstSays = h("output", {}), worstLabel = h("span", { class: "worst" }, h("span", {}, "worst first "), worst, worstSays);
    const next = button("next mismatch", "the next place that is not 1→1 (key n)", () => mismatch());
    const tracks = h("span", { class: "tracks", role: "group", "aria-label": "Tracks" });
    bar.append(h("span", { class: "views", role: "group", "aria-label": "Layout" }, ...views), h("span", { class: "kinds", role: "group", "aria-label": "Kinds shown" }, ...kinds),
      blankLabel, groupLabel, worstLabel, next, tracks, saveButtons({ model, name: () => "alignment", picture: wholePicture, words: wholeWords, say: what => { cards.append(h("div", { class: "note" }, what)); say(what); } }));

    const list = h("div", { class: "list", role: "listbox", tabindex: 0, "aria-multiselectable": "true", "aria-label": "Chunks of the alignment" });
    const cards = h("div", { class: "cards", role: "region", "aria-label": "Details" });
    const live = h("div", { class: "live", role: "status", "aria-live": "polite" }), trouble = h("div", { class: "error", role: "alert" });
    const keys = h("div", { class: "keys" }, "← → chunk · ↑ ↓ line · Enter pin · Shift+Enter or Shift+click compare · Shift+← → or drag select bytes · n next mismatch · Esc clear");
    const box = pairBox(), busy = h("div", { class: "busy", role: "status", hidden: true });
    root.append(...(box ? [box] : []), busy, trouble, bar, list, keys, cards, live);
    el.append(root);

    function pairBox() {                          // the text box and the two choices of a pair
      if (get("text") === undefined) return null;
      const area = h("textarea", { rows: 2, spellcheck: "false", dir: "auto", id: uid + "text" }), choose = {};
      let typed = 0;
      area.value = get("text");
      area.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(() => set("text", area.value), 80); });
      model.on("change:text", () => { if (document.activeElement !== area) area.value = get("text"); });
      for (const side of ["student", "teacher"]) {
        const pick = choose[side] = h("select", { id: uid + side, onchange: () => set(side + "_name", pick.value) });
        const options = () => { pick.replaceChildren(...get("choices").map(c => h("option", { value: c }, c))); pick.value = get(side + "_name"); };
        options();
        model.on("change:choices", options); model.on(`change:${side}_name`, options);
      }
      return h("div", { class: "pair" }, h("label", { for: uid + "text" }, "text"), area, h("label", { for: uid + "student" }, "student"), choose.student, h("label", { for: uid + "teacher" }, "teacher"), choose.teacher);
    }

    function refresh() {                          // controls follow the traits
      root.dataset.theme = get("theme");
      list.style.maxHeight = get("height") + "px";
      views.forEach((b, i) => b.setAttribute("aria-pressed", get("view") === ["bands", "edges"][i]));
      kinds.forEach((b, k) => {
        const n = d.count[k];
        b.setAttribute("aria-pressed", get("kinds").includes(k)); b.hidden = !n;
        b.replaceChildren(h("i", { class: "k" + k }), `${GLYPH[k]} ${n}`);
        b.setAttribute("aria-label", `${GLYPH[k]}, ${NAME[k]}: ${n}`);
      });
      blank.checked = get("whitespace"); group.checked = get("graphemes"); groupLabel.hidden = !d.groups.length;
      worstLabel.hidden = !d.order.length; worst.max = Math.max(d.order.length - 1, 0);
      const k = d.order.indexOf(get("active"));
      if (k >= 0) worst.value = k;
      worstSays.textContent = k < 0 ? ` ${d.score.name}` : ` ${k + 1} of ${d.order.length}, ${d.score.name} ${num(d.score.v[get("active")])}`;
      worst.setAttribute("aria-valuetext", worstSays.textContent);
      tracks.replaceChildren(...d.tracks.map(t => { const b = button(t.title, t.note || t.title, () => set("shown_tracks", get("shown_tracks").includes(t.title) ? get("shown_tracks").filter(x => x !== t.title) : [...get("shown_tracks"), t.title]));
        b.setAttribute("aria-pressed", get("shown_tracks").includes(t.title)); return b; }));
      trouble.textContent = get("error") || ""; trouble.hidden = !trouble.textContent;
      busy.textContent = get("busy") ? `Loading the tokenizer ${get("busy")} …` : ""; busy.hidden = !get("busy"); root.setAttribute("aria-busy", !!get("busy"));
    }

    // ---- drawing -----------------------------------------------------------------------------------------------------------
    const shown = () => d.tracks.filter(t => get("shown_tracks").includes(t.title));
    function rows() {                             // y of everything on a line
      const t = shown(), marked = d.differs.length && t.length > 1, mid = get("view") === "edges" ? EDGE : MID;
      let y = 8;
      const track = t.map(() => (y += TRACK) - TRACK), mark = marked ? (y += MARK) - MARK : null, top = get("graphemes") && d.groups.length ? (y += GROUP) - GROUP : null;
      const student = y, teacher = y + ROW + mid, bottom = top === null ? null : teacher + ROW, ruler = teacher + ROW + (top === null ? 0 : GROUP);
      return { t, track, mark, top, student, teacher, bottom, mid, ruler, height: ruler + RULER + GAP };
    }

    function text(x, y, cls, what, extra) { return s("text", { x: x.toFixed(1), y, class: cls, ...extra }, what); }

    function token(r, k, y) {
      const kind = d.segs.kind[k], x = GUTTER + at.x0[r], w = at.x1[r] - at.x0[r], lab = !get("whitespace") && d.plain[r] || d.toks.label[r];
      const g = s("g", { class: "tok" + (inside(r) ? " sel" : ""), "data-r": r }, s("rect", { class: "box", x: x + 1.5, y, width: Math.max(w - 3, 1), height: ROW, rx: 3 }));
      if (kind === 3) g.append(s("rect", { class: "inner", x: x + 4, y: y + 2.5, width: Math.max(w - 8, 0), height: ROW - 5, rx: 2 }));
      g.append(text(x + w / 2, y + 16.5, /\\x|\\u/i.test(lab) ? "label raw" : "label", lab));
      return g;
    }

    function trackBar(t, r, y) {                      // one value of a track, over its student token
      const v = t.v[d.toks.i[r]], x = GUTTER + at.x0[r] + 1.5, w = Math.max(at.x1[r] - at.x0[r] - 3, 1), room = TRACK - 5;
      if (v === null) return text(x + w / 2, y + TRACK - 6, "none", "·");
      const zero = t.low < 0 ? y + room / 2 : y + room, size = Math.min(Math.abs(v) / t.top, 1) * (t.low < 0 ? room / 2 : room);
      return s("rect", { class: v < 0 ? "val neg" : "val", x, y: (v < 0 ? zero : zero - size).toFixed(1), width: w, height: Math.max(size, .5).toFixed(1) });
    }

    function segment(k, y) {
      const { segs, toks } = d, kind = segs.kind[k], a = segs.first[k], b = segs.first[k + 1], edges = get("view") === "edges";
      let lo = Infinity, hi = 0;
      for (let r = a; r < b; r++) { lo = Math.min(lo, at.x0[r]); hi = Math.max(hi, at.x1[r]); }
      const g = s("g", { id: `${uid}o${k}`, class: `seg k${kind}`, "data-k": k, role: "option", "aria-label": says(k), "aria-posinset": k + 1, "aria-setsize": segs.kind.length });
      g.append(s("rect", { class: "frame", x: GUTTER + lo, y: y.student - 4, width: hi - lo, height: 2 * ROW + y.mid + 8, rx: 4 }));
      if (edges) for (const [p, q] of overlaps(d, k)) {
        const x = GUTTER + (at.x0[p] + at.x1[p]) / 2, z = GUTTER + (at.x0[q] + at.x1[q]) / 2, top = y.student + ROW, end = y.teacher, m = (top + end) / 2;
        g.append(s("path", { class: "edge", d: `M${x},${top}C${x},${m} ${z},${m} ${z},${end}` }));
      } else if (segs.chunk[k] >= 0) g.append(s("rect", { class: "band", x: GUTTER + lo + 1.5, y: y.student + ROW, width: Math.max(hi - lo - 3, 1), height: MID }));
      if (kind && kind < 4) g.append(text(GUTTER + (lo + hi) / 2, y.student + ROW + y.mid / 2 + 4, "kind", GLYPH[kind]));
      for (let r = a; r < b; r++) {
        g.append(token(r, k, toks.side[r] ? y.teacher : y.student));
        if (toks.side[r]) continue;
        y.t.forEach((t, i) => g.append(trackBar(t, r, y.track[i])));
        if (y.mark !== null && d.differs[toks.i[r]]) g.append(text(GUTTER + (at.x0[r] + at.x1[r]) / 2, y.mark + 11, "differs", DIFF_GLYPH[d.differs[toks.i[r]]]));
      }
      return g;
    }

    function brackets(line, y) {                  // graphemes that are cut: a bracket over their tokens, the whole grapheme on it
      const a = d.segs.first[line.k0], b = d.segs.first[line.k1];
      return d.groups.filter(g => g.rows.some(r => r >= a && r < b)).map(g => {
        const mine = g.rows.filter(r => r >= a && r < b), x0 = GUTTER + at.x0[mine[0]] + 3, x1 = GUTTER + at.x1[mine.at(-1)] - 3, up = g.side === 0, base = up ? y.top + GROUP - 3 : y.bottom + 3;
        return s("g", { class: "group" }, s("path", { d: `M${x0},${base + (up ? 3 : -3)}V${base}H${x1}V${base + (up ? 3 : -3)}` }), text((x0 + x1) / 2, up ? base - 3 : base + 13, "label", g.text));
      });
    }

    function drawLine(n) {
      if (drawn.has(n) || !at.lines[n]) return;
      const line = at.lines[n], y = rows(), w = GUTTER + line.w + 8, svg = s("svg", { role: "none", width: w, height: y.height, viewBox: `0 0 ${w} ${y.height}` });
      svg.append(text(4, y.student + 16, "side", "student"), text(4, y.teacher + 16, "side", "teacher"));
      y.t.forEach((t, i) => svg.append(text(4, y.track[i] + 10, "name", t.short), text(4, y.track[i] + 20, "scale", `${t.low < 0 ? "±" : "0–"}${num(t.top)}`),
        s("line", { class: "zero", x1: GUTTER, x2: w - 8, y1: y.track[i] + (t.low < 0 ? (TRACK - 5) / 2 : TRACK - 5), y2: y.track[i] + (t.low < 0 ? (TRACK - 5) / 2 : TRACK - 5) })));
      if (y.mark !== null) svg.append(text(4, y.mark + 10, "name", "differs"));
      if (y.top !== null) svg.append(...brackets(line, y));
      let free = 0;
      for (let k = line.k0; k < line.k1; k++) {
        svg.append(segment(k, y));
        const r = d.segs.first[k], x = at.x0[r], label = String(d.segs.b0[k]);
        if (get("view") === "bands" && x >= free && d.segs.b1[k] > d.segs.b0[k]) { svg.append(text(GUTTER + x + 1.5, y.ruler + 11, "byte", label)); free = x + 7 * label.length + 4; }
      }
      line.node.replaceChildren(svg);
      drawn.set(n, svg);
      mark(svg);
    }

    const watch = new IntersectionObserver(all => all.forEach(e => {
      const n = +e.target.dataset.line;
      if (e.isIntersecting) drawLine(n); else if (drawn.delete(n)) e.target.replaceChildren();
    }), { root: list, rootMargin: "400px 2000px" });

    function layout() {                           // wrap anew; lines are drawn when they come near
      if (!width) return;
      watch.disconnect(); drawn = new Map();
      at = (get("view") === "edges" ? spread : bands)(d, Math.max(width - GUTTER - 30, 120));
      const tall = rows().height;
      list.style.setProperty("--line", tall + "px");
      at.lines.forEach((line, n) => { line.node = h("div", { class: "line", role: "none", "data-line": n }); line.node.style.minWidth = GUTTER + line.w + 8 + "px"; });
      list.replaceChildren(...at.lines.map(l => l.node), ...(at.lines.length ? [] : [h("div", { class: "empty", role: "none" }, "no tokens on either side")]));
      list.setAttribute("aria-label", d.summary);
      for (let n = 0; n * tall < get("height"); n++) drawLine(n);
      at.lines.forEach(l => watch.observe(l.node));
      cardsNow();
    }

    // ---- state on the drawing ----------------------------------------------------------------------------------------------
    const range = () => brush && brush.range || get("selected");
    const inside = r => { const [a, b] = range(); return b > a && d.toks.b0[r] < b && d.toks.b1[r] > a; };
    const lit = () => new Set([hover, ...get("pinned")].filter(k => k >= 0));
    function mark(scope) {
      const on = lit(), pins = get("pinned"), keep = get("kinds"), act = get("active");
      root.classList.toggle("dim", on.size > 0);
      for (const g of (scope || list).querySelectorAll(".seg")) {
        const k = +g.dataset.k;
        g.classList.toggle("on", on.has(k)); g.classList.toggle("pin", pins.includes(k)); g.classList.toggle("active", k === act); g.classList.toggle("off", !keep.includes(d.segs.kind[k]));
        g.setAttribute("aria-selected", pins.includes(k));
      }
      for (const g of (scope || list).querySelectorAll(".tok")) g.classList.toggle("sel", inside(+g.dataset.r));
    }
    function restate() { mark(); refresh(); cardsNow(); }

    const wholeText = r => d.full[r] || d.toks.label[r];
    function texts(k, side) { const out = []; for (let r = d.segs.first[k]; r < d.segs.first[k + 1] && out.length < 12; r++) if (d.toks.side[r] === side) out.push(d.toks.label[r]); return out; }
    function says(k) {
      const kind = d.segs.kind[k], first = d.segs.first[k], row = side => texts(k, side).join(" | ");
      if (kind === 4) return `${d.toks.side[first] ? "teacher" : "student"} token ${d.toks.label[first]}, no partner: ${d.reasons[d.toks.reason[first]] || "in no chunk"}`;
      return `${GLYPH[kind]}, student ${row(0)}, teacher ${row(1)}, bytes ${d.segs.b0[k]} to ${d.segs.b1[k]}` + (d.score.v[k] === null || !d.order.length ? "" : `, ${d.score.name} ${num(d.score.v[k])}`);
    }
    function wholePicture() {                     // all lines, also those that are not drawn yet
      at.lines.forEach((line, n) => drawLine(n));
      return stackedSvg(at.lines.map(line => line.node.firstElementChild), d.summary, getComputedStyle(root).getPropertyValue("--bg"));
    }
    function wholeWords() {
      const side = (k, which) => { const out = []; for (let r = d.segs.first[k]; r < d.segs.first[k + 1]; r++) if (d.toks.side[r] === which) out.push(d.toks.label[r]); return out.join(" | "); };
      return [d.summary, "kind\tstudent\tteacher\tbytes", ...d.segs.kind.map((kind, k) => `${GLYPH[kind]}\t${side(k, 0)}\t${side(k, 1)}\t${d.segs.b0[k]}-${d.segs.b1[k]}`)].join("\n");
    }
    function say(what) { clearTimeout(sayLater); sayLater = setTimeout(() => { live.textContent = what; }, 50); }

    // ---- the card ----------------------------------------------------------------------------------------------------------
    function formed(k) {                          // the sums behind a chunk's numbers
      const logp = d.values.find(v => v.name === "log p"), sums = [0, 0], parts = [[], []];
      if (!logp || d.segs.kind[k] === 4) return null;
      for (let r = d.segs.first[k]; r < d.segs.first[k + 1]; r++) { const v = logp.v[r], side = d.toks.side[r]; if (v === null) return null; sums[side] += v; parts[side].push(num(v)); }
      const side = i => `${["student", "teacher"][i]} ` + (parts[i].length > 1 && parts[i].length < 9 ? parts[i].join(" + ") + " = " : "") + num(sums[i]);
      return `log p of these bytes: ${side(0)}; ${side(1)}; teacher − student = ${num(sums[1] - sums[0])} nats`;
    }
    function card(k, title) {
      const { segs, toks } = d, kind = segs.kind[k], a = segs.first[k], b = Math.min(segs.first[k + 1], a + 40), columns = d.values.filter(c => { for (let r = a; r < b; r++) if (c.v[r] !== null) return true; });
      const head = h("div", { class: "head" }, h("i", { class: "k" + kind }), h("b", {}, kind === 4 ? "no chunk" : `chunk ${segs.chunk[k]}`), ` ${GLYPH[kind]} ${NAME[kind]} · bytes ${segs.b0[k]}–${segs.b1[k]}` + (title ? ` · ${title}` : ""));
      const table = h("table", {}, h("thead", {}, h("tr", {}, ...["side", "token", "text", "id", "bytes", "range", ...columns.map(c => c.name), ...d.tracks.map(t => t.title)].map(x => h("th", { scope: "col" }, x)))));
      const body = h("tbody", {}), notes = new Set();
      for (let r = a; r < b; r++) {
        const i = toks.i[r], mine = toks.side[r] ? () => "" : t => num(t.v[i]);
        body.append(h("tr", {}, ...[["student", "teacher"][toks.side[r]], i].map(x => h("td", {}, String(x))), h("td", { class: "text" }, h("bdi", {}, wholeText(r))),
          ...[toks.id[r], toks.hex[r], `${toks.b0[r]}–${toks.b1[r]}`, ...columns.map(c => num(c.v[r])), ...d.tracks.map(mine)].map(x => h("td", {}, String(x)))));
        if (toks.reason[r]) notes.add(`${["student", "teacher"][toks.side[r]]} token ${i} is in no chunk: ${d.reasons[toks.reason[r]]}`);
        if (toks.side[r]) continue;
        for (const w of d.silent) if (w.v[i]) notes.add(`${w.title ? w.title + ": " : ""}student token ${i} has no signal: ${d.reasons[w.v[i]]}`);
        if (d.differs[i]) notes.add(`student token ${i}: ${DIFF[d.differs[i]]}`);
      }
      if (segs.first[k + 1] > b) notes.add(`… ${segs.first[k + 1] - b} more tokens`);
      if (formed(k)) notes.add(formed(k));
      if (d.order.length && d.score.v[k] !== null) notes.add(`${d.score.name} ${num(d.score.v[k])}` + (d.score.how ? `: ${d.score.how}` : ""));
      for (const t of d.tracks) if (t.note) notes.add(`${t.title}: ${t.note}`);
      table.append(body);
      return h("div", { class: "card" }, head, h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Tokens" }, table), ...[...notes].map(n => h("div", { class: "note" }, n)));
    }
    function cardsNow() {
      const pins = get("pinned").filter(k => k < d.segs.kind.length), show = pins.length ? [...pins, ...(hover >= 0 && pins.length < 2 && !pins.includes(hover) ? [hover] : [])] : [hover >= 0 ? hover : get("active")];
      const [a, b] = range();
      cards.replaceChildren(...show.filter(k => k >= 0 && k < d.segs.kind.length).map(k => card(k, pins.includes(k) ? "pinned" : "")), ...(b > a ? [h("div", { class: "note" }, `bytes ${a}–${b} selected`)] : []));
      if (!cards.childNodes.length) cards.append(h("div", { class: "note" }, d.summary));
    }

    // ---- moves -------------------------------------------------------------------------------------------------------------
    function jump(k) {
      if (k === undefined || k < 0 || !at || k >= d.segs.kind.length) return;
      hover = -1;
      set("active", k);
      drawLine(at.lineOf[k]);
      at.lines[at.lineOf[k]].node.scrollIntoView({ block: "nearest" });
      list.setAttribute("aria-activedescendant", `${uid}o${k}`);
      restate(); say(says(k));
    }
    function mismatch() {
      const n = d.segs.kind.length, keep = get("kinds");
      for (let i = 1; i <= n; i++) { const k = (get("active") + i + n) % n; if (d.segs.kind[k] && keep.includes(d.segs.kind[k])) return jump(k); }
      say("no mismatch among the kinds shown");
    }
    function pin(k, more) {
      if (k < 0) return;
      const old = get("pinned"), now = old.includes(k) ? old.filter(x => x !== k) : more && old.length ? [old[0], k] : [k];
      set("pinned", now); restate(); say(now.includes(k) ? `pinned: ${says(k)}` : "unpinned");
    }
    function select(a, b) { set("selected", b > a ? [a, b] : []); mark(); cardsNow(); say(b > a ? `bytes ${a} to ${b} selected` : "selection cleared"); }
    function onkey(e) {
      const n = d.segs.kind.length, k = get("active");
      if (e.ctrlKey || e.metaKey || e.altKey || !n || !at) return;
      const line = k < 0 ? null : at.lines[at.lineOf[k]];
      const vertical = by => { const to = at.lines[at.lineOf[Math.max(k, 0)] + by]; return to ? Math.min(to.k0 + (Math.max(k, 0) - (line ? line.k0 : 0)), to.k1 - 1) : k; };
      const go = { ArrowRight: () => Math.min(k + 1, n - 1), ArrowLeft: () => Math.max(k - 1, 0), ArrowDown: () => vertical(1), ArrowUp: () => vertical(-1), Home: () => 0, End: () => n - 1 }[e.key];
      if (go) {
        const to = go();
        if (!e.shiftKey) anchor = -1; else if (anchor < 0) anchor = Math.max(k, 0);
        jump(to);
        if (anchor >= 0) select(d.segs.b0[Math.min(anchor, to)], d.segs.b1[Math.max(anchor, to)]);
      } else if (e.key === "Enter" || e.key === " ") pin(k, e.shiftKey);
      else if (e.key === "n") mismatch();
      else if (e.key === "Escape") { hover = anchor = -1; set("pinned", []); set("selected", []); restate(); say("cleared"); }
      else return;
      e.preventDefault(); e.stopPropagation();
    }

    const near = (target, name) => { const n = target && target.closest && target.closest(`[data-${name}]`); return n && list.contains(n) ? +n.dataset[name] : -1; };
    const bytesAt = (x, y) => { const t = el.getRootNode().elementFromPoint(x, y), r = near(t, "r"), k = near(t, "k"); return r >= 0 && d.toks.b1[r] > d.toks.b0[r] ? [d.toks.b0[r], d.toks.b1[r]] : k >= 0 ? [d.segs.b0[k], d.segs.b1[k]] : null; };
    list.addEventListener("keydown", onkey);
    list.addEventListener("pointerover", e => { const k = near(e.target, "k"); if (k === hover || brush && brush.range) return; hover = k; mark(); cardsNow(); later(() => set("hover", hover)); });
    list.addEventListener("pointerleave", () => { if (hover < 0) return; hover = -1; mark(); cardsNow(); later(() => set("hover", -1)); });
    list.addEventListener("pointerdown", e => { const from = e.button === 0 && bytesAt(e.clientX, e.clientY); wasDrag = false; brush = from ? { from, x: e.clientX, y: e.clientY, range: null } : null; });
    const move = e => {
      if (!brush || !(e.buttons & 1)) return;
      if (!brush.range && Math.hypot(e.clientX - brush.x, e.clientY - brush.y) < 5) return;
      const to = bytesAt(e.clientX, e.clientY) || brush.range || brush.from;
      brush.range = [Math.min(brush.from[0], to[0]), Math.max(brush.from[1], to[1])]; mark();
    };
    const up = () => { if (!brush) return; const r = brush.range; brush = null; if (r) { wasDrag = true; select(...r); } };
    window.addEventListener("pointermove", move); window.addEventListener("pointerup", up);
    list.addEventListener("click", e => { const k = near(e.target, "k"); if (wasDrag || k < 0) return; set("active", k); list.setAttribute("aria-activedescendant", `${uid}o${k}`); pin(k, e.shiftKey); });

    // ---- traits ------------------------------------------------------------------------------------------------------------
    const on = (names, f) => names.forEach(n => model.on("change:" + n, f));
    const anew = () => { refresh(); layout(); };
    on(["data"], () => { d = JSON.parse(get("data")); hover = anchor = -1; brush = null; list.removeAttribute("aria-activedescendant"); anew(); });
    on(["view", "whitespace", "graphemes", "shown_tracks"], anew);
    on(["pinned", "selected", "kinds", "theme", "active", "error", "busy", "height"], restate);
    const size = new ResizeObserver(() => requestAnimationFrame(() => { const w = list.clientWidth; if (w && Math.abs(w - width) > 8) { width = w; layout(); } }));
    refresh();
    size.observe(list);
    return () => { watch.disconnect(); size.disconnect(); clearTimeout(soon); clearTimeout(sayLater); window.removeEventListener("pointermove", move); window.removeEventListener("pointerup", up); };
  },
};
