"""The tables of returns: how good each arm is, how sure that is, and every single run."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.arms import FEW_SEEDS, FIRST, NOT_COMPARABLE, SEED, ArmResult, Comparison, show_left_out, show_value
from analysis.extremes import MANY_ARMS, sort_by_return
from analysis.load import ExperimentData, is_counted, is_done, show_state
from analysis.statistics import Interval
from analysis.tables import DASH, Cell, Table, choose_decimals, list_runs, show_number

EVALUATION = "Evaluation return: IQM [95 % interval]"
SCORE = "Normalised score: IQM [95 % interval]"
EVALUATION_MEAN = "Evaluation return: mean ± sd"
TRAINING_MEAN = "Training return at the end: mean ± sd"
RUNS = "Runs"
_MANY_SEEDS = 10
_SCORE_DECIMALS = 1
_SCORE_COLUMNS = ("final_score", "reference_random", "reference_expert")


def tabulate_returns(comparison: Comparison) -> Table:
    """Give a comparison as a table: one row per arm, in the order of the spec. Nothing in it depends on the machine.

    As shown, more than `MANY_ARMS` are in the order of their returns.
    """
    decimals = choose_return_decimals(comparison)
    scored = has_scores(comparison)
    shown = order_arms(comparison)
    return Table(
        name=comparison.name,
        title=comparison.title,
        columns=(
            *comparison.heads,
            "Finished",
            EVALUATION,
            EVALUATION_MEAN,
            *([SCORE] if scored else []),
            TRAINING_MEAN,
            "Seeds",
            "Compared",
            RUNS,
        ),
        rows=tuple(_to_cells(result, comparison.show(result.arm), decimals, scored) for result in shown),
        frame=_to_frame(comparison, scored),
        notes=_explain(comparison),
    )


def order_arms(comparison: Comparison) -> Sequence[ArmResult]:
    """Give the arms as a table shows them: many of them best first, task by task."""
    if len(comparison.results) <= MANY_ARMS:
        return comparison.results
    tasks = dict.fromkeys(result.arm.task for result in comparison.results)
    groups = [[result for result in comparison.results if result.arm.task == task] for task in tasks]
    return [result for group in groups for result in sort_by_return(group)]


def has_scores(comparison: Comparison) -> bool:
    """Tell whether all runs behind a comparison's numbers have a normalised score, and there are any."""
    measured = [result for result in comparison.results if result.iqm is not None]
    return bool(measured) and all(result.score is not None for result in measured)


def choose_return_decimals(comparison: Comparison) -> int:
    """Give the decimals of the returns of a comparison, the same in its table and in sentences about it."""
    return choose_decimals(
        number for result in comparison.results for number in (result.iqm, result.mean, result.train_mean)
    )


def _to_cells(result: ArmResult, shown: Sequence[str], decimals: int, scored: bool) -> tuple[Cell, ...]:
    arm = result.arm
    cells = [Cell(text, strong=result.is_best) for text in shown]
    cells.append(Cell(f"{result.finished} of {result.planned}{show_left_out(result)}"))
    cells.append(Cell(_show_iqm(result.iqm, result.interval, decimals), strong=result.is_best))
    cells.append(Cell(_show_mean(result.mean, result.sd, decimals)))
    if scored:
        cells.append(Cell(_show_iqm(result.score, result.score_interval, _SCORE_DECIMALS), strong=result.is_best))
    cells.append(Cell(_show_mean(result.train_mean, result.train_sd, decimals)))
    cells.append(Cell(_show_seeds(arm.counted)))
    cells.append(Cell(result.verdict or DASH, strong=result.is_best))
    cells.append(list_runs(arm.counted["id"]))
    return tuple(cells)


def _show_iqm(iqm: float | None, interval: Interval, decimals: int) -> str:
    text = show_number(iqm, decimals)
    if not interval.exists:
        return text
    return f"{text} [{show_number(interval.low, decimals)}, {show_number(interval.high, decimals)}]"


def _show_mean(mean: float | None, sd: float | None, decimals: int) -> str:
    text = show_number(mean, decimals)
    return text if sd is None else f"{text} ± {show_number(sd, decimals)}"


def find_seeds(runs: pd.DataFrame) -> list[str]:
    """Give the seeds of runs as shown, each once."""
    if runs.empty:
        return []
    if SEED not in runs:
        return ["default"]
    return list(dict.fromkeys("default" if pd.isna(seed) else show_value(seed) for seed in runs[SEED].tolist()))


def _show_seeds(runs: pd.DataFrame) -> str:
    seeds = sorted(find_seeds(runs), key=lambda seed: (len(seed), seed))
    return f"{len(seeds)} seeds" if len(seeds) > _MANY_SEEDS else ", ".join(seeds) or DASH


def _to_frame(comparison: Comparison, scored: bool) -> pd.DataFrame:
    keys = comparison.task_keys + comparison.keys
    rows = []
    for result in comparison.results:
        arm = result.arm
        rows.append(
            [
                *arm.task,
                *arm.values,
                result.planned,
                result.finished,
                *show_exactly(result.iqm, *_find_ends(result.interval), result.mean, result.sd),
                *(show_exactly(result.score, *_find_ends(result.score_interval)) if scored else []),
                *show_exactly(result.train_mean, result.train_sd),
                " ".join(find_seeds(arm.counted)),
                result.verdict,
                " ".join(arm.counted["id"]),
                " ".join(arm.runs["id"]),
            ]
        )
    numbers = ["planned", "finished", "iqm", "low_95", "high_95", "mean", "sd"]
    numbers += ["score", "score_low_95", "score_high_95"] if scored else []
    numbers += ["training_mean", "training_sd"]
    frame = pd.DataFrame(rows, columns=[*keys, *numbers, "seeds", "compared", "finished_runs", "planned_runs"])
    return add_left_out(frame, comparison.results)


def _find_ends(interval: Interval) -> tuple[float | None, float | None]:
    return (interval.low, interval.high) if interval.exists else (None, None)


def add_left_out(frame: pd.DataFrame, results: Sequence[ArmResult]) -> pd.DataFrame:
    """Give a frame with a row for each arm the column `left_out_runs`, where any arm has such runs.

    They are finished, but `finished_runs`, which names the runs behind the numbers, is without them.
    """
    if not any(result.left_out for result in results):
        return frame
    left_out = [result.arm.runs[is_done(result.arm.runs) & ~is_counted(result.arm.runs)] for result in results]
    return frame.assign(left_out_runs=[" ".join(runs["id"]) for runs in left_out])


def show_exactly(*values: float | None) -> list[str]:
    """Write numbers so that they read back to the bit: empty for none, and `nan` only where a run gave it."""
    return ["" if value is None else repr(float(value)) for value in values]


def _explain(comparison: Comparison) -> tuple[str, ...]:
    return (*_explain_order(comparison), *_explain_cases(comparison), *_explain_returns(comparison))


def _explain_order(comparison: Comparison) -> tuple[str, ...]:
    if len(comparison.results) <= MANY_ARMS:
        return ()
    return ("Best first, arms that can't be ranked last. The CSV file is in the order of the spec.",)


def _explain_cases(comparison: Comparison) -> tuple[str, ...]:
    if not comparison.usual:
        return ()
    usual = ", ".join(f"{key}={value}" for key, value in comparison.usual.items())
    return (f"Cases are named by what sets them apart; what isn't named is {usual}.",)


def _explain_returns(comparison: Comparison) -> tuple[str, ...]:
    if comparison.name != FIRST:
        pooled = "Every other swept setting is pooled; intervals resample seeds within each of its values."
        if all(result.verdict != NOT_COMPARABLE for result in comparison.results):
            return (pooled,)
        return (
            pooled,
            "Rows that average over different other settings are not ranked: those alone could make the difference. "
            "The first table ranks the full combinations.",
        )
    notes = [
        f"Evaluation: of the last policy on the report seeds, averaged over {_count_episodes(comparison)} first. "
        "IQM: interquartile mean over runs, up to three of them their plain mean. "
        "Training: rollout/ep_rew_mean of the last row, exploration included."
    ]
    if len(comparison.results) > 1:
        notes.append(
            "Arms with an unfinished run are not ranked. "
            "An arm whose interval overlaps the best arm's is not told apart from it."
        )
    if any(result.left_out for result in comparison.results):
        notes.append("Left out: runs that the training-health guard repaired. An arm that has one is not ranked.")
    if has_scores(comparison):
        notes.append(_explain_scores(comparison))
    if comparison.task_keys:
        notes.append(f"Returns are compared within one {' and '.join(comparison.task_keys)}, never across.")
    return tuple(notes)


def _explain_scores(comparison: Comparison) -> str:
    columns = ["reference_random", "reference_expert"]
    runs = pd.concat([result.arm.counted[columns] for result in comparison.results]).dropna().drop_duplicates()
    lead = "Normalised score: 100 (return - random) / (expert - random) by the references of the run's data set"
    if len(runs) > 1:
        return f"{lead}, which differ between runs: see runs.csv. Scores by different references are not on one scale."
    random, expert = (show_number(float(runs.iloc[0][name]), 1) for name in columns)
    return f"{lead}, random {random} and expert {expert}."


def _count_episodes(comparison: Comparison) -> str:
    counts = {int(count) for result in comparison.results for count in result.arm.counted["final_episodes"].dropna()}
    return f"a run's {counts.pop()} episodes" if len(counts) == 1 else "a run's episodes"


def warn_of_few_seeds(comparison: Comparison) -> list[str]:
    """Give a warning where an arm's interval rests on fewer than five seeds."""
    counts = sorted({len(find_seeds(result.arm.counted)) for result in comparison.results if result.counted})
    if not counts or counts[0] >= FEW_SEEDS:
        return []
    if counts[-1] == 1:
        return ["One seed per setting: no interval can be given, and no setting can be told from another."]
    span = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    return [
        f"Fewer than {FEW_SEEDS} seeds ({span} per setting): so few give intervals that are too narrow. "
        "From 3 seeds about 3 in 4 of them hold the true value, from 5 about 9 in 10."
    ]


def tabulate_runs(data: ExperimentData) -> Table:
    """Give every combination of the plan with its run's numbers; the CSV file has all columns of `data.runs`.

    Combinations that share a run have a row each, so that whatever the spec asks for can be found by its name. Whether
    a run was repaired, and so counts, is among the columns only where one was, and scores only where there are any.
    """
    runs = data.runs
    done = is_done(runs)
    numbers = [*runs.loc[done, "final_mean"].dropna(), *runs.loc[done, "train_return"].dropna()]
    decimals = choose_decimals(numbers)
    rows = []
    for row, finished in zip(runs.to_dict("records"), done, strict=True):
        numbers_shown = (
            [
                _show_single(row["final_mean"], row["final_problem"], decimals),
                show_number(None if pd.isna(row["final_std"]) else row["final_std"], decimals),
                _show_single(row["train_return"], row["train_problem"], decimals),
            ]
            if finished
            else [DASH] * 3
        )
        texts = (row["label"], show_state(row), *numbers_shown)
        rows.append((*map(Cell, texts), list_runs([row["id"]])))
    return Table(
        name="runs",
        title="Every combination and its run",
        columns=(
            "Combination",
            "State",
            "Evaluation return",
            "sd over its episodes",
            "Training return at the end",
            "Id",
        ),
        rows=tuple(rows),
        frame=data.runs.drop(columns=_find_empty(data.runs)),
        notes=_explain_sharing(data),
        folded=True,
    )


def _explain_sharing(data: ExperimentData) -> tuple[str, ...]:
    """Say that rows with the same id are one run, where there are any."""
    if len(data.unique_runs) == len(data.runs):
        return ()
    return (
        f"{len(data.runs)} combinations are {len(data.unique_runs)} runs: those with the same id share one, as they "
        "differ in settings alone that it doesn't read, or that mean the same. It counts once in a row of a statistic.",
    )


def _find_empty(runs: pd.DataFrame) -> list[str]:
    """Name the columns that say nothing where no run was repaired, or none has references."""
    empty = [] if runs["repaired"].any() else ["repaired", "counted"]
    return empty if runs["final_score"].notna().any() else [*empty, *_SCORE_COLUMNS]


def _show_single(value: float, problem: object, decimals: int) -> str:
    """Write one run's number; with a problem and no infinity it is a NaN that was reported, or was never there."""
    if isinstance(problem, str):
        return problem.rpartition(" is ")[2] if " is " in problem else DASH
    return show_number(value, decimals)
