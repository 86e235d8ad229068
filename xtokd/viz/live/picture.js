// A picture with buttons that save it. The SVG text comes from Python; it is parsed as XML and its scripts and handlers are left out.
function readSvg(text) {
  const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  if (svg.localName !== "svg") return null;
  for (const node of svg.querySelectorAll("script, foreignObject, iframe, a")) node.remove();
  for (const node of [svg, ...svg.querySelectorAll("*")]) for (const { name, value } of [...node.attributes]) if (/^on/i.test(name) || /javascript:/i.test(value)) node.removeAttribute(name);
  return document.importNode(svg, true);
}

export default {
  render({ model, el }) {
    const make = (tag, values) => Object.assign(document.createElement(tag), values);
    const root = make("div", { className: "xt-pic" }), bar = make("div", { className: "bar" }), frame = make("div", { className: "frame" }), said = make("span", { className: "said" });
    said.setAttribute("role", "status");
    bar.append(saveButtons({ model, name: () => model.get("name"), picture: () => model.get("svg"), words: () => model.get("words"), say: what => { said.textContent = what; } }), said);
    root.append(bar, frame);
    el.append(root);
    const show = () => {
      const svg = model.get("shown") && model.get("svg") ? readSvg(model.get("svg")) : null;
      frame.replaceChildren(...(svg ? [svg] : []));
      frame.tabIndex = svg ? 0 : -1;
      frame.setAttribute("role", "group");
      frame.setAttribute("aria-label", model.get("name"));
      bar.hidden = !model.get("svg");
    };
    const names = ["change:svg", "change:shown", "change:name"];
    for (const name of names) model.on(name, show);
    show();
    return () => { for (const name of names) model.off(name, show); };
  },
};
