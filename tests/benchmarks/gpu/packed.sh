#!/bin/bash
# Runs the GPU benchmark on a machine that reaches no package registry, with what its own Python lacks from packed packages.
#   tests/benchmarks/gpu/packed.sh PARTS STATE -o OUT [WORDS OF tests.benchmarks.gpu]
# PARTS: folder of *.tar.xz, each of which unpacks into a folder of installed packages. STATE: folder for these and for the
# benchmark's files; a second call with the same folder goes on with it. Run it in the root of the repository. Where a call has
# a limit of time, end it before, and keep what there is:
#   timeout 330 tests/benchmarks/gpu/packed.sh .gpu/parts /tmp/gpu -o /tmp/gpu/out --side-by-side 4 ceilings fidelity transformers
#   timeout 330 tests/benchmarks/gpu/packed.sh .gpu/parts /tmp/gpu -o /tmp/gpu/out pedcxr
#   timeout 200 tests/benchmarks/gpu/packed.sh .gpu/parts /tmp/gpu -o /tmp/gpu/out vllm
set -euo pipefail
parts=$1 state=$2; shift 2
site=$state/site
if [ ! -e "$state/unpacked" ]; then
  mkdir -p "$site"
  printf '%s\0' "$parts"/*.tar.xz | xargs -0 -n 1 -P 0 tar x -C "$site" -f
  # The plugin is found by the metadata of an installed distribution, which a working tree has not.
  rm -rf "$site"/pedcxr-*.dist-info && mkdir "$site/pedcxr-0.dist-info"
  python3 - "$site/pedcxr-0.dist-info" <<'PYTHON'
import sys, tomllib
from pathlib import Path
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
folder, groups = Path(sys.argv[1]), project["entry-points"]
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n")
lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in of.items()) for group, of in groups.items()]
(folder / "entry_points.txt").write_text("\n".join(lines))
PYTHON
  python3 -m compileall -q -j 0 "$site" >/dev/null || true # each process of a server would compile it again
  touch "$state/unpacked"
fi
export PYTHONPATH=$site:$PWD/serve:$PWD/client:$PWD PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY
# Not packed, because they compile for minutes or do not run on such a card.
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_USE_DEEP_GEMM=0
exec python3 -W ignore -m tests.benchmarks.gpu --work "$state/work" "$@"
