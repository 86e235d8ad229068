"""Real JupyterLab in a real headless Chromium, for tests/ui and tools/screenshots.py.

    with Lab() as lab:
        page = lab.notebook(["import xtokd", "1 + 1"])    # these code cells, opened and run; `page` is Playwright's
        lab.said(page, 1)                                 # "2": what code cell 1 put out, as text
        lab.ask(page, "xtokd.__version__")                # one more cell at the end, run: what Python knows now
        lab.external(page)                                # requests that left the machine; [] or something is wrong
        lab.axe(page, ".jp-OutputArea-output")            # what axe finds serious or critical there

The server listens on loopback only, with folders of its own for config, data and HOME. The browser's requests to other hosts are
recorded and refused; connections that the server or a kernel opens elsewhere are recorded too. Nothing here waits a fixed time.
"""
import json, os, re, secrets, shutil, socket, subprocess, sys, tempfile, time, urllib.request
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from refresh import ROOT, find_chromium

LOCAL = re.compile(r"^(?:(?:https?|wss?)://(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?(?:/|$)|(?:data|blob|about|file|chrome|devtools):)")
PATIENCE = 1000 * int(os.environ.get("XTOKD_PATIENCE", 120))    # milliseconds until a wait gives up; a busy machine of two cores is slow
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none", "recordTiming": False},
    "codemirror-extension/plugin": {"defaultConfig": {"autocompletion": False}},
}
# Loaded by every Python that the server starts: notes each connection to another host. It hinders nothing.
AUDIT = '''
import os, sys
def _note(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and not str(args[1][0]).startswith(("127.", "::1", "localhost")):
        with open(os.environ["XTOKD_CALLS"], "a") as f: f.write(f"{args[1][0]}:{args[1][1]}\\n")
sys.addaudithook(_note)
'''
READY = """() => {
    const found = [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell .jp-OutputArea-output')];
    const live = found.filter(o => o.dataset.mimeType === 'application/vnd.jupyter.widget-view+json');
    const waiting = [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-InputPrompt')].some(p => p.textContent.includes('*'));
    return !waiting && live.every(o => o.firstElementChild && o.getBoundingClientRect().height > 0 && !/^Loading widget/.test(o.textContent));
}"""
IDLE = "() => { const p = window.jupyterapp?.shell.currentWidget; return p?.sessionContext?.session?.kernel?.status === 'idle'; }"
FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
APPEND = """async source => {
    const panel = window.jupyterapp.shell.currentWidget, nb = panel.content, cells = nb.model.sharedModel;
    cells.insertCell(cells.cells.length, {cell_type: 'code', source, metadata: {}});
    nb.activeCellIndex = nb.widgets.length - 1; nb.deselectAll();
    await window.jupyterapp.commands.execute('notebook:run-cell');
    return nb.widgets.filter(w => w.model.type === 'code').length - 1;
}"""
SAID = """n => {
    const cell = [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell')][n];
    return [...cell.querySelectorAll('.jp-OutputArea-output')].map(o => o.innerText).join('\\n').trim();
}"""


def chromium():
    "The Chromium to drive: CHROMIUM, BROWSER_PATH, or the first that PATH knows."
    return os.environ.get("CHROMIUM") or os.environ.get("BROWSER_PATH") or find_chromium()


def missing():
    "Why no browser test can run here, or None."
    for module, package in (("playwright", "playwright"), ("axe_playwright_python", "axe-playwright-python"), ("jupyterlab", "jupyterlab")):
        if not find_spec(module): return f"{package} is not installed; make test-ui installs it"
    if not chromium(): return "no Chromium found; on Debian: apt-get install chromium fonts-dejavu-core, or set CHROMIUM"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Browser:
    "Headless Chromium whose requests to other hosts are recorded and refused."

    def __enter__(self):
        from playwright.sync_api import sync_playwright
        self.driver = sync_playwright().start()
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        # without a GPU, WebGL (large plotly charts) is drawn in software
        self.browser = self.driver.chromium.launch(executable_path=chromium(), args=root + ["--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage"])
        self.left, self.contexts = {}, []
        return self

    def __exit__(self, *_):
        for stop in (self.browser.close, self.driver.stop):
            try: stop()
            except Exception: pass    # the browser may be gone already

    def page(self, url=None, theme="light", width=1400, height=1000, javascript=True, reduced_motion=None):
        "A new page (own cookies, own cache), opened at `url` when there is one."
        context = self.browser.new_context(viewport=dict(width=width, height=height), color_scheme=theme, java_script_enabled=javascript, reduced_motion=reduced_motion)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        left = self.left[page] = []
        context.route(lambda url: not LOCAL.match(url), lambda route: route.abort())
        note = lambda url: None if LOCAL.match(url) else left.append(url)
        context.on("request", lambda r: note(r.url))
        page.on("websocket", lambda w: note(w.url))
        if url: page.goto(url)
        return page

    def external(self, page): return list(self.left[page])

    def axe(self, page, selector=None, impacts=("serious", "critical")):
        "What axe finds at `selector` (or on the whole page), one line a violation: rule (impact): help: the places."
        from axe_playwright_python.sync_playwright import Axe
        found = Axe().run(page, context=selector, options={"resultTypes": ["violations"]}).response["violations"]
        where = lambda v: "; ".join(n["html"][:160] for n in v["nodes"][:5])
        return [f"{v['id']} ({v['impact']}): {v['help']}: {where(v)}" for v in found if v["impact"] in impacts]

    def close(self, page=None):
        "Close the pages opened so far, or this one."
        for c in list(self.contexts):
            if page is None or c == page.context:
                self.contexts.remove(c)
                c.close()


class Lab(Browser):
    "JupyterLab on loopback, and a browser for it."

    def __enter__(self):
        self.home = Path(tempfile.mkdtemp(prefix="xtokd-lab-"))
        for d in ("config", "data", "runtime", "home", "cache", "settings", "work", "ipython", "path"): (self.home / d).mkdir()
        (self.home / "path/sitecustomize.py").write_text(AUDIT)
        self.calls = self.home / "calls"
        self.calls.touch()
        self.token, self.port, self.count, self.heard = secrets.token_hex(16), free_port(), 0, {}
        for name, values in SETTINGS.items(): self.setting(name, values)
        try:
            self.start()
            return super().__enter__()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *a):
        super().__exit__(*a)
        self.stop()

    def setting(self, name, values):
        file = self.home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))

    def start(self):
        d = self.home
        path = os.pathsep.join([str(d / "path"), str(ROOT)] + [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p])
        env = dict(os.environ, JUPYTER_CONFIG_DIR=str(d / "config"), JUPYTER_DATA_DIR=str(d / "data"), JUPYTER_RUNTIME_DIR=str(d / "runtime"), HOME=str(d / "home"),
                   XDG_CACHE_HOME=str(d / "cache"), IPYTHONDIR=str(d / "ipython"), JUPYTER_NO_CONFIG="", PYTHONPATH=path, XTOKD_CALLS=str(self.calls),
                   HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false", PYDEVD_DISABLE_FILE_VALIDATION="1")
        for k in ("JUPYTER_TOKEN", "JUPYTER_PATH", "JUPYTERLAB_DIR", "PLOTLY_RENDERER"): env.pop(k, None)
        options = [f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={self.token}", "--ServerApp.open_browser=False",
                   "--ServerApp.allow_root=True", f"--ServerApp.root_dir={d / 'work'}", "--LabApp.news_url=None", f"--LabApp.user_settings_dir={d / 'settings'}",
                   f"--LabApp.workspaces_dir={d / 'workspaces'}", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly", "--YDocExtension.disable_rtc=True"]
        with (d / "log").open("w") as log: self.server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=d / "work", env=env, stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE / 1000
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status?token={self.token}", timeout=2).close()
                return
            except OSError:
                if self.server.poll() is not None or time.monotonic() > until: raise RuntimeError(f"JupyterLab did not start:\n{(d / 'log').read_text()[-3000:]}")
                time.sleep(0.2)    # the server has no page yet to wait on

    def stop(self):
        server = getattr(self, "server", None)
        if server and server.poll() is None:
            server.terminate()
            try: server.wait(20)
            except subprocess.TimeoutExpired: server.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def notebook(self, cells, theme="light", run=True, **page):
        "A notebook of these code cells (or of whole cell dicts), opened in a new page and run; `run=False` only opens it."
        code = lambda s: dict(cell_type="code", id=secrets.token_hex(4), metadata={}, execution_count=None, outputs=[], source=s) if isinstance(s, str) else s
        kernel = dict(display_name="Python 3", language="python", name="python3")
        return self.open(dict(cells=[code(c) for c in cells], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5), theme, run, **page)

    def open(self, notebook, theme="light", run=False, trust=True, **page):
        "A committed notebook (its path) or a notebook as a dict, opened in a new page; signed first, unless `trust` is False."
        self.count += 1
        name = f"test_{self.count:03d}.ipynb"
        text = json.dumps(notebook) if isinstance(notebook, dict) else Path(notebook).read_text(encoding="utf8")
        (self.home / "work" / name).write_text(text, encoding="utf8")
        if trust: self.sign(text)
        self.setting("apputils-extension/themes", {"theme": f"JupyterLab {theme.title()}", "adaptive-theme": False})
        page = self.page(theme=theme, **page)
        self.heard[page] = len(self.calls.read_text().split())
        page.goto(f"http://127.0.0.1:{self.port}/lab/tree/{name}?reset&token={self.token}")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        page.wait_for_selector(f"body[data-jp-theme-light='{'true' if theme == 'light' else 'false'}']", state="attached")
        page.wait_for_function("() => !document.querySelector('#jupyterlab-splash')")
        page.wait_for_function(IDLE)
        if run: self.run(page)
        return page

    def sign(self, text):
        "Say that this notebook is one's own, as `jupyter trust` does; without it JupyterLab shows the text twin instead of an SVG."
        import nbformat
        from nbformat.sign import NotebookNotary
        NotebookNotary(data_dir=str(self.home / "data")).sign(nbformat.reads(text, 4))

    def run(self, page):
        "Run all cells; returns when the kernel has answered the last and every widget is drawn."
        page.evaluate(RUN_ALL)
        self.settled(page)

    def settled(self, page):
        page.wait_for_function(READY)
        page.evaluate(FRAMES)

    def said(self, page, n):
        "The text that code cell `n` (from 0; -1 is the last) put out."
        if n < 0: n += page.locator(".jp-NotebookPanel .jp-CodeCell").count()
        return page.evaluate(SAID, n)

    def ask(self, page, source):
        "Add a code cell with `source` at the end, run it, and return what it says."
        n = page.evaluate(APPEND, source)
        self.settled(page)
        return self.said(page, n)

    def output(self, page, n):
        "Locator of the output area of code cell `n`."
        return page.locator(".jp-NotebookPanel .jp-CodeCell").nth(n).locator(".jp-OutputArea")

    def external(self, page):
        "Requests of this page, and connections of server and kernels since it was opened, that left the machine."
        return super().external(page) + self.calls.read_text().split()[self.heard.get(page, 0):]

    def close(self, page=None):
        super().close(page)
        if page is None: self.shutdown()

    def shutdown(self):
        "End every kernel."
        base, head = f"http://127.0.0.1:{self.port}/api/sessions", {"Authorization": f"token {self.token}"}
        with urllib.request.urlopen(urllib.request.Request(base, headers=head)) as r: sessions = json.load(r)
        for s in sessions: urllib.request.urlopen(urllib.request.Request(f"{base}/{s['id']}", headers=head, method="DELETE")).close()
