"""`python -m benchmarks.against_mergekit PYTHON`: values, time and memory of eight methods beside those of mergekit 0.1.5.

PYTHON is the interpreter of an environment that has mergekit (`python -m venv kit; kit/bin/pip install mergekit==0.1.5`); this
package never needs it. A base and three experts of a Llama's shapes in bfloat16 are written to a temporary folder (TMPDIR says
where) and merged by both in turns, every merge in a fresh process. mergekit computes in float32, as this package does, and also
in bfloat16, which its examples set. --size large is TinyLlama (13 GB of disk), small a model of 150 M parameters.
--page writes docs/against_mergekit.md. --json keeps what every method found; methods that it has already are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.against_mergekit_cases import CASES, Case
from benchmarks.against_mergekit_report import page, row
from benchmarks.against_mergekit_values import Difference, compare
from benchmarks.command import isolated, machine
from benchmarks.large_models import Llama, write_models

SIZES = {
    "tiny": Llama(width=64, inner=176, layers=2, keys=64, vocabulary=500),
    "small": Llama(width=1024, inner=2816, layers=8, keys=256, vocabulary=32000),
    "large": Llama(),
}
DTYPES = ("float32", "bfloat16")
PROCESS = Path(__file__).with_name("against_mergekit_process.py")
ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one method and number of threads, by who ("ours", "float32", "bfloat16"): what every round found, and values."""

    case: Case
    threads: int
    rounds: dict[str, list[dict[str, float]]]
    differences: dict[str, Difference]


def configuration_of(llama: Llama) -> dict[str, Any]:
    """Return the config.json of a model of these sizes."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": llama.width, "intermediate_size": llama.inner,
        "num_hidden_layers": llama.layers, "num_attention_heads": llama.width // 64, "num_key_value_heads": llama.keys // 64,
        "vocab_size": llama.vocabulary, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5,
    }


def write(folder: Path, llama: Llama, experts: int) -> None:
    """Write a base and experts with their configurations."""
    write_models(folder, llama, experts)
    for model in folder.iterdir():
        (model / "config.json").write_text(json.dumps(configuration_of(llama)))


def run(python: str, job: dict[str, Any]) -> dict[str, float]:
    """Merge in a fresh process of an interpreter; returns what it measured. Raises RuntimeError with its last words."""
    threads = str(job["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    if job["who"] == "ours":
        environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [python, str(PROCESS)], input=json.dumps(job), env=environment, cwd=job["folder"], capture_output=True, text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{job['who']}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def merged(python: str, case: Case, folder: Path, who: str, threads: int) -> dict[str, float]:
    """Merge the files of a folder into its folder of that name."""
    out = folder / f"merged-{who}"
    shutil.rmtree(out, ignore_errors=True)
    job: dict[str, Any] = {"who": "ours", "threads": threads, "out": str(out), "folder": str(folder)}
    if who == "ours":
        job |= {"method": case.method, "settings": dict(case.settings), "base": str(folder / "base"), "experts": case.paths(folder)}
        return run(sys.executable, job)
    return run(python, job | {"who": "mergekit", "configuration": case.configuration(folder, who)})


def measure(python: str, case: Case, folder: Path, threads: int, rounds: int) -> Measured:
    """Merge in turns, then compare what the definitions share."""
    whos = ("ours", *DTYPES)
    found: dict[str, list[dict[str, float]]] = {who: [] for who in whos}
    for _ in range(rounds):
        for who in whos:
            found[who].append(merged(python, case, folder, who, threads))
    if case.same is not None:
        for who in whos:
            merged(python, case.aligned(), folder, who, threads)
    differences = {who: isolated(compare, (folder / "merged-ours", folder / f"merged-{who}")) for who in DTYPES}
    for who in whos:
        shutil.rmtree(folder / f"merged-{who}")
    return Measured(case=case, threads=threads, rounds=found, differences=differences)


def read(path: Path | None, size: str) -> dict[tuple[str, int], Measured]:
    """Return what a file has of a size, by method and threads."""
    if path is None or not path.exists():
        return {}
    cases = {case.name: case for case in CASES}
    found = [Measured(
        case=cases[one["name"]], threads=one["threads"], rounds=one["rounds"],
        differences={who: Difference(**values) for who, values in one["differences"].items()},
    ) for one in json.loads(path.read_text()) if one["size"] == size]
    return {(one.case.name, one.threads): one for one in found}


def keep(path: Path, size: str, found: Measured) -> None:
    """Add what was found to a file."""
    all_found = json.loads(path.read_text()) if path.exists() else []
    differences = {who: dataclasses.asdict(one) for who, one in found.differences.items()}
    all_found.append({
        "size": size, "name": found.case.name, "threads": found.threads, "rounds": found.rounds, "differences": differences,
    })
    path.write_text(json.dumps(all_found, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_mergekit", description=__doc__)
    parser.add_argument("python", help="interpreter of an environment with mergekit")
    parser.add_argument("--size", choices=list(SIZES), default="large")
    parser.add_argument("--methods", nargs="+", choices=[case.name for case in CASES], default=[case.name for case in CASES])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a busy machine")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of the documentation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep and take up what was found")
    given = parser.parse_args(arguments)
    llama, cases = SIZES[given.size], [case for case in CASES if case.name in given.methods]
    known = read(given.json, given.size)
    missing = [(case, threads) for case in cases for threads in given.threads if (case.name, threads) not in known]
    if missing:
        with tempfile.TemporaryDirectory(prefix="against-mergekit-") as name:
            folder = Path(name)
            write(folder, llama, max(case.experts for case, _ in missing))
            for case, threads in missing:
                known[case.name, threads] = measure(given.python, case, folder, threads, given.rounds)
                print(row(known[case.name, threads], given.clock), flush=True)
                if given.json:
                    keep(given.json, given.size, known[case.name, threads])
    if given.page:
        where = machine("cpu", 1, given.clock).replace("; 1 thread", "")
        found = [known[case.name, threads] for case in cases for threads in given.threads]
        given.page.write_text(page(found, llama, given.clock, where), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
