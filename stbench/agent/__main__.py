"""The agent's command line: ``python -m stbench.agent COMMAND``; JSON in on stdin, JSON lines out on stdout.

    probe [--library LIB] [--path DIR]    -> one DeviceFacts line
    run [--record-file FILE]              JobSpec line -> one RunRecord line
    run --spool DIR --owner TEXT          JobSpec line, then the line "cancel" if need be -> Alive lines every
                                          2 s, then one RunRecord line. The job is detached: the end of stdin
                                          or stdout ends only the following of it. The same job submitted
                                          again is attached to, or its record is printed at once
    spool DIR --list                      -> one SpoolEntry line per job that lies there
    spool DIR --forget                    Receipt lines -> nothing; removes what the host has
    capture [--path DIR] [--root DIR]     -> one Capture line: the machine, or the tree below DIR
    make                                  MakeRequest -> Progress lines, then one ModelFile line
    bundle                                BundleRequest -> Progress lines, then one ModelFile line
    digest                                MakeRequest (path only) -> Progress lines, then one ModelFile line
    rooflines                             LimitsRequest -> one LimitResult line per probe
    describe                              MakeRequest (path, library) -> one ModelHeader line
    note-digest                           ModelFile (path, sha256) -> one ModelFile line
    compile                               CompileRequest -> Progress lines, then one CompileResult line
    clean                                 CleanRequest -> one CleanResult line

Messages are described in wire.py; logs go to stderr. Exit codes: 0 when the answer was printed (a failed
run is an answer: see its status), 1 when ``make``, ``bundle`` or ``digest`` ended with another status than
"ok" or the following of a detached job ended before it, 2 for unreadable input, 74 when the spool cannot be
used, 75 when somebody else has the board.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any, List, Optional, Type

from . import (
    bundle_file,
    capture,
    compiling,
    describe,
    follow,
    housekeeping,
    lease,
    limits,
    memscope,
    model_file,
    probe,
    sbr,
    supervise,
    wire,
)
from .spool import Spool
from .tree import Tree
from .wirejson import T


def _print(message: Any) -> None:
    sys.stdout.write(wire.dumps(message) + "\n")
    sys.stdout.flush()


def _input(kind: Type[T]) -> T:
    return wire.loads(kind, sys.stdin.readline())


def _probe(args: argparse.Namespace) -> int:
    isas: List[str] = []
    if args.library:
        isas = [isa.name for isa in sbr.load(args.library).isas() if isa.supported]
    _print(probe.probe(isas=isas, work_path=args.path))
    return 0


def _capture(args: argparse.Namespace) -> int:
    _print(capture.capture(Tree(args.root), args.path))
    return 0


def _run(args: argparse.Namespace) -> int:
    if args.spool:
        boot_id = args.boot_id or lease.boot_id()
        return follow.run(follow.Request(Spool(args.spool), args.owner, args.wait, boot_id))
    job = _input(wire.JobSpec)
    line = wire.dumps(supervise.run_job(job, in_scope=args.in_scope)) + "\n"
    if args.record_file:
        append_line(args.record_file, line)
    try:
        sys.stdout.write(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # The link is gone. The record is in its file, for whoever asks next.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if args.record_file else 1
    return 0


def _spool(args: argparse.Namespace) -> int:
    spool = Spool(args.directory)
    try:
        for entry in spool.entries() if args.list else ():
            _print(entry)
        for line in sys.stdin if args.forget else ():
            spool.forget(wire.loads(wire.Receipt, line))
    except OSError as error:
        sys.stderr.write("stbench.agent: the spool %s: %s\n" % (spool.directory, error))
        return follow.EXIT_SPOOL
    return 0


def append_line(path: str, line: str) -> None:
    """Appends a line and makes it last; a torn line of an earlier death is closed first."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        torn = False
        if size:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode())
        file.flush()
        os.fsync(file.fileno())


def _model(args: argparse.Namespace) -> int:
    request: Any = _input(wire.BundleRequest if args.command == "bundle" else wire.MakeRequest)
    stopped_by: List[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stopped_by.append(number))

    def stop() -> bool:
        return bool(stopped_by)

    try:
        if args.command == "digest":
            result = model_file.digest(request.path, _print, stop)
        elif args.command == "bundle":
            result = bundle_file.make(sbr.load(request.library), request, _print, stop)
        elif request.spec is None:
            raise wire.WireError("MakeRequest.spec: missing")
        else:
            result = model_file.make(sbr.load(request.library), request.spec, request.path, _print, stop)
    except model_file.Cancelled as error:
        result = wire.ModelFile("cancelled", request.path, str(error))
    except wire.WireError:
        raise
    except (sbr.NativeError, OSError, ValueError, MemoryError) as error:
        status, detail = supervise.status_of(error)
        result = wire.ModelFile(status, request.path, detail)
    _print(result)
    return 0 if result.status == "ok" else 1


def _rooflines(_args: argparse.Namespace) -> int:
    request = _input(wire.LimitsRequest)
    library = sbr.load(request.library)
    for one in request.probes:
        _print(limits.measure_limit(library, one))
    return 0


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="stbench.agent", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser("probe", help="what kind of machine this is")
    command.add_argument("--library", default="", help="libsbr.so, for the instruction sets")
    command.add_argument("--path", default="/", help="where models lie, for the storage facts")
    command.set_defaults(run=_probe)
    command = commands.add_parser("capture", help="files of /proc and /sys that tell what is wrong")
    command.add_argument("--path", default="", help="where our files lie or will lie")
    command.add_argument(
        "--root", default=Path("/"), type=Path, help="a captured tree instead of this machine"
    )
    command.set_defaults(run=_capture)
    command = commands.add_parser("run", help="measure one job")
    command.add_argument("--record-file", default="", help="append the record to this file, too")
    command.add_argument("--spool", default="", help="detach the job; its record goes into this directory")
    command.add_argument("--owner", default="", help="who submits it, for whoever finds the board busy")
    command.add_argument("--wait", type=float, default=0.0, help="seconds to wait for a busy board (0)")
    command.add_argument("--boot-id", default="", help="which boot this is (default: what the kernel says)")
    # For ourselves (memscope.py).
    command.add_argument(memscope.FLAG, action="store_true", help=argparse.SUPPRESS)
    command.set_defaults(run=_run)
    command = commands.add_parser("spool", help="jobs that were detached")
    command.add_argument("directory", help="as in run --spool")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="what lies there")
    what.add_argument("--forget", action="store_true", help="remove the jobs of the receipts on stdin")
    command.set_defaults(run=_spool)
    for name, text in (
        ("make", "write a synthetic model"),
        ("bundle", "write the bundle of a model"),
        ("digest", "hash a model file once"),
    ):
        commands.add_parser(name, help=text).set_defaults(run=_model)
    commands.add_parser("rooflines", help="measure the machine's limits").set_defaults(run=_rooflines)
    commands.add_parser("describe", help="what a GGUF file's header says").set_defaults(run=describe.run)
    commands.add_parser("note-digest", help="keep a digest").set_defaults(run=housekeeping.note_digest)
    commands.add_parser("compile", help="compile the runtime here").set_defaults(run=compiling.run)
    commands.add_parser("clean", help="remove old files of ours").set_defaults(run=housekeeping.run_clean)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
        return code
    except (wire.WireError, sbr.LoadError) as error:
        sys.stderr.write("stbench.agent: %s\n" % error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
