"""`play.py render`: what agents do, as pictures: maps, strips of depth, and films of both."""

from __future__ import annotations

import importlib.util
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.files import write_atomically
from playing.endings import OK
from playing.policies import build_trained_policy, check_actor, open_untrained, restore_run

if TYPE_CHECKING:
    from analysis.flights import Flight
    from envs.record import Policy

MAX_KWARGS = 80
"""Letters of an environment's arguments that a title shows."""


def render(args: Namespace, parser: ArgumentParser) -> int:
    """Let a policy fly, and draw it."""
    check_usage(args, parser)
    from training.evaluation import report_seeds

    seeds: Sequence[int] = args.seeds or report_seeds(args.episodes)
    with ExitStack() as stack:
        name, policy = open_flyer(args, stack)
        from playing.flying import fly

        flights = fly(policy, seeds)
    print("\n".join([name, *(flight.describe() for flight in flights)]))
    title = f"{name}, {policy.env_name}{describe_kwargs(policy)}"
    for path in (args.out, args.strips, args.video):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    for path, draw in list_pictures(args):
        write_atomically(path, [draw(flights, title)])
        print(f"picture: {path}")
    if args.video is not None:
        write_video(args.video, flights, title)
        print(f"film: {args.video}")
    return OK


def check_usage(args: Namespace, parser: ArgumentParser) -> None:
    """End the command where nothing could come of it."""
    check_actor(args, parser)
    if args.episodes < 1:
        parser.error("--episodes: give 1 or more")
    if args.out is None and args.strips is None and args.video is None:
        parser.error("say what to draw: -o MAP.png, --strips FILE.png, --video FILE.mp4 or .gif")
    for flag, path in (("-o", args.out), ("--strips", args.strips)):
        if path is not None and path.suffix != ".png":
            parser.error(f"{flag} {path}: the picture is a .png")
    if args.video is None:
        return
    if args.video.suffix not in (".mp4", ".gif"):
        parser.error(f"--video {args.video}: the film is an .mp4 or a .gif")
    if args.video.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        parser.error("--video: an .mp4 needs imageio_ffmpeg; install gridpilot[video], or take a .gif")


def open_flyer(args: Namespace, stack: ExitStack) -> tuple[str, Policy]:
    """Give who is to fly, by name for people, and as a policy where it is evaluated; the stack closes it.

    Raises:
        SpecError, SettingsError, DeviceMissingError, RunError: it can't be opened.
    """
    from envs.record import read_env_kwargs
    from training.seeding import seed_everything

    kwargs = read_env_kwargs(args.env_kwargs)
    if args.run is None:
        return args.policy, open_untrained(args.policy, args.env, kwargs, args.imports)
    restored = restore_run(args.run, args.checkpoint, args.device, stack, kwargs)
    seed_everything(restored.config.seed)
    policy = replace(build_trained_policy(restored), env_kwargs=restored.config.evaluation_kwargs)
    return f"{restored.run.folder.name}, {restored.checkpoint.path.stem}", policy


def describe_kwargs(policy: Policy) -> str:
    """Give the arguments of a policy's environment for a title; of long ones the beginning."""
    if not policy.env_kwargs:
        return ""
    text = json.dumps(dict(policy.env_kwargs))
    return f" {text}" if len(text) <= MAX_KWARGS else f" {text[:MAX_KWARGS]}..."


def list_pictures(args: Namespace) -> Iterator[tuple[Path, Callable[[Sequence[Flight], str], bytes]]]:
    """Give the pictures that were asked for, each with what draws it."""
    from analysis.flights import draw_flights, draw_strips

    if args.out is not None:
        yield args.out, draw_flights
    if args.strips is not None:
        yield args.strips, draw_strips


def write_video(path: Path, flights: Sequence[Flight], title: str) -> None:
    """Write a film of flights, one after the other, as fast as they were. It gets its name when it is whole."""
    import imageio.v2 as imageio

    from analysis.film import draw_film

    period = flights[0].period
    # Seconds a frame in the one, frames a second in the other.
    options: dict[str, Any] = {"format": "GIF-PIL", "duration": period, "loop": 0}
    if path.suffix == ".mp4":
        options = {"format": "FFMPEG", "fps": 1 / period}
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        writer: Any
        with imageio.get_writer(unfinished, mode="I", **options) as writer:
            for flight in flights:
                for frame in draw_film(flight, title):
                    writer.append_data(frame)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
