// Shows widgets without Jupyter. `define` takes the module of a widget, `mount` calls its render({ model, el }) with a model that
// holds the traits. Where a server answers (`xtokd explore`), the traits that only Python can act on are sent to it.
window.xtokdPage = window.xtokdPage || (() => {
  const widgets = {};

  class Model {
    constructor(state, inputs, server) { Object.assign(this, { state, inputs, server, listeners: {}, changed: new Set(), asked: 0 }); }
    get(name) { return this.state[name]; }
    set(name, value) {
      const values = typeof name === "string" ? { [name]: value } : name;
      const names = Object.keys(values).filter(k => JSON.stringify(values[k]) !== JSON.stringify(this.state[k]));
      Object.assign(this.state, values);            // all values first: a listener may read another one
      for (const k of names) { this.changed.add(k); this.emit(`change:${k}`, values[k]); }
      if (names.length) this.emit("change");
    }
    on(names, f) { for (const n of names.split(" ")) (this.listeners[n] ||= []).push(f); }
    off(names, f) {
      if (!names) { this.listeners = {}; return; }
      for (const n of names.split(" ")) this.listeners[n] = (this.listeners[n] || []).filter(g => f && g !== f);
    }
    emit(name, value) { for (const f of [...(this.listeners[name] || [])]) f(this, value); }
    send() {}
    save_changes() {
      const ask = this.server && this.inputs.some(n => this.changed.has(n));
      this.changed.clear();
      if (ask) this.post();
    }
    async post() {                                  // an answer that a later question has overtaken is dropped
      const mine = ++this.asked, body = JSON.stringify(Object.fromEntries(this.inputs.map(n => [n, this.state[n]])));
      let answer;
      try {
        const got = await fetch(this.server, { method: "POST", headers: { "Content-Type": "application/json" }, body });
        if (!got.ok) throw new Error(`${got.status} ${got.statusText}`);
        answer = await got.json();
      } catch (e) { answer = { error: `the server of this page does not answer (${e.message}); start it again: xtokd explore` }; }
      if (mine === this.asked) { this.set(answer); this.changed.clear(); }
    }
  }

  function mount(place) {
    const options = JSON.parse(place.querySelector("script[type='application/json']").textContent);
    const el = document.createElement("div"), model = new Model(options.state, options.inputs, options.server);
    const widget = widgets[options.widget];
    widget.initialize?.({ model });
    widget.render({ model, el });
    place.replaceChildren(el);                      // the static picture stays where a widget fails
    place.xtokdModel = model;
  }

  // Light or dark: `data-theme` of the page, else the system's. Widgets read it from the body, as in JupyterLab.
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  const paint = () => { document.body.dataset.jpThemeLight = String(!dark()); };
  addEventListener("DOMContentLoaded", () => {
    paint();
    system.addEventListener("change", paint);
    new MutationObserver(paint).observe(root, { attributeFilter: ["data-theme"] });
    const button = document.querySelector(".xtokd-theme");
    const name = () => { button.textContent = dark() ? "Light colours" : "Dark colours"; };
    if (button) { button.hidden = false; name(); button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); }); }
    for (const place of document.querySelectorAll(".xtokd-live")) mount(place);
  });
  return { define: (name, module) => { widgets[name] = module(); }, Model };
})();
