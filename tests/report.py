"""Print the tables of tests/README.md from notebooks/figures/bench.json, which tests/bench.py wrote."""

import json
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "notebooks" / "figures" / "bench.json"
WAYS = {"without validation": "", "validated by the schedule": ", validated by the schedule"}
WAYS["validated by `fit`"] = ", validated by fit"
CACHE = ("no cache", "without"), ("an empty cache", "first"), ("a second time", "second")
PASSES = {"binary": 20 * 130, "multi": 100 * (200 + 270)}  # of VGG16 in the article's code: epochs times images


def as_table(head, *rows):
    """Return a Markdown table as one text."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def spread(values):
    """Return mean, standard deviation, and range of accuracies, to three places."""
    return f"{values['mean']:.3f} ± {values['sd']:.3f} ({min(values['values']):.2f} to {max(values['values']):.2f})"


def speed(bench):
    """Yield the tables of speed: the article's code, VGG16, a step of the head, whole notebooks, size."""
    rows, best = [], bench["precision"][""]["best"]
    for name in ("binary", "multi", "multi_gentle"):
        ours = bench["ours"][f"{name} auto"]
        literal = sum(bench["literal"][case]["seconds"] for case in ours["test"])
        ratio = f"{ours['literal_over_ours']:.1f}"
        passes = PASSES[name.partition("_")[0]] * best["float32"] / (ours["forward_passes"] * best["bfloat16"])
        times = f"{literal:,.0f} s", f"{ours['seconds']:.0f} s"
        rows.append([name.replace("_", ", "), *times, ratio, f"{passes:.1f}"])
    yield as_table(["case", "the article's code", "here, nothing kept", "ratio", "of VGG16's passes alone"], *rows)
    times = bench["precision"][""]["seconds_an_image"]
    forward = [f"{1000 * best[name]:.1f} ms" for name in ("bfloat16", "float32")]
    whole = [f"{1000 * times[name + ' extraction']:.1f} ms" for name in ("bfloat16", "float32")]
    yield as_table(["an image", "bfloat16", "float32"], ["forward pass", *forward], ["with augmentation", *whole])
    steps = bench["head"][""]["ms_a_step"]
    rows = [[row, *(f"{steps[kind + suffix]:.1f} ms" for kind in ("compiled", "auto"))] for row, suffix in WAYS.items()]
    yield as_table(["a step of 10 images", "compiled, one execution an epoch", "as Keras does by default"], *rows)
    drawn, error = bench["augmentation"][""]["views_a_second"], bench["precision"][""]["relative_error"]["bfloat16"]
    limits = [f"{bench['ours'][f'{name} auto']['ours_over_limit']:.2f}" for name in ("binary", "multi")]
    rows = [
        ["a step of the head reaches, of the speed of memory", f"{bench['head']['']['share']:.0%}"],
        ["features in bfloat16 are off by, relative to float32", f"{error:.4f}"],
        ["views that ImageDataGenerator draws in a second, on one core", f"{drawn['article']:.0f}"],
        ["time from 100 to 400 phantoms grows with this power of n", f"{bench['growth']['']['exponent']:.2f}"],
        ["time of the table's cases over VGG16's bare passes: binary, multi", ", ".join(limits)],
    ]
    yield as_table(["what", "measured"], *rows)
    rows = []
    for key, run in bench["notebooks"].items():
        seconds = [f"{run['seconds'][when][0]:.0f} s" for when in ("before", "now", "second")]
        rows.append([key.split()[0], *seconds, f"{run['now_to_before']:.2f}", f"{run['second_to_now']:.2f}"])
    for run in bench.get("phantoms", {}).values():
        before, now = (f"{run['seconds'][when][0]:.0f} s" for when in ("before", "now"))
        rows.append(["`make run`, phantoms", before, now, "", f"{run['now_to_before']:.2f}", ""])
    yield as_table(["notebook", "ee045e0", "now", "a second time", "now / ee045e0", "second / now"], *rows)
    if parts := bench.get("second", {}).get(""):
        head = f"two cases of Multi, {parts['first']['views']} views", "features", "heads"
        times = {label: [parts[when][part] for part in head[1:]] for label, when in CACHE}
        yield as_table(head, *([label, *(f"{value:.1f} s" for value in values)] for label, values in times.items()))
    large = {n: run for n, run in bench.get("large", {}).items() if n.isdigit()}
    rows = []
    for n, run in large.items():
        peaks = (run.get(key) for key in ("kernel_peak_gib", "kernel_peak_gib_now"))
        rows.append([f"{int(n):,}", f"{run['seconds']:.0f} s", *(f"{peak:.2f} GiB" if peak else "" for peak in peaks)])
    if rows:
        head = "phantoms", "the whole Multi notebook, 2 views, 2 epochs", "peak memory", "peak memory now"
        yield as_table(head, *rows)


def chance(bench):
    """Yield the tables of chance: test sets, cross-validation and like for like, precisions, controls."""
    seeds = bench["seeds"]["5 bfloat16 100"]
    kinds = ("article", "article, 8 views", "article, new views", "gentle", "none")
    rows = []
    for n in (2, 3, 4):
        found = [seeds.get(f"test, {n} classes, {kind}") for kind in kinds]
        rows.append([f"{n}", *(f"{row['mean']:.3f} ± {row['sd']:.3f}" if row else "" for row in found)])
    yield as_table(["classes", *kinds], *rows)
    names = [f"cross-validated, 4 classes, {name}" for name in ("article", "gentle", "none", "logistic")]
    tasks = [f"like for like, {name}" for name in ("children", "children_blackout", "adults")]
    names += [name for task in tasks for name in (task, f"{task}, area under the ROC curve")]
    yield as_table(["five seeds", "mean ± standard deviation (range)"], *([n, spread(seeds[n])] for n in names))
    rows = []
    for first, second in (("gentle", "article"), ("none", "article"), ("none", "gentle"), ("logistic", "article")):
        both = (seeds[f"cross-validated, 4 classes, {name}"]["values"] for name in (first, second))
        points = [100 * (one - other) for one, other in zip(*both)]
        rows.append(
            [
                f"{first} minus {second}",
                f"{sum(points) / len(points):+.0f}",
                f"{min(points):+.0f} to {max(points):+.0f}",
            ]
        )
    yield as_table(["paired, in points", "mean of five seeds", "range"], *rows)
    pair = [bench["seeds"].get(f"5 {precision} 16") for precision in ("bfloat16", "float32")]
    if all(pair):
        names = [name for name in pair[0] if name.startswith(("test", "cross")) and "views" not in name]
        yield as_table(["five seeds", "bfloat16", "float32"], *([n, *(spread(p[n]) for p in pair)] for n in names))
    (claims,) = bench["claims"].values()
    rows = [[name, spread(claims[name])] for name in ("article, unaugmented", "article, on views")]
    yield as_table(["cross-validated X-rays, 4 classes", "mean ± standard deviation (range)"], *rows)
    rows = []
    for name in ("article", "gentle", "none"):
        counts = [claims[f"controls {what}, {name}"] for what in ("right, of 67", "predicted COVID-19, of 97")]
        rows.append([name, *(f"{c['mean']:.0f} ({min(c['values'])} to {max(c['values'])})" for c in counts)])
    yield as_table(["4 classes", "controls right, of 67", "controls predicted COVID-19, of 97"], *rows)
    (heads,) = bench["heads"].values()
    rows = []
    for name, label in (("test", "test accuracy"), ("controls", ""), ("controls with no finding", "")):
        values = heads[name]
        digits = 3 if name == "test" else 0
        span = f"{min(values['values']):.{digits}f} to {max(values['values']):.{digits}f}"
        rows.append([label or f"{name} predicted COVID-19", f"{values['mean']:.{digits}f}", span])
    yield as_table(["60 heads", "mean", "range"], *rows)


def main():
    """Print all tables."""
    bench = json.loads(BENCH.read_text(encoding="utf-8"))
    print(*speed(bench), *chance(bench), sep="\n\n")


if __name__ == "__main__":
    main()
