"""Run a command, but not longer than so many seconds: python tools/limit.py SECONDS COMMAND ARG..."""
import subprocess, sys

try: sys.exit(subprocess.run(sys.argv[2:], timeout=float(sys.argv[1])).returncode)
except subprocess.TimeoutExpired: sys.exit(f"{' '.join(sys.argv[2:])}: stopped after {sys.argv[1]} s")
except KeyboardInterrupt: sys.exit(130)
