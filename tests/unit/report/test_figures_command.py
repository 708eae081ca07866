"""`aligngap figures`: every figure as a file, and clear words about what was asked wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from aligngap.cli import main
from aligngap.report import still
from aligngap.report.figures import Chart
from unit.report.fixture_results import write_results


def test_every_figure_becomes_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def svg(data: object, figure: Chart, *, split: str, opponent: str) -> str:
        asked.append(opponent)
        return f"<svg>{figure.name}</svg>"  # drawing each takes a second; test_figures draws

    monkeypatch.setattr(still, "image_svg", svg)
    folder = write_results(tmp_path / "run", seeds=(0,))
    assert main(["figures", str(folder), "--format", "svg", "--opponent", "sft"]) == 0
    found = {path.name for path in (folder / "figures").iterdir()}
    assert {"summarisation-goodhart-train.svg", "summarisation-coverage_curves-held_out.svg"} <= found
    assert {"summarisation-goodhart_difference.svg", "summarisation-tandem_equal.svg"} <= found
    assert f"{len(found)} figures" in capsys.readouterr().out
    assert set(asked) == {"sft"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "jpg"], "Known: png, svg, pdf."),
        (["--opponent", "gold"], "Known: golden_policy, sft."),
        ([], "holds no results"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["figures", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_results_without_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_results(tmp_path / "run", no_numbers=True)
    assert main(["figures", str(folder)]) == 2
    assert "nothing to draw" in capsys.readouterr().err
