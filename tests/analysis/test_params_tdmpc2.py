"""TD-MPC2's tables: the issue's counts, the document's claims beside them, the five sizes, their work and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import params, params_tdmpc2
from analysis.claims_tdmpc2 import count_preference_model, list_claims, show_claim
from analysis.dims_tdmpc2 import DOCUMENT, OPTIONS, SUITE, WALKER, Dims, count_parts
from analysis.markdown import render_table
from rl.tdmpc2.sizes import MODEL_SIZES, ModelSizes, count_components, count_plan_flops, count_update_flops

ROOT = Path(__file__).parents[2]
NOTHING = dict.fromkeys(OPTIONS)
COUNTS = {
    "encoder": (196_608, 172_032),
    "dynamics": (871_424, 822_272),
    "reward": (659_557, 610_405),
    "policy": (639_098, 589_946),
    "one_q": (659_557, 610_405),
    "q": (3_297_785, 3_052_025),
    "target_q": (3_297_785, 3_052_025),
    "q_and_targets": (6_595_570, 6_104_050),
    "termination": (577_025, 527_873),
    "task_embedding": (7_680, None),
    "learnable": (5_664_472, 5_246_680),
    "with_targets": (8_962_257, 8_298_705),
    "episodic_learnable": (6_241_497, 5_774_553),
    "episodic_with_targets": (9_539_282, 8_826_578),
}
CLAIMED = {
    "encoder": 800_000,
    "dynamics": 680_000,
    "reward": 680_000,
    "policy": 630_000,
    "one_q": 659_557,
    "q": 3_297_785,
    "target_q": 3_297_785,
    "q_and_targets": 6_595_570,
    "with_targets": 9_386_000,
}
SIZES = {
    1: (1_214_651, 1_694_853, 1_435_067),
    5: (4_960_618, 7_871_843, 5_389_930),
    19: (18_062_442, 27_816_547, 18_970_218),
    48: (47_208_298, 71_158_883, 48_791_146),
    317: (312_595_417, 495_605_505, 317_383_129),
}


def ask(file: Path, *words: str) -> dict[str, Any]:
    assert params.main(["--algorithm", "tdmpc2", *words, "--json", str(file)]) == 0
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_the_command_counts_what_it_should_beside_the_claims_and_loads_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "sizes.json"
    code = (
        "import sys; from analysis import params; code = params.main(sys.argv[1:]); "
        "print([name for name in ('torch', 'gymnasium') if name in sys.modules]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "--algorithm", "tdmpc2", "--json", str(file)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    content = json.loads(file.read_text())
    rows = {row["component"]: row for row in content["components"]}
    assert {name: (row["several_tasks"], row["single_task"]) for name, row in rows.items()} == COUNTS
    assert {name: row["claimed"] for name, row in rows.items() if row["claimed"]} == CLAIMED
    assert content["algorithm"] == "tdmpc2"
    assert list(content) == ["algorithm", "components", "claims", "shares", "sizes", "work", "memory"]
    lines = answer.stdout.splitlines()
    assert lines[-1] == "[]"
    assert "| encoder | ~800K | 196,608 | 172,032 |" in lines
    assert "| learnable and targets | ~9,386K | 8,962,257 | 8,298,705 |" in lines
    assert "| whole, as rounded | ~9.4M | 8,962,257 | 0.953 | obs_dim 1,861 |" in lines


def test_every_count_is_the_networks_own_arithmetic() -> None:
    for dims in (DOCUMENT, DOCUMENT.leave_tasks_out(), WALKER, SUITE, Dims(7, 2, 5, 3)):
        for size in MODEL_SIZES:
            sizes = dims.plan(size)
            counts = count_components(replace(sizes, episodic=True))
            parts = count_parts(sizes)
            assert {name: parts[name] for name in counts if name != "task_embedding"} == {
                name: count for name, count in counts.items() if name != "task_embedding"
            }
            assert parts["task_embedding"] == dims.tasks * dims.task_dim
            assert parts["learnable"] + parts["task_embedding"] == sum(count_components(sizes).values())
            assert parts["one_q"] * sizes.num_q == parts["q"] == parts["target_q"]
            assert parts["episodic_with_targets"] == sum(counts.values()) - parts["task_embedding"] + counts["q"]


def test_right_claims_are_told_from_wrong_ones() -> None:
    assert {claim.part for claim in list_claims() if claim.holds} == {
        "inputs of a Q head",
        "outputs of the policy",
        "one Q head",
        "5 Q heads",
        "target Q heads",
        "Q heads, targets",
    }
    assert all(claim.needs for claim in list_claims() if not claim.holds)


@pytest.mark.parametrize(
    ("part", "changes", "component"),
    [
        ("encoder, at least", {"obs_shape": (1_336,)}, "encoder"),
        ("encoder, in the sum", {"obs_shape": (2_508,)}, "encoder"),
        ("encoder, in the sum", {"enc_dim": 1_048}, "encoder"),
        ("encoder, at most", {"obs_shape": (3_289,)}, "encoder"),
        ("dynamics", {"mlp_dim": 422}, "dynamics"),
        ("reward", {"num_bins": 141}, "reward"),
        ("reward", {"mlp_dim": 523}, "reward"),
        ("policy", {"action_dim": 52}, "policy"),
        ("policy", {"mlp_dim": 507}, "policy"),
        ("whole, as summed", {"obs_shape": (1_806,)}, "with_targets"),
        ("whole, as rounded", {"obs_shape": (1_861,)}, "with_targets"),
    ],
)
def test_a_wrong_claim_is_right_with_what_its_row_names(part: str, changes: dict[str, Any], component: str) -> None:
    claim = next(claim for claim in list_claims() if claim.part == part)
    (key, value), *_ = changes.items()
    named = f"obs_dim {value[0]:,}" if key == "obs_shape" else f"{key} {value:,}"
    assert named in claim.needs.split(" or ")
    sizes: ModelSizes = replace(DOCUMENT.plan(), **changes)
    assert replace(claim, counted=count_parts(sizes)[component]).holds


def test_claims_are_written_as_the_document_writes_them() -> None:
    written = [show_claim(claim.claimed, claim.unit) for claim in list_claims()]
    assert written[2:7] == ["~500K", "~800K", "~1M", "~680K", "~680K"]
    assert written[-4:] == ["~2.8M", "~9,386K", "~9.4M", "~6.6M"]


def test_shares_are_of_the_counted_whole_and_the_preference_model_is_counted_in_one_reading(tmp_path: Path) -> None:
    rows = {row["part"]: row for row in ask(tmp_path / "sizes.json")["shares"]}
    heads, model = rows["Q heads and targets"], rows["preference reward model, beside it"]
    assert (heads["claimed_percent"], round(heads["percent"], 1)) == (70, 73.6)
    assert (model["claimed_percent"], round(model["percent"], 1)) == (13, 13.9)
    assert rows["all else"]["claimed_percent"] is None
    assert count_preference_model(512 + 61) == model["counted"] == 1_243_842


def test_the_five_sizes_count_what_they_are_named_after(tmp_path: Path) -> None:
    rows = ask(tmp_path / "sizes.json")["sizes"]
    keys = ("learnable", "with_targets", "several_tasks_learnable")
    assert {row["model_size"]: tuple(row[key] for key in keys) for row in rows} == SIZES
    assert all(round(row["named_after_learnable"] / 10**6) == row["model_size"] for row in rows)
    assert all(
        {key: row[key] for key in MODEL_SIZES[row["model_size"]]} == MODEL_SIZES[row["model_size"]] for row in rows
    )


def test_work_is_of_the_issues_update_and_plan(tmp_path: Path) -> None:
    rows = {row["model"]: row for row in ask(tmp_path / "sizes.json")["work"]}
    assert list(rows) == ["the document's", "1", "5", "19", "48", "317"]
    assert rows["5"]["update_flops"] == pytest.approx(30.7e9, rel=0.03)
    assert rows["5"]["plan_flops"] == pytest.approx(35.8e9, rel=0.03)
    for size in MODEL_SIZES:
        sizes = WALKER.plan(size)
        assert rows[str(size)]["update_flops"] == count_update_flops(sizes, 256, 3)
        assert rows[str(size)]["plan_flops"] == count_plan_flops(sizes, 3, 512, 6, 24)
    assert rows["the document's"]["update_flops"] == count_update_flops(DOCUMENT.plan(), 256, 3)


def test_memory_has_moments_and_gradients_for_what_learns_alone(tmp_path: Path) -> None:
    content = ask(tmp_path / "sizes.json")
    rows = {row["model"]: row for row in content["memory"]}
    heads = rows["Q heads alone, several tasks"]
    assert heads["together_bytes"] == 4 * (2 * 3_297_785 + 3 * 3_297_785)
    claim = next(row for row in content["claims"] if row["part"] == "memory of Q heads, targets")
    assert (claim["claimed"], 4 * claim["counted"], claim["holds"]) == (6_600_000, heads["together_bytes"], False)
    for size, (learnable, with_targets, _) in SIZES.items():
        row = rows[str(size)]
        assert row["weights_bytes"] == row["gradients_bytes"] == 4 * learnable
        assert row["moments_bytes"] == 8 * learnable
        assert row["targets_bytes"] == 4 * (with_targets - learnable)
        assert row["together_bytes"] == sum(
            value for key, value in row.items() if key not in ("model", "together_bytes")
        )


def test_other_dimensions_have_no_claims_beside_them_and_leave_the_claims_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--obs-dim", "24", "--action-dim", "6", "--task-dim", "64", "--tasks", "30"]
    content, usual = ask(tmp_path / "sizes.json", *words), ask(tmp_path / "usual.json")
    rows = {row["component"]: row for row in content["components"]}
    assert all(row["claimed"] is None for row in rows.values())
    assert rows["learnable"]["single_task"] == content["sizes"][1]["learnable"] == 4_960_618
    assert rows["task_embedding"]["several_tasks"] == 30 * 64
    several = ModelSizes((24,), 6, num_tasks=30, task_dim=64)
    assert content["sizes"][1]["several_tasks_learnable"] == sum(count_components(several).values())
    assert content["work"][0]["model"] == "5, several tasks"
    assert (content["claims"], content["shares"]) == (usual["claims"], usual["shares"])
    out = capsys.readouterr().out
    assert "The document's claims are of other sizes than these" in out
    assert "30 tasks are padded to 24 and 6, with embeddings of 64 numbers" in out


def test_another_number_of_tasks_leaves_the_documents_claims_where_they_are(tmp_path: Path) -> None:
    rows = {row["component"]: row for row in ask(tmp_path / "sizes.json", "--tasks", "7")["components"]}
    assert rows["task_embedding"]["several_tasks"] == 7 * 96
    assert rows["with_targets"] == {
        "component": "with_targets",
        "claimed": 9_386_000,
        "several_tasks": 8_962_257,
        "single_task": 8_298_705,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task-dim", "0"], "argument --task-dim: '0' is not a whole number from 1 on"),
        (["--obs-dim", "many"], "argument --obs-dim: 'many' is not a whole number from 1 on"),
        (["--tasks", "1000001"], "argument --tasks: 1,000,001 is more than 1,000,000"),
    ],
)
def test_sizes_that_cannot_be_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        params.main(["--algorithm", "tdmpc2", *words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_page_has_the_tables_that_the_command_prints() -> None:
    page = (ROOT / "docs" / "tdmpc2.md").read_text()
    for table in params_tdmpc2.list_tables(NOTHING):
        assert render_table(table) in page, table.name
