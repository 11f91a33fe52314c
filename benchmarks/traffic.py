"""Bytes that one worker sends per step, from the shapes of the models in the DGC paper, beside its figures.

Nothing is run or timed: the plans that really send give their sizes.

    python benchmarks/traffic.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from support import options, report

from horovod_dgc import DGC, traffic
from horovod_dgc.shapes import MODELS

MIB = 1 << 20
SETTINGS = {
    "the paper's coding": DGC(density=0.001, values="float32", indices="runlength16", exempt_values="float32"),
    "default": DGC(density=0.001),
    "smallest": DGC(density=0.001, values="int4"),
}
# As printed in Lin et al., ICLR 2018: megabytes of a dense step, megabytes sent, ratio.
PAPER = {
    "ResNet-50": (97.49, 0.35, 277),
    "AlexNet": (232.56, 0.39, 597),
    "2 x 1500 LSTM": (194.68, 0.42, 462),
    "DeepSpeech": (488.08, 0.74, 608),
}
COLUMNS = ("model", "setting", "weights MiB", "exempt MiB", "total MiB", "exempt share", "ratio")


@click.command(help=__doc__.split("\n\n")[0])
@options.smallest()
@report.json_option
def main(json_path: Path | None) -> None:
    rows: list[list[str]] = []
    found: list[dict[str, Any]] = []
    for model, shapes in MODELS.items():
        dense_mb, sent_mb, ratio = PAPER[model]
        dense = traffic(shapes(), SETTINGS["default"]).dense
        rows.append([model, "dense", "", "", f"{dense / MIB:.2f}", "", "1"])
        rows.append(["", "the paper prints", "", "", f"{dense_mb} -> {sent_mb} MB", "", str(ratio)])
        for setting, method in SETTINGS.items():
            sent = traffic(shapes(), method)
            sizes = [f"{size / MIB:.4f}" for size in (sent.sparse, sent.exempt, sent.total)]
            share = sent.exempt / sent.total
            rows.append(["", setting, *sizes, f"{share:.1%}", f"{sent.ratio:.1f}"])
            found.append(
                {"model": model, "setting": setting, "configuration": method.configuration(), "dense": sent.dense}
                | {"sparse": sent.sparse, "exempt": sent.exempt, "total": sent.total, "ratio": sent.ratio}
                | {"paper": {"dense_mb": dense_mb, "sent_mb": sent_mb, "ratio": ratio}}
            )
    report.table("Bytes on the wire per worker and step at density 0.001", COLUMNS, rows, text_columns=2)
    for setting, method in SETTINGS.items():
        report.CONSOLE.print(
            f"{setting}: values {method.values}, indices {method.indices}, "
            f"exempt tensors {method.exempt_values or method.values}",
            highlight=False,
        )
    report.write_json(json_path, {"traffic": found})


if __name__ == "__main__":
    main()
