"""The picture in README, drawn from README's own tables: accuracy of pruned networks over how much smaller they are.

    python examples/benchmarks/chart.py [README.md docs/accuracy.svg]

To be run again when a figure there changes; needs matplotlib.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

PANELS = {
    "LeNet, MNIST": "The paper's systems on LeNet",
    "ResNet56, CIFAR-10": "ResNet56, reweighted where",
    "VGG11, CIFAR-10": "VGG11 (the same",
}
"""Title, and how the line before its table begins."""
LINES = {
    "subprune_fx": ("#0b6e4f", 2.6),
    "AsymInChange": ("#6c9a8b", 1.5),
    "ActGrad": ("#b08900", 1.2),
    "LayerWeightNorm": ("#8d6a9f", 1.2),
    "Torch-Pruning 1.6, BatchNorm recalibrated": ("#c44536", 1.5),
    "onnxsim 0.8, Wanda": ("#3a6ea5", 1.5),
    "onnxsim 0.8, L2": ("#7fa6cc", 1.5),
}
"""Row, colour and width."""
FIGURE = re.compile(r"^\s*([\d.]+)")


def table(text: str, before: str) -> dict[str, dict[int, float]]:
    """Accuracy in % by method and ratio, of the first table after a line that begins with `before`."""
    rows = re.findall(r"^\|(.+)\|$", text[text.index("\n" + before) :].split("\n\n")[1], re.MULTILINE)
    ratios = [int(cell.replace("c =", "")) for cell in rows[0].split("|")[1:]]
    found = {}
    for row in rows[2:]:
        name, *cells = row.split("|")
        figures = {ratio: FIGURE.match(cell) for ratio, cell in zip(ratios, cells, strict=True)}
        found[name.strip()] = {ratio: float(match[1]) for ratio, match in figures.items() if match}
    return found


@click.command(help=__doc__)
@click.argument("source", type=click.Path(path_type=Path, exists=True), default=Path("README.md"))
@click.argument("target", type=click.Path(path_type=Path), default=Path("docs/accuracy.svg"))
def main(source: Path, target: Path) -> None:
    """Draw what the tables have of each line."""
    import matplotlib as mpl  # noqa: PLC0415 - only here

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "subprune_fx"  # the same file from the same figures
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    text = source.read_text(encoding="utf-8")
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.5, 3.2), facecolor="white")
    for axis, (title, before) in zip(axes, PANELS.items(), strict=True):
        known = table(text, before)
        for name, (colour, width) in LINES.items():
            points = known.get(name, {})
            if points:
                axis.plot(list(points), list(points.values()), marker=".", color=colour, linewidth=width, label=name)
        axis.set(xscale="log", title=title, xlabel="times fewer parameters")
        axis.set_xticks([2, 4, 8, 16, 32], labels=["2", "4", "8", "16", "32"])
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.25)
    axes[0].set_ylabel("accuracy, %")
    handles, labels = axes[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
