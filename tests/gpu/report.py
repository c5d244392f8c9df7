"""The report, as Markdown for people and as JSON with everything in it."""

import json


def fraction(step):
    figures = step["figures"][step["phase"]]
    return figures["peak_fraction" if step["phase"] == "prefill" else "bandwidth_fraction"]


def bench_table(steps):
    if not steps:
        return []
    lines = ["## Bench", "", "The limits were measured in the same runs.", "",
             "| | prefill, tokens/s | decode, tokens/s | ms a step | GB/s, of | TFLOP/s, of | fraction | aim |", "|---|---|---|---|---|---|---|---|"]
    for s in steps:
        if s["result"] != "passed":
            lines.append(f"| {s['name']} | {s['result']} | | | | | | |")
            continue
        f, limits = s["figures"], s["figures"]["limits"]
        aim = f"{100 * s['aim']:.0f} %" if s["aim"] else ""
        lines.append(f"| {s['name']} | {f['prefill']['tokens_per_s']:.0f} | {f['decode']['tokens_per_s']:.1f} | {f['decode']['ms_per_step']:.3f} "
                     f"| {f['decode']['bytes_per_s'] / 1e9:.1f} of {limits['bytes_per_s'] / 1e9:.1f} | {f['prefill']['flops_per_s'] / 1e12:.3g} of {limits['flops_per_s'] / 1e12:.3g} "
                     f"| {s['phase']} {100 * fraction(s):.0f} % | {aim} |")
    lines.append("")
    for s in steps:
        bits = s.get("figures", {}).get("equal_bits")
        if bits:
            lines.append(f"Equal bits, {s['name']}: products take {bits['decode_ratio']:.2f} of cuBLASLt's time in a decode step, {bits['prefill_ratio']:.2f} in a chunk of a prompt.")
    return lines + [""]


def train_table(steps):
    if not steps:
        return []
    lines = ["## Training", "", "The median of some steps; a rank's gradients are summed in the host's memory, which is `exchange` and a part of `gradients`.", "",
             "| | tokens/s | share of peak | seconds of a step | gradients | exchange | update | gather | packing |", "|---|---|---|---|---|---|---|---|---|"]
    for s in steps:
        if s["result"] != "passed":
            lines.append(f"| {s['name']} | {s['result']} | | | | | | | |")
            continue
        f = s["figures"]
        share = f"{100 * f['peak_fraction']:.0f} %" if f["peak_fraction"] is not None else ""
        lines.append(f"| {s['name']} | {f['tokens_per_s']:.0f} | {share} | {f['seconds']:.3f} | {' | '.join(f'{x:.3f}' for x in f['split'].values())} |")
    return lines + [""]


def markdown(about, steps, seconds):
    counts = {}
    for s in steps:
        counts[s["result"]] = counts.get(s["result"], 0) + 1
    gpus = about["gpus"]
    lines = [f"# Run on {gpus[0]['name'] if gpus else about['cpu']}, {about['date']}", "",
             f"`tests/gpu/run --device {about['device']}`: {', '.join(f'{n} {result}' for result, n in counts.items()) or 'nothing was run'}, in {seconds:.0f} s.", "",
             "| | |", "|---|---|"]
    lines += [f"| GPU | {gpu['name']}, {gpu['memory']} |" for gpu in gpus] or ["| GPU | none |"]
    lines += [f"| driver | {about['driver'] or 'none'} |", f"| processor | {about['cpu']} |", f"| Linux | {about['kernel']} |"]
    lines += [f"| {name} | {version} |" for name, version in about.get("libraries", {}).items() if version]
    lines += [f"| {' | '.join(line.split(': ', 1)) if ': ' in line else f'kvmesh | {line}'} |" for line in about.get("kvmesh", [])] + [""]
    lines += bench_table([s for s in steps if s["kind"] == "bench"])
    lines += train_table([s for s in steps if s["kind"] == "train"])
    lines += ["## Steps", "", "| | result | seconds | cases passed, failed, skipped |", "|---|---|---|---|"]
    for s in steps:
        of = [sum(result == r for _, result, _ in s["cases"]) for r in ("passed", "failed", "skipped")]
        lines.append(f"| {s['kind']} {s['name']} | {s['result']} | {s['seconds']:.1f} | {', '.join(map(str, of)) if s['cases'] else ''} |")
    lines.append("")
    notes = [f"* {s['name']}: {note}" for s in steps for note in s.get("notes", [])]
    lines += ["## Notes", "", *notes, ""] if notes else []
    for s in steps:
        if s["result"] in ("failed", "time over"):
            failed = [name for name, result, _ in s["cases"] if result == "failed"]
            lines += [f"### {s['kind']} {s['name']}: {s['result']}", "", *([f"Failed: {', '.join(failed)}", ""] if failed else []), "```", *s["tail"], "```", ""]
    return "\n".join(lines)


def write(folder, about, steps, seconds):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(about, steps, seconds))
    (folder / "report.json").write_text(json.dumps(about | {"seconds": round(seconds, 1), "steps": steps}, indent=1) + "\n")
