"""`play.py samples`: what a diffusion policy draws, held against its data."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack

from experiment.files import write_atomically
from experiment.problems import Fault, SettingsError
from playing.endings import OK
from playing.policies import restore_run


def show_samples(args: Namespace, parser: ArgumentParser) -> int:
    """Hold what a diffusion policy draws against its data: a table, and a picture."""
    if args.windows < 2:
        parser.error("--windows: give 2 or more")
    if args.out is not None and args.out.suffix != ".png":
        parser.error(f"--out {args.out}: the picture is a .png")
    with ExitStack() as stack:
        restored = restore_run(args.run, args.checkpoint, args.device, stack)
        from analysis.samples import compare_actions, draw_comparison, tabulate_fits
        from analysis.tables import render_text
        from diffuser.samples import draw_samples
        from diffuser.utils.training import Trainer as DiffusionTrainer

        run, config, trainer = restored.run, restored.config, restored.trainer
        if not isinstance(trainer, DiffusionTrainer):
            message = f"{args.run} is a run of {config.algorithm_name}; samples are drawn by vae_diffusion_rl alone"
            raise SettingsError([Fault(("run",), message)])
        drawn = draw_samples(trainer.average, trainer.dataset, args.windows)
        which = (
            f"run {run.id}, {restored.checkpoint.path.stem}, {len(drawn.data):,} histories of {trainer.config.dataset}"
        )
    print(which)
    print(render_text(tabulate_fits(compare_actions(drawn.data, drawn.samples))))
    out = args.out or run.samples_path
    picture = draw_comparison(drawn.data, drawn.samples[0], drawn.learnt_std, drawn.sampled_std, which)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, [picture])
    print(f"picture: {out}")
    return OK
