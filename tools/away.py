"""Run the lesson on a machine that reaches no network, has no pip and takes small parcels only.

    here    python tools/away.py pack --student smollm2 --teacher FOLDER     parts of at most 55 MB in .away/
    there   python tools/away.py take                                        keep the parts that have come so far, say which are missing
    there   python tools/away.py run --size full --out results               join them, run, and leave three logs and a table in results/
    here    python tools/away.py cost --student smollm2 --teacher FOLDER     what the packing costs in accuracy

Matrices travel as int8 with one scale for every 32 numbers, all else as bfloat16; the receiver unpacks ordinary bfloat16 folders. `take` may be called as often as
there are parcels, each with .away/parts.json and any of .away/part-*.bin; it needs torch, transformers, accelerate and this repository's tree, and no installation.
"""
import argparse, hashlib, io, json, os, shutil, sys, tarfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
BLOCK = 32


def store():
    "Where the receiver keeps what has come."
    return Path(os.environ.get("XTOKD_AWAY") or Path.home() / ".cache/xtokd/away")


def quantise(w):  # float tensor [.., n], n a multiple of BLOCK
    "int8 numbers of the same shape and float16 scales [.., n / BLOCK]."
    import torch
    blocks = w.float().unflatten(-1, (-1, BLOCK))
    scale = (blocks.abs().amax(-1) / 127).clamp_min(1e-8).half()
    return (blocks / scale.float().unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8).flatten(-2), scale


def dequantise(q, scale):
    "The inverse of `quantise`, in bfloat16."
    import torch
    return (q.unflatten(-1, (-1, BLOCK)).float() * scale.float().unsqueeze(-1)).flatten(-2).to(torch.bfloat16)


def packed_tensors(folder):
    "Tensors of a model folder as they travel."
    import torch
    from safetensors.torch import load_file
    found = {}
    for f in sorted(Path(folder).glob("*.safetensors")):
        for name, w in load_file(f).items():
            if w.ndim == 2 and w.shape[1] % BLOCK == 0: found[name + ".int8"], found[name + ".scale"] = quantise(w)
            else: found[name] = w.to(torch.bfloat16)
    if not found: raise FileNotFoundError(f"no *.safetensors in {folder}: give a transformers folder")
    return found


def unpacked_tensors(found):
    "Tensors of `packed_tensors` as bfloat16."
    plain = {k: v for k, v in found.items() if not k.endswith((".int8", ".scale"))}
    return plain | {k[:-5]: dequantise(v, found[k[:-5] + ".scale"]) for k, v in found.items() if k.endswith(".int8")}


def add_model(tar, folder, role):
    "Add a model folder to the parcel: packed weights and every other small file of it."
    from safetensors.torch import save
    def add(name, data):
        info = tarfile.TarInfo(f"{role}/{name}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    for f in sorted(Path(folder).iterdir()):
        if f.is_file() and f.suffix in (".json", ".jinja", ".txt", ".model", ".md"): add(f.name, f.read_bytes())
    add("packed.safetensors", save(packed_tensors(folder)))


class Parts(io.RawIOBase):
    "A writable stream that is cut into files part-00.bin, part-01.bin, ... of at most `size` bytes."
    def __init__(self, folder, size): self.folder, self.size, self.list, self.file = Path(folder), size, [], None
    def writable(self): return True
    def write(self, data):
        size, data = len(data), memoryview(data)
        while len(data):
            if self.file is None: self.file, self.sum = open(self.folder / f"part-{len(self.list):02d}.bin", "wb"), hashlib.sha256()
            piece = data[:self.size - self.file.tell()]
            self.file.write(piece); self.sum.update(piece)
            data = data[len(piece):]
            if self.file.tell() == self.size: self.end()
        return size
    def end(self):
        if self.file is None: return
        self.list.append({"name": Path(self.file.name).name, "bytes": self.file.tell(), "sha256": self.sum.hexdigest()})
        self.file.close(); self.file = None


def pack(student, teacher, to=".away", mb=55):
    "Write the parts and their list."
    from xtokd.hub import resolve
    to = Path(to)
    shutil.rmtree(to, ignore_errors=True); to.mkdir(parents=True)
    parts = Parts(to, int(mb * 1_000_000))
    names = {"student": student, "teacher": teacher}
    with tarfile.open(fileobj=parts, mode="w|") as tar:
        for role, name in names.items(): add_model(tar, resolve(name, role), role)
    parts.end()
    (to / "parts.json").write_text(json.dumps({"names": {r: Path(n).name for r, n in names.items()}, "parts": parts.list}, indent=1))
    return parts.list


def take(inbox=".away"):
    "Move parts that are whole into the store; returns the names of those still missing."
    inbox, kept = Path(inbox), store() / "parts"
    kept.mkdir(parents=True, exist_ok=True)
    if (inbox / "parts.json").exists(): shutil.copy(inbox / "parts.json", kept / "parts.json")
    if not (kept / "parts.json").exists(): raise FileNotFoundError(f"no parts.json in {inbox} and none taken before: send it along with the first parts")
    for p in (listed := json.loads((kept / "parts.json").read_text())["parts"]):
        f = inbox / p["name"]
        if not f.exists(): continue
        with open(f, "rb") as file: found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != p["sha256"]: raise ValueError(f"{f} came broken ({f.stat().st_size} of {p['bytes']} bytes, sha256 {found[:12]}…): send it again")
        shutil.copy(f, kept / f.name)
    return [p["name"] for p in listed if not ((kept / p["name"]).exists() and (kept / p["name"]).stat().st_size == p["bytes"])]


class Joined(io.RawIOBase):
    "A readable stream over the parts, one after the other."
    def __init__(self, files): self.files, self.file = list(files), None
    def readable(self): return True
    def readinto(self, buffer):
        while self.file or self.files:
            if self.file is None: self.file = open(self.files.pop(0), "rb")
            if n := self.file.readinto(buffer): return n
            self.file.close(); self.file = None
        return 0


def join():
    "The two model folders, unpacked from the parts once; {role: folder}."
    from safetensors.torch import load_file, save_file
    kept = store() / "parts"
    listed = (kept / "parts.json").read_bytes()
    about, place = json.loads(listed), store() / hashlib.sha256(listed).hexdigest()[:12]     # another parcel, another place
    folders = {role: place / role / name for role, name in about["names"].items()}
    if all((f / "model.safetensors").exists() for f in folders.values()): return folders
    with tarfile.open(fileobj=io.BufferedReader(Joined(kept / p["name"] for p in about["parts"]), 1 << 20), mode="r|") as tar:
        for entry in tar:
            role, name = entry.name.split("/")
            folders[role].mkdir(parents=True, exist_ok=True)
            with open(folders[role] / name, "wb") as f: shutil.copyfileobj(tar.extractfile(entry), f)
    for f in folders.values():
        save_file(unpacked_tensors(load_file(f / "packed.safetensors")), f / "new.safetensors", metadata={"format": "pt"})
        (f / "packed.safetensors").unlink(); (f / "new.safetensors").rename(f / "model.safetensors")
    return folders


def run(size, out, extra=()):
    "Join, run the lesson, and leave its logs and tables in `out`; the exit code of the lesson."
    if missing := take(): raise FileNotFoundError(f"{len(missing)} parts have not come yet: {', '.join(missing)}")
    from contextlib import redirect_stdout
    from xtokd.cli.study import run_study
    from xtokd.experiments.headroom_study import record
    folders = join()
    here = folders["student"].parent.parent        # the log names models and run by their folders, not by this machine's
    work = here / "run"
    shutil.rmtree(work, ignore_errors=True)
    said = io.StringIO()
    os.chdir(here)
    names = {role: f"./{role}/{f.name}" for role, f in folders.items()}
    with redirect_stdout(said): code = run_study(["--student", names["student"], "--teacher", names["teacher"], "--size", size, "--output-dir", "run", *extra])
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "tables.txt").write_text(said.getvalue())
    print(said.getvalue())
    if (work / "lesson/run.jsonl").exists(): record(work, out)
    return code


def cost(student, teacher, n=32):
    "What packing costs each model: KL per token from the model to its packed self (nats) on n worked problems, and how many likeliest tokens change."
    import torch
    from xtokd.data.chat import render_prompt
    from xtokd.train.runlog import Table
    from xtokd.models.forward import response_logits
    from xtokd.models.side import load_side
    from xtokd.data.tasks.word_problems import problem_items
    items, rows = problem_items(n, "heldout"), []
    for role, name in (("student", student), ("teacher", teacher)):
        side = load_side(name, role, "cpu")
        prompts, texts = [render_prompt(side.vocab, i) for i in items], [side.vocab.encode(i["working"]) for i in items]
        with torch.no_grad():
            before = torch.cat(response_logits(side.model, prompts, texts)).log_softmax(-1)
            for k, w in side.model.named_parameters():
                if w.ndim == 2 and w.shape[1] % BLOCK == 0: w.copy_(dequantise(*quantise(w)))
            after = torch.cat(response_logits(side.model, prompts, texts)).log_softmax(-1)
        rows.append({"model": Path(name).name, "tokens": len(before), "KL per token": float((before.exp() * (before - after)).sum(-1).mean()), "likeliest token changed": float((before.argmax(-1) != after.argmax(-1)).float().mean())})
    return Table(rows)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("pack", "take", "run", "cost"))
    p.add_argument("--student", default="smollm2")
    p.add_argument("--teacher")
    p.add_argument("--size", default="full")
    p.add_argument("--out", default=os.environ.get("OUT", "runs/away"))
    a, extra = p.parse_known_args()
    if a.what in ("pack", "cost") and not a.teacher: p.error("which teacher? give --teacher a name or folder")
    out = str(Path(a.out).resolve())
    if a.what == "pack":
        parts = pack(a.student, a.teacher)
        print(f"{len(parts)} parts, {sum(x['bytes'] for x in parts) / 1e6:.0f} MB, in .away/")
    elif a.what == "take": print("missing:", ", ".join(take()) or "nothing")
    elif a.what == "cost": print(cost(a.student, a.teacher))
    else: sys.exit(run(a.size, out, extra))
