"""The headless runner: `./scripts/demo`, or `python demo/runner.py` in an environment that has a host.

    ./scripts/demo                                   the comparison sheet
    ./scripts/demo WORKFLOW.json --set KSampler.seed=3 --out pictures
    ./scripts/demo WORKFLOW.json --server 127.0.0.1:8188
"""

from __future__ import annotations

import sys

if not __package__:  # run as a file: come back as lodestar.demo.runner
    import os

    sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts"))
    import _alias

    sys.path.pop()
    _alias.install()
    from lodestar.demo.runner import main as _main

    raise SystemExit(_main())

import argparse
import os
import time
from contextlib import nullcontext
from pathlib import Path

from ..scripts._process import interruptible, note
from . import runner_convert, runner_sheet, runner_workflow
from .runner_client import Client, address, texts_of
from .runner_errors import Failure, ServerGone, disk
from .runner_progress import Progress
from .runner_server import Server


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="scripts/demo", description="Run a ComfyUI workflow headless. Without a workflow: the comparison sheet.")
    p.add_argument("workflow", nargs="?", metavar="WORKFLOW.json", help="a workflow, in API format or as the page saves it")
    p.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="settings",
                   help="change an input; NODE is an id, a title, or a class name that occurs once (may be repeated)")
    p.add_argument("--out", default="output", metavar="DIR", help="where the results go (default: ./output)")
    p.add_argument("--server", metavar="HOST:PORT", help="use this ComfyUI instead of starting one")
    p.add_argument("--timeout", type=float, default=None, metavar="S", help="give up on a workflow after so many seconds")
    p.add_argument("--start-timeout", type=float, default=300.0, metavar="S", help="how long the host may take to start (default: 300)")
    p.add_argument("--port", type=int, default=None, help="port for our own host (default: a free one)")
    p.add_argument("--cpu", action="store_true", help="do not use a GPU")
    p.add_argument("--model", choices=runner_sheet.GENERATORS, default="unet", help="the comparison sheet's bundled model (default: unet)")
    p.add_argument("--prompt", action="append", default=None, help="a prompt of the comparison sheet (may be repeated)")
    p.add_argument("--seed", type=int, default=runner_sheet.SEED, help=f"first seed of the comparison sheet (default: {runner_sheet.SEED})")
    p.add_argument("--host", default=os.environ.get("LODESTAR_HOST_PATH"), metavar="DIR", help=argparse.SUPPRESS)
    return p


def check(args: argparse.Namespace) -> dict | None:
    """All that can be wrong before anything is installed or started; the workflow, if one is given."""
    if args.server:
        args.server = address(args.server)
    for name in ("timeout", "start_timeout"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise Failure(f"--{name.replace('_', '-')} must be a positive number of seconds.")
    if args.port is not None and not 0 < args.port < 65536:
        raise Failure(f"--port {args.port}: ports go from 1 to 65535.")
    value = None
    if args.workflow is not None:
        value = runner_workflow.load(args.workflow)
        if args.settings and runner_workflow.is_api(value):
            runner_workflow.apply_set(runner_workflow.load(args.workflow), args.settings)  # a trial: the server's node classes are not known yet
    elif args.settings:
        raise Failure("--set changes inputs of a workflow: name the workflow's file too.")
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "no permission")
    except OSError as e:
        raise disk(e, out) from e
    return value


def run_workflow(client: Client, value: dict, args: argparse.Namespace) -> list[Path]:
    """Convert if need be, apply the settings, run, download."""
    info = client.object_info()
    if runner_workflow.is_ui(value):
        value = runner_convert.to_api(value, info)
    runner_workflow.apply_set(value, args.settings, info, client.upload)
    runner_workflow.check_classes(value, info)
    name = Path(args.workflow).name
    outputs = client.run(value, Progress(), args.timeout, name)
    for node_id, output in outputs.items():
        for text in texts_of(output):
            note(f"{runner_workflow.describe(node_id, value)}: {text}")
    return client.download(outputs, Path(args.out))


def run(args: argparse.Namespace) -> int:
    begin = time.monotonic()
    value = check(args)
    if not args.server and not args.host:
        raise Failure("No ComfyUI is named: start this through ./scripts/demo, or give --server HOST:PORT.")
    own = None if args.server else Server(args.host, port=args.port, cpu=True if args.cpu else None, start_timeout=args.start_timeout,
                                          users=os.environ.get("LODESTAR_HOST_ORIGIN") in ("COMFYUI_PATH", "custom_nodes"))
    if own is not None:
        note("Starting the host ...")
    with own or nullcontext():
        client = Client(own.url if own else args.server, own.alive if own else lambda: True)
        version = client.version()
        note(f"ComfyUI {version or os.environ.get('LODESTAR_HOST_VERSION', '')} at {client.base}"
             + (f", started in {own.start_seconds:.1f} s ({'CPU' if own.cpu else 'GPU'})" if own else ""))
        try:
            if value is not None:
                paths = run_workflow(client, value, args)
            else:
                paths = [runner_sheet.make(client, Path(args.out), Progress(), args.timeout, args.model, args.prompt or runner_sheet.PROMPTS, args.seed)]
        except ServerGone as e:
            if own is None:
                raise
            how = own.death()
            what = f"The host ended while it worked on the workflow ({how})." if how else str(e)
            raise ServerGone(f"{what} The last lines of its log:\n{own.tail()}") from e
    for path in paths:
        print(path)
    note(f"{len(paths)} file{'s' if len(paths) != 1 else ''} in {time.monotonic() - begin:.1f} s" if paths else "Done; the workflow has made no files.")
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        with interruptible():
            return run(args)
    except Failure as e:
        note(f"error: {e}")
        return e.code
    except KeyboardInterrupt as e:
        note("\ninterrupted; nothing is left running")
        return getattr(e, "code", 130)
    except OSError as e:
        note(f"error: {disk(e, getattr(e, 'filename', None) or 'a file')}")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
