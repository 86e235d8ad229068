// Buttons that save what a widget shows: SVG, PNG, a copy for the clipboard, and the page as HTML. Put before the module of a widget.
const FROZEN = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "opacity", "font-family", "font-size", "font-weight", "text-anchor", "paint-order"];

function frozenSvg(svg) {                          // a copy whose look does not depend on the style sheet of the page
  const copy = svg.cloneNode(true), from = [svg, ...svg.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((node, i) => {
    const look = getComputedStyle(node), above = i ? getComputedStyle(node.parentElement) : null;
    for (const name of FROZEN) {
      const value = look.getPropertyValue(name), known = name === "opacity" ? "1" : above?.getPropertyValue(name);
      if (value !== known) to[i].style.setProperty(name, value);
    }
    for (const { name } of [...to[i].attributes]) if (/^(class|tabindex|role|aria-.*|data-.*)$/.test(name)) to[i].removeAttribute(name);
  });
  return copy;
}

function stackedSvg(svgs, title, ground) {         // pictures below each other as the text of one SVG
  const size = svg => { const box = svg.viewBox.baseVal, at = n => svg[n].baseVal.value; return box && box.width ? [box.width, box.height] : [at("width"), at("height")]; };
  const all = document.createElementNS("http://www.w3.org/2000/svg", "svg"), put = (tag, values, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [k, v] of Object.entries(values)) node.setAttribute(k, v);
    node.textContent = text;
    all.append(node);
  };
  let wide = 0, high = 0;
  const parts = svgs.map(svg => { const [w, h] = size(svg), part = frozenSvg(svg); part.setAttribute("y", high); part.setAttribute("width", w); part.setAttribute("height", h); wide = Math.max(wide, w); high += h; return part; });
  put("title", {}, title);
  put("rect", { width: wide, height: high, fill: ground });
  all.append(...parts);
  for (const [k, v] of [["width", wide], ["height", high], ["viewBox", `0 0 ${wide} ${high}`], ["role", "img"], ["aria-label", title]]) all.setAttribute(k, v);
  return new XMLSerializer().serializeToString(all);
}

async function pngBlob(text, scale = 2) {          // an SVG text as a PNG, twice as large so that it stays sharp; within the limits of a canvas
  const image = new Image();
  await new Promise((done, fail) => { image.onload = done; image.onerror = () => fail(new Error("the picture cannot be drawn")); image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text); });
  const fit = Math.min(scale, 16000 / Math.max(image.width, image.height)), canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.width * fit)); canvas.height = Math.max(1, Math.round(image.height * fit));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done, fail) => canvas.toBlob(b => b ? done(b) : fail(new Error("the picture is too large")), "image/png"));
}

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob); link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function toClipboard(text, png) {            // a picture for a slide, and the same in words for an editor
  try { await navigator.clipboard.write([new ClipboardItem({ "image/png": png, "text/plain": new Blob([text], { type: "text/plain" }) })]); return "picture and text copied"; }
  catch { await navigator.clipboard.writeText(text); return "text copied"; }
}

// `name()` is the stem of the files, `picture()` the text of an SVG, `words()` the same as plain text, `say` gets a sentence to show and read out. HTML needs the
// trait `page_asked`: Python answers with the trait `page`.
function saveButtons({ model, name, picture, words, say }) {
  const group = document.createElement("span");
  group.className = "saves"; group.setAttribute("role", "group"); group.setAttribute("aria-label", "Save");
  const button = (text, title, act) => {
    const node = document.createElement("button");
    node.type = "button"; node.textContent = text; node.title = title; node.dataset.save = text.toLowerCase();
    node.addEventListener("click", async () => { try { const said = await act(); if (said) say(said); } catch (e) { say(`not saved: ${e.message}`); } });
    group.append(node);
  };
  button("SVG", "save this picture as SVG", () => { download(`${name()}.svg`, new Blob([picture()], { type: "image/svg+xml" })); return `saved as ${name()}.svg`; });
  button("PNG", "save this picture as PNG", async () => { download(`${name()}.png`, await pngBlob(picture())); return `saved as ${name()}.png`; });
  if (model.get("page_asked") !== undefined) {
    button("HTML", "save this view as a page that works without Jupyter", () => { model.set("page_asked", model.get("page_asked") + 1); model.save_changes(); });
    model.on("change:page", () => { if (!model.get("page")) return; download(`${name()}.html`, new Blob([model.get("page")], { type: "text/html" })); say(`saved as ${name()}.html`); });
  }
  button("Copy", "copy the picture, and the same as text", async () => toClipboard(words(), pngBlob(picture())));
  return group;
}
