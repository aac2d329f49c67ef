"""The agent's command line: ``python -m stbench.agent COMMAND``; JSON in on stdin, JSON lines out on stdout.

    probe [--library LIB] [--path DIR]    -> one DeviceFacts line
    run [--record-file FILE]              JobSpec line -> one RunRecord line
    make                                  MakeRequest -> Progress lines, then one ModelFile line
    digest                                MakeRequest (path only) -> Progress lines, then one ModelFile line
    rooflines                             LimitsRequest -> one LimitResult line per probe

Messages are described in wire.py; logs go to stderr. Exit codes: 0 when the answer was printed (a failed
run is an answer: see its status), 1 when ``make`` or ``digest`` ended with another status than "ok", 2 for
unreadable input.
"""

import argparse
import os
import signal
import sys
from typing import Any, List, Optional, Type

from . import limits, model_file, probe, sbr, supervise, wire
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


def _run(args: argparse.Namespace) -> int:
    job = _input(wire.JobSpec)
    line = wire.dumps(supervise.run_job(job)) + "\n"
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
    request = _input(wire.MakeRequest)
    stopped_by: List[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stopped_by.append(number))

    def stop() -> bool:
        return bool(stopped_by)

    try:
        if args.command == "digest":
            result = model_file.digest(request.path, _print, stop)
        elif request.spec is None:
            raise wire.WireError("MakeRequest.spec: missing")
        else:
            result = model_file.make(sbr.load(request.library), request.spec, request.path, _print, stop)
    except model_file.Cancelled as error:
        result = wire.ModelFile("cancelled", request.path, str(error))
    except (sbr.NativeError, OSError, MemoryError) as error:
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
    command = commands.add_parser("run", help="measure one job")
    command.add_argument("--record-file", default="", help="append the record to this file, too")
    command.set_defaults(run=_run)
    for name, text in (("make", "write a synthetic model"), ("digest", "hash a model file once")):
        commands.add_parser(name, help=text).set_defaults(run=_model)
    commands.add_parser("rooflines", help="measure the machine's limits").set_defaults(run=_rooflines)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
        return code
    except (wire.WireError, sbr.LoadError) as error:
        sys.stderr.write("stbench.agent: %s\n" % error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
