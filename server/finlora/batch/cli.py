"""`finlora batch`: OpenAI's batch files, by this process or by a server."""

import argparse
import asyncio
import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO

import httpx

from finlora.batch.clients import in_process, remote
from finlora.batch.requests import ENDPOINTS, Line, read_lines
from finlora.batch.responses import ResponseFile
from finlora.batch.run import BatchRun, Tally
from finlora.errors import ConfigError
from finlora.failures import ExitCode
from finlora.flags import add_settings_flags
from finlora.predict.progress import View, show_warnings, watched
from finlora.predict.where import SETTINGS, engine_settings, server_key
from finlora.usage import Parser

CONCURRENCY = 64


def main(argv: list[str]) -> int:
    """Answer a file of requests. 3: some responses are errors. Raises FinLoRAError."""
    args = parser().parse_args(argv)
    show_warnings()
    connection = _connection(args)
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        raise ConfigError(f"{args.output} is the input; name another file with -o")
    with (
        _opened(args.input) as stream,
        ResponseFile(args.output, anew=args.overwrite) as output,
        watched() as view,
    ):
        if output.num_known:
            view.line(f"goes on after {output.num_known:,} responses")
        tally = asyncio.run(_run(connection, stream, args, output, view))
        view.line(_summary(tally, output))
    return ExitCode.PARTLY if output.num_bad else ExitCode.DONE


def parser() -> Parser:
    """The options of `finlora batch`."""
    parser = Parser(
        prog="finlora batch",
        description="Answer a file in OpenAI's batch format: a line is {custom_id, method, url, "
        f"body}}, with url one of {', '.join(ENDPOINTS)}. Responses come in the order in which "
        "they are ready. A run that is started again answers what has no line in the output.",
    )
    add = parser.add_argument
    add("input", type=Path, help="JSON lines of requests")
    add("-o", "--output", type=Path, required=True, help="JSON lines of responses")
    add("--overwrite", action="store_true", help="begin the output anew")
    add("--concurrency", type=_count, default=CONCURRENCY, metavar="N",
        help=f"requests at a time (default: {CONCURRENCY})")  # fmt: skip
    add("--url", help="ask this server instead of loading the base (key: FINLORA_API_KEY)")
    engine = parser.add_argument_group("engine settings, as of finlora serve")
    add_settings_flags(engine, SETTINGS)
    return parser


async def _run(
    connection: AbstractAsyncContextManager[httpx.AsyncClient],
    stream: BinaryIO,
    args: argparse.Namespace,
    output: ResponseFile,
    view: View,
) -> Tally:
    async with connection as client:
        run = BatchRun(client, output, view, concurrency=args.concurrency)
        num_bytes = _num_bytes(stream)

        def lines() -> Iterator[Line]:
            for line in read_lines(stream, args.input):
                run.fraction = stream.tell() / num_bytes if num_bytes else None
                yield line

        return await run.send_all(lines())


def _connection(args: argparse.Namespace) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    if args.url is None:
        return in_process(engine_settings(args), args.concurrency)
    return remote(args.url, server_key(args), args.concurrency)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _num_bytes(stream: BinaryIO) -> int:
    """0: nobody knows how much there is, as of a pipe."""
    return os.fstat(stream.fileno()).st_size if stream.seekable() else 0


def _summary(tally: Tally, output: ResponseFile) -> str:
    num = tally.num_known + tally.num_new
    bad = f", {output.num_bad:,} of them with errors" if output.num_bad else ""
    return f"{num:,} responses in {output.path}{bad}"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or more")
    return int(text)
