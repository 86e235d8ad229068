// Theme button, search over search.js (read when the box is first used; works from the file system), and keyboard access to wide boxes.
const root = document.documentElement, base = document.currentScript.dataset.base;
const stored = () => { try { return localStorage.getItem("xtokd-theme"); } catch { return null; } };
if (stored()) root.dataset.theme = stored();

addEventListener("DOMContentLoaded", () => {
  const button = document.querySelector("#theme"), box = document.querySelector("#search"), list = document.querySelector("#found"), count = document.querySelector("#count");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", dark() ? "Light colours" : "Dark colours"); };
  document.querySelector(".tools").hidden = false;
  name();
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("xtokd-theme", root.dataset.theme); } catch { /* a reader without storage */ }
    name();
  });

  let index = null;
  const load = () => {
    if (index) return;
    index = [];
    const script = document.createElement("script");
    script.src = base + "search.js";
    script.onload = () => { index = window.XTOKD_INDEX.map(e => [...e, (e[0] + " " + e[1]).toLowerCase(), e[3].toLowerCase()]); show(); };
    document.head.append(script);
  };
  const score = (entry, words) => {
    let sum = 0;
    for (const w of words) {
      const at = entry[4].indexOf(w);
      if (at < 0 && !entry[5].includes(w)) return 0;
      sum += at < 0 ? 1 : entry[4].split(/[^\p{L}\p{N}_]+/u).includes(w) ? 20 : 8;
    }
    if (entry[1].toLowerCase() === words.join(" ")) sum += 50;    // a name or heading that is just what was typed
    return sum;
  };
  const show = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    list.replaceChildren();
    count.textContent = "";
    if (!words.length) return;
    const hits = index.map(e => [score(e, words), e]).filter(h => h[0]).sort((a, b) => b[0] - a[0]);
    count.textContent = hits.length ? `${hits.length} found${hits.length > 30 ? ", the first 30 shown" : ""}` : "nothing found";
    for (const [, e] of hits.slice(0, 30)) {
      const item = document.createElement("li"), link = document.createElement("a"), where = document.createElement("small");
      link.href = base + e[2];
      link.textContent = e[1] || e[0];
      where.textContent = e[1] ? e[0] : e[3].slice(0, 80);
      link.append(where);
      item.append(link);
      list.append(item);
    }
  };
  box.addEventListener("focus", load);
  box.addEventListener("input", () => { load(); show(); });
  box.addEventListener("keydown", e => {
    if (e.key === "Escape") { box.value = ""; show(); }
    if (e.key === "Enter") list.querySelector("a")?.click();
  });
  addEventListener("keydown", e => {
    if (e.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) { e.preventDefault(); box.focus(); }
  });

  const here = document.querySelector(".side [aria-current]"), side = document.querySelector(".side");
  if (here && here.offsetTop > side.clientHeight) side.scrollTop = here.offsetTop - side.clientHeight / 3;
  const reach = () => { for (const e of document.querySelectorAll("pre, .fig, .sheet")) if (e.scrollWidth > e.clientWidth) { e.tabIndex = 0; e.setAttribute("role", e.getAttribute("role") || "group"); e.ariaLabel ||= "wider than the page: scroll sideways"; } };
  reach();
  addEventListener("resize", reach);
});
