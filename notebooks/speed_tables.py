"""Make the tables of speed from notebooks/figures/bench.json, which tests/bench.py wrote."""

import functools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "notebooks" / "figures" / "bench.json"
RECIPES = {  # label, and the article's cases that it stands for
    "binary": ("two classes", ["binary"]),
    "multi": ("three and four classes", ["three", "four"]),
    "multi_gentle": ("three and four, gentle augmentation", ["three", "four"]),
}
PARTS = {  # of a run's record, and what they are
    "start": "start the kernel and import",
    "images": "read the images",
    "features": "views and features",
    "training": "train the heads",
    "trust": "how far to trust it",
    "other": "the rest of the cells",
    "page": "write the page",
}


def as_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table as one text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def from_bench(make: Callable[[dict], str]) -> Callable[[], str]:
    """Turn a function of the measurements into one without arguments, which says so where they are missing."""

    @functools.wraps(make)
    def table() -> str:
        try:
            return make(json.loads(BENCH.read_text(encoding="utf-8")))
        except (FileNotFoundError, KeyError):
            return "Not measured yet: see tests/bench.py."

    return table


def exponent(seconds: dict) -> float:
    """Return the power of n that seconds grow with; seconds: {n: seconds}."""
    slope, _ = statistics.linear_regression(
        [math.log(int(n)) for n in seconds], [math.log(s) for s in seconds.values()]
    )
    return slope


@from_bench
def article(bench: dict) -> str:
    """The article's code against this project, by case, and what VGG16's passes alone would give."""
    rows, best = [], bench["precision"][""]["best"]
    for name, (label, cases) in RECIPES.items():
        ours = bench["ours"][f"{name} auto"]
        literal = [bench["literal"][case] for case in cases]
        seconds = sum(run["seconds"] for run in literal)
        passes = sum(run["forward_passes"] for run in literal) * best["float32"]
        limit = passes / (ours["forward_passes"] * best[ours["precision"]])
        exact = bench["ours"].get(f"{name} float32")
        exact = f"{seconds / exact['seconds']:.1f}" if exact else ""
        times = f"{seconds:,.0f} s", f"{ours['seconds']:.0f} s"
        rows.append([label, *times, f"{seconds / ours['seconds']:.1f}", f"{limit:.1f}", exact])
    head = "", "the article's code", "here, nothing kept", "ratio", "of VGG16's passes alone", "ratio in float32"
    return as_table(head, rows)


@from_bench
def image(bench: dict) -> str:
    """Milliseconds an image, and the error of the features, by precision."""
    found = bench["precision"][""]
    names, times = sorted(found["best"]), found["seconds_an_image"]
    rows = [
        ["forward pass", *(f"{1000 * found['best'][name]:.1f} ms" for name in names)],
        ["with augmentation", *(f"{1000 * times[f'{name} extraction']:.1f} ms" for name in names)],
        ["features differ from float32's by", *(f"{100 * found['relative_error'][name]:.1f}%" for name in names)],
    ]
    return as_table(["an image", *names], rows)


@from_bench
def head(bench: dict) -> str:
    """A step of the head, and what memory leaves to gain."""
    found = bench["head"][""]
    steps = found["ms_a_step"]
    rows = [
        ["a step of 10 images, `xray.fit_head`", f"{steps['without validation']:.1f} ms"],
        ["the same, with validation", f"{steps['with validation']:.1f} ms"],
        ["the same, in the lesson's Keras loop", f"{steps['keras']:.1f} ms"],
        ["what the Keras loop takes to start", f"{found['keras_start_seconds']:.1f} s"],
        ["memory that a step moves", f"{1000 * found['gigabytes_a_step']:.0f} MB"],
        ["its share of the speed of memory", f"{found['share_of_memory']:.0%}"],
        ["two heads side by side, over one after the other", f"{found['side_by_side']:.2f}"],
    ]
    return as_table(["what", "measured"], rows)


@from_bench
def notebooks(bench: dict) -> str:
    """Whole notebooks, and `make run` on phantoms: now, a second time, and those of an earlier commit."""
    runs = dict(bench["notebooks"])
    if "phantoms" in bench:
        runs["`make run` on phantoms"] = bench["phantoms"][""]
    revision = next((run["revision"] for run in runs.values() if run["revision"]), "")
    rows = []
    for name, run in runs.items():
        seconds = {when: statistics.median(values) for when, values in run["seconds"].items()}
        now, second, before = (seconds.get(when) for when in ("now", "second", "before"))
        row = [name, f"{now:.0f} s", *([f"{second:.0f} s", f"{second / now:.2f}"] if second else ["", ""])]
        if revision:
            row += [f"{before:.0f} s", f"{now / before:.2f}"] if before else ["", ""]
        rows.append(row)
    names = ["", "now", "a second time", "second / now"]
    return as_table([*names, *([revision, f"now / {revision}"] if revision else [])], rows)


@from_bench
def size(bench: dict) -> str:
    """Time and memory by number of phantoms."""
    growth, large, powers = bench["growth"][""]["seconds"], bench.get("large", {}), []
    for seconds in (growth, {count: run["seconds"] for count, run in large.items()}):
        powers.append(f"{exponent(seconds):.2f}" if len(seconds) > 1 else "")
    rows = []
    for count in sorted({*growth, *large}, key=int):
        files = f"{growth[count]:.0f} s" if count in growth else ""
        whole = f"{large[count]['seconds']:,.0f} s" if count in large else ""
        peak = f"{large[count]['kernel_peak_gib']:.2f} GiB" if count in large else ""
        rows.append([f"{int(count):,}", files, whole, peak])
    names = ["phantoms", "files to heads, 2 views, 10 epochs", "all of Multi, 2 views, 2 epochs", "peak memory"]
    return as_table(names, [*rows, ["grows with this power", *powers, ""]])


@from_bench
def first(bench: dict) -> str:
    """Seconds from `make run` to the first picture, the first accuracy, the page; and the share of each step."""
    found = bench["first"][""]
    times, steps = found["times"], found["steps"]
    rows = []
    for what, key in (("the first picture", "picture"), ("the first accuracy", "accuracy"), ("the page", "page")):
        rows.append([f"until {what}", *(f"{times[f'{name} {key}']:.0f} s" for name in ("Binary", "Multi"))])
    rows.append(["of it: install the packages", share(steps["install"], times["end"]), ""])
    rows.append(["of it: prepare images and weights", share(steps["prepare"], times["end"]), ""])
    for part, label in PARTS.items():
        cells = [share(steps[name][part], times["end"]) if part in steps[name] else "" for name in ("Binary", "Multi")]
        rows.append([f"of it: {label}", *cells])
    return as_table(["seconds from `make run`", "Binary", "Multi"], rows)


def share(seconds: float, total: float) -> str:
    """Return seconds, and their share of the total, as text."""
    return f"{seconds:.0f} s ({seconds / total:.0%})"


TABLES = {
    "speed-article": article,
    "speed-image": image,
    "speed-head": head,
    "speed-notebooks": notebooks,
    "speed-size": size,
    "speed-first": first,
}
