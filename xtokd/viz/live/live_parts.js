// Parts that dashboard.js, bench.js and race.js share; Python puts this text before theirs, since a widget is one module.
const SVG_SPACE = "http://www.w3.org/2000/svg";

function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "text") node.textContent = value;
    else if (name === "class") node.className = value;
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function draw(tag, props = {}, text) {
  const node = document.createElementNS(SVG_SPACE, tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// A drawing that Python made is copied node by node from a short list of elements and attributes.
const DRAWN = new Set(["g", "rect", "text", "title", "path", "line", "polyline"]);
const KEPT = new Set(["x", "y", "x1", "x2", "y1", "y2", "d", "points", "width", "height", "rx", "class", "fill-opacity", "data-token"]);

function copyDrawing(from, into) {
  for (const child of from.childNodes) {
    if (child.nodeType === 3) into.append(child.data);
    if (child.nodeType !== 1 || !DRAWN.has(child.localName) || child.namespaceURI !== SVG_SPACE) continue;
    const node = document.createElementNS(SVG_SPACE, child.localName);
    for (const attribute of child.attributes) if (KEPT.has(attribute.name)) node.setAttribute(attribute.name, attribute.value);
    copyDrawing(child, node);
    into.append(node);
  }
  return into;
}

function drawing(text, name) {
  const from = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  if (from.localName !== "svg") return null;
  const [width, height] = ["width", "height"].map(k => Number(from.getAttribute(k)) || 1);
  const node = draw("svg", { class: "xt-a", role: "img", viewBox: `0 0 ${width} ${height}`, width, height, "aria-label": name });
  copyDrawing(from, node);
  node.querySelector(":scope > title")?.remove();
  return node;
}

function spoken(value) {                                   // a number of three digits, as a person would write it
  if (value === null || value === undefined) return "·";
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
}
const signed = value => value === null || value === undefined ? "·" : (value > 0 ? "+" : "") + spoken(value);
