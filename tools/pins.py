"""Print constraints.txt: every package of this environment with its version, xtokd itself left out."""
from importlib.metadata import distributions

pins = {d.metadata["Name"]: d.version.split("+")[0] for d in distributions() if d.metadata["Name"] not in ("xtokd", "pip")}
print("# What `make demo` and `make test` install, exactly. After a change of requirements: make pins")
for name in sorted(pins, key=str.lower): print(f"{name}=={pins[name]}")
