"""Write xtokd/, README.md and GLOSSARY.md from the notebooks; with --check only say whether they are what the notebooks make.

    python tools/export.py
    python tools/export.py --check
"""
import shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))


def run_export(root):
    "nbdev_export in the project at `root`, with its index of symbols made anew."
    (root / "xtokd" / "_modidx.py").unlink(missing_ok=True)
    code = "from nbdev.doclinks import nbdev_export; nbdev_export()"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def modules(root): return {str(f.relative_to(root)): f.read_text(encoding="utf8") for f in sorted((root / "xtokd").rglob("*.py"))}


def differences():
    "Files in xtokd/ that are not what nbdev_export makes of nbs/; exported into a copy, nothing here is touched."
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for f in ("settings.ini", "pyproject.toml"): shutil.copy(ROOT / f, tmp / f)
        skip = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
        shutil.copytree(ROOT / "nbs", tmp / "nbs", ignore=skip)
        run_export(tmp)
        ours, made = modules(ROOT), modules(tmp)
    return sorted(f for f in ours | made if ours.get(f) != made.get(f))


def main(argv):
    import readme
    if "--check" not in argv:
        run_export(ROOT)
        readme.write()
        return 0
    bad = differences() + readme.stale()
    for f in bad: print(f"{f}: is not what the notebooks make; run `make export`", file=sys.stderr)
    if not bad: print("xtokd/, README.md and GLOSSARY.md are what the notebooks make.")
    return int(bool(bad))


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
