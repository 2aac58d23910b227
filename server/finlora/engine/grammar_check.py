"""A process that compiles grammars before the server does, so that it is not the server that dies.

`python -m finlora.engine.grammar_check` reads JSON, one object a line: first the tokenizer, then
grammars; for each grammar it writes a line with the error, or null. It ends with its input. What
takes too much CPU time or memory, or overflows the stack, ends it, too.
"""

import json
import os
import resource
import sys
import threading
from typing import Any, TextIO

from finlora.engine.constraints import GrammarKind
from finlora.engine.guidance import GuidanceCompiler, TokenizerFacts
from finlora.errors import InvalidSamplingParamsError

CPU_SECONDS = 3  # for one grammar
MEMORY_BYTES = 2 * 2**30  # of address space
# Less than the server's own threads have: what fits here fits there.
STACK_BYTES = 4 * 2**20


def main() -> None:
    """Check grammars until the input ends."""
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=_serve, args=(sys.stdin, sys.stdout))
    worker.start()
    worker.join()


def _serve(requests: TextIO, answers: TextIO) -> None:
    compiler = GuidanceCompiler(TokenizerFacts(**json.loads(requests.readline())))
    for line in requests:
        _allow_cpu_seconds(CPU_SECONDS)
        answers.write(json.dumps({"error": _error(compiler, **json.loads(line))}) + "\n")
        answers.flush()


def _error(compiler: GuidanceCompiler, *, kind: str, source: str) -> str | None:
    try:
        compiler.compile(GrammarKind(kind), source)
    except InvalidSamplingParamsError as error:
        return str(error)
    return None


def _allow_cpu_seconds(seconds: int) -> None:
    used: Any = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, most))


if __name__ == "__main__":
    main()
