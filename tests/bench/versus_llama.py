#!/usr/bin/env python3
"""Measure Mav beside llama.cpp on this machine's CPU, in one interleaved run.

Both engines get the same random-weight models. Each round probes the DRAM bandwidth, then
lets the engines take turns with the same weights and threads; the order flips from round to
round, and a ratio compares only figures of the same round. So drift and neighbours hit both.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
HELP = """\
first:
  tests/bench/setup_peer.sh                          build llama.cpp once (5 to 10 minutes)
  cmake --preset release && cmake --build --preset release

examples:
  tests/bench/versus_llama.py --quick                is everything in place? (minutes)
  tests/bench/versus_llama.py --json result.json     the full run: keep the machine idle
  tests/bench/versus_llama.py --models tiny --threads 1 --rounds 9

reading the tables:
  weights      bf16 against bf16; Mav's fp8 (8 bits a weight) against llama.cpp's q8_0 (8.5)
  isa          avx2: Mav with MAV_CPU_ISA=avx2; llama.cpp is always the native build
  tokens/s     one sequence, one token a step: median of the rounds (lowest-highest)
  us/step      the median step; far below 1/(tokens/s) means that some steps stalled
  prompt 512   tokens/s of one call over 512 tokens
  of DRAM      weight bytes a step x steps/s, over the bandwidth probed in the same round;
               "cached" where the whole model fits the last-level cache
  rows n/1     cost of one step of n rows over a step of one: what verifying a draft costs;
               "bytes alone" is the growth of the weights read, with random routing
  Mav/llama    above 1 Mav is faster, in every column
"""
PAIRS = (("bf16", "bf16"), ("q8_0", "fp8"))  # (llama.cpp's weights, Mav's)
ROWS = ("1", "2", "4", "8", "16")
CONTEXT = 128    # tokens in the cache before decode and rows are timed (PREFIX of peer_llama.py)
MAV_TIMEOUT_S = 900


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the machine

def cpu_info():
    """Model name, flags and last-level cache bytes, as Linux tells them."""
    name, flags = platform.machine(), []
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = value.split()
                break
    cache = 0
    for index in range(5):
        try:
            with open(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size", encoding="utf-8") as f:
                cache = int(f.read().strip().rstrip("K")) * 1024
        except (OSError, ValueError):
            break
    return dict(cpu=name, cores=os.cpu_count(), cache_bytes=cache,
                isa=[x for x in ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16") if x in flags])


def busy_cores(seconds=0.5):
    """How many cores others keep busy (call while nothing of ours runs)."""
    def ticks():
        with open("/proc/stat", encoding="utf-8") as f:
            values = [int(x) for x in f.readline().split()[1:9]]
        return sum(values), values[3] + values[4]  # idle and iowait
    total0, idle0 = ticks()
    time.sleep(seconds)
    total1, idle1 = ticks()
    return os.cpu_count() * (1 - (idle1 - idle0) / max(1, total1 - total0))


class Probe:
    """The bandwidth probe, compiled when its source is newer."""

    def __init__(self, directory):
        source, self.binary = os.path.join(HERE, "membw.c"), os.path.join(directory, "membw")
        if not os.path.exists(self.binary) or os.path.getmtime(self.binary) < os.path.getmtime(source):
            subprocess.run([os.environ.get("CC", "cc"), "-O3", "-pthread", source, "-o", self.binary], check=True)

    def gb_per_s(self, threads):
        out = subprocess.run([self.binary, str(threads)], check=True, capture_output=True, text=True).stdout
        return json.loads(out)["gb_per_s"]["median"]


# ---------------------------------------------------------------- the engines
# measure(threads, seconds) of either returns
#   {"tokens_per_s", "us_per_step", "bytes_per_step", "rows": {n: us}, "prompt_tokens_per_s"};
# seconds: how long llama.cpp takes for its steps, so that Mav's cover about the same positions

class Llama:
    """One llama.cpp worker: a GGUF file loaded once, driven through peer_llama.py."""
    engine = "llama.cpp"

    def __init__(self, python, path, weights, mmap, quick):
        command = [python, os.path.join(HERE, "peer_llama.py"), path] + ["--mmap"] * mmap
        self.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.weights, self.isa, self.quick = weights, "native", quick
        self.steps = 32 if quick else 128
        self.info = self.ask("info")

    def ask(self, command, **arguments):
        self.worker.stdin.write(json.dumps({"cmd": command, **arguments}) + "\n")
        self.worker.stdin.flush()
        line = self.worker.stdout.readline()
        answer = json.loads(line) if line else {"error": "worker died"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def measure(self, threads, _seconds=None):
        decode = self.ask("decode", threads=threads, tokens=self.steps, repeats=1)
        rows = self.ask("rows", threads=threads, rows=[int(n) for n in ROWS], repeats=3 if self.quick else 9)
        prompt = self.ask("prompt", threads=threads, tokens=512, repeats=1 if self.quick else 2)
        return dict(tokens_per_s=decode["tokens_per_s"], us_per_step=decode["us_per_step"],
                    bytes_per_step=self.info["bytes_per_step"], rows=rows["rows"],
                    prompt_tokens_per_s=prompt["tokens_per_s"])

    def close(self):
        self.worker.stdin.close()
        self.worker.wait(60)


class Mav:
    """`mav bench --json`, run anew for each measurement."""
    engine = "Mav"

    def __init__(self, binary, directory, weights, isa, forced):
        self.command = [binary, "bench", "--model", directory, "--dtype", weights,
                        "--context", str(CONTEXT), "--json"]
        self.weights, self.isa = weights, isa
        self.env = dict(os.environ)
        self.env.pop("MAV_CPU_ISA", None)
        if forced:
            self.env["MAV_CPU_ISA"] = isa

    def measure(self, threads, seconds):
        command = self.command + ["--threads", str(threads), "--seconds", f"{seconds:.4f}"]
        try:
            done = subprocess.run(command, env=self.env, text=True, capture_output=True,
                                  timeout=MAV_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as e:
            raise RuntimeError(f"mav bench: no answer in {MAV_TIMEOUT_S} s") from e
        if done.returncode != 0:
            raise RuntimeError(f"mav bench: status {done.returncode}: {done.stderr.strip()[-400:]}")
        try:
            answer = json.loads(done.stdout)
            decode = answer["decode"]
            for key, asked in (("isa", self.isa), ("threads", threads), ("dtype", self.weights)):
                if answer[key] != asked:
                    raise RuntimeError(f"mav bench: asked for {key} {asked}, it ran {answer[key]}")
            return dict(tokens_per_s=decode["tokens_per_s"], us_per_step=decode["us_per_step"],
                        bytes_per_step=decode["bytes_per_step"], rows=answer["rows"],
                        prompt_tokens_per_s=(answer.get("prompt") or {}).get("tokens_per_s"))
        except (ValueError, KeyError, TypeError) as e:
            raise RuntimeError(f"mav bench: unexpected output ({e!r}): {done.stdout[:400]}") from e

    def close(self):
        pass


# ---------------------------------------------------------------- rounds

def run_model(name, a, probe, mav_isas):
    """Every round of one model: {"bandwidth", "busy", "cases", "info"}."""
    make = [a.python, os.path.join(HERE, "gen_model.py"), name, "--dir", a.dir]
    subprocess.run(make + ["--formats", "bf16,q8_0,hf" if mav_isas else "bf16,q8_0"], check=True, stdout=sys.stderr)
    os.sync()  # no write-back of fresh models under the timings

    groups = []  # engines that take turns: the same weights, near enough
    for theirs, ours in PAIRS:
        path = os.path.join(a.dir, f"{name}-{theirs}.gguf")
        group = [Llama(a.python, path, theirs, a.peer_mmap, a.quick)]
        for i, isa in enumerate(mav_isas):
            group.append(Mav(a.mav, os.path.join(a.dir, f"{name}-hf"), ours, isa, forced=i > 0))
        groups.append(group)

    cases = {}  # (engine object, threads) -> its record
    for threads in a.threads:
        for group in groups:
            for e in group:
                cases[e, threads] = dict(engine=e.engine, weights=e.weights, threads=threads, isa=e.isa, rounds=[])
    bandwidth, busy = {t: [] for t in a.threads}, []
    for r in range(a.rounds):
        busy.append(busy_cores())
        for threads in a.threads:
            bandwidth[threads].append(probe.gb_per_s(threads))
            for group in groups:
                for e in group if r % 2 == 0 else group[::-1]:
                    case = cases[e, threads]
                    if "error" in case:
                        continue
                    theirs = cases[group[0], threads]["rounds"][-1:]
                    seconds = group[0].steps * theirs[0]["us_per_step"] / 1e6 if theirs else 2
                    try:
                        result = e.measure(threads, seconds)
                    except RuntimeError as error:
                        case["error"] = str(error)
                        say(f"  {error}")
                        continue
                    case["rounds"].append(result)
                    say(f"  {name} round {r + 1}/{a.rounds}: {e.engine} {e.weights} {e.isa}, {threads} threads: "
                        f"{result['tokens_per_s']:.1f} tokens/s")
    info = {g[0].weights: g[0].info for g in groups}
    for group in groups:
        for e in group:
            e.close()
    return dict(bandwidth=bandwidth, busy=busy, cases=list(cases.values()), info=info)


# ---------------------------------------------------------------- figures

def spread(values):
    """{"median", "min", "max"} of the values that exist, or None."""
    values = [v for v in values if v is not None]
    return dict(median=statistics.median(values), min=min(values), max=max(values)) if values else None


def summarize(model):
    """Add "summary" to every case and "ratios" (Mav over llama.cpp) to the model."""
    for case in model["cases"]:
        rounds = case["rounds"]
        dram = model["bandwidth"][case["threads"]]
        gb = [x["bytes_per_step"] * x["tokens_per_s"] / 1e9 for x in rounds]
        case["summary"] = dict(
            tokens_per_s=spread([x["tokens_per_s"] for x in rounds]),
            us_per_step=spread([x["us_per_step"] for x in rounds]),
            gb_per_s=spread(gb),
            dram_share=spread([g / d for g, d in zip(gb, dram)]),
            prompt_tokens_per_s=spread([x["prompt_tokens_per_s"] for x in rounds]),
            rows_ratio={n: spread([x["rows"][n] / x["rows"]["1"] for x in rounds if n in x["rows"]]) for n in ROWS})
    peers = {(c["weights"], c["threads"]): c for c in model["cases"] if c["engine"] == Llama.engine}
    model["ratios"] = []
    for case in model["cases"]:
        if case["engine"] != Mav.engine or not case["rounds"]:
            continue
        theirs = next(t for t, ours in PAIRS if ours == case["weights"])
        both = list(zip(case["rounds"], peers[theirs, case["threads"]]["rounds"]))
        model["ratios"].append(dict(
            weights=case["weights"], against=theirs, threads=case["threads"], isa=case["isa"],
            decode=spread([m["tokens_per_s"] / p["tokens_per_s"] for m, p in both]),
            prompt=spread([m["prompt_tokens_per_s"] / p["prompt_tokens_per_s"] for m, p in both
                           if m["prompt_tokens_per_s"]]),
            rows={n: spread([p["rows"][n] / m["rows"][n] for m, p in both if n in m["rows"]]) for n in ROWS}))


def bytes_alone(info, n):
    """Growth of the weights read by n rows whose routing is random, over one row."""
    distinct = info["experts"] * (1 - (1 - 1 / info["experts"]) ** n)
    return 1 + info["bytes_per_expert"] * (distinct - 1) / info["bytes_per_step"]


# ---------------------------------------------------------------- tables

def number(x, digits=3):
    """Three significant digits, no exponent."""
    if x >= 10 ** (digits - 1):
        return f"{x:,.0f}"
    return f"{x:.{max(0, digits - len(str(int(x))))}f}"


def cell(s, scale=1.0, suffix="", full=True):
    if s is None:
        return "-"
    text = number(s["median"] * scale) + suffix
    return text + f" ({number(s['min'] * scale)}-{number(s['max'] * scale)})" if full else text


def table(head, rows):
    lines = [head, ["---"] * len(head)] + rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def report(result):
    """The whole result as markdown."""
    machine, options = result["machine"], result["options"]
    out = [f"# Mav beside llama.cpp, {result['date']}\n",
           f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['isa'])}); {options['rounds']} interleaved round{'s' * (options['rounds'] > 1)}. "
           f"llama.cpp: llama-cpp-python {result['peer']['version']}, native build, "
           f"weights {'mapped' if options['peer_mmap'] else 'read into memory'}.\n"]
    busy = statistics.median([b for m in result["models"].values() for b in m["busy"]])
    if busy > 0.1:
        out.append(f"**Not a quiet machine: others kept {busy:.1f} cores busy. Take the figures as a smoke test.**\n")
    if result["mav"] is None:
        out.append("Mav's binary was not there: llama.cpp alone.\n")
    for name, model in result["models"].items():
        out.append(f"## {name}\n")
        out.append("DRAM read bandwidth: " + ", ".join(
            f"{cell(spread(v))} GB/s with {t} thread{'s' * (int(t) > 1)}" for t, v in model["bandwidth"].items()) + ".\n")
        rows = []
        for c in model["cases"]:
            s, label = c["summary"], [c["engine"], c["weights"], c["isa"], str(c["threads"])]
            if not c["rounds"]:
                rows.append(label + ["failed"] + ["-"] * 8)
                continue
            cached = model["info"]["bf16"]["bytes_total"] < machine["cache_bytes"]
            rows.append(label + [
                cell(s["tokens_per_s"]), cell(s["us_per_step"], full=False), cell(s["gb_per_s"], full=False),
                "cached" if cached else cell(s["dram_share"], 100, "%", full=False),
                cell(s["prompt_tokens_per_s"])] + [cell(s["rows_ratio"][n], full=False) for n in ROWS[1:]])
        for weights, info in model["info"].items():
            rows.append(["bytes alone", weights] + [""] * 7 + [number(bytes_alone(info, int(n))) for n in ROWS[1:]])
        out.append(table(["engine", "weights", "isa", "threads", "tokens/s", "us/step", "GB/s", "of DRAM", "prompt 512"]
                         + [f"rows {n}/1" for n in ROWS[1:]], rows))
        if model["ratios"]:
            out.append(table(["Mav/llama", "isa", "threads", "decode", "prompt 512"] + [f"{n} rows" for n in ROWS], [
                [f"{r['weights']} / {r['against']}", r["isa"], str(r["threads"]), cell(r["decode"]), cell(r["prompt"])]
                + [cell(r["rows"][n], full=False) for n in ROWS] for r in model["ratios"]]))
    return "\n".join(out)


# ---------------------------------------------------------------- command

def arguments():
    build = os.path.join(ROOT, "build")
    ap = argparse.ArgumentParser(description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--models", default="mid,tiny", help="comma list of mid, tiny, nano (default %(default)s)")
    ap.add_argument("--threads", default="1,2", help="comma list (default %(default)s)")
    ap.add_argument("--rounds", type=int, help="interleaved rounds (default 5; 2 with --quick)")
    ap.add_argument("--quick", action="store_true", help="fewer rounds and repeats: a smoke test")
    ap.add_argument("--json", metavar="FILE", help="write every figure of every round there too")
    ap.add_argument("--peer-mmap", action="store_true", help="let llama.cpp map its weights (its default, but slower)")
    ap.add_argument("--mav", default=os.path.join(build, "release", "mav"), help="Mav's binary (default build/release/mav)")
    ap.add_argument("--dir", default=os.path.join(build, "bench"), help="models and probe (default build/bench)")
    ap.add_argument("--venv", help="the peer's environment (default DIR/venv)")
    a = ap.parse_args()
    a.rounds = a.rounds or (2 if a.quick else 5)
    a.models = a.models.split(",")
    try:
        a.threads = [int(t) for t in a.threads.split(",")]
    except ValueError:
        ap.error("--threads: numbers, separated by commas")
    a.python = os.path.join(a.venv or os.path.join(a.dir, "venv"), "bin", "python")
    if not os.path.exists(a.python):
        ap.error("llama.cpp is not built: run tests/bench/setup_peer.sh first")
    return a


def main():
    a = arguments()
    machine = cpu_info()
    mav_isas = ["avx512", "avx2"] if "avx512f" in machine["isa"] else ["avx2"]
    if not os.access(a.mav, os.X_OK):
        say(f"no binary at {os.path.relpath(a.mav)}: measuring llama.cpp alone")
        mav_isas = []
    probe = Probe(a.dir)
    models = {name: run_model(name, a, probe, mav_isas) for name in a.models}
    for model in models.values():
        summarize(model)
    info = next(iter(models.values()))["info"]["bf16"]
    result = dict(
        date=datetime.date.today().isoformat(), machine=machine,
        options=dict(rounds=a.rounds, quick=a.quick, threads=a.threads, peer_mmap=a.peer_mmap),
        peer=dict(version=info["version"], system=info["system"]),
        mav=dict(isas=mav_isas) if mav_isas else None, models=models)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)
            f.write("\n")
    print(report(result))


if __name__ == "__main__":
    main()
